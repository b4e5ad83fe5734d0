"""Students cut out of their teachers: what is left is the teacher's own weights, and fits together."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers

from limbeck.errors import LimbeckError
from limbeck.models import get
from limbeck.models.fake import Fake
from limbeck.models.hf import HF
from limbeck.plan import DryRun, Plan
from limbeck.train.pruning import prune

from .conftest import events_of, word_tokenizer

IDS = torch.tensor([[7, 8, 9, 10, 11, 12]])
ALIKE = dict(vocab_size=47, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
GROUPED = ALIKE | {"num_key_value_heads": 2, "max_position_embeddings": 64}
T5 = dict(vocab_size=47, d_model=32, d_kv=6, d_ff=48, num_layers=4, num_heads=4, decoder_start_token_id=0)
GPT2 = dict(vocab_size=47, n_embd=32, n_head=4, n_layer=4, n_positions=64)
MADE = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", GROUPED | {"head_dim": 6}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", GROUPED | {"head_dim": 6}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", GROUPED | {"head_dim": 6}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GROUPED | {"head_dim": 6}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "bert": ("BertConfig", "BertForMaskedLM", ALIKE),
    "classifier": ("BertConfig", "BertForSequenceClassification", ALIKE),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5 | {"num_decoder_layers": 2}),
    "t5 gated": ("T5Config", "T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu"}),
    "reward": ("LlamaConfig", "LlamaForSequenceClassification", GROUPED | {"num_labels": 1, "pad_token_id": 0}),
}
WIDTHS = dict(hidden_size=16, intermediate_size=20, heads=2)


@pytest.fixture
def teacher(tmp_path):
    """Makes the teacher of a family, of random weights that `change` may touch."""

    def make(name, change=None, **settings):
        config, kind, told = MADE[name]
        torch.manual_seed(3)
        model = getattr(transformers, kind)(getattr(transformers, config)(**told | settings))
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.4)
            if change:
                change(model)
        model.save_pretrained(tmp_path / name)
        word_tokenizer().save_pretrained(tmp_path / name)
        return HF(tmp_path / name, device="cpu")

    return make


def loaded(model):
    """The checkpoint as its own class reads it, ready to run."""
    told = json.loads((Path(model.path) / "config.json").read_text())
    return getattr(transformers, told["architectures"][0]).from_pretrained(model.path).eval()


def weights(model):
    return loaded(model).state_dict()


def logits(model, ids=IDS):
    extra = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


def stacks(model):
    """The module lists of a model's layers."""
    core = model.base_model
    if model.config.model_type == "t5":
        return [(stack, "block") for stack in (core.encoder, core.decoder)]
    if model.config.model_type == "bert":
        return [(core.encoder, "layer")]
    return [(core, "h" if model.config.model_type == "gpt2" else "layers")]


@pytest.mark.parametrize("name", MADE)
def test_nothing_cut_changes_nothing(run, teacher, name):
    model = teacher(name)
    same = loaded(prune(model))
    assert type(same) is type(loaded(model)) and torch.equal(logits(same), logits(loaded(model)))


@pytest.mark.parametrize("name", MADE)
def test_cut_layers_are_the_model_with_those_layers_alone(run, teacher, name):
    model = teacher(name)
    layers = [1, 0] if name == "t5" else [0, 2]
    small, by_hand = loaded(prune(model, layers=layers)), copy.deepcopy(loaded(model))
    for stack, at in stacks(by_hand):
        held = getattr(stack, at)
        left = torch.nn.ModuleList([held[i] for i in layers])
        if name.startswith("t5"):  # the first layer computes the position bias for all of them
            bias = held[0].layer[0].SelfAttention.relative_attention_bias
            for block in left:
                block.layer[0].SelfAttention.has_relative_attention_bias = False
            left[0].layer[0].SelfAttention.has_relative_attention_bias = True
            left[0].layer[0].SelfAttention.relative_attention_bias = bias
        for i, layer in enumerate(left):  # where a cache looks for its place
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = i
        setattr(stack, at, left)
        if hasattr(stack, "config"):
            stack.config.num_hidden_layers = len(layers)
            if getattr(stack.config, "layer_types", None):
                stack.config.layer_types = [stack.config.layer_types[i] for i in layers]
    assert small.config.num_hidden_layers == 2
    assert torch.allclose(logits(small), logits(by_hand), atol=1e-5)
    assert not torch.allclose(logits(small), logits(loaded(model)), atol=1e-2)


@pytest.mark.parametrize("keep", ["first", "norm"])
@pytest.mark.parametrize("name", MADE)
def test_a_narrow_model_loads_and_runs(run, teacher, name, keep):
    model = teacher(name)
    made = prune(model, layers=2, **WIDTHS, keep=keep)
    small = loaded(made)
    config = small.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (16, 2, 2)
    assert made.kind == model.kind and torch.isfinite(logits(small)).all()
    assert made.tokenizer("w1 w2")["input_ids"] == model.tokenizer("w1 w2")["input_ids"]
    assert small.num_parameters() < loaded(model).num_parameters() / 2
    if made.kind == "decoder" and name != "bert":
        assert made.logits(IDS, torch.ones_like(IDS)).shape == (1, 6, 47)


def test_narrow_weights_are_the_leading_slices(run, teacher):
    model = teacher("llama")
    big, small = weights(model), weights(prune(model, **WIDTHS))
    shapes = {
        "embed_tokens.weight": (47, 16), "q_proj.weight": (16, 16), "k_proj.weight": (8, 16), "v_proj.bias": (8,),
        "o_proj.weight": (16, 16), "o_proj.bias": (16,), "gate_proj.weight": (20, 16), "up_proj.bias": (20,),
        "down_proj.weight": (16, 20), "layernorm.weight": (16,), "model.norm.weight": (16,),
    }  # fmt: skip
    for end, shape in shapes.items():
        names = [name for name in small if name.endswith(end)]
        assert names and all(tuple(small[name].shape) == shape for name in names), end
    for name, weight in small.items():
        assert torch.equal(weight, big[name][tuple(slice(n) for n in weight.shape)]), name


def test_packed_heads_are_sliced_each_in_its_third(run, teacher):
    model = teacher("gpt2")
    big, small = weights(model), weights(prune(model, hidden_size=16, heads=2))
    name = "transformer.h.1.attn.c_attn"
    thirds = [big[f"{name}.weight"][:16, at : at + 16] for at in (0, 32, 64)]
    assert torch.equal(small[f"{name}.weight"], torch.cat(thirds, dim=1))
    assert torch.equal(small[f"{name}.bias"], torch.cat([big[f"{name}.bias"][at : at + 16] for at in (0, 32, 64)]))


INNER_IN = ("gate_proj", "up_proj", "c_fc", "intermediate.dense", "wi", "wi_0", "wi_1")
INNER_OUT = ("down_proj", "mlp.c_proj", "output.dense", "wo")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "t5 gated"])
def test_the_units_and_heads_of_largest_norm_stay_and_silent_ones_cost_nothing(run, teacher, name):
    """Three inner units and one group of heads write anything: to cut the others changes no logit."""
    loud, inner = [1, 5, 44], 128 if name == "gpt2" else 48
    width, group = 6 if name.startswith("t5") else 8, 2 if name == "llama" else 1
    silent = [i for i in range(inner) if i not in loud]
    rows = list(range((4 - group) * width))  # all heads but the last group

    def silence(model):
        for at, p in model.named_parameters():
            module = at.rpartition(".")[0]
            if module.endswith((*INNER_IN, *INNER_OUT)) and inner in p.shape:
                p.index_fill_(list(p.shape).index(inner), torch.tensor(silent), 0.0)
            if name != "gpt2" and module.endswith(("o_proj", "Attention.o")) and p.dim() == 2:
                p[:, rows] = 0
            if module.endswith(("q_proj", "Attention.q")):
                p[rows] *= 0.01

    model = teacher(name, silence)
    widths = {"intermediate_size": 3} | ({} if name in ("gpt2", "bert") else {"heads": group})
    small, big = (loaded(m) for m in (prune(model, **widths, keep="norm"), model))
    assert torch.allclose(logits(small), logits(big), atol=1e-4)
    assert not torch.allclose(logits(loaded(prune(model, **widths))), logits(big), atol=1e-2)


def test_an_upper_half_that_is_zero_is_cut_for_nothing(run, teacher):
    def silence(model):
        for layer in model.model.layers:
            for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
                module.weight[24:], module.bias[24:] = 0, 0
            layer.mlp.down_proj.weight[:, 24:] = 0

    model = teacher("llama", silence)
    small = prune(model, intermediate_size=24)
    assert torch.allclose(logits(loaded(small)), logits(loaded(model)), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_the_hidden_columns_of_largest_norm_stay_in_every_matrix(run, teacher, name):
    loud = sorted([1, 2, 5, 9, 11, 12, 17, 20, 21, 22, 25, 27, 28, 29, 30, 31])

    def quieten(model):
        model.get_input_embeddings().weight[:, [i for i in range(32) if i not in loud]] *= 0.01

    model = teacher(name, quieten)
    widths = {"hidden_size": 16} | ({"heads": 2} if name in ("gpt2", "bert") else {})
    small, big = weights(prune(model, **widths, keep="norm")), weights(model)
    for at, weight in small.items():
        attends = any(word in at for word in ("query", "key", "value", "q_proj"))  # rows of heads, as many by chance
        if big[at].shape == (32,) and not attends:
            assert torch.equal(weight, big[at][loud]), at
    embedded = next(at for at in small if at.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight")))
    assert torch.equal(small[embedded], big[embedded][:, loud])


def test_heads_of_groups_stay_with_their_keys_in_each_layer_by_itself(run, teacher):
    def louden(model):
        for i, layer in enumerate(model.model.layers):
            layer.self_attn.k_proj.weight[8 * (i % 2) : 8 * (i % 2) + 8] *= 9  # one of two groups

    model = teacher("llama", louden)
    small, big = weights(prune(model, heads=2, keep="norm")), weights(model)
    for i in range(4):
        at, group = f"model.layers.{i}.self_attn", i % 2
        assert torch.equal(small[f"{at}.k_proj.weight"], big[f"{at}.k_proj.weight"][8 * group : 8 * group + 8])
        assert torch.equal(small[f"{at}.q_proj.weight"], big[f"{at}.q_proj.weight"][16 * group : 16 * group + 16])
        assert torch.equal(small[f"{at}.o_proj.weight"], big[f"{at}.o_proj.weight"][:, 16 * group : 16 * group + 16])


def test_t5_keeps_one_choice_of_heads_in_a_stack_and_their_position_bias(run, teacher):
    def louden(model):
        for stack in (model.encoder, model.decoder):
            for i, block in enumerate(stack.block):  # by itself the first layer would keep its first head
                at, times = (slice(0, 6), 2) if i == 0 else (slice(6, 12), 9)
                block.layer[0].SelfAttention.v.weight[at] *= times

    model = teacher("t5", louden)
    small, big = weights(prune(model, heads=1, keep="norm")), weights(model)
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for stack in ("encoder", "decoder"):
        assert torch.equal(small[f"{stack}.{bias}"], big[f"{stack}.{bias}"][:, 1:2])
        for i in (0, 1):
            at = f"{stack}.block.{i}.layer.0.SelfAttention.v.weight"
            assert torch.equal(small[at], big[at][6:12])


def test_a_number_of_layers_is_spaced_evenly_from_the_first(run, teacher):
    model = teacher("gemma2", num_hidden_layers=12, hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
    kept = {}
    for n in (6, 5, 1):
        small = prune(model, layers=n)
        kept[n] = events_of(run, "prune")[-1]["layers"]["num_hidden_layers"]
        types = loaded(model).config.layer_types
        assert loaded(small).config.layer_types == [types[i] for i in kept[n]]
    assert kept == {6: [0, 2, 4, 6, 8, 10], 5: [0, 2, 4, 7, 9], 1: [0]}


def test_each_stack_of_t5_is_spaced_by_its_own_depth(run, teacher):
    prune(teacher("t5"), layers=2)
    assert events_of(run, "prune")[-1]["layers"] == {"num_hidden_layers": [0, 2], "num_decoder_layers": [0, 1]}


def test_it_is_done_once_and_reused(run, teacher, monkeypatch):
    model = teacher("llama")
    first = prune(model, layers=2)
    monkeypatch.setattr(HF, "weights", lambda *args, **kwargs: pytest.fail("the teacher was loaded again"))
    again = prune(model, layers=[0, 2])  # the same layers, told otherwise
    assert (again.path, again.digest, again.name) == (first.path, first.digest, first.name)
    assert [event["reused"] for event in events_of(run, "prune")] == [False, True]
    assert events_of(run, "prune")[0]["parameters"] < events_of(run, "prune")[0]["teacher_parameters"]
    monkeypatch.undo()
    digests = {prune(model, layers=2, keep="norm").digest, prune(model, layers=3).digest, first.digest}
    assert len(digests) == 3
    assert not list((run.dir / "models").glob("*.part*"))


def test_what_a_kill_left_is_written_anew(run, teacher):
    model = teacher("llama")
    made = prune(model, layers=1)
    half = run.dir / "models" / f"{made.digest[:16]}.part"
    (run.dir / "models" / made.digest[:16]).rename(half)
    (half / "half-written.tmp").write_bytes(b"half")
    files = {path.name for path in Path(prune(model, layers=1).path).iterdir()}
    assert "model.safetensors" in files and "half-written.tmp" not in files and not half.exists()


@pytest.mark.parametrize("plan", [DryRun, Plan])
def test_a_plan_loads_and_writes_nothing(run, teacher, monkeypatch, plan):
    model = teacher("llama")
    monkeypatch.setattr(HF, "weights", lambda *args, **kwargs: pytest.fail("a plan loaded weights"))
    run.plan = plan()
    assert prune(model, layers=2) is model and not (run.dir / "models").exists()
    with pytest.raises(LimbeckError, match="layers"):
        prune(model, layers=9)


@pytest.mark.parametrize(
    ("name", "told", "words"),
    [
        ("llama", {"layers": 5}, "1 to 4"), ("llama", {"layers": 0}, "1 to 4"), ("llama", {"layers": []}, "0 to 3"),
        ("llama", {"layers": [0, 4]}, "0 to 3"), ("llama", {"layers": [1, 1]}, "different"),
        ("t5", {"layers": [0, 3]}, "has 2"), ("llama", {"layers": "2"}, "layers"),
        ("llama", {"heads": 3}, "multiple of 2"), ("llama", {"heads": 8}, "1 to 4"),
        ("llama", {"hidden_size": 30}, "multiple of heads"), ("llama", {"intermediate_size": 49}, "1 to 48"),
        ("llama", {"intermediate_size": 2.0}, "whole number"),
        ("gpt2", {"hidden_size": 16}, "give both"), ("bert", {"heads": 2}, "give both"),
        ("llama", {"keep": "last"}, "first, norm"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_is_loaded(run, teacher, monkeypatch, name, told, words):
    model = teacher(name)
    monkeypatch.setattr(HF, "weights", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    with pytest.raises(LimbeckError, match=words):
        prune(model, **told)


def test_other_families_and_models_without_weights_are_refused(run, tmp_path):
    config = transformers.OPTConfig(
        vocab_size=47, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    with pytest.raises(LimbeckError, match="of type opt"):
        prune(f"hf/{tmp_path / 'opt'}", layers=1)
    with pytest.raises(LimbeckError, match="weights"):
        prune(Fake(str, "m"), layers=1)


def test_a_new_head_is_cut_with_the_rest(run, teacher):
    model = HF(teacher("bert").path, device="cpu", labels=["no", "yes"])
    small = prune(model, hidden_size=16, heads=2)
    assert small.kind == "classifier"
    head = model.weights(trainable=True).state_dict()["classifier.weight"]
    assert torch.equal(small.weights().state_dict()["classifier.weight"], head[:, :16])
    assert small.weights().config.id2label == {0: "no", 1: "yes"}


def test_the_shipped_teacher_can_be_cut(run):
    small = prune("tiny/teacher", layers=2)
    assert small.name == "tiny/teacher+prune" and small.weights().config.num_hidden_layers == 2
    assert get("tiny/teacher").weights().config.num_hidden_layers == 4
