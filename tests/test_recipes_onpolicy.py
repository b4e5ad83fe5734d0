"""Recipes about whose words are learned: what they ask for and make small, and that a real student comes nearer."""

import json

import pytest

import limbeck as lb
from limbeck.errors import LimbeckError
from limbeck.models.fake import Fake
from limbeck.models.hf import HF
from limbeck.recipe import registered
from limbeck.recipes.onpolicy import nearness

from .train.conftest import checkpoint, events_of, lessons

RECIPES = registered()
FAST = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[HF, HF]:
    """A student and a teacher that share a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(HF(checkpoint(folder / name, seed=i), device="cpu") for i, name in enumerate("st"))


@pytest.fixture
def taught(monkeypatch) -> list[dict]:
    """Trainings are only noted down; the student comes back under another name."""
    seen = []

    def train(student, rows, objective, **settings):
        seen.append({"student": student, "rows": list(rows), "objective": objective, **settings})
        return Fake(lambda request: f"trained {len(seen)}", f"{student.name}+", can=("chat", "logits", "weights"))

    for module in ("onpolicy", "objectives"):
        monkeypatch.setattr(f"limbeck.recipes.{module}.train", train)
    return seen


def model(name: str, says) -> Fake:
    return Fake(lambda request: says(request.messages[-1]["content"]), name, can=("chat", "logits", "weights"))


def noted(name: str, directory, *models, rows=({"prompt": "p"}, {"prompt": "q"}), **settings):
    """Runs a recipe on a few rows with fakes."""
    with lb.Run(directory, progress=False):
        return RECIPES[name].fn(lb.Table.from_rows(rows), *models, **settings)


def curve(name: str, directory, rows=None, steps: int = 16, **arguments) -> list[float]:
    """Trains for real; the loss of every step."""
    with lb.Run(directory, progress=False) as run:
        RECIPES[name].fn(lb.Table.from_rows(rows or lessons(8)), **arguments, max_steps=steps, **FAST)
    path = directory / events_of(run, "train")[-1]["path"]
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def falls(losses: list[float]) -> bool:
    return sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_nearness_by_hand():
    row = {"response": "the cat sat on the mat", "gold": "the cat sat on a mat"}
    # 5 of 6 words; 3 of 5, 2 of 4 and 1 of 3 longer runs, each with one added above and below
    assert nearness(row) == pytest.approx((5 / 6 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)
    assert nearness({"response": "a b c d", "gold": "a b c d"}) == 1
    assert nearness({"response": "", "gold": "a b"}) == nearness({"response": "x y", "gold": "a b"}) == 0
    assert nearness({"response": "a b", "gold": "a b c d"}) < nearness({"response": "a b c", "gold": "a b c d"}) < 1


def test_interpolation_learns_the_reply_nearest_to_the_gold_answer(tmp_path):
    said = iter(["red green", "blue sky and more", "a blue sky", "far off"] * 2)
    teacher = Fake(lambda request: next(said), "t", max_concurrency=1)
    questions = [{"prompt": p, "answer": "a blue sky"} for p in "pq"]
    rows = list(noted("seq-inter", tmp_path, teacher, rows=questions, n=4))
    assert [(row["prompt"], row["response"]) for row in rows] == [("p", "a blue sky"), ("q", "a blue sky")]
    assert all("gold" not in row and row["answer"] == "a blue sky" for row in rows)
    whole = noted("seqkd", tmp_path / "all", model("t", str.upper), rows=questions, n=2)
    assert [row["response"] for row in whole] == ["P", "P", "Q", "Q"]


def test_distillm_starts_on_the_data_and_hands_over(tmp_path, taught):
    held_out = lb.Table.from_rows([{"prompt": "z"}])
    noted("distillm", tmp_path, model("s", str), model("t", str.upper), eval_rows=held_out)
    (training,) = taught
    text, objective = training["objective"].text, training["objective"]
    assert (text.student, text.rise, text.replay, text.temperature) == (0, 0.1, 1000, 1)
    assert objective.loss == lb.diverges("skew-kl", alpha=0.1) and objective.teacher.name == "t"
    assert [row["response"] for row in training["rows"]] == ["P", "Q"]
    assert [row["response"] for row in training["eval_rows"]] == ["Z"]


def test_distillm_2_sets_its_own_latest_answers_against_the_teachers(tmp_path, taught):
    noted("distillm-2", tmp_path, model("s", lambda said: "trained 0"), model("t", str.upper), rounds=3)
    assert [training["student"].name for training in taught] == ["s", "s+", "s++"]
    for r, training in enumerate(taught):
        pull, push = training["objective"].terms
        assert (pull.loss.name, push.loss.name) == ("skew-kl", "skew-reverse-kl")
        assert (pull.weight, push.weight, pull.text, push.text) == (1, 1, lb.Text(), lb.Text())
        assert [row["response"] for row in training["rows"]] == ["P", "Q"] and pull.rows is None
        with lb.Run(tmp_path, progress=False):
            assert [row["response"] for row in push.rows] == [f"trained {r}"] * 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("kl", [("forward-kl", 0, 1.0)]),
        ("rkl", [("reverse-kl", 1, 1.0)]),
        ("js", [("skew-kl", 0, 0.5), ("skew-reverse-kl", 1, 0.5)]),
        ("tvd", [("tvd", 0, 0.5), ("tvd", 1, 0.5)]),
    ],
)
def test_f_distill_takes_each_half_on_its_own_text(kind, said, tmp_path, taught):
    teacher = model("t", str.upper)
    noted("f-distill", tmp_path, model("s", str), teacher, kind=kind)
    (training,) = taught
    terms = training["objective"].terms
    assert [(term.loss.name, term.text.student, term.weight) for term in terms] == said
    assert [row.get("response") for row in training["rows"]] == ([None, None] if kind == "rkl" else ["P", "Q"])
    assert teacher.calls == (0 if kind == "rkl" else 2)
    if kind == "js":
        assert terms[0].loss == lb.diverges("skew-kl", alpha=0.5), "the mixture is the mean of both"


def test_f_distill_names_its_kinds(tmp_path):
    with pytest.raises(LimbeckError, match="has the kinds kl, rkl, js, tvd; it got 'jsd'"):
        noted("f-distill", tmp_path, model("s", str), model("t", str), kind="jsd")


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("akl", lb.diverges("adaptive-kl", mu=0.5)),
        ("abkd", lb.diverges("alpha-beta", a=0.2, b=0.7)),
        ("on-policy-kd", lb.jsd(0.0)),
    ],
)
def test_which_divergence_on_whose_text(name, loss, tmp_path, taught):
    noted(name, tmp_path, model("s", str), model("t", str.upper))
    (training,) = taught
    assert training["objective"].loss == loss
    assert training["objective"].text.student == (name == "on-policy-kd")


def test_context_is_read_by_the_teacher_alone(tmp_path, taught):
    student = model("s", str.upper)
    noted("context-distillation", tmp_path, student, context="Be brief.")
    (training,) = taught
    objective = training["objective"]
    assert objective.teacher is student and objective.teacher_prompt == "prompted"
    rows = training["rows"]
    assert [row["prompt"] for row in rows] == ["p", "q"]
    assert [row["prompted"] for row in rows] == ["Be brief.\n\np", "Be brief.\n\nq"]
    assert [row["response"] for row in rows] == ["BE BRIEF.\n\nP", "BE BRIEF.\n\nQ"], "the prompted model wrote"


@pytest.mark.parametrize("kind", ["kl", "rkl", "js", "tvd"])
def test_f_distill_brings_a_student_nearer(kind, small, tmp_path):
    student, teacher = small
    assert falls(curve("f-distill", tmp_path, student=student, teacher=teacher, kind=kind, max_tokens=6))


@pytest.mark.parametrize("name", ["akl", "abkd", "on-policy-kd", "seqkd"])
def test_a_student_comes_nearer(name, small, tmp_path):
    student, teacher = small
    assert falls(curve(name, tmp_path, student=student, teacher=teacher, max_tokens=6))


def test_a_student_learns_to_answer_as_if_it_had_read_the_context(small, tmp_path):
    student, _ = small
    losses = curve("context-distillation", tmp_path, student=student, context="w30 w31 w32 w33", max_tokens=6)
    assert losses[0] > 0.01 and falls(losses)


def test_distillm_brings_a_student_nearer(small, tmp_path):
    student, teacher = small
    settings = {"rise": 0.4, "replay": 8, "max_tokens": 6, "eval_steps": 2}
    held_out = lb.Table.from_rows(lessons(4, seed=5))
    losses = curve("distillm", tmp_path, student=student, teacher=teacher, eval_rows=held_out, **settings)
    assert falls(losses)


def test_distillm_2_goes_on_from_its_last_round(small, tmp_path):
    student, teacher = small
    losses = curve("distillm-2", tmp_path, steps=6, student=student, teacher=teacher, rounds=2, max_tokens=6)
    first, second = (
        json.loads((path / "log.jsonl").read_text().splitlines()[0])["loss"]
        for path in sorted((tmp_path / "models").iterdir(), key=lambda p: p.stat().st_mtime)
    )
    assert second < first and losses[0] == pytest.approx(second)
