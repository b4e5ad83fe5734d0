"""Students that are made out of the teacher: cut out of its weights, drawn to what it computes inside."""

from typing import Any

from limbeck import SFT, Model, Objective, Table, ask, filters, forward_kl, prune, recipe, resembles, train

ANSWERED = "rows without a `response` are answered by the teacher first; the paper uses the data set's own text"


@recipe(
    "distilbert",
    paper="1910.01108",
    title="DistilBERT: a student of every second layer",
    elicits=("feature",),
    objective="divergence & similarity",
    departs=(
        ANSWERED,
        "of a decoder: next-token prediction of the answers in place of masked language modelling of a corpus",
        "forward KL for the cross-entropy to soft targets, which is larger by the teacher's entropy: one gradient",
        "weights and temperature are those of the public code; the paper names none",
    ),
)
def distilbert(
    prompts: Table,
    teacher: Model,
    *,
    layers: int,
    soft: float = 5.0,
    text: float = 2.0,
    cosine: float = 1.0,
    temperature: float = 2.0,
    max_tokens: int = 256,
    **training: Any,
) -> Model:
    """Cuts a student of `layers` evenly spaced layers out of the teacher, and draws it back to the teacher.

    That is `soft` · T² · KL of their probabilities at `temperature` T, `text` · cross-entropy of the answers, and
    `cosine` · (1 − cos) of their last hidden states.
    """
    rows = prompts if "response" in prompts.columns else ask(prompts, teacher, "answer", max_tokens=max_tokens)
    objective = Objective(forward_kl(temperature), teacher=teacher, weight=soft * temperature**2)
    objective += Objective(SFT, weight=text)
    objective += Objective(resembles("cosine", layers=[(-1, -1)]), teacher=teacher, weight=cosine)
    return train(prune(teacher, layers=layers), rows, objective, **training)


@recipe(
    "ted",
    paper="2210.01351",
    title="TED: task-aware layer-wise distillation",
    elicits=("feature",),
    objective="divergence & similarity",
    departs=(
        ANSWERED,
        "student and teacher start as they are given; the paper first fine-tunes both on the task",
        "all filters learn through the teacher's own head, fixed; in the paper each has a new head of its own",
        "both stages have the same settings; the weights are those of the public script for SST-2",
    ),
)
def ted(
    prompts: Table,
    student: Model,
    teacher: Model,
    *,
    mse: float = 20.0,
    kl: float = 20.0,
    max_tokens: int = 256,
    **training: Any,
) -> Model:
    """Learns filters of what each layer knows of the task, then draws the student's filtered layers to the teacher's.

    The second training adds up cross-entropy of the answers, `kl` · T² · KL at temperature T = 2, and `mse` · the mean
    square between filtered hidden states.
    """
    rows = prompts if "response" in prompts.columns else ask(prompts, teacher, "answer", max_tokens=max_tokens)
    learnt = train(student, rows, Objective(filters(), teacher=teacher), **training)
    objective = Objective(SFT) + Objective(forward_kl(2.0), teacher=teacher, weight=4 * kl)
    objective += Objective(resembles("mse", filters=learnt), teacher=teacher, weight=mse)
    return train(student, rows, objective, **training)
