"""Who writes: shares that come out, samples that no split of a step changes, and labels on what was written."""

import collections
import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.losses import forward_kl, reverse_kl
from limbeck.models.hf import HF
from limbeck.train import Objective, Text, train
from limbeck.train.encode import encode
from limbeck.train.schedule import BLANK
from limbeck.train.text import Draft, write, writer

from .conftest import checkpoint, events_of, lessons, weights_of


def prompts(tokenizer, n):
    made = encode(lessons(n), tokenizer, 64, answers=False)
    return [made[i] for i in range(n)]


def test_the_coin_gives_the_shares_and_is_the_same_for_everyone():
    text = Text(data=0.25, student=0.5, teacher=0.25)
    who = [writer(text, 0, step) for step in range(4000)]
    counts = collections.Counter(who)
    assert abs(counts["student"] / 4000 - 0.5) < 0.03 and abs(counts["data"] / 4000 - 0.25) < 0.03
    assert who == [writer(text, 0, step) for step in range(4000)] != [writer(text, 1, step) for step in range(4000)]
    assert {writer(Text(), 0, step) for step in range(50)} == {"data"}
    assert {writer(Text(data=0, student=1), 0, step) for step in range(50)} == {"student"}


def test_what_is_written_is_learned_to_its_end_token(teacher):
    tokenizer, model = teacher.tokenizer, teacher.weights()
    rows, end = prompts(tokenizer, 40), tokenizer.eos_token_id
    (made,) = write(model, [Draft(list(range(40)), rows)], Text(data=0, student=1, max_tokens=7), 0, {end}, 64)
    ended = 0
    for asked, row in zip(rows, made, strict=True):
        written = row.ids[asked.prompt :].tolist()
        assert row.ids[: asked.prompt].tolist() == asked.ids.tolist()
        assert not row.learn[: asked.prompt].any() and row.learn[asked.prompt :].all()
        assert written.index(end) == len(written) - 1 if end in written else len(written) == 7
        ended += end in written
    assert 0 < ended < 40


def test_the_split_of_a_step_does_not_change_what_is_written(teacher):
    rows = prompts(teacher.tokenizer, 6)
    text, end = Text(data=0, student=1, max_tokens=9), {teacher.tokenizer.eos_token_id}
    (whole,) = write(teacher.weights(), [Draft([5, 6, 7, 8, 9, 10], rows)], text, 3, end, 64)
    parts = write(teacher.weights(), [Draft([5, 6], rows[:2]), Draft([7, 8, 9, 10], rows[2:])], text, 3, end, 64)
    alone = [write(teacher.weights(), [Draft([5 + i], [row])], text, 3, end, 64)[0][0] for i, row in enumerate(rows)]
    ids = [[row.ids.tolist() for row in some] for some in (whole, [*parts[0], *parts[1]], alone)]
    assert ids[0] == ids[1] == ids[2]
    (again,) = write(teacher.weights(), [Draft([11, 6, 7, 8, 9, 10], rows)], text, 3, end, 64)
    assert again[0].ids.tolist() != ids[0][0] and again[1].ids.tolist() == ids[0][1]


def test_the_checkpoints_generation_settings_are_not_inherited(teacher):
    """A checkpoint that says top_k=1 would make every sample the likeliest one."""
    model = teacher.weights(trainable=True)
    model.generation_config.top_k, model.generation_config.do_sample = 1, True
    row = prompts(teacher.tokenizer, 1)
    text, end = Text(data=0, student=1, max_tokens=5), {teacher.tokenizer.eos_token_id}
    (made,) = write(model, [Draft(list(range(20)), row * 20)], text, 0, end, 64)
    assert len({tuple(one.ids.tolist()) for one in made}) > 10
    assert model.training


def test_blank_rows_and_long_prompts_pass(teacher):
    rows = [BLANK, *prompts(teacher.tokenizer, 1)]
    text, end = Text(data=0, student=1, max_tokens=50), {teacher.tokenizer.eos_token_id}
    (made,) = write(teacher.weights(), [Draft([0, 1], rows)], text, 0, end, max_length=rows[1].prompt + 2)
    assert made[0] is BLANK and len(made[1].ids) <= rows[1].prompt + 2


def test_on_policy_training_comes_closer_to_the_teacher(run, rows, student, teacher):
    own = Objective(reverse_kl(), text=Text(data=0, student=1, max_tokens=8), teacher=teacher)
    settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 5, "use_cpu": True}
    train(student, rows, own, max_steps=40, **settings)
    event = events_of(run, "train")[-1]
    curve = [json.loads(line)["loss"] for line in (run.dir / event["path"] / "log.jsonl").read_text().splitlines()]
    assert curve[-1] < 0.6 * curve[0]


def test_the_teacher_may_write(run, rows, student, tmp_path):
    teacher = HF(checkpoint(tmp_path / "t", seed=8), device="cpu")
    text = Text(data=0, teacher=1, max_tokens=6)
    made = [
        train(student, rows, Objective(forward_kl(), text=t, teacher=teacher), max_steps=3, use_cpu=True)
        for t in (text, Text())
    ]
    one, other = map(weights_of, made)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_student_with_an_adapter_writes_what_it_would_without(run, rows, tmp_path, teacher):
    """A fresh adapter changes nothing, so the first step's own text is the same, from prompts of uneven lengths too.

    With absolute positions: a model that does not hear where its padded prompt begins would write something else.
    """
    torch.manual_seed(0)
    size = {"vocab_size": len(teacher.tokenizer), "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    calm = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "initializer_range": 0.4}
    GPT2LMHeadModel(GPT2Config(**size, **ends, **calm)).save_pretrained(tmp_path / "gpt2")
    teacher.tokenizer.save_pretrained(tmp_path / "gpt2")
    student = HF(tmp_path / "gpt2", device="cpu")
    own = Objective(forward_kl(), text=Text(data=0, student=1, max_tokens=8), teacher=teacher)
    made = [train(student, rows, own, max_steps=1, use_cpu=True, lora=lora) for lora in (None, {"r": 2})]
    first = [json.loads((Path(m.path) / "log.jsonl").read_text().splitlines()[0]) for m in made]
    assert abs(first[0]["loss"] - first[1]["loss"]) < 1e-5
