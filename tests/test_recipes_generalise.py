"""Weak-to-strong: who learns what from whom, and that a real student learns from a real weak classifier."""

import pytest
import torch

import limbeck as lb
from limbeck.models.fake import Fake
from limbeck.recipe import registered
from limbeck.recipes.generalise import recovered, same

from .train.test_kinds import FAST, bert, labelled, saved

RECIPE = registered()["weak-to-strong"]
SUMS = [{"prompt": f"{a} + 1", "answer": str(a + 1)} for a in range(40)]


def test_recovered_is_a_share_of_the_gap_and_none_where_there_is_no_gap():
    assert recovered(weak=0.6, student=0.7, ceiling=0.8) == pytest.approx(0.5)
    assert recovered(weak=0.6, student=0.5, ceiling=0.8) == pytest.approx(-0.5)
    assert recovered(weak=0.6, student=0.7, ceiling=0.6) is None
    assert recovered(weak=0.6, student=0.7, ceiling=0.5) is None
    assert recovered(weak=0.6, student=0.7, ceiling=float("nan")) is None


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [("Yes", "yes", True), ("no", "yes", False), ("so\n#### 8", "8.0", True), ("8", "… #### 8", True)],
)
def test_the_same_is_an_answer_alone_or_at_the_end(response, answer, right):
    assert same({"response": response, "answer": answer}).correct is right


@pytest.fixture
def taught(monkeypatch):
    """Trainings are noted down; who learned gold is right of 8 in 10 if strong, of 4 if weak, and others of 6."""
    seen = []

    def train(student, rows, objective, **settings):
        gold = all(row["response"] == row["answer"] for row in rows)
        seen.append({"student": student.name, "rows": list(rows), "objective": objective, **settings})
        skill = (8 if student.name == "strong" else 4) if gold else 6

        def say(request):
            number = int(request.messages[-1]["content"].split()[0])
            return str(number + 1 if number % 10 < skill else number)

        made = Fake(say, f"{student.name}-{'gold' if gold else 'told'}")
        made.kind = student.kind
        return made

    monkeypatch.setattr("limbeck.recipes.generalise.train", train)
    return seen


def model(name, kind="decoder"):
    made = Fake(str, name, can=("chat", "logits", "weights"))
    made.kind = kind
    return made


def carried_out(directory, *models, **settings):
    rows = lb.Table.from_rows(SUMS)
    with lb.Run(directory, progress=False):
        return RECIPE.fn(rows, *models, eval_rows=rows, **settings)


def test_generators_learn_the_weak_models_words(tmp_path, taught):
    made, report = carried_out(tmp_path, model("weak"), model("strong"), max_steps=3)
    assert made.name == "strong-told"
    assert report == {"weak": 0.4, "student": 0.6, "ceiling": 0.8, "recovered": pytest.approx(0.5)}
    first, second, third = taught
    assert [one["student"] for one in taught] == ["weak", "strong", "strong"]
    assert all(one["max_steps"] == 3 and one["objective"] == lb.SFT for one in taught)
    weak, strong, ceiling = ({row["prompt"] for row in one["rows"]} for one in taught)
    assert strong == ceiling and not weak & strong and len(weak | strong) == 40 and 10 < len(weak) < 30
    assert any(row["response"] != row["answer"] for row in second["rows"])
    assert all(row["response"] == row["answer"] for row in [*first["rows"], *third["rows"]])


def test_classifiers_learn_probabilities_and_their_own_decisions(tmp_path, taught):
    carried_out(tmp_path, model("weak", "classifier"), model("strong", "classifier"), alpha=0.75)
    objective = taught[1]["objective"]
    assert objective.teacher.name == "weak-gold"
    assert objective.loss == lb.losses.trusts(0.75, warmup=-(-len(taught[1]["rows"]) * 2 // 5))
    assert taught[0]["objective"] == taught[2]["objective"] == lb.SFT


def test_students_between_hand_the_labels_on(tmp_path, taught):
    between = [model("medium"), model("large")]
    carried_out(tmp_path, model("weak"), model("strong"), between=between)
    assert [one["student"] for one in taught] == ["weak", "medium", "large", "strong", "strong"]
    for labels in (taught[2]["rows"], taught[3]["rows"]):
        assert all((row["response"] == row["answer"]) == (int(row["prompt"].split()[0]) % 10 < 6) for row in labels)


def test_a_stronger_bert_learns_from_a_weaker_one(tmp_path):
    torch.manual_seed(0)
    weak, strong = saved(tmp_path / "weak", bert(hidden=16)), saved(tmp_path / "strong", bert())
    rows = lb.Table.from_rows({"prompt": row["prompt"], "answer": row["response"]} for row in labelled(80))
    with lb.Run(tmp_path / "out", progress=False) as run:
        made, report = RECIPE.fn(rows, weak, strong, eval_rows=rows, max_steps=40, **FAST)
        again, same_report = RECIPE.fn(rows, weak, strong, eval_rows=rows, max_steps=40, **FAST)
        assert again.digest == made.digest and same_report == report
        assert len(list(run.dir.glob("models/*/meta.json"))) == 3
    assert report["ceiling"] > 0.8 and report["student"] > 0.6
    assert report.pop("recovered") == recovered(**report)
