"""How a step is cut into micro-batches and processes changes nothing; nor do padding, prompts, or the token count."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.losses import SFT, Loss, forward_kl
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import Objective, Text, train

from ..train.conftest import checkpoint, lessons, weights_of, word_tokenizer

# Plain gradient descent: what Adam would do to the last digits of small gradients is not what is tested.
PLAIN = {"optim": "sgd", "learning_rate": 0.3, "use_cpu": True, "max_grad_norm": 1.0, "logging_steps": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student = checkpoint(folder / "student", seed=1)
    teacher = checkpoint(folder / "teacher", seed=2, hidden=48)
    return HF(student, name="student", device="cpu"), HF(teacher, name="teacher", device="cpu")


def objective(models, kind):
    _, teacher = models
    by_sequence = Loss(SFT.fn, SFT.needs, unit="sequence", name="by-sequence", source=SFT.source)
    return {
        "sft": Objective(SFT),
        "sum": Objective(by_sequence) + Objective(forward_kl(), teacher=teacher, weight=0.7),
        "own text": Objective(forward_kl(), teacher=teacher, text=Text(data=0.5, student=0.5, max_tokens=6)),
    }[kind]


def trajectory(models, kind, folder, **settings):
    with Run(folder, progress=False):
        model = train(models[0], lessons(22), objective(models, kind), **PLAIN, **settings)
    lines = [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]
    return model.digest, [line["loss"] for line in lines], weights_of(model)


@pytest.mark.parametrize("kind", ["sft", "sum", "own text"])
def test_batch_and_accumulation_trade(models, tmp_path, kind):
    """22 rows of uneven lengths, 8 a step, two epochs: the last step is not full."""
    whole = trajectory(models, kind, tmp_path / "8x1", per_device_train_batch_size=8, num_train_epochs=2)
    assert len(whole[1]) == 6
    for batch, accumulation in ((4, 2), (1, 8)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        cut = trajectory(models, kind, tmp_path / f"{batch}x{accumulation}", num_train_epochs=2, **settings)
        assert cut[0] == whole[0]
        assert cut[1] == pytest.approx(whole[1], rel=1e-4)
        for name in whole[2]:
            torch.testing.assert_close(cut[2][name], whole[2][name], rtol=1e-4, atol=1e-5)


def test_two_processes_are_one(models, tmp_path):
    """gloo, two processes of batch 4: the losses and weights of one process with batch 8."""
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    digest, losses, weights = trajectory(models, "sum", tmp_path / "one", **settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = """
import json, sys
from limbeck.models.hf import HF
from limbeck.run import Run
from tests.invariant.test_split import lessons, objective, train, PLAIN
student, teacher, out = sys.argv[1:]
models = HF(student, name="student", device="cpu"), HF(teacher, name="teacher", device="cpu")
with Run(out, progress=False) as run:
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4}
    model = train(models[0], lessons(22), objective(models, "sum"), **settings, **PLAIN)
print(json.dumps([model.digest, str(model.path)]))
"""
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    (tmp_path / "two").mkdir()
    paths = [models[0].path, models[1].path, str(tmp_path / "two")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *paths], env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said[0][1] + said[1][1]
    made = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert made[0][0] == made[1][0] == digest
    path = tmp_path / "two" / "models" / digest[:16]
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    from safetensors.torch import load_file

    for name, value in load_file(path / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)


def step_from(models, rows, objective, tmp_path, **settings):
    """The change of all weights in one step."""
    with Run(tmp_path, progress=False):
        made = weights_of(train(models[0], rows, objective, max_steps=1, **{**PLAIN, "max_grad_norm": 0}, **settings))
    start = weights_of(models[0])
    return torch.cat([(made[name] - start[name]).flatten() for name in sorted(start)])


def test_the_ratio_of_kd_and_ce_gradients_does_not_depend_on_the_token_count(models, tmp_path):
    """Four rows, or the same four rows four times: both gradients stay, so neither term outweighs the other."""
    kl = Objective(forward_kl(), teacher=models[1])
    for name, term in (("ce", Objective(SFT)), ("kd", kl)):
        few = step_from(models, lessons(4), term, tmp_path / f"{name}4", per_device_train_batch_size=4)
        many = step_from(models, lessons(4) * 4, term, tmp_path / f"{name}16", per_device_train_batch_size=16)
        torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-6)
        assert few.norm() > 1e-3


def test_a_left_padding_tokenizer_trains_the_same(tmp_path, models):
    left = checkpoint(tmp_path / "left", seed=1, tokenizer=word_tokenizer(padding_side="left"))
    usual = step_from(models, lessons(8), Objective(SFT), tmp_path / "a")
    other = step_from((HF(left, device="cpu"), None), lessons(8), Objective(SFT), tmp_path / "b")
    assert torch.equal(usual, other) and usual.norm() > 1e-3
