"""What a student is trained to make small: the type of a loss, and the losses by name.

Importing this loads no torch: a run that finds its training finished never pays for it. The tensor math is in
`likelihood` and `divergence`.

Positions, once and for all. Position t of a sequence is where the model has read tokens 0..t and predicts token t+1.
Logits, labels and masks all live on these *prediction positions*: `labels_bt[b, t]` is the token t+1, or IGNORED where
nothing is to be learned (prompt, padding, the last position). Nothing shifts after the batch was made.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORED = -100  # a label that no loss looks at


class Batch(dict[str, Any]):
    """What a loss sees, by attribute: `batch.labels_bt`. B sequences, T positions, V tokens of the vocabulary.

    input_ids_bt       what the student read, padded on the right
    attention_mask_bt  1 for a token, 0 for padding
    labels_bt          the next token, IGNORED where nothing is learned
    mask_bt            labels_bt != IGNORED: the positions that count
    student, teacher   Outputs of each; there only if the loss `needs` them
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"a loss wants '{name}'; the batch has {', '.join(self)}: name it in `needs`."
            ) from None


@dataclasses.dataclass(slots=True)
class Outputs:
    """What one model said about a batch, on prediction positions."""

    logits_btv: "torch.Tensor"


@dataclasses.dataclass(frozen=True)
class Loss:
    """One thing to make small: `fn(batch)` gives its *sum* over the units of a batch, as a scalar with a gradient.

    The trainer divides by the number of units in the whole step (all micro-batches, all processes), so a loss never
    averages. `needs` names what `fn` reads: "student.logits", "teacher.logits". `unit` is what is counted: "token"
    (positions with a label) or "sequence" (rows with a label); a loss that counts other things (pairs, lists, chunks)
    names its unit and brings `counts(batch) -> number of units`. `source` names the files here that hold the math of
    one of limbeck's own losses, which are part of a training's key; the code of any other is found through `fn`.
    """

    fn: "Callable[[Batch], torch.Tensor]"
    needs: tuple[str, ...] = ("student.logits",)
    unit: str = "token"
    counts: "Callable[[Batch], torch.Tensor] | None" = None
    name: str = ""
    source: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.fn, "__name__", "loss"))
        if self.counts is None and self.unit not in COUNTS:
            raise ValueError(f"loss '{self.name}' counts '{self.unit}', which only its author can: give it `counts=`.")

    def count(self, batch: Batch) -> "torch.Tensor":
        """How many units of this loss a batch holds, as a scalar tensor."""
        return (self.counts or COUNTS[self.unit])(batch)


COUNTS: "dict[str, Callable[[Batch], torch.Tensor]]" = {
    "token": lambda batch: batch.mask_bt.sum(),
    "sequence": lambda batch: batch.mask_bt.any(1).sum(),
}


def sft(batch: Batch) -> "torch.Tensor":
    from .likelihood import sft

    return sft(batch.student.logits_btv, batch.labels_bt, normalizer=1)


@dataclasses.dataclass(frozen=True)
class Diverges:
    """The function inside a divergence loss; a value, so that two equal ones have one fingerprint."""

    kind: str
    temperature: float = 1.0
    args: tuple[tuple[str, float], ...] = ()

    def __call__(self, batch: Batch) -> "torch.Tensor":
        from .divergence import divergence

        teacher, student = batch.teacher.logits_btv, batch.student.logits_btv
        return divergence(self.kind, teacher, student, batch.mask_bt, self.temperature, normalizer=1, **dict(self.args))


def diverges(kind: str, temperature: float = 1.0, **args: float) -> Loss:
    """The divergence `kind` from teacher to student at every position with a label; see `divergence.DIVERGENCES`."""
    fn = Diverges(kind, temperature, tuple(sorted(args.items())))
    return Loss(fn, needs=("student.logits", "teacher.logits"), name=kind, source=("likelihood", "divergence"))


def forward_kl(temperature: float = 1.0) -> Loss:
    """KL(teacher ‖ student): cover all that the teacher might say. The survey's Table 1."""
    return diverges("forward-kl", temperature)


def reverse_kl(temperature: float = 1.0) -> Loss:
    """KL(student ‖ teacher): say only what the teacher might say. The survey's Table 1."""
    return diverges("reverse-kl", temperature)


def jsd(beta: float = 0.5, temperature: float = 1.0) -> Loss:
    """Generalised Jensen-Shannon (GKD, arXiv 2306.13649): beta=0 is forward KL, beta=1 is reverse KL."""
    return diverges("generalized-jsd", temperature, beta=beta)


SFT = Loss(sft, source=("likelihood",))
