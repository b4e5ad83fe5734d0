"""Running a model on a batch with its head held back: what it says comes out as hidden states and the head itself.

The logits of a batch are never made as a whole: `losses.heads` projects them in chunks. What a model does behind its
last matrix product (a scale, a soft cap) is read from its config, and compared with the model's own logits before
the first step; a head that is not understood is run as it stands, with full logits.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..losses import Batch, Outputs
from ..losses.heads import Head

LARGE = 100.0  # logits of the comparison: a soft cap shows only there


class Reader:
    """Reads batches with one model: Outputs at the learned positions, with layers and attention maps where wanted."""

    def __init__(self, model: Any, layers: bool = False, attentions: bool = False):
        self.model, self.layers, self.attentions = model, layers, attentions
        self.fused = understood(model)

    def __call__(self, batch: Batch) -> Outputs:
        with held_back(self.model) if self.fused else contextlib.nullcontext() as held:
            seen = self.model(
                **batch.inputs,
                use_cache=False,
                output_hidden_states=self.layers,
                output_attentions=self.attentions,
            )
            head = head_of(self.model) if self.fused else None
        last_btd = held[0] if held else seen.logits
        hidden_nd = last_btd.flatten(0, -2)[batch.at_n]
        return Outputs(
            hidden_nd,
            head,
            batch.labels_n,
            tuple(seen.hidden_states) if self.layers else (),
            tuple(seen.attentions) if self.attentions else (),
        )


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
        if not plain or projection.use_dora.get(adapters[0]) or projection.merged:
            return None
        (name,) = adapters
        if not isinstance(projection.lora_dropout[name], torch.nn.Identity):
            return None
        if not projection.disable_adapters:
            matrices = (projection.lora_A[name].weight, projection.lora_B[name].weight)
            low_rank = (*matrices, projection.scaling[name])
        projection = projection.base_layer
    if type(projection) is not torch.nn.Linear:
        return None
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(projection.weight, projection.bias, scale, softcap, low_rank)


@torch.no_grad()
def understood(model: Any) -> bool:
    """Whether `head_of` says what the model's own head does, at ordinary logits and at large ones. Warns if not."""
    if model.get_output_embeddings() is None or head_of(model) is None:
        return False  # a classifier, whose few logits are no burden, or an adapter that is no plain LoRA
    try:
        hidden, logits = _probe(model, 1.0)
        same = _agree(model, hidden, logits)
        peak = float(model.get_output_embeddings()(hidden).abs().max())
        same = same and _agree(model, *_probe(model, LARGE / max(peak, 1e-6)))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        same = False
    if not same:
        warnings.warn(
            f"the head of {type(model).__name__} does more than limbeck knows of; its logits are made in full.",
            stacklevel=2,
        )
    return same


def _probe(model: Any, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head is given for a few tokens, times `factor`, and the logits that the model makes of it."""
    ids = torch.arange(1, 5, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    given: list[torch.Tensor] = []

    def scale(_: Any, seen: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given.append(seen[0] * factor)
        return (given[0],)

    hook, was_training = model.get_output_embeddings().register_forward_pre_hook(scale), model.training
    try:
        logits = model.eval()(**inputs, use_cache=False).logits
        return given[0], logits
    finally:
        hook.remove()
        model.train(was_training)


def _agree(model: Any, hidden: Any, logits: torch.Tensor) -> bool:
    head = head_of(model)
    assert head is not None
    ours = head.logits(hidden.flatten(0, -2)).float().view_as(logits)
    return torch.allclose(ours, logits.float(), rtol=2e-2, atol=1e-3 * float(logits.abs().max().clamp_min(1)))


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
