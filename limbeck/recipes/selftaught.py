"""Many tries, and a check that tells the good ones: right answers, agreement, a second look with the answer given."""

from typing import Any

from limbeck import (
    SFT,
    LimbeckError,
    Model,
    Table,
    ask,
    checks,
    concat,
    dedup,
    fields,
    keep,
    minus,
    pick,
    recipe,
    teach,
    train,
)


@recipe(
    "rft",
    paper="2308.01825",
    title="Rejection-sampling fine-tuning",
    elicits=("self-knowledge",),
    objective="SFT",
    skill="reasoning",
    departs=(
        "the teacher is any model, asked with an instruction; the paper samples from models fine-tuned on the problems",
        "human solutions join the training only where `solved` brings them",
    ),
)
def rft(
    problems: Table,
    teacher: Model,
    student: Model | None = None,
    *,
    solved: Table | None = None,
    k: int = 100,
    temperature: float = 0.7,
    max_tokens: int | None = None,
    **training: Any,
) -> Table | Model:
    """Samples `k` solutions of each problem; keeps, of the right ones, one for each way of calculating."""
    problems = keep(problems, checks.holds("prompt", "answer"))
    tries = ask(
        problems, teacher, "rationale/solve", n=k, into="response", temperature=temperature, max_tokens=max_tokens
    )
    right = keep(tries, checks.correct(), checks.right_sums())
    paths = dedup(fields(right, path=calculations), on=["prompt", "path"])
    rows = fields(paths, path=None) if solved is None else concat(solved, fields(paths, path=None))
    return teach(student, rows, SFT, **training)


def calculations(row: dict[str, Any]) -> str:
    """The equations of a solution: two that calculate the same in the same order are one path."""
    return "; ".join(checks.equations(row["response"]))


@recipe(
    "lmsi",
    paper="2210.11610",
    title="Large language models can self-improve",
    elicits=("self-knowledge",),
    objective="SFT",
    skill="reasoning",
    departs=(
        "an instruction asks for the steps, in place of demonstrations; so two of the paper's four formats remain",
        "teacher and student are two arguments; give the same model twice, as the paper does",
    ),
)
def lmsi(
    prompts: Table,
    teacher: Model,
    student: Model | None = None,
    *,
    k: int = 32,
    temperature: float = 0.7,
    max_tokens: int | None = None,
    **training: Any,
) -> Table | Model:
    """Samples `k` solutions of each question; keeps those that reach the most frequent answer. No gold answers."""
    settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    tries = ask(prompts, teacher, "rationale/explain", n=k, **settings)
    agreed = pick(tries, by="prompt", vote="label")
    steps = fields(agreed, prompt="{prompt}\nLet's think step by step.", response="{rationale}\n#### {label}")
    rows = concat(steps, fields(agreed, response="#### {label}"))
    return teach(student, rows, SFT, **training)


def without_steps(training: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training that do not say how long it is: STaR says that itself, round by round."""
    if "max_steps" in training:
        raise LimbeckError("star sets max_steps itself, round by round: give steps=… and growth=….")
    return training


@recipe(
    "star",
    paper="2203.14465",
    title="STaR: bootstrapping reasoning with reasoning",
    elicits=("self-knowledge",),
    objective="SFT",
    skill="reasoning",
    departs=(
        "an instruction asks for the steps, in place of demonstrations",
        "a fixed number of rounds; the paper goes on until accuracy stops rising",
    ),
)
def star(
    problems: Table,
    student: Model,
    *,
    rounds: int = 8,
    steps: int = 40,
    growth: float = 1.2,
    temperature: float | None = None,
    max_tokens: int | None = None,
    **training: Any,
) -> Model:
    """Keeps solutions that reach the answer, asks again with the answer where none did, and trains on both; repeats.

    Round r trains for `steps * growth ** r` steps, always from the student as it was given.
    """
    training = without_steps(training)
    model, problems = student, keep(problems, checks.holds("prompt", "answer"))
    for r in range(rounds):
        settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "salt": r}
        right = keep(ask(problems, model, "rationale/solve", into="response", **settings), checks.correct())
        missed = fields(minus(problems, right, on="prompt"), hint=checks.gold_answer)
        told = keep(ask(missed, model, "star/hint", into="response", **settings), checks.correct())
        lessons = concat(right, fields(told, hint=None))
        model = train(student, lessons, SFT, max_steps=int(steps * growth**r), **training)
    return model
