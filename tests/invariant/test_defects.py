"""What went wrong in other trainers of this kind, each as a test that this one passes.

Elsewhere: one-sided beginnings and teachers' own ids in train/test_signal.py, an end token that is also padding in
train/test_encode.py, uneven counts over processes in test_split.py.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import SFT, Loss, diverges, forward_kl, jsd, reverse_kl
from limbeck.losses.heads import Dense, Term, TopK, total
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.table import Table
from limbeck.train import Objective, Text, train
from limbeck.train.collate import Layout
from limbeck.train.encode import encode
from limbeck.train.forward import Reader

from ..train.conftest import checkpoint, lessons, weights_of, word_tokenizer

STILL = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.0, "use_cpu": True, "logging_steps": 1, "eval_steps": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    student, teacher = checkpoint(folder / "s", seed=1), checkpoint(folder / "t", seed=2, hidden=48)
    return HF(student, name="student", device="cpu"), HF(teacher, name="teacher", device="cpu")


def curve(model):
    return [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]


def first_loss(models, rows, objective, **settings):
    return curve(train(models[0], rows, objective, **STILL | settings))[0]["loss"]


def said(models, rows):
    """Both models' log-probabilities at the learned positions: (N, V) each."""
    batch = Layout()(list(encode(rows, models[0].tokenizer, 256)))
    with torch.no_grad():
        return [Reader(model.weights())(batch).logits_nv.log_softmax(-1) for model in models]


def test_divided_by_the_number_of_tokens_twice(models, run):
    """The divergence of a step is its mean over the learned tokens: as large for many as for one row."""
    log_q, log_p = said(models, lessons(6))
    mean = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    few = first_loss(models, lessons(6), Objective(forward_kl(), teacher=models[1]), per_device_train_batch_size=6)
    many = first_loss(
        models, lessons(6) * 8, Objective(forward_kl(), teacher=models[1]), per_device_train_batch_size=48
    )
    assert few == pytest.approx(mean, rel=1e-5) and many == pytest.approx(mean, rel=1e-5)


class Heard:
    """Minus the log-likelihood; keeps what the teacher said to each text, every time, and is killed once on the way."""

    digest = "heard"  # the same loss, whatever it has heard

    def __init__(self):
        self.said, self.killed = {}, False

    def __call__(self, batch):
        for s in range(batch.sequences):
            mine, row = batch.sequence_n == s, batch.tokens_bt[s]
            self.said.setdefault(tuple(batch.inputs["input_ids"][s, row].tolist()), []).append(
                batch.teacher.logps_n[mine]
            )
        if len(self.said) >= 9 and not self.killed:
            self.killed = True
            raise RuntimeError("killed")
        return -batch.student.logps_n.sum()


def test_teacher_rows_taken_by_step_number_under_shuffling_accumulation_and_resuming(models, run):
    """Whatever step, micro-batch or restart a row comes up in, it is learned from what the teacher says to that row."""
    heard = Heard()
    objective = Objective(Loss(heard, needs=("student.logps", "teacher.logps"), name="heard"), teacher=models[1])
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings |= {"use_cpu": True, "save_steps": 1, "learning_rate": 1e-2}
    with pytest.raises(RuntimeError, match="killed"):
        train(models[0], lessons(12), objective, **settings)
    train(models[0], lessons(12), objective, **settings)
    assert len(heard.said) == 12 and sum(map(len, heard.said.values())) < 2 * 36  # the second went on, not anew
    alone = Reader(models[1].weights())
    for row in lessons(12):
        batch = Layout()(list(encode([row], models[0].tokenizer, 256)))
        with torch.no_grad():
            expected = alone(batch).logps_n
        times = heard.said[tuple(batch.inputs["input_ids"][0].tolist())]
        assert len(times) >= 3
        for found in times:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


P, Q = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]), torch.tensor([[0.3, 0.2, 0.1, 0.2, 0.2]])


def value(log_q, target, kind="forward-kl"):
    return total(log_q, None, [Term(target, kind)])[0].item()


def test_top_k_left_with_its_missing_mass():
    """Σ p log(p/q) over the top k alone is no divergence, and may be below 0; with the rest as one letter it is."""
    top = TopK(torch.tensor([[0, 1]]), P[:, :2].log())
    assert value(Q.log(), top) == pytest.approx(0.0835, abs=1e-4)
    near = torch.tensor([[0.45, 0.35, 0.1, 0.05, 0.05]])
    assert value(near.log(), top) > 0 > (P * (P / near).log())[:, :2].sum()


def test_top_k_taken_before_the_softmax():
    """With all tokens listed, a top-k target is the whole distribution; what is listed keeps its own probability."""
    everything = TopK(torch.arange(5)[None], P.log())
    assert value(Q.log(), everything) == pytest.approx(value(Q.log(), Dense(P.log())), rel=1e-5)
    log_q = Q.log().requires_grad_()
    total(log_q, None, [Term(TopK(torch.tensor([[0, 1]]), P[:, :2].log()))])[0].backward()
    assert log_q.grad[0, :2].tolist() == pytest.approx((Q - P)[0, :2].tolist(), abs=1e-6)


def test_reverse_kl_over_clamped_zeros():
    """A teacher that all but excludes a token says so by e^-69, which a clamp at 1e-10 would make e^-23."""
    log_p, log_q = torch.tensor([[0.0, -69.0]]), torch.tensor([[0.5, 0.5]]).log()
    assert value(log_q, Dense(log_p), "reverse-kl") == pytest.approx(-math.log(2) + 69 / 2, rel=1e-5)


KINDS = ["jsd", "tvd", "reverse-kl", "skew-kl", "adaptive-kl", "alpha-beta"]


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_that_overlook_which_tokens_are_ignored(models, run, kind):
    """A conversation's other turns, its prompt and its padding have no part in any of them."""
    turns = [("user", "w1 w2 w3 w4 w5"), ("assistant", "w6"), ("user", "w7 w8 w9 w1 w2"), ("assistant", "w3 w4")]
    rows = [{"messages": [{"role": r, "content": c} for r, c in turns[:n]]} for n in (2, 4)]
    log_q, log_p = said(models, rows)
    assert len(log_q) == 2 + 2 + 3  # each answer and its end
    by_hand = total(log_q, None, [Term(Dense(log_p), kind)])[0].item() / len(log_q)
    found = first_loss(models, rows, Objective(diverges(kind), teacher=models[1]), per_device_train_batch_size=2)
    assert found == pytest.approx(by_hand, rel=1e-4)


def test_cross_entropy_mixed_in_unasked(models, run, tmp_path):
    """Against itself, a student has nothing to learn: any cross-entropy would show."""
    twin = HF(models[0].path, name="twin", device="cpu")
    assert first_loss(models, lessons(6), Objective(jsd(), teacher=twin)) == pytest.approx(0, abs=1e-6)


def test_the_sampling_temperature_used_in_the_loss(models, run):
    """How hot the student writes is not at what temperature the two are compared."""
    held_out, losses = Table.from_rows(lessons(4, seed=9)), []
    for temperature in (1.0, 0.3):
        text = Text(data=0, student=1, temperature=temperature, max_tokens=4)
        objective = Objective(reverse_kl(), text=text, teacher=models[1])
        made = train(models[0], lessons(4), objective, eval_rows=held_out, **STILL)
        losses.append(next(line["eval_loss"] for line in curve(made) if "eval_loss" in line))
    log_q, log_p = said(models, lessons(4, seed=9))
    exact = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
    assert losses == pytest.approx([exact, exact], rel=1e-5)


def test_ids_of_another_tokenizer_fed_to_the_teacher(models, run, tmp_path):
    other = word_tokenizer([f"v{i}" for i in range(25)])
    teacher = HF(checkpoint(tmp_path / "t", seed=4, tokenizer=other), device="cpu", name="hf/other")
    with pytest.raises(LimbeckError, match="forward-kl compares teacher and student token by token"):
        train(models[0], lessons(4), Objective(forward_kl(), teacher=teacher), max_steps=1)
    assert not (run.dir / "models").exists()


def test_a_mean_of_micro_batch_means_under_accumulation(models, tmp_path):
    """One answer of 40 tokens and three of one: a mean of means would give the short ones forty times their weight."""
    rows = [{"prompt": "w1", "response": "w2 " * 39 + "w2"}, *({"prompt": f"w{i}", "response": "w3"} for i in range(3))]
    losses = []
    for batch in (4, 1):
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch}
        with Run(tmp_path / str(batch), progress=False):
            losses.append(first_loss(models, rows, SFT, **split))
    log_q, _ = said(models, rows)
    labels_n = Layout()(list(encode(rows, models[0].tokenizer, 256))).labels_n
    exact = -log_q.gather(-1, labels_n[:, None]).mean().item()
    assert losses == pytest.approx([exact, exact], rel=1e-5)


def test_the_end_masked_out_where_it_is_also_the_padding(run, tmp_path):
    made = []
    for pad in ("<pad>", "<end>"):
        folder = checkpoint(tmp_path / pad[1:-1], seed=1)
        word_tokenizer(pad_token=pad).save_pretrained(folder)
        student = HF(folder, device="cpu")
        made.append(weights_of(train(student, lessons(6), max_steps=2, learning_rate=1e-2, use_cpu=True)))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_evaluation_off_by_a_factor(models, run):
    """Of the rows that are trained on, at a learning rate of 0, the evaluation is the training loss itself."""
    objective = Objective(forward_kl(), teacher=models[1]) + Objective(SFT, weight=0.5)
    for batch in (1, 5):
        settings = STILL | {"per_device_train_batch_size": 5, "per_device_eval_batch_size": batch}
        made = train(models[0], lessons(5), objective, eval_rows=Table.from_rows(lessons(5)), seed=batch, **settings)
        lines = curve(made)
        trained = next(line["loss"] for line in lines if "loss" in line)
        assert next(line["eval_loss"] for line in lines if "eval_loss" in line) == pytest.approx(trained, rel=1e-5)
