"""Recipes that train, with a real student and teacher of a few thousand weights: two steps, once, and not again."""

import pytest

import limbeck as lb
from limbeck.models.fake import Fake
from limbeck.models.hf import HF
from limbeck.recipe import registered

from .train.conftest import checkpoint

RECIPES = registered()
QUESTIONS = [{"prompt": f"w{i} w{i + 1}", "answer": "3"} for i in range(8)]
QUICK = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[HF, HF]:
    """A student and a teacher that share a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(HF(checkpoint(folder / name, seed=i), device="cpu") for i, name in enumerate("st"))


def trained(name: str, directory, **arguments):
    with lb.Run(directory, progress=False):
        return RECIPES[name].fn(lb.Table.from_rows(QUESTIONS), **arguments, **QUICK)


@pytest.mark.parametrize("name", ["label", "rft", "lmsi", "distilling-step-by-step"])
def test_a_student_learns_a_fakes_text(name, small, tmp_path):
    teacher = Fake(lambda request: "w1 + w2 : 1 + 2 = 3 .\n#### 3", "solver")
    few = {"k": 2} if name in ("rft", "lmsi") else {}
    model = trained(name, tmp_path, teacher=teacher, student=small[0], **few)
    calls = teacher.calls
    assert model.digest != small[0].digest and (tmp_path / "models").is_dir()
    again = trained(name, tmp_path, teacher=teacher, student=small[0], **few)
    assert again.digest == model.digest and teacher.calls == calls > 0


@pytest.mark.parametrize("name", ["supervised-kd", "gkd", "on-policy-kd", "akl", "abkd", "f-distill", "distillm-2"])
def test_a_student_is_drawn_to_a_teachers_logits(name, small, tmp_path):
    student, teacher = small
    model = trained(name, tmp_path, teacher=teacher, student=student, max_tokens=4)
    assert model.digest not in (student.digest, teacher.digest)
    with lb.Run(tmp_path, progress=False):
        (row,) = lb.ask(lb.Table.from_rows(QUESTIONS[:1]), model, "{prompt}", max_tokens=3)
        assert "response" in row


def test_star_ends_with_a_student_that_can_be_asked(small, tmp_path, monkeypatch):
    solver = Fake(lambda request: "1 + 2 = 3\n#### 3", "solver", can=("chat", "weights"))
    calls = []

    def train(student, rows, objective, **hparams):
        calls.append(hparams["max_steps"])
        return lb.train(small[0], rows, objective, **{**hparams, "max_steps": 2})

    monkeypatch.setattr("limbeck.recipes.selftaught.train", train)
    with lb.Run(tmp_path, progress=False):
        model = RECIPES["star"].fn(
            lb.Table.from_rows(QUESTIONS), solver, rounds=1, per_device_train_batch_size=4, use_cpu=True
        )
        assert calls == [40] and "weights" in model.can
