"""train() end to end: a model again, once, with its curve and rejects; LoRA, several terms, held-out rows."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import SFT, Loss, forward_kl
from limbeck.models.base import Request
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.table import Table
from limbeck.train import Objective, train

from .conftest import events_of, lessons, weights_of

FEW = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}


def curve(model):
    return [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]


def test_a_trained_model_is_a_model_with_its_files_and_its_event(run, rows, student):
    model = train(student, rows, **FEW)
    path = Path(model.path)
    assert path == run.dir / "models" / model.digest[:16]
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "meta.json"} <= {
        f.name for f in path.iterdir()
    }
    assert [line["step"] for line in curve(model)] == [1, 3]
    assert all(set(line) == {"step", "loss", "terms", "lr", "seconds"} for line in curve(model))
    (event,) = events_of(run, "train")
    assert event["steps"] == 3 and event["reused"] is False and event["path"] == f"models/{model.digest[:16]}"
    assert event["loss"] == curve(model)[-1]["loss"] and event["train_seconds"] > 0
    assert not list(run.dir.glob("models/*.part"))


def test_the_saved_model_is_what_transformers_expects(run, rows, student):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = train(student, rows, **FEW)
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    assert loaded.config.use_cache == student.weights().config.use_cache
    assert AutoTokenizer.from_pretrained(model.path).chat_template == student.tokenizer.chat_template
    saved = loaded.state_dict()
    before = student.weights().state_dict()
    assert set(saved) == set(before) and any(not torch.equal(saved[n], before[n]) for n in saved)


def test_generation_settings_that_transformers_would_not_save(run, rows, student, tmp_path):
    weights = student.weights(trainable=True)
    weights.save_pretrained(tmp_path / "odd")
    student.tokenizer.save_pretrained(tmp_path / "odd")
    settings = json.loads((tmp_path / "odd" / "generation_config.json").read_text())
    (tmp_path / "odd" / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.6}))
    model = train(HF(tmp_path / "odd", device="cpu"), rows, **FEW)
    assert json.loads((Path(model.path) / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_setting_that_transformers_refuses_is_one_line(run, rows, student):
    with pytest.raises(
        LimbeckError, match="train wants settings as transformers.TrainingArguments takes them; it says: "
    ):
        train(student, rows, lr_scheduler_type="wavy", **FEW)


def test_what_was_trained_is_what_the_model_answers(run, rows, student):
    """Trained prompt and asked prompt are the same tokens: 24 answers learned by heart come back whole."""
    model = train(student, rows, max_steps=150, per_device_train_batch_size=24, learning_rate=1e-2, use_cpu=True)
    assert curve(model)[-1]["loss"] < 0.05
    for row in rows.head(3):
        reply = asyncio.run(model.reply(Request([{"role": "user", "content": row["prompt"]}], max_tokens=12), "0"))
        assert (reply.text, reply.finish) == (row["response"], "stop")


def test_run_again_is_reused_without_loading_torch(tmp_path, student):
    with Run(tmp_path / "out", progress=False) as run:
        first = train(student, lessons(24), **FEW)
        again = train(student, lessons(24), save_steps=1, logging_steps=1, **FEW)
        assert again.path == first.path and events_of(run, "train")[-1]["reused"] is True
    code = f"""
import sys
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import train
from limbeck.table import Table
import json
with Run({str(tmp_path / "out")!r}, progress=False) as run:
    student = HF({student.path!r}, name={student.name!r}, device="cpu")
    made = train(student, Table.from_rows(json.loads(sys.argv[1])), **json.loads(sys.argv[2]))
assert made.digest == {first.digest!r}
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, json.dumps(lessons(24)), json.dumps(FEW)], check=True)


def test_equal_trainings_are_equal(tmp_path, student):
    made = []
    for name in ("one", "two"):
        with Run(tmp_path / name, progress=False):
            made.append(weights_of(train(student, lessons(24), **FEW)))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_rejected_rows_are_kept_with_reasons(run, student):
    rows = [*lessons(6), {"prompt": "w1 " * 300, "response": "w1"}, {"prompt": "w1", "response": ""}]
    model = train(student, rows, **FEW)
    (event,) = events_of(run, "train")
    assert event["rows"] == 6 and sum(event["rejected"].values()) == 2
    rejects = [json.loads(line) for line in (Path(model.path) / "rejects.jsonl").read_text().splitlines()]
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (6, "max_length cuts the whole answer off"),  # at the student's context of 256
        (7, "the response is no text, or empty"),
    ]
    with pytest.raises(LimbeckError, match="none is left: 2 × max_length cuts the whole answer off; look at the rows"):
        train(student, rows[6:7] * 2, **FEW)


def test_lora_is_saved_merged_and_as_an_adapter(run, rows, student):
    from peft import PeftModel

    model = train(student, rows, lora={"r": 4, "alpha": 8}, **FEW)
    base = student.weights(trainable=True)
    adapted = PeftModel.from_pretrained(base, Path(model.path) / "adapter").eval()
    assert adapted.peft_config["default"].r == 4 and adapted.peft_config["default"].lora_alpha == 8
    ids = torch.arange(7, 17)[None]
    with torch.no_grad():
        merged = model.weights()(ids).logits
        torch.testing.assert_close(adapted(ids).logits, merged, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(student.weights()(ids).logits, merged, atol=1e-3)
    with pytest.raises(LimbeckError, match="train wants lora as peft.LoraConfig takes it"):
        train(student, rows, lora={"rank": 4}, **FEW)


def test_terms_add_up_with_their_weights_and_their_own_rows(run, student, teacher):
    """One step of plain gradient descent: the change of a sum is the sum of the changes."""
    one, two = Table.from_rows(lessons(4)), Table.from_rows(lessons(4, seed=1))
    plain = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd", "use_cpu": True}
    plain |= {"max_grad_norm": 0, "lr_scheduler_type": "constant"}
    start = weights_of(student)

    def change(rows, objective):
        made = weights_of(train(student, rows, objective, **plain))
        return {name: made[name] - start[name] for name in start}

    sft, kl = change(one, SFT), change(two, Objective(forward_kl(), teacher=teacher))
    both = change(one, Objective(SFT) + Objective(forward_kl(), teacher=teacher, rows=two, weight=0.5))
    for name in start:
        torch.testing.assert_close(both[name], sft[name] + 0.5 * kl[name], rtol=1e-3, atol=1e-6)
    assert max(float(value.abs().max()) for value in kl.values()) > 1e-4


def test_held_out_loss_is_the_mean_over_labels_and_changes_nothing(tmp_path, student):
    held_out = Table.from_rows(lessons(7, seed=9))
    made = {}
    for name, more in {
        "without": {}, "ones": {"eval_rows": held_out, "eval_steps": 2, "per_device_eval_batch_size": 1},
        "all": {"eval_rows": held_out, "eval_steps": 2, "per_device_eval_batch_size": 7},
    }.items():  # fmt: skip
        with Run(tmp_path / name, progress=False):
            made[name] = train(student, lessons(24), **FEW, **more)
    one, other, none = (weights_of(made[name]) for name in ("ones", "all", "without"))
    assert all(torch.equal(one[n], none[n]) and torch.equal(other[n], none[n]) for n in none)
    losses = {name: [line["eval_loss"] for line in curve(made[name]) if "eval_loss" in line] for name in made}
    assert len(losses["ones"]) >= 1 and losses["without"] == []
    assert losses["ones"] == pytest.approx(losses["all"], rel=1e-5)


def test_a_users_loss_and_its_unit(run, rows, student):
    """The mean over sequences of a sequence's summed loss, by ten lines of a user's own."""

    def summed(batch):
        logp_nv = batch.student.logits_nv.log_softmax(-1)
        return -logp_nv.gather(-1, batch.labels_n[:, None]).sum()

    by_token = train(student, rows, Loss(summed, name="mine"), **FEW)
    by_row = train(student, rows, Loss(summed, unit="sequence", name="mine"), **FEW)
    usual = train(student, rows, SFT, **FEW)
    assert len({by_token.digest, by_row.digest, usual.digest}) == 3
    assert curve(by_token)[0]["loss"] == pytest.approx(curve(usual)[0]["loss"], rel=1e-5)
    assert curve(by_row)[0]["loss"] > 2 * curve(usual)[0]["loss"]


def test_a_loss_that_is_no_number_stops(run, rows, student):
    broken = Loss(lambda batch: batch.student.logits_nv.sum() * float("nan"), name="broken")
    with pytest.raises(LimbeckError, match="train stopped: the loss is nan at step 1; lower learning_rate"):
        train(student, rows, broken, **FEW)
    assert not events_of(run, "train")


def test_precisions_follow_each_other_in_one_process(run, rows, student):
    half = train(student, rows, bf16=True, **FEW)
    full = train(student, rows, **FEW)
    assert half.digest != full.digest
    assert weights_of(half)["lm_head.weight"].dtype == torch.float32
    assert curve(half)[0]["loss"] == pytest.approx(curve(full)[0]["loss"], rel=0.02)
    assert curve(half)[0]["loss"] != curve(full)[0]["loss"]


def test_bf16_computes_in_bf16_and_keeps_its_weights_in_fp32(run, rows, student, monkeypatch):
    """The forward is redirected: it must still be inside autocast, down in the middle of the model."""
    from limbeck.train.trainer import Trainer

    seen, usual = set(), Trainer.compute_loss

    def watched(self, *args, **kwargs):
        middle = self.inner.model.layers[0].mlp.up_proj
        hook = middle.register_forward_hook(lambda module, given, made: seen.add((made.dtype, module.weight.dtype)))
        found = usual(self, *args, **kwargs)
        hook.remove()
        return found

    monkeypatch.setattr(Trainer, "compute_loss", watched)
    train(student, rows, bf16=True, **FEW)
    assert seen == {(torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["whole", "lora"])
def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, student, lora):
    made = []
    for on in (False, True):
        with Run(tmp_path / str(on), progress=False):
            made.append(train(student, lessons(24), gradient_checkpointing=on, lora=lora, **FEW))
    assert made[0].digest == made[1].digest
    one, other = map(weights_of, made)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_neftune_adds_noise_while_it_trains_and_none_to_the_model(tmp_path, student):
    found = {}
    for alpha in (None, 50.0):
        with Run(tmp_path / str(alpha), progress=False):
            found[alpha] = train(student, lessons(24), neftune_noise_alpha=alpha, eval_rows=lessons(3), **FEW)
    assert curve(found[50.0])[0]["loss"] != pytest.approx(curve(found[None])[0]["loss"], rel=1e-3)
    assert found[50.0].digest != found[None].digest
    assert set(weights_of(found[50.0])) == set(weights_of(student))


def test_without_a_run_the_error_says_how_to_open_one(student):
    with pytest.raises(LimbeckError, match="train needs an open run"):
        train(student, lessons(3))
