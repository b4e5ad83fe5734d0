"""One model at several addresses: a Model each, of one digest."""

import asyncio

import pytest

from limbeck.errors import LimbeckError
from limbeck.models import Request, get
from tests.loopback import loopback
from tests.models.scripted import ask

ASK = Request([{"role": "user", "content": "hi"}])


def test_each_address_is_a_model_with_the_same_digest_and_options():
    urls = ["http://a/v1", "http://b/v1/", "http://c/v1/chat/completions"]
    for base_url in (urls, tuple(urls), ", ".join(urls)):
        model = get("openai/m", base_url=base_url, price="1/2", max_concurrency=3, requests_per_minute=60, api_key="k")
        assert [r.endpoint for r in model.replicas] == ["http://a/v1", "http://b/v1", "http://c/v1"]
        assert model.replicas[0] is model and model.replicas is model.replicas
        one = get("openai/m", base_url="http://a/v1")
        assert {r.digest for r in model.replicas} == {one.digest} and one.replicas == (one,)
        assert {(r.name, r.price, r.max_concurrency, r.requests_per_minute) for r in model.replicas} == {
            ("openai/m", model.price, 3, 60.0)
        }
        assert all(r.replicas == (r,) for r in model.replicas[1:])


def test_replicas_share_nothing_that_belongs_to_a_connection():
    with loopback() as a, loopback() as b:
        model = get("openai/m", base_url=[a.url, b.url])
        first, second = model.replicas
        assert ask(second, ASK)[0].text and ask(first, ASK)[0].text
        assert (len(a.requests), len(b.requests)) == (1, 1)
        assert first._gather is not second._gather


def test_closing_the_model_closes_every_replica():
    async def go(model):
        for replica in model.replicas:
            await replica.reply(ASK, "00")
        open_before = [r._wire is not None for r in model.replicas]
        await model.close()
        return open_before, [r._wire for r in model.replicas]

    with loopback() as a, loopback() as b:
        assert asyncio.run(go(get("openai/m", base_url=[a.url, b.url]))) == ([True, True], [None, None])


@pytest.mark.parametrize("base_url", [["http://a/v1", "http://a/v1/"], "http://a/v1,,http://b/v1", [], [3]])
def test_addresses_that_are_none(base_url, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LimbeckError):
        get("openai/m", base_url=base_url)
