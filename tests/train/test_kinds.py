"""Students that are no decoders: encoder-decoders and classifiers learn by the same call, and the same numbers."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from limbeck import Task, Verdict, ask, evaluate
from limbeck.errors import LimbeckError
from limbeck.losses import SFT, forward_kl, prefers, ranks, resembles, reverse_kl
from limbeck.losses.heads import total
from limbeck.models.base import Request
from limbeck.models.hf import HF
from limbeck.table import Table
from limbeck.train import Objective, Text, train
from limbeck.train import kinds as kinds_module
from limbeck.train.collate import Layout
from limbeck.train.examples import blank
from limbeck.train.forward import Reader
from limbeck.train.text import Draft, Writer

from .conftest import lessons, weights_of, word_tokenizer

SIZE = {"vocab_size": 47, "pad_token_id": 0, "eos_token_id": 3}
FAST = {"use_cpu": True, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}


def t5(layers=2):
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": layers, "num_heads": 4, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(**SIZE, **size, decoder_start_token_id=0))


def bart():
    size = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    size |= {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32, "dropout": 0.0}
    ends = {"bos_token_id": 2, "decoder_start_token_id": 3, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(**SIZE, **size, **ends))


def bert(labels=("no", "yes"), hidden=32):
    size = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 24}
    return BertForSequenceClassification(BertConfig(vocab_size=47, pad_token_id=0, **size, **names, **off))


def llama(pad=0):
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=47, pad_token_id=pad, num_labels=3, **size))


def spread(model, std=0.3):
    """Weights large enough that what a model says differs from token to token."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=std)
    return model


def saved(folder, model) -> HF:
    """A checkpoint with a tokenizer that ends a text with <end>, as T5's does."""
    tokenizer = word_tokenizer(template=None)
    end = ("<end>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[end])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return HF(folder, device="cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, HF]:
    home = tmp_path_factory.mktemp("kinds")
    torch.manual_seed(0)
    made = {"t5": spread(t5()), "bart": spread(bart()), "bert": spread(bert()), "llama": spread(llama())}
    made |= {"big bert": spread(bert(hidden=48)), "other t5": spread(t5())}
    return {name: saved(home / name.replace(" ", "-"), model) for name, model in made.items()}


def encoded(student: HF, rows, most=64, **how):
    return kinds_module.encode(rows, student, most, {3}, **how)


def words(*numbers) -> str:
    return " ".join(f"w{n}" for n in numbers)


def labelled(n=24, labels=("no", "yes"), rule=lambda first: first % 2):
    """Rows whose label is told by their first word."""
    return [{"prompt": words(i % 10, 3 + i % 7, *range(i % 4)), "response": labels[rule(i % 10)]} for i in range(n)]


def ids(text: str) -> list[int]:
    return [7 + int(word[1:]) for word in text.split()]


# Rows as ids.


def test_an_encoder_decoders_row_is_what_its_reply_reads_and_behind_it_what_its_decoder_writes(small):
    (row,) = encoded(small["t5"], [{"prompt": "w1 w2", "response": "w3 w4"}])
    (one,) = row.sequences
    assert one.ids.tolist() == [*ids("w1 w2"), 3, *ids("w3 w4"), 3] and one.prompt == 3
    assert one.learn.tolist() == [False] * 3 + [True] * 3
    reply = asyncio.run(small["t5"].reply(Request([{"role": "user", "content": "w1 w2"}], max_tokens=1), "0" * 32))
    assert reply.prompt_tokens == one.prompt


def test_an_answer_gets_an_end_token_where_the_tokenizer_gives_it_none(small, tmp_path):
    student = saved(tmp_path / "endless", t5())
    student.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    (one,) = encoded(student, [{"prompt": "w1", "response": "w3"}])[0].sequences
    assert one.ids.tolist() == [*ids("w1 w3"), 3]


def test_of_a_conversation_the_last_answer_is_learned_and_what_it_replies_to_is_read(small):
    told = [("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4")]
    messages = [{"role": role, "content": text} for role, text in told]
    with pytest.warns(UserWarning, match="reads the last user turn alone"):
        (row,) = encoded(small["t5"], [{"messages": messages}])
    assert row.sequences[0].ids.tolist() == [*ids("w3"), 3, *ids("w4"), 3]
    assert [why.reason for _, why in encoded(small["t5"], [{"messages": messages[:1]}]).rejects] == [
        "the response is no text, or empty"
    ]


def test_text_and_answer_are_cut_apart_and_a_text_keeps_what_closes_it(small):
    rows = [{"prompt": words(*range(8)), "response": words(*range(9))}, {"prompt": "w1", "response": "w2"}]
    made = encoded(small["t5"], rows, most=5)
    assert made[0].sequences[0].ids.tolist() == [*ids(words(0, 1, 2, 3)), 3, *ids(words(0, 1, 2, 3, 4))]
    assert made[0].sequences[0].prompt == 5 and made.cut == 1 and not made.rejects
    (label,) = encoded(small["bert"], [{"prompt": words(*range(8)), "response": "yes"}], most=4)[0].sequences
    assert label.ids.tolist() == [*ids(words(0, 1, 2)), 3, 1]


@pytest.mark.parametrize(("said", "number"), [("no", 0), (" yes\n", 1), ("1", 1), (0, 0)])
def test_a_classifiers_answer_is_a_labels_name_or_number(small, said, number):
    (one,) = encoded(small["bert"], [{"prompt": "w1 w2", "response": said}])[0].sequences
    assert one.ids.tolist() == [*ids("w1 w2"), 3, number]
    assert one.learn.tolist() == [False] * 3 + [True] and one.prompt == 3


@pytest.mark.parametrize("said", ["maybe", "2", 2, -1, None, True, 1.0, "", "No"])
def test_an_unknown_label_is_refused_with_the_labels_that_there_are(small, said):
    made = encoded(small["bert"], [{"prompt": "w1", "response": said}])
    assert [why.reason for _, why in made.rejects] == ["the response is none of the labels no, yes"]


def test_rows_that_cannot_be_read_are_refused(small):
    rows = [{"prompt": None, "response": "w1"}, {"prompt": "w1", "response": ""}, {"prompt": "w1", "response": "w2"}]
    made = encoded(small["t5"], rows)
    assert [(i, why.reason) for i, why in made.rejects] == [
        (0, "the prompt is no text"),
        (1, "the response is no text, or empty"),
    ]
    assert len(made) == 1
    scored = {"prompt": "w1", "responses": ["w2", "w3"], "scores": [1.0]}
    made = encoded(small["t5"], [scored, {"prompt": "w1"}], form="list", columns=["scores"])
    assert [why.reason for _, why in made.rejects] == [
        "scores is no number for each answer",
        "responses is empty, or no list",
    ]


def test_pairs_and_the_teachers_own_prompt(small):
    row = {"prompt": "w1", "chosen": "w2", "rejected": "w3 w4", "longer": "w5 w1"}
    (made,) = encoded(small["t5"], [row], form="pair", teacher_prompt="longer")
    assert [s.ids.tolist() for s in made.sequences] == [
        [*ids("w1"), 3, *ids("w2"), 3],
        [*ids("w1"), 3, *ids("w3 w4"), 3],
    ]
    assert made.teacher_prompt.tolist() == [*ids("w5 w1"), 3]
    view = Layout(kind="encoder-decoder")([made]).teacher_view
    assert view.inputs["input_ids"].tolist() == [[*ids("w5 w1"), 3]] * 2
    assert view.labels_n.tolist() == [*ids("w2"), 3, *ids("w3 w4"), 3]


# Batches.


def test_the_decoder_reads_each_answer_one_token_later(small):
    rows = [{"prompt": "w1 w2", "response": "w3"}, {"prompt": "w5", "response": "w6 w7 w8"}]
    batch = Layout(pad=1, kind="encoder-decoder", start=9)(list(encoded(small["t5"], rows)))
    assert batch.inputs["input_ids"].tolist() == [[8, 9, 3], [12, 3, 1]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[9, 10, 1, 1], [9, 13, 14, 15]]
    assert batch.tokens_bt.tolist() == [[True, True, False, False], [True] * 4]
    assert (batch.labels_n.tolist(), batch.at_n.tolist()) == ([10, 3, 13, 14, 15, 3], [0, 1, 4, 5, 6, 7])
    assert batch.sequence_n.tolist() == [0, 0, 1, 1, 1, 1]


ROWS = {
    "encoder-decoder": [
        {"prompt": words(1, 2, 3, 4, 5), "response": "w4"},
        {"prompt": "w5", "response": words(6, 7, 8)},
    ],
    "classifier": [{"prompt": words(1, 2, 3), "response": "1"}, {"prompt": "w5", "response": "0"}],
}


def batch_of(student: HF, *, pad=0, rows=None):
    start = kinds_module.start(student.weights(), []) if student.kind == "encoder-decoder" else 0
    made = list(encoded(student, ROWS[student.kind])) if rows is None else rows
    return Layout(pad=pad, kind=student.kind, start=start)(made)


def summed(weights, batch):
    """Σ cross-entropy over the learned positions, as the trainer computes it."""
    seen = Reader(weights)(batch)
    return total(seen.hidden_nd, seen.head, SFT.fn(batch))[0]


def gradients(weights, loss):
    held = dict(weights.named_parameters())
    found = torch.autograd.grad(loss, list(held.values()), allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(held, found, strict=True)}


@pytest.mark.parametrize("name", ["t5", "bart", "bert", "llama"])
def test_loss_and_gradients_are_those_of_the_models_own_labels(small, name):
    student = small[name]
    weights, batch = student.weights(trainable=True), batch_of(student)
    texts = student.tokenizer([row["prompt"] for row in ROWS[student.kind]], return_tensors="pt", padding=True)
    told = {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask}
    if student.kind == "classifier":
        labels = torch.tensor([1, 0])
    else:
        labels = student.tokenizer(
            text_target=[row["response"] for row in ROWS[student.kind]], return_tensors="pt", padding=True
        ).input_ids
        labels = labels.masked_fill(labels == 0, -100)
    theirs = weights(**told, labels=labels).loss
    wanted = gradients(weights, theirs)
    ours = summed(weights, batch) / len(batch.labels_n)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    largest = max(float(g.abs().max()) for g in wanted.values())
    for where, gradient in gradients(weights, ours).items():
        torch.testing.assert_close(gradient, wanted[where], rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("name", ["t5", "bart", "bert", "llama"])
def test_neither_padding_nor_a_blank_row_changes_a_loss(small, name):
    student = small[name]
    weights, rows = student.weights(), list(encoded(student, ROWS[student.kind]))
    alone = sum(float(summed(weights, batch_of(student, rows=[row]))) for row in rows)
    for pad in (0, 5):
        batch = batch_of(student, pad=pad, rows=[*rows, blank()])
        assert batch.real_g.tolist() == [True, True, False]
        assert float(summed(weights, batch)) == pytest.approx(alone, rel=1e-5)


def test_a_blank_row_alone_has_gradients_of_zero(small):
    for name in ("t5", "bert"):
        weights = small[name].weights(trainable=True)
        found = gradients(weights, summed(weights, batch_of(small[name], rows=[blank()])))
        assert all(bool((gradient == 0).all()) for gradient in found.values())


def test_layers_are_the_decoders_or_else_the_only_ones(small):
    batch, weights = batch_of(small["t5"]), small["t5"].weights()
    seen = Reader(weights, layers=True)(batch)
    theirs = weights(**batch.inputs, output_hidden_states=True)
    assert len(seen.layers_btd) == 3 and torch.equal(seen.layers_btd[1], theirs.decoder_hidden_states[1])
    assert seen.layers_btd[0].shape[:2] == batch.tokens_bt.shape
    batch = batch_of(small["bert"])
    assert Reader(small["bert"].weights(), layers=True)(batch).layers_btd[2].shape[:2] == batch.tokens_bt.shape


# Training.


def curve(model) -> list[float]:
    lines = [json.loads(line) for line in (Path(model.path) / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_four_micro_batches_are_one(run, small, name):
    rows = labelled() if name == "bert" else lessons(24)
    plain = {"max_steps": 2, "max_grad_norm": 1e9, "optim": "sgd"}
    whole = train(small[name], rows, **plain, **FAST | {"learning_rate": 0.1})
    run.dir.joinpath("models", whole.digest[:16]).rename(run.dir / "whole")
    split = FAST | {"learning_rate": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    again = train(small[name], rows, **plain, **split)
    assert again.digest == whole.digest
    whole, moved = HF(run.dir / "whole", device="cpu"), 0.0
    start = small[name].weights().state_dict()
    for where, weight in weights_of(again).items():
        torch.testing.assert_close(weight, weights_of(whole)[where], rtol=1e-5, atol=1e-6)
        moved = max(moved, float((weight - start[where]).abs().max()))
    assert moved > 1e-3, "nothing was learned, so nothing is compared"


def right(row):
    return Verdict(correct=row["response"] == row["gold"])


def accuracy(model, rows) -> float:
    named = Table.from_rows([{"prompt": row["prompt"], "gold": row["response"]} for row in rows])
    return evaluate(model, Task(named, grade=right), max_tokens=8).value


def test_a_t5_learns_to_turn_words_around_from_another_t5(run, tmp_path):
    torch.manual_seed(1)
    rows = [{"prompt": words(*abc), "response": words(*abc[::-1])} for abc in itertools.product(range(3), repeat=3)]
    many = FAST | {"per_device_train_batch_size": 27, "learning_rate": 1e-2, "seed": 1, "max_steps": 100}
    teacher = train(saved(tmp_path / "t", t5(layers=1)), rows, SFT, **many)
    assert accuracy(teacher, rows) > 0.9
    objective = Objective(forward_kl(), teacher=teacher)
    student = train(saved(tmp_path / "s", t5(layers=1)), rows, objective, **many)
    assert accuracy(student, rows) > 0.8 and student.kind == "encoder-decoder"


def test_a_bert_learns_two_classes_from_anothers_probabilities(run, tmp_path):
    torch.manual_seed(2)
    rows = labelled(40)
    teacher = train(saved(tmp_path / "t", bert(hidden=48)), rows, SFT, max_steps=60, **FAST)
    assert accuracy(teacher, rows) > 0.95
    told_nothing = [row | {"response": "no"} for row in rows]
    student = saved(tmp_path / "s", bert())
    taught = train(student, told_nothing, Objective(forward_kl(), teacher=teacher), max_steps=60, **FAST)
    assert accuracy(taught, rows) > 0.8 > accuracy(student, rows)
    (one,) = ask(Table.from_rows(rows[:1]), taught, "{prompt}", into="label")
    assert one["label"] in ("no", "yes")


@pytest.mark.parametrize(
    "objective",
    [
        lambda teacher: Objective(reverse_kl(), teacher=teacher),
        lambda teacher: Objective(resembles("mse"), teacher=teacher) + Objective(SFT),
    ],
)
def test_divergences_and_layers_are_learned_by_both_kinds(run, small, objective):
    for student, teacher, rows in (("t5", "other t5", lessons(8)), ("bert", "big bert", labelled(8))):
        model = train(small[student], rows, objective(small[teacher]), max_steps=12, logging_steps=1, **FAST)
        losses = curve(model)
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_an_encoder_decoder_learns_its_own_text(run, small):
    text = Text(data=0, student=1, max_tokens=4)
    prompts = [{"prompt": row["prompt"]} for row in lessons(8)]
    objective = Objective(forward_kl(), text=text, teacher=small["other t5"])
    losses = curve(train(small["t5"], prompts, objective, max_steps=12, logging_steps=1, **FAST))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_what_an_encoder_decoder_writes_is_bounded_by_its_own_length_alone(small):
    rows = list(encoded(small["t5"], [{"prompt": words(*range(9))}], answers=False))
    writer = Writer(Text(data=0, student=1, max_tokens=6), seed=0, steps=1, global_batch=1)
    weights = small["t5"].weights()
    for most, written in ((8, 6), (4, 4)):
        (((row,),),) = (writer.write("student", weights, [Draft([0], rows)], set(), most),)
        assert row.sequences[0].prompt == 10 and len(row.sequences[0].ids) == 10 + written


def test_pairs_and_lists_of_an_encoder_decoder(run, small):
    pairs = [{"prompt": words(i), "chosen": words(i, i), "rejected": words(9)} for i in range(8)]
    model = train(small["t5"], pairs, prefers(), max_steps=6, logging_steps=1, **FAST)
    assert curve(model)[0] == pytest.approx(0.693147, abs=1e-5) and curve(model)[-1] < 0.67
    lists = [{"prompt": words(i), "responses": [words(i), words(9), "w8"], "scores": [3, 2, 1]} for i in range(8)]
    assert len(curve(train(small["t5"], lists, ranks("rrhf"), max_steps=2, logging_steps=1, **FAST))) == 2


@pytest.mark.parametrize(("name", "task"), [("t5", "SEQ_2_SEQ_LM"), ("bert", "SEQ_CLS")])
def test_an_adapter_knows_what_it_is_put_on(run, small, name, task):
    rows = labelled(8) if name == "bert" else lessons(8)
    model = train(small[name], rows, max_steps=8, logging_steps=1, lora={"r": 4}, **FAST)
    adapter = json.loads((Path(model.path) / "adapter" / "adapter_config.json").read_text())
    assert adapter["task_type"] == task and model.kind == small[name].kind
    assert curve(model)[-1] < curve(model)[0]
    assert set(weights_of(model)) == set(weights_of(small[name]))


def test_a_new_head_is_trained_and_kept_with_its_labels(run, tmp_path):
    torch.manual_seed(3)
    plain = saved(tmp_path / "plain", bert().bert)
    student = HF(plain.path, labels=["odd", "even"], device="cpu")
    model = train(student, labelled(24, ("even", "odd")), max_steps=60, **FAST)
    assert accuracy(model, labelled(24, ("even", "odd"))) > 0.9


# What does not fit.


def test_what_does_not_fit_a_kind_is_said_before_a_weight_is_loaded(run, small, student, monkeypatch):
    monkeypatch.setattr(HF, "weights", lambda *_, **__: pytest.fail("weights were loaded"))
    texts, labels = Table.from_rows(lessons(4)), Table.from_rows(labelled(4))
    pairs = Table.from_rows([{"prompt": "w1", "chosen": "w2", "rejected": "w3"}])
    for who, rows, objective, said in (
        (
            "t5",
            texts,
            Objective(forward_kl(), teacher=student),
            "of kind decoder and .* of kind encoder-decoder: use a",
        ),
        ("bert", labels, Objective(forward_kl(), teacher=small["t5"]), "of kind encoder-decoder and .* classifier"),
        ("bert", pairs, prefers(), "is a classifier: .* leave pairs and lists to other students"),
        ("bert", labels, Objective(SFT, text=Text(data=0, student=1)), "writes nothing; leave text= out"),
        ("llama", labels, Objective(forward_kl(), teacher=small["bert"]), "has no, yes, .* LABEL_0, LABEL_1, LABEL_2"),
    ):
        with pytest.raises(LimbeckError, match=said):
            train(small[who], rows, objective)
    for who, rows in (("t5", texts), ("bert", labels)):
        with pytest.raises(LimbeckError, match="packs for decoders alone; .* leave packing=False"):
            train(small[who], rows, packing=True)


def test_a_score_is_no_label(run, tmp_path):
    student = saved(tmp_path / "score", bert(labels=("score",)))
    with pytest.raises(LimbeckError, match="one output, which is a score"):
        train(student, labelled(4))


def test_a_teacher_whose_decoder_begins_otherwise_is_refused(run, small, tmp_path):
    other = t5()
    other.config.decoder_start_token_id = other.generation_config.decoder_start_token_id = 2
    with pytest.raises(LimbeckError, match="begins with token 0, and a teacher's with 2"):
        train(small["t5"], lessons(4), Objective(forward_kl(), teacher=saved(tmp_path / "other", other)))
