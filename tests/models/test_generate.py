"""The decoding loop: equal to transformers' greedy search, and a row's tokens are its own in any batch."""

import pytest

torch = pytest.importorskip("torch")
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

from limbeck.models.cache import pad_left, positions  # noqa: E402
from limbeck.models.generate import Sampling, chances, draw, generate  # noqa: E402

V = 50
PROMPTS = [[3, 4, 5], [7], [8, 9, 10, 11, 12, 13, 14], [20, 21], [30, 31, 32, 33]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write(model, prompts, sampling, ends=(2,), seeds=None, stopped=None):
    out = dict(generate(model, prompts, seeds or range(len(prompts)), sampling, ends, stopped))
    return [out[i] for i in range(len(prompts))]


def test_greedy_is_what_transformers_generates(model):
    written = write(model, PROMPTS, Sampling(20))
    for prompt, w in zip(PROMPTS, written, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0]
        assert w.ids == theirs[len(prompt) :].tolist()


def test_absolute_positions_survive_left_padding():
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    gpt2.transformer.wpe.weight.data.mul_(50)  # so that a wrong position shows
    together = write(gpt2, PROMPTS, Sampling(12), ends=())
    alone = [write(gpt2, [p], Sampling(12), ends=())[0] for p in PROMPTS]
    assert [w.ids for w in together] == [w.ids for w in alone]


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_sampled_row_does_not_depend_on_its_batch(model, top_p):
    sampling = Sampling(25, temperature=1.0, top_p=top_p)
    seeds = [11, 22, 33, 44, 55]
    together = write(model, PROMPTS, sampling, seeds=seeds)
    turned = write(model, PROMPTS[::-1], sampling, seeds=seeds[::-1])[::-1]
    for prompt, seed, w, t in zip(PROMPTS, seeds, together, turned, strict=True):
        (alone,) = write(model, [prompt], sampling, seeds=[seed])
        assert alone.ids == w.ids == t.ids
        assert alone.logprobs == pytest.approx(w.logprobs, abs=1e-4)
    assert write(model, PROMPTS[:1], sampling, seeds=[12])[0].ids != together[0].ids


def test_rows_that_finish_leave_and_the_others_go_on_unharmed(model):
    ends = set(range(2, 9))  # rows end at different steps
    together = write(model, PROMPTS * 4, Sampling(30, 1.0), ends, seeds=range(20))
    lengths = {len(w.ids) for w in together}
    assert len(lengths) > 4
    for i, w in enumerate(together):
        assert w.ids == write(model, [(PROMPTS * 4)[i]], Sampling(30, 1.0), ends, seeds=[i])[0].ids
        assert not set(w.ids[:-1]) & ends


def test_every_end_token_ends_and_is_kept(model):
    plain = write(model, PROMPTS, Sampling(20), ends=())
    assert all(w.finish == "length" and len(w.ids) == 20 for w in plain)
    ends = {plain[0].ids[3], plain[2].ids[1]}
    for before, after in zip(plain, write(model, PROMPTS, Sampling(20), ends), strict=True):
        at = next((i for i, token in enumerate(before.ids) if token in ends), None)
        assert after.ids == (before.ids if at is None else before.ids[: at + 1])
        assert after.finish == ("length" if at is None else "stop")


def test_a_row_can_be_stopped_by_its_own_ids(model):
    written = write(model, PROMPTS, Sampling(20), ends=(), stopped=lambda ids: len(ids) == 4)
    assert all(len(w.ids) == 4 and w.finish == "stop" for w in written)


def test_an_end_at_the_very_limit_is_a_stop(model):
    (plain,) = write(model, PROMPTS[:1], Sampling(5), ends=())
    (ended,) = write(model, PROMPTS[:1], Sampling(5), ends={plain.ids[4]} - set(plain.ids[:4]))
    assert ended.finish == "stop" and len(ended.ids) == 5


def test_logprobs_are_the_models_own(model):
    sampling = Sampling(10, temperature=0.5, top_p=0.8, top=3)
    for prompt, w in zip(PROMPTS, write(model, PROMPTS, sampling, ends=()), strict=True):
        ids = torch.tensor([prompt + w.ids])
        with torch.no_grad():
            logp_tv = model(ids).logits[0].log_softmax(-1)
        for t, (token, logp, top) in enumerate(zip(w.ids, w.logprobs, w.top, strict=True)):
            full_v = logp_tv[len(prompt) + t - 1]
            assert logp == pytest.approx(full_v[token].item(), abs=1e-4)
            best = full_v.topk(3)
            assert [i for i, _ in top] == best.indices.tolist()
            assert [p for _, p in top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_draws_follow_the_distribution():
    p_v = torch.tensor([0.0, 0.5, 0.3, 0.15, 0.05])
    uniform_b = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    logits_bv = p_v.log().expand(4000, -1)

    def shares(**how):
        top_p_b1 = torch.full((4000, 1), how["top_p"]) if "top_p" in how else None
        picked_b = draw(logits_bv / how["temperature"], uniform_b, top_p_b1)
        return (picked_b.bincount(minlength=5) / 4000).tolist()

    assert shares(temperature=1.0) == pytest.approx(p_v.tolist(), abs=1e-3)
    squared = (p_v**2 / (p_v**2).sum()).tolist()
    assert shares(temperature=0.5) == pytest.approx(squared, abs=1e-3)
    # 0.5 + 0.3 is the smallest set that holds 0.7: the token that crosses the line stays in.
    assert shares(temperature=1.0, top_p=0.7) == pytest.approx([0, 0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(temperature=1.0, top_p=0.01) == [0, 1, 0, 0, 0]


def test_the_edges_of_a_draw_have_probability():
    logits_bv = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    edges_b = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits_bv, edges_b).tolist() == [1, 2]


def test_padding_and_positions():
    ids_bt, mask_bt = pad_left([[5, 6], [7]])
    assert ids_bt.tolist() == [[5, 6], [0, 7]] and mask_bt.tolist() == [[1, 1], [0, 1]]
    assert positions(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_nothing_is_inherited_from_the_generation_config(model):
    before = write(model, PROMPTS, Sampling(15, 1.0), seeds=range(5))
    kept = model.generation_config.top_k, model.generation_config.repetition_penalty
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 1.5
    try:
        assert [w.ids for w in write(model, PROMPTS, Sampling(15, 1.0), seeds=range(5))] == [w.ids for w in before]
    finally:
        model.generation_config.top_k, model.generation_config.repetition_penalty = kept


def test_a_rows_numbers_are_one_stream_whatever_it_takes_of_them():
    whole = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).tolist()
    numbers = chances(5)
    assert [next(numbers) for _ in range(200)] == whole
