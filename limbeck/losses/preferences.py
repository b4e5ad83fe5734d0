"""Losses on pairs of a chosen and a rejected sequence, to minimise.

A sequence comes as its log-probability (B,), summed over its tokens or averaged as each function says, under the
student and, as `ref_…`, under the reference, which gets no gradient. Every loss is a mean over the batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

from .likelihood import Normalizer, at_least_fp32, mean


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    kind: str = "sigmoid",
    label_smoothing: float = 0.1,
    *,
    normalizer: Normalizer = None,
) -> Tensor:
    """Prefer the chosen sequence more than the reference does: −log σ(βΔ), Δ = (chosen − rejected) − (the same of ref).

    Summed log-probs (B,) -> scalar. DPO (arXiv 2305.18290, equation 7; the survey's equation 14, which maximises).
    Other kinds: "hinge" relu(1 − βΔ) (RSO, arXiv 2309.06657); "ipo" (Δ − 1/(2β))² (arXiv 2310.12036, equation 17),
    on what is passed, so pass averages to average; with ε = `label_smoothing`, the share of labels that are wrong,
    "conservative" (1−ε)·−log σ(βΔ) + ε·−log σ(−βΔ) and "robust" ((1−ε)·−log σ(βΔ) − ε·−log σ(−βΔ)) / (1−2ε)
    (arXiv 2403.00409), and "exo" KL(σ(βΔ) ‖ 1−ε), of two Bernoullis (arXiv 2402.00856, equation 16);
    "nca" −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r = β (logp − ref) (arXiv 2402.05369, for pairs).
    """
    if kind not in DPO:
        raise ValueError(f"dpo has no kind '{kind}'; it has {', '.join(DPO)}.")
    if kind in ("conservative", "robust", "exo") and not 0 < label_smoothing < 0.5:
        raise ValueError(
            f"dpo '{kind}' wants 0 < label_smoothing < 0.5; it has {label_smoothing}: use 'sigmoid' for 0."
        )
    win = beta * (at_least_fp32(chosen) - at_least_fp32(ref_chosen).detach())
    lose = beta * (at_least_fp32(rejected) - at_least_fp32(ref_rejected).detach())
    return mean(DPO[kind](win, lose, beta, label_smoothing), normalizer)


def exo(win: Tensor, lose: Tensor, beta: float, eps: float) -> Tensor:
    gap = win - lose
    right = gap.sigmoid() * (logsigmoid(gap) - math.log1p(-eps))
    return right + (-gap).sigmoid() * (logsigmoid(-gap) - math.log(eps))


# win = β (chosen − ref_chosen), lose = β (rejected − ref_rejected)
DPO: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "sigmoid": lambda win, lose, beta, eps: softplus(lose - win),
    "hinge": lambda win, lose, beta, eps: relu(1 - win + lose),
    "ipo": lambda win, lose, beta, eps: ((win - lose) / beta - 1 / (2 * beta)) ** 2,
    "conservative": lambda win, lose, beta, eps: (1 - eps) * softplus(lose - win) + eps * softplus(win - lose),
    "robust": lambda win, lose, beta, eps: (
        ((1 - eps) * softplus(lose - win) - eps * softplus(win - lose)) / (1 - 2 * eps)
    ),
    "exo": exo,
    "nca": lambda win, lose, beta, eps: softplus(-win) + softplus(win) / 2 + softplus(lose) / 2,
}


def spin(
    real: Tensor,
    generated: Tensor,
    ref_real: Tensor,
    ref_generated: Tensor,
    beta: float = 0.1,
    *,
    normalizer: Normalizer = None,
) -> Tensor:
    """Tell the data from what the student's previous self wrote: log(1 + exp(−βΔ)), DPO on pairs that nobody judged.

    Summed log-probs (B,) -> scalar; the reference is the previous self. SPIN (arXiv 2401.01335, equation 4.7).
    """
    return dpo(real, generated, ref_real, ref_generated, beta, normalizer=normalizer)


def kto(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    kl: Tensor | float,
    beta: float = 0.1,
    chosen_weight: float = 1.0,
    rejected_weight: float = 1.0,
    *,
    normalizer: Normalizer = None,
) -> Tensor:
    """Make good sequences likelier than the reference does and bad ones less, each on its own; they need not be pairs.

    λ_w (1 − σ(β (r_w − z))) and λ_l (1 − σ(β (z − r_l))), r = logp − ref, averaged over all of them. Summed log-probs
    (W,) and (L,), either may be empty -> scalar. `kl` is z, the student's mean divergence from the reference, which the
    caller estimates on the batch; no gradient, and at least 0. KTO (arXiv 2402.01306).
    """
    baseline = torch.as_tensor(kl, device=chosen.device).detach().clamp_min(0)
    win = at_least_fp32(chosen) - at_least_fp32(ref_chosen).detach() - baseline
    lose = at_least_fp32(rejected) - at_least_fp32(ref_rejected).detach() - baseline
    # 1 − σ(x) = σ(−x)
    return mean(
        torch.cat([chosen_weight * (-beta * win).sigmoid(), rejected_weight * (beta * lose).sigmoid()]), normalizer
    )


def orpo(chosen: Tensor, rejected: Tensor, *, normalizer: Normalizer = None) -> Tensor:
    """Raise the odds of the chosen sequence over those of the rejected: −log σ(log odds(chosen) − log odds(rejected)).

    Averaged log-probs (B,) -> scalar; odds(p) = p/(1−p). ORPO (arXiv 2403.07691, equation 7): the caller adds λ times
    this to the SFT of the chosen.
    """
    return mean(softplus(log_odds(rejected) - log_odds(chosen)), normalizer)


def log_odds(logp: Tensor) -> Tensor:
    """log(p/(1−p)), finite also where p rounds to 1."""
    logp = at_least_fp32(logp)
    return logp - (-torch.expm1(logp.clamp_max(-torch.finfo(logp.dtype).eps))).log()


def simpo(
    chosen: Tensor, rejected: Tensor, beta: float = 2.0, gamma: float = 1.0, *, normalizer: Normalizer = None
) -> Tensor:
    """Prefer the chosen sequence by a margin, without a reference: −log σ(β (chosen − rejected) − γ).

    Averaged log-probs (B,) -> scalar. SimPO (arXiv 2405.14734, equation 6).
    """
    return mean(softplus(gamma - beta * (at_least_fp32(chosen) - at_least_fp32(rejected))), normalizer)


def slic(chosen: Tensor, rejected: Tensor, delta: float = 1.0, *, normalizer: Normalizer = None) -> Tensor:
    """Part the chosen sequence from the rejected by δ: relu(δ − chosen + rejected).

    Summed log-probs (B,) -> scalar. The rank calibration of SLiC-HF (arXiv 2305.10425): the caller adds λ
    times the SFT of a reference answer.
    """
    return mean(relu(delta - at_least_fp32(chosen) + at_least_fp32(rejected)), normalizer)


def aft(
    logps_bk: Tensor, good_bk: Tensor, kind: str = "detached", beta: float = 0.1, *, normalizer: Normalizer = None
) -> Tensor:
    """Score good chains of thought above bad ones, without driving the bad ones down: log(1 + Σ over pairs).

    logps_bk (B, K), averaged log-probs of K answers to each question; good_bk (B, K), whether each is right -> scalar.
    The pairs (g, b) add, by `kind`: "none" exp(s_b − s_g); "detached" the same with s_b held fixed; "boundary" that
    and exp(T − s_b), T = 2 (min s_g − β) − s_g held fixed, whose pull on s_b turns upwards at β below the worst good
    score. A question without a pair adds 0. AFT (arXiv 2309.02144, section 4); the caller adds SFT.
    """
    if kind not in ("none", "detached", "boundary"):
        raise ValueError(f"aft has no kind '{kind}'; it has none, detached, boundary.")
    logps_bk, good_bk = at_least_fp32(logps_bk), good_bk.bool()
    good_bg1, bad_b1k = logps_bk[..., :, None], logps_bk[..., None, :]
    terms = [(bad_b1k.detach() if kind == "detached" else bad_b1k) - good_bg1]
    if kind == "boundary":
        worst_b = logps_bk.detach().masked_fill(~good_bk, math.inf).amin(-1)
        terms.append(2 * (worst_b[..., None, None] - beta) - good_bg1.detach() - bad_b1k)
    pairs_bgk = good_bk[..., :, None] & ~good_bk[..., None, :]
    sums_b = [term.masked_fill(~pairs_bgk, -math.inf).flatten(-2) for term in terms]
    one_b = torch.zeros_like(logps_bk[..., :1])  # log 1
    return mean(torch.cat([one_b, *sums_b], -1).logsumexp(-1), normalizer)
