"""Losses on the order of answers by their likelihood, and of tokens by their logits. Lists lie on the last dim."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .likelihood import Normalizer, at_least_fp32, mean


def rrhf(logps_bk: Tensor, rewards_bk: Tensor, *, normalizer: Normalizer = None) -> Tensor:
    """Order answers by likelihood as they are ordered by reward: Σ max(0, p_i − p_j) over pairs with r_i < r_j.

    Averaged log-probs and rewards (B, K) -> scalar, the mean over the lists. Of the rewards only the order counts;
    equal ones make no pair. RRHF (arXiv 2304.05302; the survey's equation 15): the caller adds the SFT of
    the best answer.
    """
    logps_bk = at_least_fp32(logps_bk)
    over_bkk = F.relu(logps_bk[..., :, None] - logps_bk[..., None, :])
    wrong_bkk = rewards_bk[..., :, None] < rewards_bk[..., None, :]
    return mean((over_bkk * wrong_bkk).sum((-1, -2)), normalizer)


def pro(logps_bk: Tensor, rewards_bk: Tensor | None = None, *, normalizer: Normalizer = None) -> Tensor:
    """Let each answer beat all that are worse: −Σ_k log(exp p_k / Σ_{i ≥ k} exp p_i), answers best first.

    log-probs (B, K) -> scalar, the mean over the lists. With `rewards` (B, K) the answers may come in any order, and
    at rank k each p_i is divided by a temperature 1/(r_k − r_i), p_k itself by the lowest of them: an answer that is
    nearly as good is hardly pushed away. PRO (arXiv 2306.17492; the survey's equation 16, without
    rewards): the caller adds the SFT of the best answer.
    """
    logps_bk = at_least_fp32(logps_bk)
    if rewards_bk is None:
        # The last one has nothing to beat: its term is 0.
        return mean((logps_bk.flip(-1).logcumsumexp(-1).flip(-1) - logps_bk).sum(-1), normalizer)
    rewards_bk, order_bk = at_least_fp32(rewards_bk).detach().sort(dim=-1, descending=True, stable=True)
    logps_bk = logps_bk.gather(-1, order_bk)
    losses = []
    for k in range(logps_bk.shape[-1] - 1):
        worse = rewards_bk[..., k : k + 1] - rewards_bk[..., k + 1 :]
        own = worse.amax(-1, keepdim=True) * logps_bk[..., k : k + 1]
        losses.append(torch.cat([own, worse * logps_bk[..., k + 1 :]], -1).logsumexp(-1) - own[..., 0])
    return mean(torch.stack(losses, -1).sum(-1) if losses else logps_bk.sum(-1) * 0, normalizer)


def rank_logits(
    kind: str,
    teacher_logits: Tensor,
    student_logits: Tensor,
    mask: Tensor | None = None,
    *,
    top: int = 32,
    margin: float | None = None,
    normalizer: Normalizer = None,
) -> Tensor:
    """Order the teacher's `top` likeliest tokens as the teacher does, whatever their probabilities.

    Logits (..., V), mask (...) of positions -> scalar: the mean over the pairs i, j of a position with p_i > p_j > 0,
    averaged over positions. "logistic": log(1 + exp(z_j − z_i)) of the student's logits. "hinge":
    max(0, m − (q_i − q_j)) of its probabilities; m is `margin`, or the teacher's own p_i − p_j. The teacher gets no
    gradient. Both as in DistillKit; a position costs top² values.
    """
    if kind not in ("hinge", "logistic"):
        raise ValueError(f"rank_logits has no kind '{kind}'; it has hinge, logistic.")
    teacher_nv, student_nv = masked(teacher_logits.detach(), mask), masked(student_logits, mask)
    p_nk, ids_nk = teacher_nv.softmax(-1).topk(min(top, teacher_nv.shape[-1]))
    over_nkk = (p_nk[:, :, None] > p_nk[:, None, :]) & (p_nk[:, None, :] > 0)
    said_nk = (student_nv if kind == "logistic" else student_nv.softmax(-1)).gather(-1, ids_nk)
    gap_nkk = said_nk[:, :, None] - said_nk[:, None, :]
    if kind == "logistic":
        loss_nkk = F.softplus(-gap_nkk)
    else:
        loss_nkk = F.relu((p_nk[:, :, None] - p_nk[:, None, :] if margin is None else margin) - gap_nkk)
    return mean((loss_nkk * over_nkk).sum((1, 2)) / over_nkk.sum((1, 2)).clamp_min(1), normalizer)


def uld(
    teacher_logits: Tensor, student_logits: Tensor, mask: Tensor | None = None, *, normalizer: Normalizer = None
) -> Tensor:
    """Give the student's distribution the shape of the teacher's, across vocabularies: Σ |sorted p − sorted q|.

    Logits (..., V) and (..., W), of any two widths, the shorter filled up with probability 0; mask (...) of positions,
    which are already aligned -> scalar, the mean over positions. The teacher gets no gradient. The Wasserstein term of
    universal logit distillation (arXiv 2402.12030).
    """
    p_nv, q_nv = (
        masked(logits, mask).softmax(-1).sort(-1, descending=True).values
        for logits in (teacher_logits.detach(), student_logits)
    )
    width = max(p_nv.shape[-1], q_nv.shape[-1])
    p_nv, q_nv = (F.pad(probs, (0, width - probs.shape[-1])) for probs in (p_nv, q_nv))
    return mean((p_nv - q_nv).abs().sum(-1), normalizer)


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """The logits at the positions in `mask`, (N, V), in at least fp32."""
    return at_least_fp32(logits.flatten(0, -2) if mask is None else logits[mask.bool()])
