"""The held-back head gives what the model's own logits give: value and every gradient, whatever comes behind it."""

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F

from limbeck.losses import Batch
from limbeck.losses.heads import Head, Term, Tokens, total
from limbeck.train.collate import Layout
from limbeck.train.examples import Example, Row
from limbeck.train.forward import Reader, head_of, understood

from .architectures import ENCODER_DECODERS, MODELS, made

forward = sys.modules["limbeck.train.forward"]  # `limbeck.train` is the verb
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "lm_head"]}


def batch_of(*sizes, seed=0):
    """Random sequences of these lengths; the first two tokens of each are the prompt."""
    torch.manual_seed(seed)
    rows = [Row([Example(torch.randint(1, 50, (n,)).int(), torch.arange(n) >= 2, 2)]) for n in sizes]
    return Layout()(rows)


def batch_for(name):
    batch = batch_of(7, 4, 9)
    if name in ENCODER_DECODERS:
        inputs = batch.inputs
        own = {"decoder_input_ids": inputs["input_ids"].clone(), "decoder_attention_mask": inputs["attention_mask"]}
        batch["inputs"] = {**inputs, **own, "input_ids": inputs["input_ids"].flip(1) % 50}
        batch["inputs"]["decoder_input_ids"][:, 0] = 0  # what a decoder begins with
        batch["inputs"]["attention_mask"] = batch.inputs["attention_mask"].flip(1)
    return batch


def plain(model, batch):
    """Cross-entropy through the model's own logits."""
    seen = model(**batch.inputs, use_cache=False)
    return F.cross_entropy(seen.logits.float().flatten(0, -2)[batch.at_n], batch.labels_n, reduction="sum"), seen


def fused(model, batch):
    reader = Reader(model)
    seen = reader(batch)
    return total(seen.hidden_nd, seen.head, [Term(Tokens(batch.labels_n))])[0], reader


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model, batch):
    """Both ways from the same start."""
    expected = plain(model, batch)[0]
    wanted = gradients(model, expected)
    value, reader = fused(model, batch)
    found = gradients(model, value)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest)
    return reader


@pytest.mark.parametrize("name", [*MODELS, *ENCODER_DECODERS])
def test_fused_is_the_models_own_logits_in_value_and_all_gradients(name):
    model = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = assert_equal(model, batch_for(name))
    assert reader.fused and model.training


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_what_comes_behind_the_head_is_compared_before_it_is_believed(name, monkeypatch):
    """Each, were it forgotten, would be another loss: a soft cap of 30 is seen at large logits only."""
    model, batch = made(name), batch_of(7, 4, 9)
    if name == "gemma2":
        model.config.final_logit_softcapping = 30.0
        model.lm_head.weight.data *= 0.01
    forgetful = Head(head_of(model).weight_vd)
    monkeypatch.setattr(forward, "head_of", lambda _: forgetful)
    with pytest.warns(UserWarning, match="does more than limbeck knows of; its logits are made in full"):
        reader = Reader(model)
    assert not reader.fused
    assert torch.equal(reader(batch).logits_nv, model(**batch.inputs).logits.flatten(0, -2)[batch.at_n])


def adapted(**settings):
    import peft

    torch.manual_seed(1)
    model = peft.get_peft_model(made("llama"), peft.LoraConfig(**LORA | settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)  # zero at first, and what is multiplied with it would go unseen
    return model


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_lora_on_the_head_is_part_of_it(rank_stabilised):
    model = adapted(use_rslora=rank_stabilised)
    assert head_of(model).low_rank is not None
    assert assert_equal(model, batch_of(7, 4, 9)).fused
    with model.disable_adapter():
        assert head_of(model).low_rank is None and assert_equal_logits(model)


def assert_equal_logits(model):
    batch = batch_of(7, 4, 9)
    with torch.no_grad():
        ours, own = Reader(model)(batch).logits_nv, model(**batch.inputs).logits.flatten(0, -2)[batch.at_n]
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
    return True


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"lora_dropout": 0.1},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["dora", "dropout", "modules_to_save"],
)
def test_adapters_that_are_more_than_two_matrices_fall_back_to_full_logits(settings):
    model = adapted(**settings)
    assert head_of(model) is None
    with pytest.warns(UserWarning, match="its logits are made in full"):
        assert not Reader(model).fused
    if "lora_dropout" not in settings:
        with pytest.warns(UserWarning):
            assert_equal(model, batch_of(7, 4, 9))


def test_a_lora_with_a_bias_falls_back():
    import peft

    torch.manual_seed(1)
    model = peft.get_peft_model(made("phi"), peft.LoraConfig(**LORA, lora_bias=True))
    assert head_of(model) is None


def test_a_head_of_an_unknown_kind_falls_back_with_a_warning():
    class Doubled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = made("llama")
    model.lm_head = Doubled(32, 50, bias=False)
    with pytest.warns(UserWarning, match="the head of LlamaForCausalLM does more than limbeck knows of"):
        assert_equal(model, batch_of(7, 4, 9))
    model = made("llama")
    model.lm_head.register_forward_hook(lambda *seen: 2 * seen[-1])  # a plain matrix, and something behind it
    with pytest.warns(UserWarning, match="does more"):
        assert not understood(model)


def test_a_classifier_has_no_head_to_hold_back_and_no_warning():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not understood(LlamaForSequenceClassification(LlamaConfig(**MODELS["llama"][1])))


def test_under_autocast_the_layers_compute_in_bf16_and_the_result_is_near():
    model, batch, seen = made("llama"), batch_of(7, 4, 9), []
    exact = gradients(model, fused(model, batch)[0])
    reader = Reader(model)
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = reader(batch)
        value = total(said.hidden_nd, said.head, [Term(Tokens(batch.labels_n))])[0]
        own = plain(model, batch)[0]
    assert set(seen) == {torch.bfloat16} and value.dtype == torch.float32
    assert value.item() == pytest.approx(own.item(), rel=1e-2)
    for name, gradient in gradients(model, value).items():
        assert gradient.dtype == torch.float32
        assert float((gradient - exact[name]).norm()) < 0.1 * float(exact[name].norm()), name


def test_a_mixtures_balance_is_read_with_its_gradient_and_a_plain_models_is_zero():
    model, batch = made("mixtral"), batch_of(7, 4, 9)
    _, seen = plain(model, batch)
    expected = gradients(model, 0.3 * seen.aux_loss * len(batch.labels_n))
    _, reader = fused(model, batch)
    found = gradients(model, reader.auxiliary)
    assert reader.auxiliary.item() == pytest.approx(0.3 * seen.aux_loss.item() * len(batch.labels_n))
    router = "model.layers.0.mlp.gate.weight"
    torch.testing.assert_close(found[router], expected[router])
    assert float(found[router].abs().max()) > 0
    model.config.output_router_logits = False
    assert fused(model, batch)[1].auxiliary == 0.0 == fused(made("llama"), batch)[1].auxiliary


def test_layers_and_attention_maps_come_with_it():
    model = made("llama", attn_implementation="eager")
    batch = batch_of(7, 4)
    seen = Reader(model, layers=True, attentions=True)(batch)
    assert [tuple(h.shape) for h in seen.layers_btd] == [(2, 6, 32)] * 3
    assert [tuple(a.shape) for a in seen.attentions_bhtt] == [(2, 4, 6, 6)] * 2
    torch.testing.assert_close(seen.hidden_nd, seen.layers_btd[-1].flatten(0, 1)[batch.at_n])


def test_the_model_is_left_as_it_was():
    model, batch = made("llama").eval(), batch_of(5)
    before = model(**batch.inputs).logits
    reader = Reader(model)
    reader(batch)
    assert not model.training and "forward" not in vars(model.lm_head) and not model.lm_head._forward_pre_hooks
    with pytest.raises(IndexError):
        reader(Batch({**batch, "at_n": torch.tensor([99])}))
    assert torch.equal(model(**batch.inputs).logits, before)
