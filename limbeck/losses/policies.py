"""Losses on what the student wrote itself and somebody scored.

Sequences or tokens, as the caller likes: log-probs, advantages and masks have one shape, or shapes that broadcast to
that of the log-probs, such as an advantage (B, 1) for every token of a sequence.
"""

import torch
from torch import Tensor

from .likelihood import Normalizer, at_least_fp32, mean


@torch.no_grad()
def rl_objective(reward: Tensor, logp: Tensor, ref_logp: Tensor, beta: float) -> Tensor:
    """How well a policy does: mean reward − β KL(π ‖ ref), estimated on samples that π drew. A value, not a loss.

    Rewards and summed log-probs (B,) -> scalar without gradient. The survey's equation 13.
    """
    return (at_least_fp32(reward) - beta * (at_least_fp32(logp) - at_least_fp32(ref_logp))).mean()


def policy_gradient(
    logp: Tensor, advantage: Tensor, mask: Tensor | None = None, *, normalizer: Normalizer = None
) -> Tensor:
    """Make likelier what did better than expected: −A log π, the mean over `mask`; the advantage is held fixed.

    Its gradient, not its value, is that of the expected reward (REINFORCE, Williams 1992), if π drew the samples.
    """
    logp, advantage = chosen_by(mask, logp, advantage.detach())
    return mean(-advantage * logp, normalizer)


def ppo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    clip: float = 0.2,
    mask: Tensor | None = None,
    *,
    normalizer: Normalizer = None,
) -> Tensor:
    """The same for samples of an older policy, in steps that end near it: −min(ρA, clip(ρ, 1−ε, 1+ε) A), ρ = π/π_old.

    The mean over `mask`; the old log-probs and the advantage are held fixed. PPO (arXiv 1707.06347, equation 7).
    """
    logp, old_logp, advantage = chosen_by(mask, logp, old_logp.detach(), advantage.detach())
    ratio = (logp - old_logp).exp()
    return mean(-torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), normalizer)


def chosen_by(mask: Tensor | None, first: Tensor, *others: Tensor) -> list[Tensor]:
    """All in the first one's shape and at least fp32; with a mask, only what it chooses, (N,)."""
    found = [at_least_fp32(values).expand_as(first) for values in (first, *others)]
    return found if mask is None else [values[mask.bool().expand_as(first)] for values in found]
