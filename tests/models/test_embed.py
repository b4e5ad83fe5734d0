"""Texts to vectors: asked one by one, sent together."""

import asyncio

import pytest

import limbeck as lb
from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import Request, get
from limbeck.models.gather import shares
from tests.models.scripted import ask, http, scripted


def embedded(seen, n):
    texts = seen.json["input"]
    if any("bad" in t for t in texts):
        return http({"error": {"message": "this input is too long"}}, status=400)
    rows = [{"index": i, "embedding": [len(t), 0.5]} for i, t in enumerate(texts)]
    return http({"data": rows[::-1], "model": "e-1", "usage": {"prompt_tokens": 10 * len(texts)}})


def texts(*words, **more):
    return [Request([], embed=w, **more) for w in words]


def test_texts_that_come_together_go_in_one_request():
    with scripted(embedded) as server:
        replies = ask(get("openai/e", base_url=server.url, price="1/0"), *texts("a", "bbb", "cc"))
    assert [s.path for s in server.seen] == ["/embeddings"] and server.seen[0].json == {
        "model": "e",
        "input": ["a", "bbb", "cc"],
    }
    assert [r.vector for r in replies] == [[1.0, 0.5], [3.0, 0.5], [2.0, 0.5]]
    assert [r.prompt_tokens for r in replies] == [5, 15, 10]  # by their size; they add up to what was counted
    assert sum(r.cost for r in replies) == pytest.approx(30e-6) and replies[0].served_model == "e-1"


def test_no_request_is_larger_than_the_batch_and_settings_stay_apart():
    with scripted(embedded) as server:
        model = get("openai/e", base_url=server.url, embed_batch=4)
        wide = texts("x", "y", extra={"dimensions": 8})
        replies = ask(model, *texts(*"abcdefghij"), *wide)
    assert len(replies) == 12 and all(r.vector for r in replies)
    sizes = sorted((len(s.json["input"]), s.json.get("dimensions", 0)) for s in server.seen)
    assert sizes == [(2, 0), (2, 8), (4, 0), (4, 0)]


def test_one_text_that_is_refused_does_not_take_the_others_with_it():
    with scripted(embedded) as server:
        good, bad, fine = ask(get("openai/e", base_url=server.url), *texts("a", "bad", "c"))
    assert good.vector and fine.vector and isinstance(bad, Refused) and len(server.seen) == 4


def test_a_failure_reaches_everyone_who_waits():
    with scripted(http({}, status=503)) as server:
        assert [f.cause for f in ask(get("openai/e", base_url=server.url), *texts("a", "b"))] == ["HTTP 503"] * 2
    with scripted(http({"data": [{"index": 0, "embedding": [1]}]})) as server:
        found = ask(get("openai/e", base_url=server.url), *texts("a", "b"))
    assert all(isinstance(f, EndpointFailure) and f.cause == "broken body" for f in found)


def test_who_gives_up_waiting_is_not_asked_for():
    async def go(model):
        waits = [asyncio.ensure_future(model.reply(r, "0")) for r in texts("a", "b")]
        await asyncio.sleep(0)
        waits[0].cancel()
        try:
            return await asyncio.gather(*waits, return_exceptions=True)
        finally:
            await model.close()

    with scripted(embedded) as server:
        gone, kept = asyncio.run(go(get("openai/e", base_url=server.url)))
    assert isinstance(gone, asyncio.CancelledError) and kept.vector and server.seen[0].json["input"] == ["b"]


def test_shares_add_up_and_no_text_has_none():
    for total, words in ((7, ["a", "bb", "cccc"]), (5, ["", ""]), (4, ["é" * 9] * 4), (9, ["a", "b" * 10_000])):
        parts = shares(total, words)
        assert len(parts) == len(words) and min(parts) >= 1 and sum(parts) == total
    assert shares(3, ["é" * 9] * 4) == [1] * 4  # 0 would mean that nobody counted
    assert shares(0, ["a", "b"]) == [0, 0]


def test_a_short_text_beside_a_long_one_is_not_taken_for_uncounted(tmp_path):
    def answer(seen, n):
        rows = [{"index": i, "embedding": [1.0]} for i, _ in enumerate(seen.json["input"])]
        return http({"data": rows, "usage": {"prompt_tokens": 100}})

    with scripted(answer) as server, lb.Run(tmp_path, budget="$1", progress=False) as run:
        model = get("openai/e", base_url=server.url, price="1/0")
        lb.embed(lb.Table.from_rows([{"prompt": "a"}, {"prompt": "b" * 30_000}]), model)
        spent = run.ledger.spent()
    assert len(server.seen) == 1 and spent["tokens"] == 100 and spent["money"] == pytest.approx(100e-6)


def test_what_a_router_says_a_batch_cost_is_shared_among_its_texts():
    def answer(seen, n):
        rows = [{"index": i, "embedding": [1.0]} for i, _ in enumerate(seen.json["input"])]
        return http({"data": rows, "usage": {"prompt_tokens": 10, "cost": 0.5}})

    with scripted(answer) as server:
        replies = ask(get("openai/e", base_url=server.url), *texts("a", "bbb", "cc"))
    assert [r.cost for r in replies] == pytest.approx([0.05 * r.prompt_tokens for r in replies])


def test_the_bound_on_tokens_counts_the_text():
    model = get("openai/e", base_url="http://a")
    assert model.prompt_tokens_at_most(Request([], embed="x" * 500)) >= 500


def test_a_batch_of_none_is_an_error():
    with pytest.raises(LimbeckError, match="embed_batch"):
        get("openai/e", base_url="http://a", embed_batch=0)
