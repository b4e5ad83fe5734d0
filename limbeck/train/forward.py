"""Running a model on a batch with its head held back: what it says comes out as hidden states and the head itself.

The logits of a batch are never made as a whole: `losses.heads` projects them in chunks. What a model does behind its
last matrix product (a scale, a soft cap) is read from its config, and compared with the model's own logits before
the first step; a head that is not understood is run as it stands, with full logits.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..errors import LimbeckError
from ..losses import Batch, Outputs
from ..losses.heads import Head

LARGE = 100.0  # logits of the comparison: a soft cap shows only there


class Reader:
    """Reads batches with one model: Outputs at the learned positions, with layers and attention maps where wanted.

    Of an encoder-decoder these are the decoder's. A classifier says one thing of each row: its few logits.
    `auxiliary` is what a mixture of experts asked for in the latest batch beside any loss, where its config says so:
    its balance (times the config's weight) summed over the learned positions, with a gradient; else 0.
    """

    def __init__(self, model: Any, layers: bool = False, attentions: bool = False):
        self.model, self.layers, self.attentions = model, layers, attentions
        if attentions:  # other ways of attending make no maps
            getattr(model, "get_base_model", lambda: model)().set_attn_implementation("eager")
        self.fused = understood(model)
        self.packs = False  # once it is known that it can
        self.auxiliary: Any = 0.0

    def __call__(self, batch: Batch) -> Outputs:
        if "position_ids" in batch.inputs and not self.packs:
            self._check_packing()
        with held_back(self.model) if self.fused else contextlib.nullcontext() as held:
            seen = self.model(
                **own(self.model, batch.inputs),
                use_cache=False,
                output_hidden_states=self.layers,
                output_attentions=self.attentions,
            )
            head = head_of(self.model) if self.fused else None
        if self.fused and head is None:  # or hidden states would pass for logits
            raise LimbeckError(
                f"the head of {type(self.model).__name__} is not what it was when training began; leave what changes "
                "it (an adapter, a wrapper) out."
            )
        last_btd = held[0] if held else seen.logits
        each, at_n = last_btd.flatten(0, -2), batch.at_n
        hidden_nd = each[at_n // batch.tokens_bt.shape[1] if last_btd.ndim == 2 else at_n]
        self.auxiliary = balance(self.model, seen) * len(batch.labels_n)
        return Outputs(
            hidden_nd,
            head,
            batch.labels_n,
            inside(seen, "hidden_states") if self.layers else (),
            inside(seen, "attentions") if self.attentions else (),
        )

    def _check_packing(self) -> None:
        if self.layers or self.attentions:
            raise LimbeckError(
                "a loss on layers or attention maps looks at whole sequences, one to a row; leave packing=False."
            )
        if not isolates(self.model):
            raise LimbeckError(
                f"train cannot pack with {self.model.config.model_type} models: position_ids alone do not keep their "
                "sequences apart; leave packing=False."
            )
        self.packs = True


def own(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch as a model takes it: a classifier made of a decoder finds a row's last token by its own id of padding."""
    pad = model.config.pad_token_id if model.get_output_embeddings() is None else None
    if pad is None or "attention_mask" not in inputs:
        return dict(inputs)
    return {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)}


def inside(seen: Any, what: str) -> tuple[torch.Tensor, ...]:
    """The hidden states or attention maps of the layers that lead to what a model says."""
    return tuple(getattr(seen, f"decoder_{what}", None) or getattr(seen, what))


def balance(model: Any, seen: Any) -> Any:
    """What a mixture of experts computed to use its experts evenly, times its config's weight; 0 where it does not."""
    found = getattr(seen, "aux_loss", None)
    return 0.0 if found is None else getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0) * found


@contextlib.contextmanager
def held_back(model: Any) -> Iterator[list[torch.Tensor]]:
    """Lets the model's forward run with a head that only notes what it is given."""
    projection, noted = model.get_output_embeddings(), []

    def note(hidden_btd: torch.Tensor) -> torch.Tensor:
        noted.append(hidden_btd)
        return hidden_btd.new_zeros(*hidden_btd.shape[:-1], 1)

    projection.forward = note
    try:
        yield noted
    finally:
        del projection.forward


def head_of(model: Any) -> Head | None:
    """The model's head as matrices; None where it is more than a projection with a scale and a soft cap."""
    projection, config = model.get_output_embeddings(), model.config.get_text_config()
    low_rank = None
    if hasattr(projection, "base_layer"):  # peft's LoRA around it
        adapters = getattr(projection, "active_adapters", [])
        plain = len(adapters) == 1 and adapters[0] in getattr(projection, "lora_A", {})
        if not plain or projection.merged or adapters[0] in projection.lora_variant:
            return None  # DoRA and the like
        (name,) = adapters
        if not isinstance(projection.lora_dropout[name], torch.nn.Identity) or projection.lora_B[name].bias is not None:
            return None
        if not projection.disable_adapters:
            matrices = (projection.lora_A[name].weight, projection.lora_B[name].weight)
            low_rank = (*matrices, projection.scaling[name])
        projection = projection.base_layer
    if type(projection).forward is not torch.nn.Linear.forward:  # a class of FSDP2's own has it too
        return None
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(projection.weight, projection.bias, scale, softcap, low_rank)


@torch.no_grad()
def understood(model: Any) -> bool:
    """Whether `head_of` says what the model's own head does, at ordinary logits and at large ones. Warns if not."""
    if model.get_output_embeddings() is None:
        return False  # a classifier, whose few logits are no burden
    try:
        same = head_of(model) is not None and _agree(model, 1.0) and _agree(model, LARGE)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        same = False
    if not same:
        warnings.warn(
            f"the head of {type(model).__name__} does more than limbeck knows of; its logits are made in full.",
            stacklevel=2,
        )
    return same


def _agree(model: Any, peak: float) -> bool:
    """Compares the two on a few tokens, whose hidden states are scaled until the largest product is `peak`."""
    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    ids = torch.arange(1, 5, device=device)[None] % vocabulary
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    projection, given = model.get_output_embeddings(), []

    def scale(_: Any, seen: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given.append(seen[0] * (peak / projection.forward(seen[0]).abs().max().clamp_min(1e-6)))
        return (given[0],)

    hook = projection.register_forward_pre_hook(scale)
    try:
        with evaluating(model):
            logits = model(**inputs, use_cache=False).logits.float()
    finally:
        hook.remove()
    head = head_of(model)
    assert head is not None
    ours = head.logits(given[0].flatten(0, -2)).float().view_as(logits)
    return torch.allclose(ours, logits, rtol=2e-2, atol=1e-3 * float(logits.abs().max().clamp_min(1)))


@torch.no_grad()
def isolates(model: Any) -> bool:
    """Whether a packed sequence gets the logits that it gets alone, whatever stands before it.

    Two rows of two sequences: flash attention would tell those of one row apart, and not those of two.
    """
    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    ids = torch.arange(1, 17, device=device).view(2, 8) % vocabulary
    # The first sequences change places: no expert of a mixture gets more tokens, so nothing is rounded anew.
    swapped = torch.cat([ids[:, :3].flip(0), ids[:, 3:]], 1)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]] * 2, device=device)
    try:
        with evaluating(model):
            one, other = (
                model(input_ids=some, position_ids=positions, use_cache=False).logits[:, 3:] for some in (ids, swapped)
            )
            alone = model(input_ids=ids[:, 3:], use_cache=False).logits
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    large, leak, away = (float(change.abs().max()) for change in (one, one - other, one - alone))
    return leak <= 1e-6 * large and away <= 3e-2 * large


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switches dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def through(wrapped: Any, inner: Any, step: Callable[[], Any]) -> Any:
    """Runs `step` as the forward of the wrapped model, where gradients are synchronised and shards are gathered.

    `step` may call `inner`, whose own forward is back in place by then.
    """
    own = inner.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.forward = own

    def forward(*_: Any, **__: Any) -> Any:
        restore()
        return step()

    inner.forward = forward
    try:
        return wrapped()
    finally:
        restore()
