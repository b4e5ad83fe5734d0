"""Packed sequences are as alone: for every model of a step, in value and gradient; what cannot do that is refused."""

import pytest
import torch
import transformers

from limbeck.errors import LimbeckError
from limbeck.losses import SFT, Loss, forward_kl, prefers, ranks
from limbeck.losses.heads import Term, Tokens, total
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import Objective, train
from limbeck.train.collate import Layout
from limbeck.train.examples import Example, Row
from limbeck.train.forward import Reader, isolates
from limbeck.train.signal import Live, Start

from .architectures import ENCODER_DECODERS, MODELS, made
from .conftest import checkpoint, lessons, weights_of

PACKS = [name for name in MODELS if name != "opt"]  # OPT's masks never look at position_ids
FEW = {"max_steps": 3, "per_device_train_batch_size": 6, "use_cpu": True, "optim": "sgd", "learning_rate": 0.1}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


def rows_of(*sizes, seed=0):
    torch.manual_seed(seed)
    return [Row([Example(torch.randint(1, 50, (n,)).int(), torch.arange(n) >= 2, 2)]) for n in sizes]


def both(*sizes):
    """The same rows, padded, and packed into rows of several."""
    rows = rows_of(*sizes)
    packed = Layout(pack=12)(rows)
    assert 1 < len(packed.tokens_bt) < len(rows) and "attention_mask" not in packed.inputs
    return Layout()(rows), packed


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("name", PACKS)
def test_packed_is_padded_in_logits_and_gradients(name, attention):
    model = made(name, attn_implementation=attention)
    reader, seen = Reader(model), []
    for batch in both(7, 4, 9, 5, 3):
        said = reader(batch)
        model.zero_grad()
        total(said.hidden_nd, said.head, [Term(Tokens(batch.labels_n))])[0].backward()
        seen.append((said.logits_nv.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (padded, wanted), (packed, found) = seen
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5 * float(padded.abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5 * largest)


def test_frozen_models_and_adapters_read_packed_batches_as_padded_ones():
    import peft

    torch.manual_seed(0)
    adapted = peft.get_peft_model(made("llama"), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    for reads in (Live(made("qwen2")), Start(lambda: adapted, adapted), Reader(adapted.eval())):
        with torch.no_grad():
            padded, packed = (reads(batch).logits_nv for batch in both(7, 4, 9, 5))
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5 * float(padded.abs().max()))


@pytest.mark.parametrize("name", ["opt", *ENCODER_DECODERS])
def test_what_does_not_keep_sequences_apart_is_refused(name):
    model = made(name)
    assert not isolates(model) and model.training
    with pytest.raises(LimbeckError, match=f"train cannot pack with {name[:2]}.* models: .*leave packing=False"):
        Reader(model)(both(7, 4, 9)[1])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("BertLMHeadModel", SMALL | {"intermediate_size": 32, "is_decoder": True}),
        ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50}),
        ("Lfm2ForCausalLM", SMALL | {"num_key_value_heads": 2, "intermediate_size": 32}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_sees_the_least_leak(kind, settings, dtype):
    """Untrained weights of size 0.02: what BERT, Bloom and LFM2's convolutions let through is in the 5th digit."""
    if kind.startswith("Lfm2"):
        settings = settings | {"layer_types": ["conv", "full_attention"]}
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    assert not isolates(cls(cls.config_class(**settings)).to(dtype))


@pytest.mark.parametrize("name", PACKS)
def test_the_probe_is_not_misled_by_the_precision(name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isolates(made(name))
    assert isolates(made(name).bfloat16())


def test_losses_on_layers_and_attention_maps_are_refused():
    for more in ({"layers": True}, {"attentions": True}):
        with pytest.raises(LimbeckError, match="looks at whole sequences, one to a row; leave packing=False"):
            Reader(made("llama"), **more)(both(7, 4, 9)[1])


def pairs():
    return [{"prompt": r["prompt"], "chosen": r["response"], "rejected": "w1 w2"} for r in lessons(12)]


def lists():
    rows = []
    for i, row in enumerate(lessons(12)):
        count = 2 + i % 2
        answers = {"responses": [row["response"], "w1", "w2 w3"][:count], "scores": [3, 1, 2][:count]}
        rows.append({"prompt": row["prompt"], **answers})
    return rows


@pytest.mark.parametrize("kind", ["sft", "kl", "lora", "pairs", "pairs, lora", "lists"])
def test_packing_changes_no_training(kind, student, teacher, tmp_path):
    objective = {
        "sft": Objective(SFT), "kl": Objective(forward_kl(), teacher=teacher), "lora": Objective(SFT),
        "lists": Objective(ranks("rrhf")),
    }.get(kind, Objective(prefers("sigmoid")))  # fmt: skip
    rows = lists() if kind == "lists" else pairs() if "pairs" in kind else lessons(12)
    lora = {"lora": {"r": 4}} if "lora" in kind else {}
    made = []
    for packing in (False, True):
        with Run(tmp_path / str(packing), progress=False):
            made.append(train(student, rows, objective, packing=packing, max_length=64, **FEW, **lora))
    assert made[0].digest == made[1].digest
    padded, packed = map(weights_of, made)
    start = weights_of(student)
    for name in padded:
        torch.testing.assert_close(packed[name], padded[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(padded[name], start[name], atol=1e-5) for name in start)


def test_a_step_that_cannot_be_packed_trains_nothing(run, tmp_path, teacher):
    config = transformers.OPTConfig(
        hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32,
        vocab_size=len(teacher.tokenizer), max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    teacher.tokenizer.save_pretrained(tmp_path / "opt")
    with pytest.raises(LimbeckError, match="train cannot pack with opt models"):
        train(HF(tmp_path / "opt", device="cpu"), lessons(6), packing=True, **FEW)
    layered = Loss(lambda batch: batch.student.layers_btd[-1].pow(2).sum(), needs=("student.layers",), name="layered")
    student = HF(checkpoint(tmp_path / "student", seed=1), device="cpu")
    with pytest.raises(LimbeckError, match="looks at whole sequences"):
        train(student, lessons(6), layered, packing=True, **FEW)
