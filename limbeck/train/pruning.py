"""Students cut out of their teachers: fewer layers, narrower matrices, the teacher's weights in what is left.

Which matrices belong together is one table a family: the roles of a module's dimensions, by the end of its name. Torch
is loaded where there is something to cut.
"""

import copy
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LimbeckError
from ..fingerprint import canonical, digest
from ..models import Model, files, get, trained
from ..models.hf import HF
from ..run import current
from . import checkpoint

if TYPE_CHECKING:
    import torch

KEEPS = ("first", "norm")


@dataclasses.dataclass(frozen=True)
class Family:
    """Models built alike. `layer` finds a layer's number in a parameter's name; `inner` is the config's name of d_ff.

    Roles: d the hidden size, f the inner units, q the query heads, k the heads of keys and values, qkv the three packed
    side by side, h one number a head; a dash stays. A bias has its weight's role at `bias`.
    """

    layer: str
    inner: str
    embedding: str
    roles: dict[str, str]
    bias: int = 0  # of a linear layer: (out, in); GPT-2 has (in, out)
    tied: bool = False  # the width of a head is always hidden size / heads


_LLAMA = Family(
    r"layers\.(\d+)\.", "intermediate_size", "embed_tokens",
    {
        "embed_tokens": "- d", "lm_head": "- d", "score": "- d", "q_proj": "q d", "k_proj": "k d", "v_proj": "k d",
        "o_proj": "d q", "q_norm": "-", "k_norm": "-", "gate_proj": "f d", "up_proj": "f d", "down_proj": "d f",
        "norm": "d",
    },
)  # fmt: skip
_GPT2 = Family(
    r"h\.(\d+)\.", "n_inner", "wte",
    {
        "wte": "- d", "wpe": "- d", "lm_head": "- d", "score": "- d", "c_attn": "d qkv", "attn.c_proj": "q d",
        "mlp.c_fc": "d f", "mlp.c_proj": "f d", "ln_1": "d", "ln_2": "d", "ln_f": "d",
    },
    bias=-1, tied=True,
)  # fmt: skip
_BERT = Family(
    r"encoder\.layer\.(\d+)\.", "intermediate_size", "word_embeddings",
    {
        "word_embeddings": "- d", "position_embeddings": "- d", "token_type_embeddings": "- d", "LayerNorm": "d",
        "self.query": "q d", "self.key": "q d", "self.value": "q d", "attention.output.dense": "d q",
        "intermediate.dense": "f d", "output.dense": "d f", "pooler.dense": "d d", "transform.dense": "d d",
        "predictions.decoder": "- d", "predictions": "-", "seq_relationship": "- d", "classifier": "- d",
    },
    tied=True,
)  # fmt: skip
_T5 = Family(
    r"(?:encoder|decoder)\.block\.(\d+)\.", "d_ff", "shared",
    {
        "shared": "- d", "embed_tokens": "- d", "lm_head": "- d", "layer_norm": "d", "Attention.q": "q d",
        "Attention.k": "q d", "Attention.v": "q d", "Attention.o": "d q", "relative_attention_bias": "- h",
        "wi": "f d", "wi_0": "f d", "wi_1": "f d", "wo": "d f", "classification_head.dense": "d d",
        "classification_head.out_proj": "- d",
    },
)  # fmt: skip
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    "gpt2": _GPT2, "bert": _BERT, "t5": _T5,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a model measures. `group` is how many query heads share a head of keys and values."""

    hidden: int
    inner: int
    heads: int
    group: int
    head_dim: int

    @classmethod
    def of(cls, config: Any, family: Family) -> "Sizes":
        hidden, heads = config.hidden_size, config.num_attention_heads
        group = heads // (getattr(config, "num_key_value_heads", None) or heads)
        inner = getattr(config, family.inner) or 4 * hidden  # of GPT-2, where it says none
        return cls(hidden, inner, heads, group, getattr(config, "head_dim", None) or hidden // heads)


@dataclasses.dataclass(frozen=True)
class Cut:
    """What is cut: the layers that stay, by the config's name of their number, and the sizes before and after."""

    family: Family
    layers: dict[str, list[int]]
    before: Sizes
    after: Sizes
    keep: str

    def stays(self, name: str) -> list[int]:
        """The layers that stay in the stack of a parameter, by their old numbers."""
        stack = "num_decoder_layers" if "decoder.block." in name else "num_hidden_layers"
        return self.layers[stack]


def prune(
    teacher: "Model | str",
    *,
    layers: "int | Sequence[int] | None" = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    heads: int | None = None,
    keep: str = "first",
) -> Model:
    """Writes a smaller model cut out of the teacher's weights into the open run, once: run again, it is reused.

    `layers=n` keeps layer ⌊i·L/n⌋ of L for i = 0 … n-1: evenly spaced from the first, and every second one for half of
    them as in DistilBERT (arXiv 1910.01108); a sequence names the layers, from 0, in their new order. T5 has both
    stacks cut alike. `intermediate_size` (units of each feed-forward), `heads` (query heads; whole groups that share
    keys and values go together, a head keeps its width) and `hidden_size` keep the leading ones, or with keep="norm"
    those of the largest Euclidean norm, in their old order: of all weights of a unit or group in each layer by itself
    (T5's self-attention: over a whole stack, whose layers share the position bias), and of the columns of the input
    embedding. For Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3 (text), GPT-2, BERT and T5. Raises LimbeckError for any
    other and for sizes that do not fit, before weights are loaded.
    """
    run = current("prune")
    teacher = get(teacher) if isinstance(teacher, str) else teacher
    if not isinstance(teacher, HF):
        raise LimbeckError(f"prune wants a teacher with weights; '{teacher.name}' has none here: use hf/NAME.")
    config = files.load("AutoConfig", teacher)
    widths = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "heads": heads}
    cut = _check(teacher.name, config, layers, widths, keep)
    if run.plan is not None:
        return teacher
    told = {"layers": cut.layers, "sizes": dataclasses.asdict(cut.after), "keep": keep}
    key = digest(teacher.digest, canonical(told), Path(__file__).read_bytes())
    path, name = run.dir / "models" / key[:16], f"{teacher.name}+prune"
    reused, began = (path / "meta.json").exists(), time.monotonic()
    if not reused:
        meta = {"name": name, "key": key, "teacher": teacher.name, **told}
        _write(teacher, cut, path, meta)
    seconds = round(time.monotonic() - began, 3)
    run.event("prune", **json.loads((path / "meta.json").read_text()), seconds=seconds,
              path=str(path.relative_to(run.dir)), reused=reused)  # fmt: skip
    return trained(path, name=name, digest=key)


def _check(who: str, config: Any, layers: Any, widths: dict[str, int | None], keep: str) -> Cut:
    """Settles what is cut. Raises LimbeckError where that cannot be."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise LimbeckError(
            f"prune knows {', '.join(FAMILIES)}; {who} is of type {config.model_type}: use one of those."
        )
    if keep not in KEEPS:
        raise LimbeckError(f"prune wants keep as one of {', '.join(KEEPS)}; it got {keep!r}.")
    before = Sizes.of(config, family)
    has = {"hidden_size": before.hidden, "intermediate_size": before.inner, "heads": before.heads}
    for name, value in widths.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= has[name]):
            raise LimbeckError(f"prune wants {name} as a whole number from 1 to {has[name]}, as {who}; got {value!r}.")
    hidden, inner, heads = (widths[name] or has[name] for name in has)
    if heads % before.group:
        raise LimbeckError(
            f"prune wants heads as a multiple of {before.group}, as so many share one key in {who}; it got {heads}."
        )
    if family.tied and hidden != heads * before.head_dim:
        raise LimbeckError(
            f"prune wants hidden_size = heads × {before.head_dim} for {who}, whose heads keep their width; it got "
            f"hidden_size={hidden} and heads={heads}: give both."
        )
    if family is _LLAMA and (hidden, heads) != (before.hidden, before.heads) and hidden % heads:
        raise LimbeckError(f"prune wants hidden_size as a multiple of heads for {who}; it got {hidden} and {heads}.")
    depths = {"num_hidden_layers": config.num_hidden_layers}
    if family is _T5:
        depths["num_decoder_layers"] = config.num_decoder_layers
    stays = {name: _stays(who, layers, depth) for name, depth in depths.items()}
    by_place = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    if by_place and any(stays[name] != list(range(depths[name])) for name in depths):
        raise LimbeckError(f"prune cannot cut layers of {who}, which scales attention by a layer's number; cut widths.")
    return Cut(family, stays, before, dataclasses.replace(before, hidden=hidden, inner=inner, heads=heads), keep)


def _stays(who: str, layers: Any, depth: int) -> list[int]:
    """The layers that stay, of `depth`."""
    if layers is None:
        return list(range(depth))
    numbers = [layers] if isinstance(layers, int) else list(layers) if isinstance(layers, Sequence) else []
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    if whole and isinstance(layers, int) and 0 < layers <= depth:
        return [i * depth // layers for i in range(layers)]
    fits = whole and numbers and len(set(numbers)) == len(numbers) and 0 <= min(numbers) <= max(numbers) < depth
    if isinstance(layers, int) or not fits:
        raise LimbeckError(
            f"prune wants layers as a number from 1 to {depth}, or different ones of 0 to {depth - 1}, as {who} has "
            f"{depth}; it got {layers!r}."
        )
    return numbers


def _smaller(config: Any, cut: Cut) -> Any:
    """The config of what is left."""
    small, after = copy.deepcopy(config), cut.after
    depth, stays = config.num_hidden_layers, cut.layers["num_hidden_layers"]
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list) and len(value) == depth:  # layer_types and its like
            setattr(small, name, [value[i] for i in stays])
    for name, stays in cut.layers.items():
        setattr(small, name, len(stays))
    if after != cut.before:
        small.hidden_size, small.num_attention_heads = after.hidden, after.heads
        setattr(small, cut.family.inner, after.inner)
        if cut.family is _LLAMA:
            small.num_key_value_heads, small.head_dim = after.heads // after.group, after.head_dim
    return small


def _write(teacher: HF, cut: Cut, path: Path, meta: dict[str, Any]) -> None:
    """Cuts, and makes `path` appear whole."""
    import torch

    scratch = checkpoint.part(path)
    if rank := os.environ.get("RANK"):  # processes of torchrun cut the same, and the first one counts
        scratch = scratch.with_name(f"{scratch.name}{rank}")
    shutil.rmtree(scratch, ignore_errors=True)
    with files.quiet(), torch.no_grad():
        large = _large(teacher, cut.family)
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are all replaced
            small = type(large)(_smaller(large.config, cut)).to(large.dtype)
        small.load_state_dict(_cut(teacher.name, large.state_dict(), cut))
        if (settings := getattr(large, "generation_config", None)) is not None:
            small.generation_config = files.savable(settings)
        small.save_pretrained(scratch)
        teacher.tokenizer.save_pretrained(scratch)
    meta |= {"parameters": small.num_parameters(), "teacher_parameters": large.num_parameters()}
    (scratch / "meta.json").write_text(json.dumps(meta, indent=1))
    try:
        checkpoint.commit(scratch, path)
    except OSError:
        if not (path / "meta.json").exists():
            raise
        shutil.rmtree(scratch)


def _large(teacher: HF, family: Family) -> Any:
    """The teacher's weights, under the head that its checkpoint has."""
    named = files.config(teacher.path, teacher.revision).get("architectures")
    if family is _BERT and named and not (teacher.labels or teacher.adapter):
        return files.load(named[0], teacher, dtype=teacher.dtype or "float32")  # a masked language model stays one
    return teacher.weights(trainable=True)


def _cut(who: str, weights: "dict[str, torch.Tensor]", cut: Cut) -> "dict[str, torch.Tensor]":
    """The weights of what is left, under their new names."""
    left = {}
    for name, weight in weights.items():
        found = re.search(cut.family.layer, name)
        if found and "relative_attention_bias" not in name:  # T5's first layer holds it for all of them
            stays = cut.stays(name)
            if (old := int(found[1])) not in stays:
                continue
            name = f"{name[: found.start(1)]}{stays.index(old)}{name[found.end(1) :]}"
        left[name] = weight
    if cut.after == cut.before:
        return left
    roles = {name: _roles(who, name, weight, cut) for name, weight in left.items()}
    places = _places(left, roles, cut)
    return {
        name: _sliced(weight, [_index(role, places[_scope(role, name, cut)], cut.before) for role in roles[name]])
        for name, weight in left.items()
    }


def _roles(who: str, name: str, weight: "torch.Tensor", cut: Cut) -> list[str]:
    """What each dimension of a parameter stands for."""
    module, _, kind = name.rpartition(".")
    told = next((roles for end, roles in cut.family.roles.items() if module.endswith(end)), None)
    roles = (told or "").split()
    if weight.dim() < len(roles) and kind == "bias":
        roles = [roles[cut.family.bias]]
    at, heads = cut.before, cut.before.heads * cut.before.head_dim
    sizes = {"d": at.hidden, "f": at.inner, "q": heads, "k": heads // at.group, "qkv": 3 * heads, "h": at.heads}
    if len(roles) != weight.dim() or any(sizes.get(r, n) != n for r, n in zip(roles, weight.shape, strict=True)):
        raise LimbeckError(
            f"prune cannot tell what {name} {tuple(weight.shape)} of {who} is made of; cut layers alone, which it can."
        )
    return roles


def _scope(role: str, name: str, cut: Cut) -> str:
    """Which choice of units a dimension follows: one for all hidden ones, else one a layer; none for a dash."""
    if role in "-d":
        return role
    if "SelfAttention" in name:  # T5: all layers of a stack share the position bias of a head
        return "heads of " + name.partition(".block.")[0]
    found = re.search(cut.family.layer, name)
    assert found is not None
    return f"{'inner' if role == 'f' else 'heads'} of {name[: found.end()]}"


def _places(left: "dict[str, torch.Tensor]", roles: dict[str, list[str]], cut: Cut) -> "dict[str, torch.Tensor]":
    """The units that stay, in each scope, in their old order."""
    import torch

    before, after = (
        {"d": size.hidden, "inner": size.inner, "heads": size.heads // size.group} for size in (cut.before, cut.after)
    )
    squares: dict[str, torch.Tensor] = {}
    for name, weight in left.items():
        for dim, role in enumerate(roles[name]):
            if role in ("-", "h") or (role == "d" and not name.endswith(f"{cut.family.embedding}.weight")):
                continue
            scope = _scope(role, name, cut)
            square_n = weight.double().square().movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1)
            if role == "qkv":
                square_n = square_n.unflatten(0, (3, -1)).sum(0)
            square_u = square_n.unflatten(0, (before[scope.split()[0]], -1)).sum(1)
            squares[scope] = squares.get(scope, 0) + square_u
    places = {"-": torch.zeros(0)}
    for scope, square_u in squares.items():
        order_u = square_u.argsort(descending=True, stable=True)
        order_u = order_u if cut.keep == "norm" else torch.arange(len(order_u))
        places[scope] = order_u[: after[scope.split()[0]]].sort().values
    return places


def _index(role: str, units_u: "torch.Tensor", before: Sizes) -> "torch.Tensor | None":
    """The places along a dimension of that role; None for all of them."""
    import torch

    if role == "-":
        return None
    block = {"q": before.group * before.head_dim, "k": before.head_dim, "qkv": before.head_dim}.get(role, 1)
    at = (units_u[:, None] * block + torch.arange(block)).flatten()
    return torch.cat([at + i * before.heads * before.head_dim for i in range(3)]) if role == "qkv" else at


def _sliced(weight: "torch.Tensor", indexes: "Sequence[torch.Tensor | None]") -> "torch.Tensor":
    for dim, index in enumerate(indexes):
        if index is not None:
            weight = weight.index_select(dim, index)
    return weight
