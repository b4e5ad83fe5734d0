"""A training that was killed, wherever, ends in the very weights of one that was not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from limbeck.losses import SFT, forward_kl
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import Objective, Text, checkpoint, train
from limbeck.train.trainer import Trainer

from ..train.conftest import checkpoint as new_model
from ..train.conftest import events_of, lessons, weights_of

# Dropout uses torch's generator, accumulation and 22 rows make epochs end inside a step.
SETTINGS = {
    "max_steps": 12, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
    "save_steps": 4, "logging_steps": 1, "use_cpu": True,
}  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL where one process plays both lives: nothing catches it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student = new_model(folder / "student", seed=1, dropout=0.2)
    teacher = new_model(folder / "teacher", seed=2)
    return HF(student, name="student", device="cpu"), HF(teacher, name="teacher", device="cpu")


def objective(models):
    return Objective(SFT) + Objective(forward_kl(), teacher=models[1], text=Text(data=0.5, student=0.5, max_tokens=5))


def learn(models, folder, **more):
    with Run(folder, progress=False) as run:
        model = train(models[0], lessons(22), objective(models), **{**SETTINGS, **more})
        return model, weights_of(model), events_of(run, "train")[-1]


def losses(model):
    lines = [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    model, weights, _ = learn(models, tmp_path_factory.mktemp("whole") / "out")
    return losses(model), weights


def kill_at(monkeypatch, owner, name, call, after=False):
    """Dies at the `call`-th call of owner.name: before it did its work, or after."""
    usual, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        done = usual(*args, **kwargs)
        if len(calls) == call:
            raise Killed
        return done

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    ("owner", "name", "call", "after", "continues_at"),
    [
        (Trainer, "compute_loss", 3, False, 0),  # before any checkpoint
        (Trainer, "compute_loss", 15, False, 4),  # in the middle of an accumulation
        (Trainer, "_save_optimizer_and_scheduler", 2, False, 4),  # inside the second save
        (checkpoint, "mark", 1, False, 0),  # the first checkpoint is whole, but not marked
        (checkpoint, "mark", 2, False, 4),
        (checkpoint, "mark", 2, True, 8),
        (checkpoint, "remove", 1, False, 8),  # the second is marked, the first not yet gone
        (checkpoint, "commit", 1, False, 8),  # all but the last rename
    ],
)
def test_killed_here_and_run_again(models, whole, tmp_path, monkeypatch, owner, name, call, after, continues_at):
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call, after)
        with pytest.raises(Killed):
            learn(models, tmp_path / "out")
    assert not [path for path in (tmp_path / "out" / "models").iterdir() if not path.name.endswith(".part")]
    begun = []
    usual = Trainer.compute_loss
    monkeypatch.setattr(
        Trainer, "compute_loss", lambda self, *a, **k: begun.append(self.state.global_step) or usual(self, *a, **k)
    )
    model, weights, event = learn(models, tmp_path / "out")
    assert begun[0] == continues_at
    assert losses(model) == whole[0]
    assert all(torch.equal(weights[n], whole[1][n]) for n in weights)
    assert event["reused"] is False and not list((tmp_path / "out" / "models").glob("*.part"))


def test_killed_after_the_last_rename_it_is_reused(models, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, checkpoint, "commit", 1, after=True)
        with pytest.raises(Killed):
            learn(models, tmp_path / "out")
    model, weights, event = learn(models, tmp_path / "out")
    assert event["reused"] is True and all(torch.equal(weights[n], whole[1][n]) for n in weights)
    assert not list((tmp_path / "out" / "models").glob("*.part"))


def test_continued_with_another_split_of_the_step(models, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, checkpoint, "mark", 2)
        with pytest.raises(Killed):
            learn(models, tmp_path / "out")
    model, weights, _ = learn(models, tmp_path / "out", per_device_train_batch_size=6, gradient_accumulation_steps=1)
    # Dropout falls otherwise in other micro-batches: the rows are the same, the noise is not.
    assert losses(model)[:4] == whole[0][:4] and losses(model) == pytest.approx(whole[0], rel=0.2)


def test_seconds_add_up_over_lives(models, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, checkpoint, "mark", 2)
        with pytest.raises(Killed):
            learn(models, tmp_path / "out")
    (part,) = (tmp_path / "out" / "models").glob("*.part")
    first = checkpoint.read_log(part / "log.jsonl")[-1]["seconds"]
    _, _, event = learn(models, tmp_path / "out")
    assert event["train_seconds"] > first > 0


def test_a_real_kill(models, whole, tmp_path):
    """SIGKILL to a child as soon as its first checkpoint's directory shows, most often inside the save."""
    code = """
import sys
from limbeck.models.hf import HF
from tests.invariant.test_resume import learn
learn([HF(path, name=name, device="cpu") for path, name in zip(sys.argv[1:3], ("student", "teacher"))], sys.argv[3])
"""
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", code, models[0].path, models[1].path, str(out)])
    try:
        while not list(out.glob("models/*.part/checkpoint-*")) and child.poll() is None:
            time.sleep(0.001)
    finally:
        child.kill()
    assert child.wait() == -9
    assert list(out.glob("models/*.part"))
    model, weights, _ = learn(models, out)
    assert losses(model) == whole[0]
    assert all(torch.equal(weights[n], whole[1][n]) for n in weights)
