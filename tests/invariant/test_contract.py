"""What a training promises of its loss: exactly the learned positions, each once, whatever lies around them.

Elsewhere: targets one position off, the end label where pad is eos, left padding, beginnings and turns in
train/test_encode.py; permuted ids in train/test_signal.py; splits and the ratio of two losses in test_split.py.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.losses import SFT, Batch, Loss, Outputs, forward_kl, prefers, reverse_kl
from limbeck.losses.heads import Head, total
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import Objective, train
from limbeck.train.collate import Layout
from limbeck.train.encode import encode
from limbeck.train.examples import Example, Row
from limbeck.train.forward import Reader

from ..train.conftest import checkpoint, lessons, weights_of

# One step of this is the gradient itself.
STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0, "use_cpu": True, "logging_steps": 1}
STEP |= {"lr_scheduler_type": "constant"}


def curve(model):
    return [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]


def change(student, made):
    """What a training did to every weight."""
    before, after = weights_of(student), weights_of(made)
    return {name: after[name] - before[name] for name in before}


# Exact enumeration, on five tokens.


def five_tokens():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<end>", "a", "b", "c", "d"])}, unk_token="d"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    return [
        HF(checkpoint(folder / name, seed, five_tokens()), name=name, device="cpu", dtype="float64")
        for seed, name in enumerate(["student", "teacher"], 1)
    ]


ROWS = [
    {"prompt": "a", "response": " b c"},
    {"prompt": "a b c d a", "response": " d"},
    {"prompt": "d d", "response": " a a b c d a"},
]


def by_hand(five, term):
    """Σ over every token of every answer, each predicted from exactly what stands before it, over their number."""
    student, teacher = five[0].weights(trainable=True).eval(), five[1].weights()
    words, values = {"<end>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, []
    for row in ROWS:
        ids, answer = [words[w] for w in row["prompt"].split()], [words[w] for w in row["response"].split()] + [0]
        for token in answer:
            log_q, log_p = (m(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for m in (student, teacher))
            kl = {"forward": (log_p.exp() * (log_p - log_q)).sum(), "reverse": (log_q.exp() * (log_q - log_p)).sum()}
            values.append({"sft": -log_q[token], **kl}[term])
            ids = [*ids, token]
    loss = torch.stack(values).mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("term", ["sft", "forward", "reverse"])
def test_loss_and_gradient_are_a_sum_over_positions_written_out_by_hand(five, run, term, packing):
    objectives = {"sft": Objective(SFT)}
    objectives |= {
        "forward": Objective(forward_kl(), teacher=five[1]),
        "reverse": Objective(reverse_kl(), teacher=five[1]),
    }
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    split = {"per_device_train_batch_size": 3} if packing else split
    made = train(five[0], ROWS, objectives[term], **STEP, **split, packing=packing, max_length=16)
    loss, gradients = by_hand(five, term)
    assert curve(made)[0]["loss"] == pytest.approx(loss, rel=1e-6)
    found = change(five[0], made)
    for name, gradient in gradients.items():
        torch.testing.assert_close(-found[name], gradient, rtol=1e-5, atol=1e-7)
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-2


# Around the learned positions.


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return HF(checkpoint(tmp_path_factory.mktemp("models") / "s", seed=1), name="student", device="cpu")


def of(model, layout, rows):
    """A batch's SFT over its count, and its gradient."""
    model.zero_grad()
    batch = layout(rows)
    seen = Reader(model)(batch)
    batch["student"] = seen
    value = total(seen.hidden_nd, seen.head, SFT.fn(batch))[0] / SFT.count(batch)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("pack", [None, 200])
def test_a_row_padded_to_ten_times_its_length_has_the_loss_and_the_gradient_it_has_alone(student, pack):
    model = student.weights(trainable=True)
    one = encode(lessons(1), student.tokenizer, 256)[0]
    long = Example(torch.randint(7, 40, (150,)).int(), torch.zeros(150, dtype=torch.bool), 0)
    alone, beside = of(model, Layout(), [one]), of(model, Layout(pack=pack), [one, Row([long])])
    assert len(long.ids) > 10 * len(one.sequences[0].ids)
    assert beside[0] == pytest.approx(alone[0], rel=1e-6)
    torch.testing.assert_close(beside[1], alone[1], rtol=1e-5, atol=1e-5 * float(alone[1].abs().max()))


def test_a_prompt_ten_times_as_long_does_not_dilute_the_loss(run, student, tmp_path):
    """A model that knows nothing loses log V at each learned token, and at nothing else."""
    weights = student.weights(trainable=True)
    weights.lm_head.weight.data.zero_()
    weights.save_pretrained(tmp_path / "none")
    student.tokenizer.save_pretrained(tmp_path / "none")
    blank, losses = HF(tmp_path / "none", device="cpu"), []
    for prompt in ("w1", "w1 " * 60):
        rows = [{"prompt": prompt, "response": "w2"}, {"prompt": "w3", "response": "w4 w5 w6 w7"}]
        losses.append(curve(train(blank, rows, **STEP, per_device_train_batch_size=2))[0]["loss"])
    assert losses == pytest.approx([math.log(len(student.tokenizer))] * 2, rel=1e-6)


def test_what_a_model_says_inside_the_prompt_is_no_part_of_the_loss(student):
    """Other hidden states there, so other predictions of the prompt's tokens: the same loss; at the answer, another."""
    model, batch = student.weights(trainable=True), Layout()(list(encode(lessons(3), student.tokenizer, 256)))
    reader = Reader(model)
    inputs = batch.inputs["input_ids"]
    begins = (inputs == student.tokenizer.convert_tokens_to_ids("<bot>")).int().cumsum(1)
    where = {"nowhere": begins < 0, "prompt": begins == 0, "answer": begins > 0}
    losses = {}
    for name, at in where.items():
        hook = model.model.norm.register_forward_hook(lambda *seen, at=at: seen[-1] + 3.0 * at[..., None])
        seen = reader(batch)
        losses[name] = total(seen.hidden_nd, seen.head, SFT.fn(batch))[0].item()
        hook.remove()
    assert losses["prompt"] == losses["nowhere"] != losses["answer"]


# Splits, to the last digits.


def test_a_trajectory_in_fp64_is_the_same_to_1e_8_however_its_steps_are_split_and_padded(five, tmp_path):
    rows = [{"prompt": r["prompt"], "response": " " + r["response"]} for r in ROWS] * 4
    objective = Objective(SFT) + Objective(forward_kl(), teacher=five[1], weight=0.5)
    made = []
    for n, more in enumerate(((8, 1, False), (2, 4, False), (1, 8, False), (4, 2, True))):
        batch, accumulation, packing = more
        settings = STEP | {"max_steps": 5, "learning_rate": 0.1, "max_length": 16, "packing": packing}
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        with Run(tmp_path / str(n), progress=False):
            made.append(weights_of(train(five[0], rows, objective, **settings, **split)))
    for other in made[1:]:
        assert max(float((other[name] - made[0][name]).abs().max()) for name in other) <= 1e-8
    assert max(float((made[0][name] - weights_of(five[0])[name]).abs().max()) for name in made[0]) > 1e-2


def test_a_first_gradient_in_fp32_is_the_same_to_1e_5_however_the_step_is_split(student, tmp_path):
    made = []
    for batch, accumulation in ((8, 1), (2, 4), (1, 8)):
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        with Run(tmp_path / str(batch), progress=False):
            made.append(change(student, train(student, lessons(8), **STEP, **split)))
    largest = max(float(g.abs().max()) for g in made[0].values())
    assert all(float((other[n] - made[0][n]).abs().max()) <= 1e-5 * largest for other in made[1:] for n in other)


# References and teachers.

PAIRS = [{"prompt": r["prompt"], "chosen": r["response"], "rejected": "w1 w2"} for r in lessons(6)]


class Noted:
    """Minus the log-likelihood; keeps what it was told at every step."""

    digest = "noted"  # the same loss, whatever it has kept

    def __init__(self):
        self.batches, self.students, self.references = [], [], []

    def __call__(self, batch):
        self.batches.append(Batch(batch))
        self.students.append(batch.student.logps_n.detach())
        self.references.append(batch.reference.logps_n)
        return -batch.student.logps_n.sum()


@pytest.mark.parametrize("lora", [None, {"r": 2}])
@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_the_reference_of_an_already_trained_adapter_is_its_snapshot(run, student, kind, lora):
    """Bit-equal at the first step and at the last: neither the weights below the adapter, nor those in training."""
    first = train(student, lessons(12), lora={"r": 2}, max_steps=5, learning_rate=0.1, use_cpu=True)
    if kind == "adapter":
        first = HF(student.path, adapter=Path(first.path) / "adapter", device="cpu")
    noted = Noted()
    loss = Loss(noted, needs=("student.logps", "reference.logps"), name="noted")
    train(first, lessons(4), loss, **STEP | {"max_steps": 4}, per_device_train_batch_size=2, lora=lora)
    snapshot, base = Reader(first.weights()), Reader(student.weights())
    assert len(noted.batches) == 4
    with torch.no_grad():
        for batch, reference in zip(noted.batches, noted.references, strict=True):
            assert torch.equal(reference, snapshot(batch).logps_n)
            assert not torch.allclose(reference, base(batch).logps_n, atol=1e-2)
    assert torch.equal(noted.students[0], noted.references[0])
    assert not torch.allclose(noted.students[-1], noted.references[-1], atol=1e-3)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_dpo_is_exactly_log_2_at_the_first_step(run, student, lora):
    made = train(
        student, PAIRS, prefers("sigmoid"), **STEP | {"max_steps": 2}, per_device_train_batch_size=6, lora=lora
    )
    first, second = (line["loss"] for line in curve(made)[:2])
    assert first == float(torch.tensor(2.0).log()) and second < first


class Offset(torch.nn.Module):
    """Weights of a loss: part of the student while it trains, and so in its mode."""

    def __init__(self, *_):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(3))


def test_training_mode_is_the_students_alone(run, student, tmp_path):
    """With dropout in all three, a frozen model that followed the student into training would be noise."""
    frozen = [HF(checkpoint(tmp_path / n, seed=4, dropout=0.5), name=n, device="cpu") for n in ("teacher", "reference")]
    weights, modes = [one.weights().train() for one in frozen], []

    class Modes:
        digest = "modes"

        def __call__(self, batch):
            modes.append([batch.module.training, *(one.training for one in weights)])
            return -(batch.student.logps_n + batch.teacher.logps_n + batch.reference.logps_n).sum()

    loss = Loss(Modes(), ("student.logps", "teacher.logps", "reference.logps"), name="modes", modules=Offset)
    train(student, lessons(4), Objective(loss, teacher=frozen[0], reference=frozen[1]), **STEP)
    assert modes == [[True, False, False]]


def test_a_losss_own_weights_are_trained_and_no_part_of_the_student(run, student):
    from transformers import AutoModelForCausalLM

    class Drawn:
        digest, seen = "drawn", []

        def __call__(self, batch):
            self.seen.append(batch.module.offset.detach().clone())
            return -(batch.student.logps_n.sum() * batch.module.offset.sub(1).pow(2).sum())

    made = train(student, lessons(4), Loss(Drawn(), ("student.logps",), modules=Offset), **STEP | {"max_steps": 3})
    assert len(Drawn.seen) == 3 and float((Drawn.seen[-1] - Drawn.seen[0]).abs().max()) > 1e-3
    assert weights_of(made).keys() == weights_of(student).keys()
    _, found = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not found["unexpected_keys"] and not found["missing_keys"]


# Precision.


def test_log_probabilities_of_a_bf16_model_are_within_1e_2_of_fp32_per_sequence():
    """The softmax over 32,000 tokens, were it in bf16 too, would be off by 0.05 to 0.5."""
    torch.manual_seed(0)
    hidden_nd, weight_vd = torch.randn(64, 48).bfloat16(), (0.15 * torch.randn(32000, 48)).bfloat16()
    labels_n = torch.randint(32000, (64,))
    rough = Outputs(hidden_nd, Head(weight_vd), labels_n).logps_n
    exact = -F.cross_entropy(hidden_nd.float() @ weight_vd.float().T, labels_n, reduction="none")
    assert rough.dtype == torch.float32
    assert float((rough - exact).view(4, 16).mean(1).abs().max()) < 1e-2
