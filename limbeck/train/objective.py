"""What a training minimises: who writes the text × what signal there is × which loss. No torch is loaded here."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..errors import LimbeckError
from ..losses import Loss
from ..models.base import Model

# What the trainer can give to a loss, by who says it, and what a model must be able to for it.
SERVES = {"head": "logits", "logits": "logits", "logps": "logits", "layers": "hidden", "attentions": "hidden"}


@dataclasses.dataclass(frozen=True)
class Text:
    """Who writes the text that the loss looks at: shares of the training steps, adding up to 1.

    `data`: the rows' own answers. `student`, `teacher`: an answer to the row's prompt that it samples during training,
    at `temperature`, of at most `max_tokens` tokens. One coin per step, as in GKD (arXiv 2306.13649).
    """

    data: float = 1.0
    student: float = 0.0
    teacher: float = 0.0
    temperature: float = 1.0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        shares = {"data": self.data, "student": self.student, "teacher": self.teacher}
        if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
            said = ", ".join(f"{k}={v:g}" for k, v in shares.items())
            raise LimbeckError(
                f"Text wants shares of at least 0 that add up to 1; it got {said}: set data= to the rest."
            )
        if self.temperature <= 0 or self.max_tokens < 1:
            raise LimbeckError("Text wants temperature > 0 and max_tokens ≥ 1 for what is sampled during training.")


@dataclasses.dataclass(frozen=True)
class Objective:
    """One term of what is minimised; `a + b` adds terms up. `rows` gives a term its own data (else train's rows).

    `teacher`, `reference` and `reward` are the models behind the signals that the loss `needs`; without a `reference`,
    the student as it is before the first step. `teacher_prompt` names a column: the prompt as the teacher reads it,
    with what the student is to know by itself afterwards.
    """

    loss: Loss
    text: Text = Text()
    teacher: Model | None = None
    reference: Model | None = None
    reward: Any = None
    weight: float = 1.0
    rows: Any = None
    teacher_prompt: str | None = None
    others: "tuple[Objective, ...]" = ()

    def __add__(self, other: "Objective | Loss") -> "Objective":
        return dataclasses.replace(self, others=(*self.others, *of(other).terms))

    @property
    def terms(self) -> "tuple[Objective, ...]":
        return (dataclasses.replace(self, others=()), *self.others)

    @property
    def name(self) -> str:
        return "+".join(term.loss.name for term in self.terms)


def of(objective: "Objective | Loss") -> Objective:
    """Takes an objective or a bare loss."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, Loss):
        return Objective(objective)
    raise LimbeckError(
        f"train wants an Objective or a Loss, such as SFT or Objective(forward_kl(), teacher=…); it got {objective!r}."
    )


def check(student: Model, rows: Any, objective: Objective) -> None:
    """Raises LimbeckError where models or rows cannot serve the objective: before a call is bought or a GPU touched."""
    if "weights" not in student.can:
        raise LimbeckError(
            f"train wants a student with weights; '{student.name}' can give ({_can(student)}): "
            "use hf/NAME or tiny/student."
        )
    for term in objective.terms:
        for line in _lacks(term):
            raise LimbeckError(line)
        check_columns(rows if term.rows is None else term.rows, term)


def _lacks(term: Objective) -> Iterator[str]:
    loss, text, teacher = term.loss, term.text, term.teacher
    for need in loss.needs:
        who, _, what = need.partition(".")
        if who not in ("student", "teacher", "reference") or what not in SERVES:
            served = ", ".join(SERVES)
            yield f"loss '{loss.name}' needs {need}; this trainer serves {served} of student, teacher and reference."
        elif who == "teacher" and teacher is None:
            yield f"loss '{loss.name}' needs {need}; the objective has no teacher: write Objective(…, teacher=…)."
        elif (model := getattr(term, who, None)) is not None and SERVES[what] not in model.can:
            yield (
                f"loss '{loss.name}' needs {need}; '{model.name}' can give ({_can(model)}): "
                f"use an hf {who}, or SFT on its text."
            )
    if loss.form != "response" and text.data < 1:
        yield f"loss '{loss.name}' compares the rows' own answers; Text wants data=1, it got {text.data:g}."
    if text.teacher and (teacher is None or "weights" not in teacher.can):
        yield "Text(teacher=…) samples in training and wants an hf teacher; ask any other first, and train on its rows."
    read = {need.partition(".")[0] for need in loss.needs} | ({"teacher"} if text.teacher else set())
    for name in ("teacher", "reference", "reward"):
        if getattr(term, name) is not None and name not in read:
            yield f"the objective has a {name} that loss '{loss.name}' never reads: leave it out, or change the loss."


ANSWERS = {"response": ["response"], "pair": ["chosen", "rejected"], "list": ["responses"]}


def check_columns(rows: Any, term: Objective) -> None:
    """Raises LimbeckError where the rows lack what the term's text and loss are made of."""
    form, columns = term.loss.form, rows.columns
    wanted = ["prompt", *(ANSWERS[form] if term.text.data > 0 else [])]
    if "messages" in columns:
        wanted = ANSWERS[form] if form != "response" else []
    wanted += [*term.loss.columns, *filter(None, [term.teacher_prompt])]
    if missing := [c for c in wanted if c not in columns]:
        instead = " (or messages)" if form == "response" else ""
        raise LimbeckError(
            f"train wants columns {' and '.join(wanted)}{instead}; the rows have "
            f"{', '.join(columns) or 'none'}, no {missing[0]}: name it with fields(rows, {missing[0]}='{{…}}')."
        )


def _can(model: Model) -> str:
    return ", ".join(sorted(model.can))
