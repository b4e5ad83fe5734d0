"""The teacher's signal: undisturbed by training, over the same tokens, refused where ids mean other things."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import Loss, Outputs, forward_kl
from limbeck.models.hf import HF
from limbeck.train import Objective, train
from limbeck.train.collate import Layout
from limbeck.train.encode import encode
from limbeck.train.examples import Example, Row
from limbeck.train.forward import Reader
from limbeck.train.signal import Live, Start, aligned, check_vocabularies, token_bytes

from .architectures import made
from .conftest import WORDS, checkpoint, lessons, word_tokenizer


def batch_for(model, n=4):
    return Layout()(list(encode(lessons(n), model.tokenizer, 64)))


def test_a_live_teacher_has_no_gradient_and_stays_in_evaluation_mode(tmp_path):
    """Dropout makes the difference seen: a teacher in training mode would answer twice differently."""
    teacher = HF(checkpoint(tmp_path / "t", seed=3, dropout=0.5), device="cpu")
    live = Live(teacher.weights())
    batch = batch_for(teacher)
    first = live(batch).logits_nv
    live.weights.train()
    assert torch.equal(live(batch).logits_nv, first) and not first.requires_grad
    assert not live.weights.training


def test_a_reference_is_the_student_without_its_adapter_and_training_goes_on_as_it_was():
    import peft

    torch.manual_seed(0)
    alone, base = made("gpt2", resid_pdrop=0.5), made("gpt2", resid_pdrop=0.5)
    config = peft.LoraConfig(target_modules=["c_attn"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.get_output_embeddings().weight.data.add_(1.0)  # the head in training is a copy: the reference's is the first
    with pytest.warns(UserWarning, match="logits are made in full"):
        start = Start(lambda: model, model)
    batch = Layout()([Row([Example(torch.arange(1, 9).int(), torch.arange(8) > 2, 3)])])
    with torch.no_grad():
        expected = Reader(alone.eval())(batch).logits_nv
        torch.testing.assert_close(start(batch).logits_nv, expected)
        assert not torch.allclose(Reader(model.eval())(batch).logits_nv, expected, atol=0.1)
    model.train()
    start(batch)
    assert model.training and not start(batch).logits_nv.requires_grad
    assert model.get_base_model().transformer.drop.training and "forward" not in vars(model)


def test_one_teacher_in_two_parts_is_in_memory_once_and_says_the_same(run, rows, student, teacher):
    """Teacher and reference are one model: of two losses that pull to and from it, nothing is left."""
    told = []

    class Both:
        digest = "both"

        def __call__(self, batch):
            told.append((batch.teacher, batch.reference))
            return (batch.student.logps_n * (batch.teacher.logps_n - batch.reference.logps_n)).sum()

    loss = Loss(Both(), ("student.logps", "teacher.logps", "reference.logps"), name="both")
    train(student, rows, Objective(loss, teacher=teacher, reference=teacher), max_steps=1, use_cpu=True)
    ((one, other),) = told
    assert torch.equal(one.logps_n, other.logps_n)
    assert one.head.weight_vd.data_ptr() == other.head.weight_vd.data_ptr()


def test_a_classifier_that_teaches_says_one_thing_of_each_row():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "pad_token_id": 0}
    model = LlamaForSequenceClassification(LlamaConfig(**size, num_attention_heads=4, num_labels=3))
    rows = [Row([Example(torch.arange(1, n).int(), torch.arange(1, n) == n - 1, n - 2)]) for n in (9, 5)]
    batch = Layout()(rows)
    said = Live(model)(batch)
    with torch.no_grad():
        alone = [model(input_ids=row.sequences[0].ids[None, :-1]).logits for row in rows]
    torch.testing.assert_close(said.logits_nv, torch.cat(alone))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU beside the CPU")
@pytest.mark.parametrize("kind", ["gemma2", "phi"])
def test_a_teacher_on_another_device_says_what_it_would_say_here(kind):
    batch = Layout()([Row([Example(torch.arange(1, 9).int(), torch.arange(8) > 2, 3)])])
    here, there = Live(made(kind)), Live(made(kind).cuda())
    for _ in range(2):  # the head is brought here once
        said = there(batch)
        assert {said.hidden_nd.device, said.head.weight_vd.device, said.logps_n.device} == {torch.device("cpu")}
        torch.testing.assert_close(said.logits_nv, here(batch).logits_nv, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(said.logps_n, here(batch).logps_n, rtol=1e-3, atol=1e-3)


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
    trained = [
        train(student, rows, Objective(forward_kl(), teacher=t), max_steps=3, use_cpu=True) for t in (exact, padded)
    ]
    one, other = (model.weights().state_dict() for model in trained)
    assert trained[0].digest != trained[1].digest
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

    def spelled(tokens, decoder):
        core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
        core.decoder = decoder
        return PreTrainedTokenizerFast(tokenizer_object=core)

    byte_level = spelled(["a", "Ġthe", "Ċ", "Ã©"], decoders.ByteLevel())
    pieces = spelled(["a", "▁the", "<0x0A>", "é"], decoders.Metaspace())
    assert token_bytes(byte_level) == token_bytes(pieces) == {0: b"a", 1: b" the", 2: b"\n", 3: "é".encode()}
