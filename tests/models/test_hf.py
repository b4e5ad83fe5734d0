"""Local models: batches that change nothing, ends and stops, log-probabilities, weights, digests."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch")
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from limbeck.errors import LimbeckError, Refused  # noqa: E402
from limbeck.models import Request, chat, get, trained  # noqa: E402
from limbeck.models.hf import HF  # noqa: E402

WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if mark is defined %} {{ mark }}{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama of two layers that knows forty words."""
    out = tmp_path_factory.mktemp("hf") / "small"
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>", "<system>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        additional_special_tokens=special[3:],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(out)
    return out


@pytest.fixture
def model(checkpoint):
    made = HF(checkpoint)
    yield made
    asyncio.run(made.close())


def user(*words: int, **fields) -> Request:
    return Request([{"role": "user", "content": " ".join(WORDS[w] for w in words)}], **fields)


def encode(model, request):
    return chat.encode(model.tokenizer, request, model.name)


def ask(model, *requests, keys=None):
    async def go():
        named = keys or [f"{i:032x}" for i in range(len(requests))]
        tries = (model.reply(r, k) for r, k in zip(requests, named, strict=True))
        return await asyncio.gather(*tries, return_exceptions=True)

    return asyncio.run(go())


def test_greedy_is_what_transformers_generates(model):
    requests = [user(3, max_tokens=15), user(4, 5, 6, 7, 8, max_tokens=15), user(9, 10, max_tokens=15)]
    for request, reply in zip(requests, ask(model, *requests), strict=True):
        text = model.tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
        ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        theirs = model.weights().generate(ids, max_new_tokens=15, do_sample=False)[0, ids.shape[1] :].tolist()
        assert reply.token_ids == theirs
        assert reply.text == model.tokenizer.decode(theirs, skip_special_tokens=True)
        assert (reply.prompt_tokens, reply.completion_tokens) == (ids.shape[1], len(theirs))
        assert reply.finish == ("stop" if theirs[-1] == 2 else "length")
        assert reply.cost == 0.0


def test_no_temperature_is_greedy_and_zero_is_too(model):
    settings: list[dict] = [{}, {"temperature": 0.0}, {"top_p": 0.5}]
    a, b, c = ask(model, *(user(3, max_tokens=9, **s) for s in settings))
    assert a.token_ids == b.token_ids == c.token_ids


def test_a_sampled_reply_depends_on_its_key_and_not_on_its_batch(model):
    requests = [user(*range(3, 4 + i), temperature=1.0, top_p=0.9, max_tokens=20) for i in range(6)]
    keys = [f"{i + 7:08x}" * 4 for i in range(6)]
    together = ask(model, *requests, keys=keys)
    for request, key, reply in zip(requests, keys, together, strict=True):
        (alone,) = ask(model, request, keys=[key])
        assert alone.token_ids == reply.token_ids
        assert [e["logprob"] for e in alone.logprobs] == pytest.approx([e["logprob"] for e in reply.logprobs], abs=1e-4)
    other, again = ask(model, requests[0], requests[0], keys=["a" * 32, keys[0]])
    assert again.token_ids == together[0].token_ids != other.token_ids


def test_many_requests_of_many_kinds_come_back_to_whom_they_belong(model):
    model.batch_tokens = 150  # several batches per group
    requests = [user(i % 30, max_tokens=4 + i % 3, temperature=float(i % 2)) for i in range(40)]
    replies = ask(model, *requests)
    for i in (0, 1, 17, 38):
        assert ask(model, requests[i], keys=[f"{i:032x}"])[0].token_ids == replies[i].token_ids
    assert all(len(r.token_ids) <= 4 + i % 3 for i, r in enumerate(replies))


def test_stop_strings_cut_the_text(model):
    (plain,) = ask(model, user(5, max_tokens=20, temperature=1.0))
    stop = plain.text.split()[3] + " "  # ends in the middle of a later token's text
    (cut,) = ask(model, user(5, max_tokens=20, temperature=1.0, stop=("never", stop)))
    assert cut.text == plain.text[: plain.text.index(stop)] and cut.finish == "stop"
    shortest = next(n for n in range(21) if stop in model.tokenizer.decode(plain.token_ids[:n]))
    assert 1 < shortest < 20 and cut.token_ids == plain.token_ids[:shortest]


def test_logprobs_add_up_to_the_score_of_the_text(model):
    (reply,) = ask(model, user(5, 6, max_tokens=12, temperature=1.0, logprobs=2))
    assert [e["id"] for e in reply.logprobs] == reply.token_ids
    assert all(len(e["top"]) == 2 and e["top"][0]["logprob"] >= e["top"][1]["logprob"] for e in reply.logprobs)
    assert all(e["token"] == model.tokenizer.decode([e["id"]]) for e in reply.logprobs)
    ids = encode(model, user(5, 6)) + reply.token_ids
    logp_bt = model.logprobs_of(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    assert logp_bt.shape == (1, len(ids)) and logp_bt[0, 0] == 0
    assert logp_bt[0, -len(reply.token_ids) :].sum().item() == pytest.approx(
        sum(e["logprob"] for e in reply.logprobs), abs=1e-3
    )
    assert "top" not in ask(model, user(5, max_tokens=3))[0].logprobs[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score(model, side):
    row, pad = [4, 10, 11, 12], [0, 0, 0]
    ids = torch.tensor([pad + row if side == "left" else row + pad])
    mask = (ids != 0).long()
    at = slice(3, 7) if side == "left" else slice(0, 4)
    alone = torch.tensor([row])
    ones = torch.ones_like(alone)
    for name in ("logits", "logprobs_of"):
        padded, plain = getattr(model, name)(ids, mask)[0, at], getattr(model, name)(alone, ones)[0]
        assert torch.allclose(padded, plain, atol=1e-4), name
    hidden = model.hidden(ids, mask)
    assert len(hidden) == 3 and torch.allclose(hidden[-1][0, at], model.hidden(alone, ones)[-1][0], atol=1e-4)
    assert model.logprobs_of(ids, mask)[0][mask[0] == 0].abs().sum() == 0


def test_the_context_bounds_what_is_written_and_read(model):
    (long,) = ask(model, user(*[3] * 20, max_tokens=500, temperature=1.0, stop=("nothing",)))
    assert long.prompt_tokens + long.completion_tokens <= 64
    (refused,) = ask(model, user(*[3] * 80))
    assert isinstance(refused, Refused) and "64" in str(refused)


def test_max_output_where_a_request_names_no_limit(checkpoint):
    model = get(f"hf/{checkpoint}", max_output=3)
    (reply,) = ask(model, user(3, temperature=1.0))
    assert len(reply.token_ids) <= 3
    asyncio.run(model.close())


def test_what_it_cannot_do_is_said(model):
    for field in ({"tools": [{}]}, {"extra": {"top_k": 3}}):
        (error,) = ask(model, user(1, **field))
        assert isinstance(error, LimbeckError) and next(iter(field)) in str(error)
    picture = Request([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}])
    assert isinstance(ask(model, picture)[0], Refused)


def test_the_chat_template_takes_arguments(model):
    marked = user(1, extra={"chat_template_kwargs": {"mark": "w7"}})
    assert encode(model, marked) == [*encode(model, user(1)), model.tokenizer.convert_tokens_to_ids("w7")]


def test_text_in_parts_is_text(model):
    parts = Request([{"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]}])
    assert encode(model, parts) == encode(model, user(1, 2))


def test_a_template_that_refuses_refuses_the_row(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    model = HF(tmp_path / "m")
    (refused,) = ask(model, user(1))
    assert isinstance(refused, Refused) and "no system role" in str(refused)
    asyncio.run(model.close())


def test_without_a_chat_template_the_turns_are_plain_text(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    model = HF(tmp_path / "m")
    with pytest.warns(UserWarning, match="no chat template"):
        ids = encode(model, Request([{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]))
    assert model.tokenizer.decode(ids) == "w1 w2"


def test_every_end_that_the_files_name_ends(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "m")
    ends = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({**ends, "eos_token_id": [2, 8, 9], "top_k": 1}))
    assert HF(tmp_path / "m").ends == {2, 8, 9}


def test_weights_to_judge_and_to_train(model):
    kept = model.weights()
    assert kept is model.weights() is HF(model.path).weights()  # the same files are in memory once
    assert not kept.training and not any(p.requires_grad for p in kept.parameters())
    fresh = model.weights(trainable=True)
    assert fresh is not kept and fresh.training and all(p.requires_grad for p in fresh.parameters())
    assert fresh.dtype == torch.float32
    for a, b in zip(fresh.parameters(), kept.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        next(fresh.parameters()).zero_()
    assert next(kept.parameters()).abs().sum() > 0


def test_dtype(checkpoint):
    half = get(f"hf/{checkpoint}", dtype="bfloat16")
    assert half.weights().dtype == half.weights(trainable=True).dtype == torch.bfloat16
    (reply,) = ask(half, user(4, max_tokens=4))
    assert reply.token_ids
    asyncio.run(half.close())
    with pytest.raises(LimbeckError, match="bfloat16"):
        get(f"hf/{checkpoint}", dtype="bf61")


def test_an_adapter_is_merged_and_is_part_of_the_digest(checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tuned = get_peft_model(HF(checkpoint).weights(trainable=True), LoraConfig(r=2, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "lora")
    tuned.eval()
    model = get(f"hf/{checkpoint}", adapter=str(tmp_path / "lora"))
    ids = torch.tensor([[4, 9, 10]])
    assert torch.allclose(model.logits(ids, torch.ones_like(ids)), tuned(ids).logits, atol=1e-4)
    plain = HF(checkpoint)
    assert not torch.allclose(plain.logits(ids, torch.ones_like(ids)), tuned(ids).logits, atol=1e-2)
    assert model.digest != plain.digest


def test_a_closed_model_answers_again_and_leaves_no_thread(model):
    (before,) = ask(model, user(5, max_tokens=5))
    assert any(t.name == model.name for t in threading.enumerate())
    asyncio.run(model.close())
    assert not any(t.name == model.name for t in threading.enumerate())
    asyncio.run(model.close())
    assert ask(model, user(5, max_tokens=5))[0].token_ids == before.token_ids


def test_a_failure_of_the_worker_reaches_everyone_who_waits(model, monkeypatch):
    monkeypatch.setattr(model, "weights", lambda trainable=False: 1 / 0)
    assert all(isinstance(e, ZeroDivisionError) for e in ask(model, user(1), user(2)))
    monkeypatch.undo()
    assert ask(model, user(1, max_tokens=2))[0].token_ids


def test_a_cancelled_request_is_not_answered(model):
    async def go():
        waits = [asyncio.ensure_future(model.reply(user(i, max_tokens=3), "0")) for i in range(3)]
        await asyncio.sleep(0)
        waits[1].cancel()
        return await asyncio.gather(*waits, return_exceptions=True)

    a, b, c = asyncio.run(go())
    assert a.token_ids and c.token_ids and isinstance(b, asyncio.CancelledError)


def test_a_trained_model_keeps_the_name_and_digest_it_is_given(checkpoint):
    model = trained(checkpoint, name="student-sft", digest="ab" * 16)
    assert (model.name, model.digest, model.path) == ("student-sft", "ab" * 16, str(checkpoint))
    assert {"chat", "logprobs", "logits", "hidden", "embed", "weights"} == model.can


def test_naming_a_model_loads_no_torch(checkpoint):
    code = f"import sys; from limbeck.models import get; get('hf/{checkpoint}').digest; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
