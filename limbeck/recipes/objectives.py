"""The teacher's probabilities, and not only its words: who writes the text, and which divergence is made small."""

from typing import Any

from limbeck import Model, Objective, Table, Text, ask, jsd, recipe, train, variant


@recipe(
    "gkd",
    paper="2306.13649",
    title="Generalised knowledge distillation (on-policy)",
    elicits=("feature",),
    objective="divergence & similarity",
    departs=(
        "rows without a `response` are answered by the teacher first; the paper uses the data set's own outputs",
        "the student starts as it is given; the paper starts from one that was fine-tuned on the task",
    ),
)
def gkd(
    prompts: Table,
    student: Model,
    teacher: Model,
    *,
    on_policy: float = 0.5,
    beta: float = 0.5,
    temperature: float = 1.0,
    max_tokens: int = 256,
    **training: Any,
) -> Model:
    """Lets the student write a share of the text, and draws it to the teacher's probabilities on all of it.

    `on_policy` is that share, written with `temperature` and at most `max_tokens`. `beta` goes from forward KL (0) to
    reverse KL (1).
    """
    text = Text(data=1 - on_policy, student=on_policy, temperature=temperature, max_tokens=max_tokens)
    objective = Objective(jsd(beta), text=text, teacher=teacher)
    ready = on_policy == 1 or "response" in prompts.columns
    rows = prompts if ready else ask(prompts, teacher, "answer", max_tokens=max_tokens)
    return train(student, rows, objective, **training)


supervised_kd = variant(
    "supervised-kd",
    gkd,
    paper="1503.02531",
    title="Supervised distillation: forward KL on fixed text",
    departs=("temperature 1, and no loss on the gold label beside the teacher's",),
    on_policy=0.0,
    beta=0.0,
)
