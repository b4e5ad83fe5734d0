"""Distances between what a teacher and a student say next; each divergence once.

p is the teacher, q the student, over the vocabulary (the last dim). Every function takes log p and log q (N, V) and
gives one value per position (N,): at least 0, and 0 where p = q. A probability may be 0: no NaN, and infinity only
where the divergence is infinite.
"""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .likelihood import at_least_fp32


def divergence(
    kind: str,
    teacher_logits: Tensor,
    student_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    *,
    normalizer: Tensor | float | None = None,
    **args: float,
) -> Tensor:
    """Σ of the divergence at the positions in `mask`, over `normalizer` (without one: their number), in nats.

    Logits (..., V), mask (...) on prediction positions; nothing is shifted. Softmax at `temperature`, in at least fp32;
    no T² factor. The teacher gets no gradient. An empty mask gives 0 with zero gradient, and what stands at positions
    outside of the mask, NaN and infinity too, changes neither value nor gradient.
    `kind` and its `args`: see DIVERGENCES. Unknown ones raise ValueError.
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"there is no divergence '{kind}'; there are {', '.join(DIVERGENCES)}.")
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"the teacher's logits have {teacher_logits.shape[-1]} columns, the student's {student_logits.shape[-1]}: "
            "slice both to the smaller if their tokenizers agree on it."
        )
    between = DIVERGENCES[kind]
    known = list(inspect.signature(between).parameters)[2:]
    if unknown := set(args) - set(known):
        raise ValueError(
            f"divergence '{kind}' has no {sorted(unknown)[0]}; it has {', '.join(known) or 'no arguments'}."
        )
    if mask is None:
        mask = torch.ones(student_logits.shape[:-1], dtype=torch.bool, device=student_logits.device)
    mask = mask.bool()
    log_p = torch.log_softmax(at_least_fp32(teacher_logits.detach()[mask]) / temperature, -1)
    log_q = torch.log_softmax(at_least_fp32(student_logits[mask]) / temperature, -1)
    return between(log_p, log_q, **args).sum() / (mask.sum().clamp_min(1) if normalizer is None else normalizer)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Σ a log(a/b). Where a = 0 the term is 0; where b = 0 < a it is infinite."""
    a = log_a.exp()
    return (a * torch.where(a > 0, log_a - log_b, 0.0)).sum(-1)


def log_mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share · a + (1 − share) · b), with a finite gradient where both are 0."""
    mix = share * log_a.exp() + (1 - share) * log_b.exp()
    return mix.clamp_min(torch.finfo(mix.dtype).tiny).log()


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl(log_q, log_p)


def generalized_jsd(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q. β = 0 *is* forward, β = 1 *is* reverse KL: a jump, not the limit."""
    if beta in (0, 1):
        return kl(log_p, log_q) if beta == 0 else kl(log_q, log_p)
    log_m = log_mix(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
    return generalized_jsd(log_p, log_q)


def tvd(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def skew_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(p ‖ αp + (1−α)q), DistiLLM's skew (arXiv 2402.03898)."""
    return kl(log_p, log_mix(log_p, log_q, alpha) if alpha else log_q)


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float = 0.1) -> Tensor:
    return skew_kl(log_q, log_p, alpha)


def adaptive_kl(log_p: Tensor, log_q: Tensor, mu: float = 0.5) -> Tensor:
    """Forward KL weighed by the gap in the teacher's head, reverse KL by that in its tail (arXiv 2404.02657).

    The head is the fewest of the teacher's top tokens with mass ≥ mu. Equal distributions weigh 0/0, which counts as 0.
    """
    with torch.no_grad():
        p, order = log_p.exp().sort(-1, descending=True)
        gap = (p - log_q.exp().gather(-1, order)).abs()
        head = (gap * (p.cumsum(-1) - p < mu)).sum(-1)
        weight = torch.where(head > 0, head / gap.sum(-1), 0.0)
    # 0 · ∞ would be NaN: what has no weight is left out.
    forward = torch.where(weight > 0, weight * kl(log_p, log_q), 0.0)
    return forward + torch.where(weight < 1, (1 - weight) * kl(log_q, log_p), 0.0)


def alpha_beta(log_p: Tensor, log_q: Tensor, a: float = 0.2, b: float = 0.7) -> Tensor:
    """−1/(ab) Σ [p^a q^b − a/(a+b) p^(a+b) − b/(a+b) q^(a+b)] and its limits (ABKD, arXiv 2505.04560).

    a is on the teacher: (1, 0) is forward and (0, 1) reverse KL.
    """
    some = (log_p > -math.inf) | (log_q > -math.inf)  # a token that neither can say adds nothing
    log_p, log_q = torch.where(some, log_p, 0.0), torch.where(some, log_q, 0.0)
    gap = log_p - log_q
    if a == 0 and b == 0:
        terms = gap**2 / 2
    elif a == 0:
        terms = (weighted((b * log_q).exp(), -b * gap) + (b * log_p).exp() - (b * log_q).exp()) / b**2
    elif b == 0:
        terms = (weighted((a * log_p).exp(), a * gap) + (a * log_q).exp() - (a * log_p).exp()) / a**2
    elif a + b == 0:
        terms = ((a * gap).expm1() - a * gap) / a**2
    else:
        s = a + b
        cross = (a * log_p + b * log_q).exp()
        terms = (a / s * (s * log_p).exp() + b / s * (s * log_q).exp() - cross) / (a * b)
    return terms.sum(-1)


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """weight · value, and 0 where the weight is 0, whatever the value."""
    return weight * torch.where(weight > 0, value, 0.0)


def symmetric_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (kl(log_p, log_q) + kl(log_q, log_p)) / 2


def chi_square(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ (p−q)²/q, infinite where q = 0 < p."""
    p, q = log_p.exp(), log_q.exp()
    return ((p - q) * torch.where(p + q > 0, log_p - log_q, 0.0).expm1()).sum(-1)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward-kl": lambda log_p, log_q: kl(log_p, log_q),
    "reverse-kl": reverse_kl,
    "jsd": jsd,
    "generalized-jsd": generalized_jsd,
    "tvd": tvd,
    "skew-kl": skew_kl,
    "skew-reverse-kl": skew_reverse_kl,
    "adaptive-kl": adaptive_kl,
    "alpha-beta": alpha_beta,
    "symmetric-kl": symmetric_kl,
    "chi-square": chi_square,
}
