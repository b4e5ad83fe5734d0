"""ATKD with a student and a teacher of a few thousand weights."""

import json
from pathlib import Path

import limbeck as lb
from limbeck.models.hf import HF
from limbeck.recipe import registered

from .train.conftest import checkpoint, lessons

QUICK = {"max_steps": 6, "per_device_train_batch_size": 4, "use_cpu": True, "learning_rate": 1e-2, "logging_steps": 1}


def test_atkd_draws_the_student_to_its_teacher(tmp_path):
    student, teacher = (HF(checkpoint(tmp_path / name, seed=i), device="cpu") for i, name in enumerate("st"))
    with lb.Run(tmp_path / "run", progress=False):
        rows = lb.Table.from_rows(lessons(12))
        atkd = registered()["atkd"].fn
        model = atkd(rows, student, teacher, share=0.4, **QUICK)
        assert atkd(rows, student, teacher, share=0.4, **QUICK).digest == model.digest
        assert atkd(rows, student, teacher, **QUICK).digest != model.digest
    lines = [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
