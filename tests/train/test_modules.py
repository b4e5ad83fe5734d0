"""The losses' own weights: trained and kept with the student, restored with it, and never part of what is saved."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.losses import SFT, Loss, forward_kl
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import Objective, Text, checkpoint, state, train
from limbeck.train.trainer import Trainer

from .conftest import checkpoint as new_model
from .conftest import lessons, weights_of

SETTINGS = {
    "max_steps": 6, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
    "save_steps": 2, "logging_steps": 4, "use_cpu": True,
}  # fmt: skip
LORA = {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}}


class Killed(BaseException):
    pass


class Gauge(torch.nn.Module):
    """Weights and a buffer: a learned map between widths, and how large the teacher's states are on average."""

    def __init__(self, student, teacher):
        super().__init__()
        self.map = torch.nn.Linear(student.hidden_size, teacher.hidden_size)
        self.register_buffer("size", torch.ones(()))


def gauged(batch):
    student, teacher = (o.layers_btd[-1].flatten(0, 1)[batch.at_n] for o in (batch.student, batch.teacher))
    if torch.is_grad_enabled():
        batch.module.size.lerp_(teacher.square().mean(), 0.1)
    return (batch.module.map(student) - teacher).square().mean(-1).sum() / batch.module.size


def objective(teacher):
    """Own weights with a buffer; text that the student writes and keeps."""
    gauge = Loss(gauged, needs=("student.layers", "teacher.layers"), name="gauge", modules=Gauge)
    text = Text(student=0.5, rise=0.01, replay=12, max_tokens=4)
    return Objective(gauge, teacher=teacher) + SFT + Objective(forward_kl(), teacher=teacher, text=text)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student, teacher = new_model(folder / "student", seed=1, dropout=0.1), new_model(folder / "teacher", 2, hidden=48)
    return HF(student, name="student", device="cpu"), HF(teacher, name="teacher", device="cpu")


def learn(student, teacher, folder, **more):
    with Run(folder, progress=False):
        model = train(student, lessons(22), objective(teacher), eval_rows=HELD_OUT, eval_steps=2, **SETTINGS, **more)
    return weights_of(model), [line | {"seconds": 0} for line in checkpoint.read_log(Path(model.path) / "log.jsonl")]


HELD_OUT = lessons(3, seed=5)


@pytest.fixture(scope="module", params=[{}, LORA], ids=["whole", "lora"])
def undisturbed(request, models, tmp_path_factory):
    return request.param, learn(*models, tmp_path_factory.mktemp("undisturbed") / "out", **request.param)


@pytest.mark.parametrize("at", [3, 5])
def test_killed_and_continued_it_is_the_same(models, undisturbed, tmp_path, monkeypatch, at):
    how, (weights, log) = undisturbed
    usual = Trainer.compute_loss

    def dying(self, *args, **kwargs):
        if self.state.global_step == at:
            raise Killed
        return usual(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "compute_loss", dying)
        with pytest.raises(Killed):
            learn(*models, tmp_path / "out", **how)
    (part,) = (tmp_path / "out" / "models").glob("*.part")
    kept = load_file(checkpoint.newest(part) / state.FILE)
    own = {name for name in kept if name.partition(".")[0] == state.OWN}
    assert {name.rpartition("limbeck.0.")[2] for name in own} == {"map.weight", "map.bias", "size"}
    again, log_again = learn(*models, tmp_path / "out", **how)
    assert log_again == log
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_what_a_loss_learned_for_itself_is_not_in_the_model(models, undisturbed):
    _, (weights, _) = undisturbed
    assert set(weights) == set(weights_of(models[0]))


CHILD = """
import os, signal, sys
from limbeck.models.hf import HF
from tests.train import test_modules as here
target, at = sys.argv[4], int(sys.argv[5])
module, _, name = target.rpartition(".")
owner = {"torch": here.torch, "state": here.state, "checkpoint": here.checkpoint}[module]
usual, calls = getattr(owner, name), []
def dying(*args, **kwargs):
    calls.append(1)
    done = usual(*args, **kwargs)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, dying)
student, teacher = (HF(path, name=name, device="cpu") for path, name in zip(sys.argv[1:3], ("student", "teacher")))
here.learn(student, teacher, sys.argv[3], **here.LORA)
"""


def test_sigkill_inside_saving_again_and_again(models, tmp_path):
    """Between two files of the first checkpoint; in the next life among the files that are made durable."""
    whole = learn(*models, tmp_path / "whole", **LORA)
    for target, at in (("torch.save", 2), ("checkpoint.sync", 4)):
        arguments = [*(model.path for model in models), str(tmp_path / "out"), target, str(at)]
        child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
        assert child.returncode == -9, child.stderr
    weights, log = learn(*models, tmp_path / "out", **LORA)
    assert log == whole[1] and all(torch.equal(weights[name], whole[0][name]) for name in weights)
