"""Each provider's batch API: what is sent, how a batch is found again, what its results mean."""

import asyncio
import json

import pytest

from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import get
from limbeck.models.base import Price, Reply, Request
from limbeck.models.batch import batch_api
from limbeck.models.http import NoSchema
from tests.batch_server import provider

apis = pytest.mark.parametrize("api", ["openai", "anthropic"])


def said(i):
    return Request(messages=[{"role": "user", "content": f"question {i} — ünïcödé\u2028"}], max_tokens=50)


def with_api(server, api, work, **options):
    """Runs `work(batch API)` on a loop of its own and closes the connections."""
    made = get(f"{api}/m", base_url=server.url if api == "openai" else server.home, **{"price": "2/8", **options})

    async def go():
        try:
            return await work(batch_api(made))
        finally:
            await made.close()

    return asyncio.run(go())


async def results_of(api, remote):
    while not (await api.state(remote)).ended:
        pass
    return {key: outcome async for key, outcome in api.results(remote)}


@apis
def test_requests_arrive_as_they_would_one_by_one(api):
    async def work(made):
        remote = await made.submit("t" * 32, [made.line(f"k{i}", said(i)) for i in range(3)])
        return remote, made.model._body(said(0))

    with provider() as server:
        remote, body = with_api(server, api, work)
    assert remote == "batch_000" and [key for key, _ in server.batches[0]["requests"]] == ["k0", "k1", "k2"]
    assert server.batches[0]["requests"][0][1] == json.loads(json.dumps(body))


@apis
def test_each_result_is_a_reply_a_refusal_or_a_failure(api):
    fates = {"k0": None, "k1": 400, "k2": 500, "k3": "expired", "k4": 404, "k5": "canceled"}

    async def work(made):
        return await results_of(made, await made.submit("t", [made.line(k, said(0)) for k in fates]))

    with provider(fate=lambda key, body, k: fates[key]) as server:
        got = with_api(server, api, work)
    assert [type(got[k]) for k in fates] == [
        Reply, Refused, EndpointFailure, EndpointFailure, EndpointFailure, EndpointFailure,
    ]  # fmt: skip
    assert [got[k].cause for k in ("k2", "k3", "k5")] == ["HTTP 500", "expired", "canceled"]
    assert [got[k].final for k in ("k2", "k3", "k4", "k5")] == [False, False, True, False]
    assert got["k0"].cost == pytest.approx((got["k0"].prompt_tokens * 2 + got["k0"].completion_tokens * 8) / 2e6)


@apis
def test_the_batch_price_is_a_share_of_the_price(api):
    async def work(made):
        made.model.price = Price(10, 10, batch=0.25)
        return await results_of(made, await made.submit("t", [made.line("k", said(0))]))

    with provider() as server:
        reply = with_api(server, api, work)["k"]
    assert reply.cost == pytest.approx((reply.prompt_tokens + reply.completion_tokens) * 10 / 1e6 / 4)


@apis
def test_a_batch_is_found_again_among_many(api):
    async def work(made):
        for i in range(5):
            await made.submit(f"tag{i}", [made.line(f"k{i}-{j}", said(j)) for j in range(i + 1)])
        now = server.batches[0]["made"]
        return [
            await made.find("tag1", 2, now),
            await made.find("tag4", 5, now),
            await made.find("unheard", 9, now),
            await made.find("tag1", 2, now + 1000),
        ]

    with provider() as server:
        assert with_api(server, api, work) == [["batch_001"], ["batch_004"], [], []]


@apis
def test_a_batch_tells_how_far_it_is(api):
    async def work(made):
        remote = await made.submit("t", [made.line(f"k{i}", said(i)) for i in range(8)])
        return [await made.state(remote) for _ in range(4)]

    with provider(looks=4) as server:
        states = with_api(server, api, work)
    assert [(s.answered, s.total, s.ended) for s in states] == [
        (1, 8, False),
        (2, 8, False),
        (3, 8, False),
        (8, 8, True),
    ]


def test_a_batch_that_failed_its_check_says_why_and_whether_the_queue_was_full():
    async def work(made):
        first = await made.submit("t", [made.line(f"k{i}", said(i)) for i in range(3)])
        server.queue, server.refuses = None, "invalid_url"
        second = await made.submit("t", [made.line("k", said(0))])
        return await made.state(first), await made.state(second)

    with provider(queue=2) as server:
        full, refused = with_api(server, "openai", work)
    assert full.ended and full.full and full.failed and refused.failed and not refused.full


@apis
def test_results_that_are_no_json_are_a_failure_that_may_pass(api):
    async def work(made):
        remote = await made.submit("t", [made.line("k", said(0))])
        while not (await made.state(remote)).ended:
            pass
        with pytest.raises(EndpointFailure, match="is not JSON") as failure:
            list(made._each("/results?limit=1", b'{"custom_id": "k"}\n\n{"custom'))
        return failure.value

    with provider() as server:
        failure = with_api(server, api, work)
    assert failure.cause == "broken body" and not failure.final


@apis
def test_a_schema_that_is_refused_is_told_apart(api):
    async def work(made):
        return await results_of(made, await made.submit("t", [made.line("k", said(0))]))

    with provider(fate=lambda *_: 400, message="response_format / output_config is not known") as server:
        assert type(with_api(server, api, work)["k"]) is NoSchema


@apis
def test_a_request_that_json_cannot_hold_is_refused(api):
    async def work(made):
        with pytest.raises(Refused, match="cannot be written as JSON"):
            made.line("k", Request(messages=[{"role": "user", "content": "half a pair: \ud800"}]))

    with provider() as server:
        with_api(server, api, work)


@apis
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_the_api_is_an_error_that_names_it(api, status):
    async def work(made):
        await made.submit("t", [made.line("k", said(0))])

    with (
        provider(trouble=lambda *_: status) as server,
        pytest.raises(LimbeckError, match=f"has no batch API .HTTP {status} at"),
    ):
        with_api(server, api, work)


def test_a_model_without_a_batch_api_is_an_error_that_names_those_that_have_one():
    with pytest.raises(LimbeckError, match=r"anthropic/… and openai/….*'fake/echo' has none"):
        batch_api(get("fake/echo"))
