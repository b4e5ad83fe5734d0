"""Evaluation: sums over counts, whatever the batch; the best student; an end where nothing gets better."""

import json
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import SFT, forward_kl, prefers
from limbeck.run import Run
from limbeck.table import Table
from limbeck.train import Objective, checkpoint, train
from limbeck.train.trainer import Trainer

from .conftest import events_of, lessons, weights_of

# A few rows learned by heart: soon the rows held out get worse and worse.
FIT = {
    "max_steps": 40, "per_device_train_batch_size": 4, "learning_rate": 3e-2, "lr_scheduler_type": "constant",
    "eval_steps": 2, "logging_steps": 1, "save_steps": 5, "use_cpu": True,
}  # fmt: skip
HELD_OUT = Table.from_rows(lessons(7, seed=9))


def learn(student, folder, objective=SFT, rows=None, held_out=HELD_OUT, **settings):
    with Run(folder, progress=False) as run:
        model = train(student, rows or lessons(4), objective, eval_rows=held_out, **{**FIT, **settings})
        return model, events_of(run, "train")[-1]


def curve(model):
    return checkpoint.read_log(Path(model.path) / "log.jsonl")


def evaluations(model):
    return {line["step"]: line["eval_loss"] for line in curve(model) if "eval_loss" in line}


def test_it_ends_after_that_many_evaluations_without_a_better_one(tmp_path, student):
    model, event = learn(student, tmp_path / "out", early_stopping_patience=3)
    found = evaluations(model)
    best = min(found, key=found.get)
    assert event["steps"] == max(found) == best + 3 * 2 < 40 and "best_step" not in event
    assert all(later > found[best] for step, later in found.items() if step > best)


def test_the_best_student_is_the_one_at_its_best_evaluation(tmp_path, student):
    """No checkpoint was due at that step by save_steps: it is saved because it is the best."""
    model, event = learn(student, tmp_path / "out", load_best_model_at_end=True)
    found = evaluations(model)
    best = min(found, key=found.get)
    assert event["best_step"] == best and event["steps"] == 40 and best % 5
    until, _ = learn(student, tmp_path / "until", max_steps=best)
    ours, theirs = weights_of(model), weights_of(until)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("at", [5, 8, 13])
def test_killed_it_ends_at_the_same_step_with_the_same_weights(tmp_path, student, monkeypatch, at):
    how = {"early_stopping_patience": 4, "load_best_model_at_end": True, "lora": {"r": 4}}
    whole, event = learn(student, tmp_path / "whole", **how)
    assert event["steps"] > at
    usual = Trainer.compute_loss

    def dying(self, *args, **kwargs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return usual(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "compute_loss", dying)
        with pytest.raises(KeyboardInterrupt):
            learn(student, tmp_path / "out", **how)
    again, event_again = learn(student, tmp_path / "out", **how)
    told = [{k: v for k, v in line.items() if k != "seconds"} for line in curve(whole)]
    assert told == [{k: v for k, v in line.items() if k != "seconds"} for line in curve(again)]
    assert (event_again["steps"], event_again["best_step"]) == (event["steps"], event["best_step"])
    ours, theirs = weights_of(whole), weights_of(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_going_by_the_loss_on_rows_held_out_wants_some(tmp_path, student):
    with pytest.raises(LimbeckError, match="has none; give eval_rows"):
        learn(student, tmp_path / "out", held_out=None, early_stopping_patience=3)


def pairs(n, seed=0):
    return [{**row, "chosen": row["response"], "rejected": row["prompt"]} for row in lessons(n, seed)]


@pytest.mark.parametrize("kind", ["streams", "pairs"])
def test_the_held_out_loss_does_not_depend_on_the_batch(tmp_path, student, teacher, kind):
    """Terms that count tokens and pairs, on two streams of rows: means of batch means would differ."""
    objective = {
        "streams": Objective(SFT) + Objective(forward_kl(), teacher=teacher, rows=Table.from_rows(lessons(5, 3))),
        "pairs": Objective(prefers("simpo")) + Objective(SFT, weight=0.3),
    }[kind]
    told = {}
    for size in (1, 3, 7):
        held_out = Table.from_rows(pairs(7, seed=9))
        model, _ = learn(
            student, tmp_path / str(size), objective, pairs(4), held_out, max_steps=2, per_device_eval_batch_size=size
        )
        told[size] = [line for line in curve(model) if "eval_loss" in line][-1]
    for size in (1, 3):
        assert told[size]["eval_loss"] == pytest.approx(told[7]["eval_loss"], rel=1e-5)
        assert told[size]["terms"] == pytest.approx(told[7]["terms"], rel=1e-5)
    weights = [term.weight for term in objective.terms]
    whole = sum(weight * value for weight, value in zip(weights, told[1]["terms"].values(), strict=True))
    assert told[1]["eval_loss"] == pytest.approx(whole)


def test_each_terms_mean_is_told_and_adds_up_to_the_loss(tmp_path, student, teacher):
    objective = Objective(SFT) + Objective(forward_kl(), teacher=teacher, weight=0.5) + Objective(SFT, weight=2.0)
    model, _ = learn(student, tmp_path / "out", objective, max_steps=3, logging_steps=1)
    lines = [line for line in curve(model) if "loss" in line]
    assert [list(line["terms"]) for line in lines] == [["sft", "forward-kl", "sft-2"]] * 3
    for line in lines:
        one, kl, two = line["terms"].values()
        assert line["loss"] == pytest.approx(one + 0.5 * kl + 2.0 * two, rel=1e-5) and one == pytest.approx(two)


def test_other_programs_are_told_too(tmp_path, student, monkeypatch):
    """report_to goes to transformers, which tells each program every number."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    told = []

    class Board(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            told.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Board)
    learn(student, tmp_path / "out", max_steps=2, report_to="tensorboard")
    assert any({"loss", "loss/sft", "learning_rate"} <= line.keys() for line in told)
    assert any({"eval_loss", "eval_loss/sft"} <= line.keys() for line in told)
    assert all(not isinstance(value, dict) for line in told for value in line.values()), json.dumps(told)
