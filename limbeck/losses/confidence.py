"""A classifier that learns from a weaker one, and trusts itself more and more against its labels."""

import dataclasses
from typing import TYPE_CHECKING, Any

from . import Batch, Loss

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Confident:
    """The function inside the confidence loss."""

    alpha: float
    warmup: int

    def __call__(self, batch: Batch) -> "torch.Tensor":
        import torch

        logits_nc = batch.student.logits_nv.float()
        weak_nc = batch.teacher.logits_nv.detach().float().softmax(-1)
        own_nc = torch.nn.functional.one_hot(hardened(logits_nc.detach(), weak_nc), logits_nc.shape[-1])
        alpha = self.alpha if not self.warmup else self.risen(batch.module, len(logits_nc))
        return -(((1 - alpha) * weak_nc + alpha * own_nc) * logits_nc.log_softmax(-1)).sum()

    def risen(self, begun: Any, rows: int) -> float:
        """α as it is after the rows read so far, to which these are added in training."""
        alpha = self.alpha * min(1.0, float(begun.rows) / self.warmup)
        begun.rows += rows * begun.training
        return alpha


def trusts(alpha: float = 0.5, warmup: int = 0) -> Loss:
    """Draws a classifier to a weaker one's probabilities, and to its own decisions: the auxiliary confidence loss.

    (1 − α)·CE(weak probabilities) + α·CE(own decision); α rises in a straight line from 0 to `alpha` over the first
    `warmup` rows. Of two classes the decision's threshold is such that each class has its share of the weak labels in
    the micro-batch; of more, the likeliest is decided. The share is one of a micro-batch and a process counts its own
    rows: unlike with other losses, how a step is split changes a training a little. Weak-to-strong generalisation
    (arXiv 2312.09390), appendix A.4.
    """
    if not 0 <= alpha <= 1 or warmup < 0:
        raise ValueError(f"trusts wants 0 ≤ alpha ≤ 1 and warmup ≥ 0 rows; it got {alpha:g} and {warmup}.")
    return Loss(
        Confident(alpha, warmup),
        needs=("student.logits", "teacher.logits"),
        name="confidence",
        modules=Begun() if warmup else None,
        source=("confidence",),
    )


@dataclasses.dataclass(frozen=True)
class Begun:
    """Makes what counts the rows that were learned from, kept in checkpoints."""

    def __call__(self, student: Any, teacher: Any) -> "torch.nn.Module":
        import torch

        made = torch.nn.Module()
        made.register_buffer("rows", torch.zeros((), dtype=torch.long))
        return made


def hardened(logits_nc: "torch.Tensor", weak_nc: "torch.Tensor") -> "torch.Tensor":
    """The class that is decided for each row, (N,); of two, as many rows have the second as the weak labels say."""
    decided_n = logits_nc.argmax(-1)
    if logits_nc.shape[-1] == 2:
        second = round(float(weak_nc[:, 1].sum()))
        decided_n = decided_n.new_zeros(len(logits_nc))
        decided_n[(logits_nc[:, 1] - logits_nc[:, 0]).argsort(descending=True, stable=True)[:second]] = 1
    return decided_n
