"""Losses on the probability of given tokens.

Here and in the files beside this one a loss is a sum over its units (tokens, pairs, lists) over `normalizer`. Without
one that is their number in the batch; a trainer that splits a step into parts passes the number in the whole step.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from . import IGNORED

Normalizer = Tensor | float | None


def sft(
    logits_btv: torch.Tensor,
    labels_bt: torch.Tensor,
    reduction: str = "token",
    *,
    normalizer: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Cross-entropy of the labels in nats (the survey's equation 9). Labels are already shifted; IGNORED do not count.

    logits_btv (B, T, V), labels_bt (B, T) -> scalar. Σ nll / normalizer; without one, the number of labels of the batch
    ("token", never a mean of row means) or of rows with a label ("sequence"). Without labels: 0, with zero gradient.
    """
    if reduction not in ("token", "sequence"):
        raise ValueError(f"sft has no reduction '{reduction}'; it has 'token' and 'sequence'.")
    mask_bt = labels_bt != IGNORED
    # Only labelled positions go through the softmax: others cost nothing, and their NaN or inf cannot leak.
    logits_nv = at_least_fp32(logits_btv[mask_bt])
    total = torch.nn.functional.cross_entropy(logits_nv, labels_bt[mask_bt], reduction="sum")
    if normalizer is None:
        normalizer = (mask_bt if reduction == "token" else mask_bt.any(-1)).sum().clamp_min(1)
    return total / normalizer


def weighted_sft(logits_btv: Tensor, labels_bt: Tensor, weights: Tensor, *, normalizer: Normalizer = None) -> Tensor:
    """Cross-entropy of the labels, some counting more: Σ w·nll / Σ w, in nats.

    logits_btv (B, T, V), labels_bt (B, T), weights ≥ 0 of each token (B, T) or of each row (B,) -> scalar. IGNORED
    labels and weights of 0 count nowhere, not in Σ w either; without any other the loss is 0, with zero gradient.
    """
    if weights.dim() < labels_bt.dim():
        weights = weights[:, None]
    weights_bt = at_least_fp32(weights).expand_as(labels_bt)
    mask_bt = (labels_bt != IGNORED) & (weights_bt != 0)
    weights_n, nll_n = weights_bt[mask_bt], nll(logits_btv[mask_bt], labels_bt[mask_bt])
    if normalizer is None:
        normalizer = weights_n.sum() if len(weights_n) else 1
    return (weights_n * nll_n).sum() / normalizer


def reward_conditioned(rewards_b: Tensor, beta: float = 1.0) -> Tensor:
    """The weights of `weighted_sft` that favour rows of high reward: exp(r/β), (B,) -> (B,).

    C-RLFT (OpenChat, arXiv 2309.11235): rows of a source of low quality are kept, at a low weight, under a prompt that
    names their source; the policy that is best under a KL to the source-conditioned one has this loss.
    """
    return (at_least_fp32(rewards_b) / beta).exp()


def unlikelihood(logits_btv: Tensor, negatives: Tensor, *, normalizer: Normalizer = None) -> Tensor:
    """Make tokens unlikely: Σ −log(1 − q(c)) over the negative tokens c of each position, averaged over positions.

    logits_btv (B, T, V); negatives (B, T), or (B, T, K) for several of a position, IGNORED where there is none ->
    scalar, in nats. Positions without a negative do not count. Unlikelihood training (arXiv 1908.04319).
    """
    if negatives.dim() < logits_btv.dim():
        negatives = negatives[..., None]
    mask_bt = (negatives != IGNORED).any(-1)
    logits_nv, negatives_nk = at_least_fp32(logits_btv[mask_bt]), negatives[mask_bt]
    there_nk = negatives_nk != IGNORED
    negatives_nk = negatives_nk.where(there_nk, 0)
    # Only the likeliest token can have q near 1, where 1 − q has no digits left: its odds come from all the others.
    top_n1 = logits_nv.argmax(-1, keepdim=True)
    others_n1 = logits_nv.scatter(-1, top_n1, -math.inf).logsumexp(-1, keepdim=True)
    of_top_n1 = F.softplus(logits_nv.gather(-1, top_n1) - others_n1)
    is_top_nk = negatives_nk == top_n1
    q_nk = logits_nv.log_softmax(-1).gather(-1, negatives_nk).exp()
    loss_nk = torch.where(is_top_nk, of_top_n1, -torch.log1p(-q_nk.masked_fill(is_top_nk, 0)))
    return mean(torch.where(there_nk, loss_nk, 0).sum(-1), normalizer)


def sequence_logps(logits_btv: Tensor, labels_bt: Tensor, average: bool = False) -> Tensor:
    """log-probability of each row's labels, in nats: their sum, or with `average` their mean. A row without has 0.

    logits_btv (B, T, V), labels_bt (B, T), already shifted -> (B,).
    """
    mask_bt = labels_bt != IGNORED
    nll_n = nll(logits_btv[mask_bt], labels_bt[mask_bt])
    sums_b = nll_n.new_zeros(len(labels_bt)).index_add(0, mask_bt.nonzero()[:, 0], -nll_n)
    return sums_b / mask_bt.sum(-1).clamp_min(1) if average else sums_b


def nll(logits_nv: Tensor, labels_n: Tensor) -> Tensor:
    """−log q of each label, (N,), in at least fp32."""
    return F.cross_entropy(at_least_fp32(logits_nv), labels_n, reduction="none")


def mean(values: Tensor, normalizer: Normalizer = None) -> Tensor:
    """Σ values over `normalizer`, or over their number; no values make 0, with zero gradient."""
    return values.sum() / (max(values.numel(), 1) if normalizer is None else normalizer)


def at_least_fp32(logits: torch.Tensor) -> torch.Tensor:
    """fp16 and bf16 become fp32; fp32 and fp64 stay."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
