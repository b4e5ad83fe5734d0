"""Training on what models compute inside: projections and filters learn, are kept, and are none of the student's."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import SFT, forward_kl
from limbeck.losses.features import KINDS, adapts, filters, resembles
from limbeck.run import Run
from limbeck.train import Objective, train

from .conftest import lessons, weights_of

FEW = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, "logging_steps": 1}
PLAIN = {"optim": "sgd", "learning_rate": 0.3, "use_cpu": True, "num_train_epochs": 1, "logging_steps": 1}
HIDDEN = [kind for kind in KINDS if not kind.startswith("attention")]


def beside(model):
    """The losses' own weights, which lie in the model's folder."""
    path = Path(model.path) / "losses.pt"
    return torch.load(path, weights_only=True) if path.exists() else {}


def losses(model):
    return [json.loads(line)["loss"] for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]


def built(loss, student, teacher, seed=0):
    """The loss's own weights before the first step."""
    torch.manual_seed(seed)
    return loss.modules(student.weights().config, teacher.weights().config).state_dict()


@pytest.mark.parametrize("settings", [{}, {"lora": {"r": 4}}])
def test_projections_learn_and_lie_beside_the_student(run, rows, student, teacher, settings):
    loss = resembles("mse")
    model = train(student, rows, Objective(loss, teacher=teacher), **FEW, **settings)
    before, after = built(loss, student, teacher), beside(model)
    assert set(after) == {"0.student.0.weight"} and after["0.student.0.weight"].shape == (48, 32)
    assert not torch.equal(after["0.student.0.weight"], before["student.0.weight"])
    assert set(weights_of(model)) == set(student.weights().state_dict())
    assert losses(model)[-1] < losses(model)[0]


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(run, rows, student, kind):
    model = train(student, rows, Objective(resembles(kind), teacher=student), **FEW | {"max_steps": 1})
    assert losses(model) == pytest.approx([0], abs=1e-6)
    assert beside(model) == {}


@pytest.mark.parametrize("kind", HIDDEN)
def test_how_a_step_is_split_changes_nothing(tmp_path, student, teacher, kind):
    """11 rows, 8 a step: the last step is filled up."""
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        with Run(tmp_path / str(batch), progress=False):
            settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
            model = train(student, lessons(11), Objective(resembles(kind), teacher=teacher), **PLAIN, **settings)
        found.append((losses(model), weights_of(model), beside(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


@pytest.fixture
def learnt(run, rows, student, teacher):
    return train(student, rows, Objective(filters(), teacher=teacher), **FEW | {"max_steps": 12})


def test_filters_learn_and_leave_the_student_as_it_is(learnt, student, teacher):
    before = student.weights().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in weights_of(learnt).items())
    fresh, after = built(filters(), student, teacher), beside(learnt)
    assert len(after) == 4 and all(not torch.equal(after[f"0.{name}"], fresh[name]) for name in fresh)
    assert losses(learnt)[-1] < losses(learnt)[0]


def test_the_second_stage_goes_on_from_the_filters_with_the_teachers_fixed(learnt, rows, student, teacher):
    first = beside(learnt)
    objective = Objective(SFT) + Objective(forward_kl(2.0), teacher=teacher, weight=4.0)
    objective += Objective(resembles("mse", filters=learnt), teacher=teacher)
    model = train(student, rows, objective, **FEW)
    ours = {name: value for name, value in first.items() if name.startswith("0.student")}
    assert set(beside(model)) == set(ours), "the teacher's do not learn"
    assert all(not torch.equal(beside(model)[name], ours[name]) for name in ours)
    still = train(student, rows, objective, **FEW | {"learning_rate": 1e-30})
    for name in ours:
        torch.testing.assert_close(beside(still)[name], ours[name])
    made = resembles("mse", filters=learnt).modules(student.weights().config, teacher.weights().config)
    assert all(torch.equal(made.state_dict()[name.removeprefix("0.")], value) for name, value in first.items())
    assert {name for name, p in made.named_parameters() if p.requires_grad} == {n.removeprefix("0.") for n in ours}


def test_what_is_compared_and_which_filters_decide_the_training(learnt, rows, student, teacher):
    one = FEW | {"max_steps": 1}
    made = [
        resembles("mse"), resembles("l2"), resembles("mse", layers=[(0, 0)]), resembles("mse", project=True),
        resembles("mse", filters=learnt), adapts(), adapts(share=0.3),
    ]  # fmt: skip
    digests = {train(student, rows, Objective(loss, teacher=teacher), **one).digest for loss in made}
    assert len(digests) == len(made)
    assert train(student, rows, Objective(resembles("mse"), teacher=teacher), **one).digest in digests


def test_adaptive_teaching_draws_the_student_to_its_teacher(run, rows, student, teacher):
    model = train(student, rows, Objective(adapts(), teacher=teacher), **FEW | {"max_steps": 8})
    assert losses(model)[-1] < 0.7 * losses(model)[0]


def test_models_that_read_different_words_are_not_compared(run, rows, student, teacher):
    objective = dataclasses.replace(Objective(resembles(), teacher=teacher), teacher_prompt="prompt")
    with pytest.raises((LimbeckError, ValueError), match="teacher_prompt"):
        train(student, rows, objective, **FEW)
