"""The arithmetic of the fused head on CUDA: `pointwise` compiled by Triton, one row of logits per program.

A row is read once for the two softmaxes, once for Σ term and Σ slope, and once more to write its gradient over the
logits; forward KL, whose Σ slope is known, does without the second. Whatever Triton cannot compile (a user's own
divergence, fp64) takes the torch path. Without a GPU all of this runs in Triton's interpreter, which is how it is
tested.
"""

import functools
import types
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import pointwise
from .divergences import Rule

BLOCK = 4096  # logits of a row at a time


def can(rule: Rule) -> bool:
    """Whether Triton can compile this divergence."""
    return rule.fn.__module__ == pointwise.__name__


@functools.cache
def compiled(fn: Any) -> Any:
    """A function of `pointwise`, with the helpers that it calls, over `triton.language`."""
    names = {"xp": tl, "TINY": tl.constexpr(pointwise.TINY)}
    if fn is not pointwise.times:
        names["times"] = compiled(pointwise.times)
    return triton.jit(types.FunctionType(fn.__code__, names | {"__name__": __name__}, fn.__name__))


@triton.jit
def softmax_of(row_ptr, columns, inverse, BLOCK: tl.constexpr):
    """The largest logit of a row, over the temperature, and Σ exp(logit − largest)."""
    top, mass = -1e30, 0.0
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + at, mask=at < columns, other=-float("inf")).to(tl.float32) * inverse
        higher = tl.maximum(top, tl.max(logits, 0))
        mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher), 0)
        top = higher
    return top, mass


@triton.jit
def at_tokens(z_ptr, t_ptr, at, columns, inverse, z_norm, t_norm, x, y, fn: tl.constexpr):
    """Term, slope and q of some tokens; beyond the row's end nobody says anything, which adds nothing."""
    lq = tl.load(z_ptr + at, mask=at < columns, other=-1e30).to(tl.float32) * inverse - z_norm
    lp = tl.load(t_ptr + at, mask=at < columns, other=-1e30).to(tl.float32) * inverse - t_norm
    q = tl.exp(lq)
    term, slope = fn(lp, lq, tl.exp(lp), q, x, y)
    return term, slope, q


@triton.jit
def diverge_row(
    z_ptr, z_row, t_ptr, t_row, out_ptr, out_row, value_ptr, weight_ptr, x_ptr, x_row, y, columns, inverse,
    fn: tl.constexpr, KNOWN: tl.constexpr, WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_ptr, t_ptr, out_ptr = z_ptr + row * z_row, t_ptr + row * t_row, out_ptr + row * out_row
    z_top, z_mass = softmax_of(z_ptr, columns, inverse, BLOCK)
    t_top, t_mass = softmax_of(t_ptr, columns, inverse, BLOCK)
    z_norm, t_norm = z_top + tl.log(z_mass), t_top + tl.log(t_mass)
    x, value, total = tl.load(x_ptr + row * x_row), 0.0, -1.0
    if not (KNOWN and WRITE):
        total = 0.0
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            term, slope, q = at_tokens(z_ptr, t_ptr, at, columns, inverse, z_norm, t_norm, x, y, fn)
            value += tl.sum(term, 0)
            total += tl.sum(slope, 0)
    if WRITE:
        weight = tl.load(weight_ptr + row)
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            term, slope, q = at_tokens(z_ptr, t_ptr, at, columns, inverse, z_norm, t_norm, x, y, fn)
            if KNOWN:
                value += tl.sum(term, 0)
            tl.store(out_ptr + at, weight * (slope - q * total), mask=at < columns)
    tl.store(value_ptr + row, value)


def diverge(
    logits_nv: Tensor,
    teacher_nv: Tensor,
    rule: Rule,
    temperature: float,
    weight_n1: Tensor | None,
    out_nv: Tensor | None,
) -> Tensor:
    """The divergence (N,) between two models' logits; with weights, writes weight_n1 times its gradient to `out_nv`.

    `out_nv` may be the logits. Softmax in fp32, at `temperature`; the weights hold the 1/T of the gradient.
    """
    rows, columns = logits_nv.shape
    out_nv = logits_nv if out_nv is None else out_nv  # not written to
    values_n = logits_nv.new_empty(rows, dtype=torch.float32)
    if callable(rule.x):
        p_nv, q_nv = (torch.softmax(z_nv.float() / temperature, -1) for z_nv in (teacher_nv, logits_nv))
        x_n1 = rule.x(p_nv, q_nv)
    else:
        x_n1 = values_n.new_full((1, 1), rule.x).expand(rows, 1)
    diverge_row[(rows,)](
        logits_nv, logits_nv.stride(0), teacher_nv, teacher_nv.stride(0), out_nv, out_nv.stride(0), values_n,
        values_n if weight_n1 is None else weight_n1.contiguous(), x_n1, x_n1.stride(0), float(rule.y), columns,
        1.0 / temperature, fn=compiled(rule.fn), KNOWN=rule.fn is pointwise.forward_kl, WRITE=weight_n1 is not None,
        BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return values_n


@triton.jit
def mass_of_row(z_ptr, z_row, top_ptr, mass_ptr, columns, inverse, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top, mass = softmax_of(z_ptr + row * z_row, columns, inverse, BLOCK)
    tl.store(top_ptr + row, top)
    tl.store(mass_ptr + row, mass)


@triton.jit
def share_in_row(z_ptr, z_row, out_ptr, out_row, top_ptr, share_ptr, columns, inverse, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top, share = tl.load(top_ptr + row), tl.load(share_ptr + row)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        logits = tl.load(z_ptr + row * z_row + at, mask=at < columns, other=-float("inf")).to(tl.float32) * inverse
        tl.store(out_ptr + row * out_row + at, share * tl.exp(logits - top), mask=at < columns)


def mass(logits_nv: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of each row over `temperature`: the largest (N, 1), and Σ exp(logit − largest) (N, 1)."""
    top_n1, mass_n1 = (logits_nv.new_empty(len(logits_nv), 1, dtype=torch.float32) for _ in range(2))
    mass_of_row[(len(logits_nv),)](
        logits_nv, logits_nv.stride(0), top_n1, mass_n1, logits_nv.shape[1], 1.0 / temperature, BLOCK=BLOCK
    )
    return top_n1, mass_n1


def share(logits_nv: Tensor, top_n1: Tensor, share_n1: Tensor, temperature: float, out_nv: Tensor) -> None:
    """Writes share · exp(logit / T − top) to `out_nv`, which may be the logits."""
    share_in_row[(len(logits_nv),)](
        logits_nv, logits_nv.stride(0), out_nv, out_nv.stride(0), top_n1, share_n1.contiguous(), logits_nv.shape[1],
        1.0 / temperature, BLOCK=BLOCK,
    )  # fmt: skip
