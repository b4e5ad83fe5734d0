"""The teacher's signal: undisturbed by training, over the same tokens, refused where ids mean other things."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import Outputs, forward_kl
from limbeck.models.hf import HF
from limbeck.train import Objective, train
from limbeck.train.collate import Layout
from limbeck.train.encode import encode
from limbeck.train.signal import Live, aligned, check_vocabularies, token_bytes

from .conftest import WORDS, checkpoint, lessons, word_tokenizer


def batch_for(model, n=4):
    made = encode(lessons(n), model.tokenizer, 64)
    return Layout()([made[i] for i in range(n)])


def test_a_live_teacher_has_no_gradient_and_stays_in_evaluation_mode(tmp_path):
    """Dropout makes the difference seen: a teacher in training mode would answer twice differently."""
    teacher = HF(checkpoint(tmp_path / "t", seed=3, dropout=0.5), device="cpu")
    live = Live(teacher.weights())
    batch = batch_for(teacher)
    first = live(batch).logits_nv
    live.weights.train()
    assert torch.equal(live(batch).logits_nv, first) and not first.requires_grad
    assert not live.weights.training


def test_training_leaves_the_teacher_in_evaluation_mode_and_unchanged(run, rows, student, tmp_path):
    teacher = HF(checkpoint(tmp_path / "t", seed=3, dropout=0.5), device="cpu")
    before = {name: value.clone() for name, value in teacher.weights().state_dict().items()}
    train(student, rows, Objective(forward_kl(), teacher=teacher), max_steps=2, use_cpu=True)
    weights = teacher.weights()
    assert not weights.training and not any(p.requires_grad or p.grad is not None for p in weights.parameters())
    assert all(torch.equal(before[name], value) for name, value in weights.state_dict().items())


def test_widths_that_differ_are_cut_to_the_smaller():
    labels_n = torch.zeros(2, dtype=torch.long)
    given = Outputs(torch.zeros(2, 7), None, labels_n)
    student, teacher = aligned(given, Outputs(torch.ones(2, 5), None, labels_n))
    assert student.logits_nv.shape == teacher.logits_nv.shape == (2, 5)
    assert given.logits_nv.shape == (2, 7)  # other terms still see all of it


def test_a_padded_vocabulary_trains_as_the_exact_one(run, rows, student, tmp_path):
    """The teacher's embedding has rows that no token uses; its logits there must not count."""
    exact = HF(checkpoint(tmp_path / "exact", seed=5), device="cpu")
    weights = exact.weights(trainable=True)
    weights.resize_token_embeddings(len(exact.tokenizer) + 9, mean_resizing=False)
    weights.save_pretrained(tmp_path / "padded")
    exact.tokenizer.save_pretrained(tmp_path / "padded")
    padded = HF(tmp_path / "padded", device="cpu")
    made = [
        train(student, rows, Objective(forward_kl(), teacher=t), max_steps=3, use_cpu=True) for t in (exact, padded)
    ]
    one, other = (model.weights().state_dict() for model in made)
    assert made[0].digest != made[1].digest
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_same_size_but_permuted_ids_is_an_error(run, rows, student, tmp_path):
    shuffled = word_tokenizer([WORDS[1], WORDS[0], *WORDS[2:]])
    teacher = HF(checkpoint(tmp_path / "t", seed=4, tokenizer=shuffled), device="cpu", name="hf/other")
    assert len(shuffled) == len(student.tokenizer)
    with pytest.raises(
        LimbeckError, match=r"forward-kl compares.*disagree \(token 7 is b'w1' and b'w0'\): use a teacher"
    ):
        train(student, rows, Objective(forward_kl(), teacher=teacher), max_steps=1)


def test_an_added_padding_token_refuses_no_match(student, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]}, replace_extra_special_tokens=False)
    assert len(tokenizer) == len(student.tokenizer) + 1
    check_vocabularies("forward-kl", HF(checkpoint(tmp_path / "t", seed=4, tokenizer=tokenizer)), student)


def test_what_ids_stand_for_is_compared_as_bytes():
    """One vocabulary writes a blank as Ġ, another as ▁, and bytes as <0x0A>: the same text, the same ids."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    def made(tokens, decoder):
        core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
        core.decoder = decoder
        return PreTrainedTokenizerFast(tokenizer_object=core)

    byte_level = made(["a", "Ġthe", "Ċ", "Ã©"], decoders.ByteLevel())
    pieces = made(["a", "▁the", "<0x0A>", "é"], decoders.Metaspace())
    assert token_bytes(byte_level) == token_bytes(pieces) == {0: b"a", 1: b" the", 2: b"\n", 3: "é".encode()}
