"""Text of mixed quality with its source in the prompt: the student can tell good from bad, and is asked for good."""

from collections.abc import Sequence
from typing import Any

from limbeck import Model, Table, ask, assign, concat, fields, recipe, teach, weighted_sft


@recipe(
    "openchat",
    paper="2309.11235",
    title="OpenChat: C-RLFT, fine-tuning conditioned on the source",
    elicits=("labeling",),
    objective="SFT",
    departs=(
        "both models answer the same prompts; the paper has many weak and few strong dialogues, and none twice",
        "the source stands as a tag before the prompt; the paper has a token of its own for it in every turn",
        "`weights` are the paper's exp(reward/β) as its experiments set them, normalised over the tokens of a step",
    ),
)
def openchat(
    prompts: Table,
    teacher: Model,
    weak: Model,
    student: Model | None = None,
    *,
    weights: Sequence[float] = (1.0, 0.1),
    temperature: float | None = None,
    max_tokens: int | None = None,
    **training: Any,
) -> Table | Model:
    """Has a strong and a weak model answer; the student learns both, each under its own tag, the weak one less.

    Ask the trained student with the tag `[expert] ` before the prompt: it answers as it learned from the teacher.
    """
    sources = []
    for tag, model, weight in zip(("expert", "other"), (teacher, weak), weights, strict=True):
        answered = ask(prompts, model, "answer", into="response", temperature=temperature, max_tokens=max_tokens)
        sources.append(assign(fields(answered, prompt=f"[{tag}] {{prompt}}"), "weight", [float(weight)]))
    return teach(student, concat(*sources), weighted_sft("weight"), **training)
