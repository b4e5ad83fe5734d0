"""The tour, with fewer problems and steps: the same two workers, the same table, the same files."""

import json
import os
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from limbeck import Table, cli, quickstart
from limbeck.models.tiny import QUICKSTART, TEACHER

SMALL = {"problems": 40, "eval_problems": 12, "steps": 3, "batch": 4, "warmup": 1, "lr": 1e-3, "schedule": "linear"}
ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (TEACHER / "model.safetensors").exists(), reason="no shipped teacher here")


@pytest.fixture
def tour(monkeypatch, capfd):
    """Takes the tour through the command line: (exit code, stdout)."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, value in SMALL.items():
        monkeypatch.setitem(QUICKSTART, name, value)

    def take(*words):
        monkeypatch.setattr(sys, "argv", ["limbeck", "quickstart", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capfd.readouterr().out

    return take


def test_the_tour_elicits_curates_trains_and_judges(tour, tmp_path):
    out = tmp_path / "tour"
    code, printed = tour("--json", "--out", out)
    found = json.loads(printed)  # one object and nothing else
    assert code == 0 and set(found) == {"seconds", "cpu_seconds", "rows", "rejects", "models"}
    assert found["rows"]["elicited"] == 40 == found["rows"]["kept"] + sum(found["rejects"].values())
    assert list(found["models"]) == ["untrained", "answers-only", "sft", "kl", "teacher"]
    for name, model in found["models"].items():
        assert model["n"] == 12 and 0 <= model["low"] <= model["accuracy"] <= model["high"] <= 1
        assert (model["train_seconds"] > 0) == (name in quickstart.STUDENTS)
    assert found["models"]["teacher"]["accuracy"] > 0.5 > found["models"]["untrained"]["accuracy"]
    lessons = list(Table.from_parquet(out / "rows.parquet"))
    assert len(lessons) == found["rows"]["kept"] and all("####" in row["response"] for row in lessons)
    assert (out / "model" / "model.safetensors").exists() and "How good it is" in (out / "report.html").read_text()
    assert "student, SFT on reasoning: loss" in (out / "report.html").read_text()  # the names of the terminal
    kinds = [part["kind"] for part in json.loads((out / "result.json").read_text())["parts"]]
    assert kinds == ["table", "model", *["report"] * 5]

    trained = {p: p.stat().st_mtime_ns for p in out.glob("*/models/*/model.safetensors")}
    assert len(trained) == 3
    code, printed = tour("--out", out)  # again: nothing is asked or trained, and the table is for people
    assert code == 0 and {p: p.stat().st_mtime_ns for p in out.glob("*/models/*/model.safetensors")} == trained
    events = [json.loads(line) for p in out.rglob("events.jsonl") for line in p.read_text().splitlines()]
    assert sum(e["calls"] for e in events if e["event"] == "bought") == 40 + 5 * 12
    for told in (
        "untrained student",
        "95 % interval",
        "wrong answer" if found["rejects"] else "none",
        "limbeck run label",
        "sampled at temperature 0.7",
    ):
        assert told in printed


def test_an_earlier_tours_steps_are_not_shown(tmp_path):
    log = tmp_path / "sft" / "models" / "a.part" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 40, "loss": 1.5}\n')
    os.utime(log, (1, 1))
    watch, job = quickstart._Watch(tmp_path, shown=True), Future()
    job.set_running_or_notify_cancel()
    assert watch._state("sft", job) == {"note": "starts"}
    os.utime(log, (watch.since + 1, watch.since + 1))
    assert watch._state("sft", job) == {"completed": 40, "note": "loss 1.500"}


def test_another_recipes_directory_is_left_alone(tour, tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": "label"}')
    code, _ = tour("--out", tmp_path)
    assert code == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["run.json"]


def test_the_seed_draws_other_problems(run):
    first, second, again = (list(quickstart.questions(20, seed, "train")) for seed in (0, 1, 0))
    assert first == again and first != second and set(first[0]) == {"prompt", "answer", "kind"}
