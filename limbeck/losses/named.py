"""The losses that a training takes, by name. Each is a value (equal ones have one fingerprint) and loads no torch."""

import dataclasses
from typing import TYPE_CHECKING

from . import Batch, Loss

if TYPE_CHECKING:
    import torch

    from .heads import Term

HEAD = ("pointwise", "divergences", "heads", "kernels")  # the files of the fused head


def sft(batch: Batch) -> "list[Term]":
    from .heads import Term, Tokens

    return [Term(Tokens(batch.labels_n))]


@dataclasses.dataclass(frozen=True)
class Diverges:
    """The function inside a divergence loss; a value, so that two equal ones have one fingerprint."""

    kind: str
    temperature: float = 1.0
    args: tuple[tuple[str, float], ...] = ()

    def __call__(self, batch: Batch) -> "list[Term]":
        from .heads import Term

        return [Term(batch.teacher.target, self.kind, dict(self.args), self.temperature)]


def diverges(kind: str, temperature: float = 1.0, **args: float) -> Loss:
    """The divergence `kind` from teacher to student at every learned position; see `divergences.DIVERGENCES`."""
    fn = Diverges(kind, temperature, tuple(sorted(args.items())))
    return Loss(fn, needs=("student.head", "teacher.head"), name=kind, source=HEAD)


def forward_kl(temperature: float = 1.0) -> Loss:
    """KL(teacher ‖ student): cover all that the teacher might say. The survey's Table 1."""
    return diverges("forward-kl", temperature)


def reverse_kl(temperature: float = 1.0) -> Loss:
    """KL(student ‖ teacher): say only what the teacher might say. The survey's Table 1."""
    return diverges("reverse-kl", temperature)


def jsd(beta: float = 0.5, temperature: float = 1.0) -> Loss:
    """Generalised Jensen-Shannon (GKD, arXiv 2306.13649): beta=0 is forward KL, beta=1 is reverse KL."""
    return diverges("generalized-jsd", temperature, beta=beta)


SFT = Loss(sft, needs=("student.head",), name="sft", source=HEAD)


# Of the preference losses: which compare with a reference, and which take a sequence's mean log-probability.
REFERENCED = ("sigmoid", "hinge", "ipo", "conservative", "robust", "spin")
AVERAGED = ("orpo", "simpo")


@dataclasses.dataclass(frozen=True)
class Prefers:
    """The function inside a preference loss."""

    kind: str
    sft: float = 0.0
    args: tuple[tuple[str, float], ...] = ()

    def __call__(self, batch: Batch) -> "torch.Tensor":
        from . import preferences

        means_s = batch.per_sequence(batch.student.logps_n, mean=True)
        logps_s = means_s if self.kind in AVERAGED else batch.per_sequence(batch.student.logps_n)
        given = [*batch.pairs(logps_s)]
        if self.kind in REFERENCED:
            given += batch.pairs(batch.per_sequence(batch.reference.logps_n))
        args = dict(self.args)
        if self.kind in REFERENCED and self.kind != "spin":
            loss = preferences.dpo(*given, kind=self.kind, **args)
        else:
            loss = getattr(preferences, self.kind)(*given, **args)
        chosen_p, _ = batch.pairs(means_s)
        return loss * len(chosen_p) - self.sft * chosen_p.sum()  # those average over the pairs; a Loss sums


def prefers(kind: str = "sigmoid", sft: float = 0.0, **args: float) -> Loss:
    """Draws the student to `chosen` and away from `rejected`: DPO ("sigmoid" and its kinds) and its relatives.

    `kind`: sigmoid, hinge, ipo, conservative, robust (arXiv 2305.18290 and after), spin (2401.01335), which compare
    with a reference; orpo (2403.07691), simpo (2405.14734), slic (2305.10425), which do not. `args`: those of
    `losses.preferences`. `sft` adds that many times the chosen answer's mean negative log-probability.
    """
    needs = ("student.logps", "reference.logps") if kind in REFERENCED else ("student.logps",)
    fn = Prefers(kind, sft, tuple(sorted(args.items())))
    return Loss(fn, needs=needs, unit="pair", name=kind, source=("named", *HEAD, "preferences"))


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The function inside a ranking loss."""

    kind: str
    sft: float = 1.0
    scores: str = "scores"

    def __call__(self, batch: Batch) -> "torch.Tensor":
        from . import rankings

        means_s = batch.per_sequence(batch.student.logps_n, mean=True)
        total = means_s.new_zeros(())
        for logps_lk, scores_lk in batch.lists(means_s, batch.columns[self.scores]):
            order_lk = scores_lk.argsort(dim=-1, descending=True, stable=True)
            logps_lk, scores_lk = logps_lk.gather(-1, order_lk), scores_lk.gather(-1, order_lk)
            loss = rankings.pro(logps_lk) if self.kind == "pro" else rankings.rrhf(logps_lk, scores_lk)
            total = total + loss * len(logps_lk) - self.sft * logps_lk[:, 0].sum()
        return total


def ranks(kind: str, sft: float = 1.0, scores: str = "scores") -> Loss:
    """Orders the student's log-probabilities of a row's `responses` as their `scores` are ordered.

    `kind`: rrhf (arXiv 2304.05302) or pro (2306.17492), on length-averaged log-probabilities. `sft` times the best
    answer's mean negative log-probability is added, as both papers do.
    """
    fn = Ranks(kind, sft, scores)
    return Loss(fn, ("student.logps",), "list", name=kind, columns=(scores,), source=("named", *HEAD, "rankings"))
