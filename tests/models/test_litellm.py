"""Models through litellm, against a real server."""

import pytest

from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import Request, get
from tests.loopback import loopback
from tests.models.scripted import ask, http, scripted

pytest.importorskip("litellm")

ASK = Request([{"role": "user", "content": "how many legs has a spider"}], max_tokens=9)


def model(server, **options):
    return get("litellm/openai/m-1", base_url=server.url, api_key="sk-litellm-secret-1", timeout=10, **options)


def test_a_reply_with_its_usage_and_cost():
    with loopback(lambda m, k: "<think>count</think>8") as server:
        (reply,) = ask(model(server, price="2/10"), ASK)
    assert (reply.text, reply.reasoning, reply.finish) == ("8", "count", "stop")
    assert reply.prompt_tokens == 6 and reply.cost == pytest.approx((6 * 2 + reply.completion_tokens * 10) / 1e6)
    body = server.requests[0]["body"]
    assert body["model"] == "m-1" and body["messages"] == ASK.messages and body["max_tokens"] == 9
    assert len(server.requests) == 1 and server.requests[0]["key"] == "Bearer sk-litellm-secret-1"


def test_each_failure_is_tried_once_and_told_apart():
    kinds = {400: Refused, 401: EndpointFailure, 404: EndpointFailure, 429: EndpointFailure, 500: EndpointFailure}
    for status, kind in kinds.items():
        error = {"error": {"message": "said with sk-litellm-secret-1", "code": None}}
        with loopback(trouble=lambda b, k, status=status: status, error=error) as server:
            (found,) = ask(model(server), ASK)
        assert type(found) is kind and len(server.requests) == 1, (status, found)
        assert "sk-litellm-secret-1" not in str(found)
        if kind is EndpointFailure:
            assert found.cause == f"HTTP {status}" and found.final is (status in (401, 404))


def test_a_server_that_is_away_is_a_failure_that_may_pass():
    with loopback() as server:
        server.away()
        (found,) = ask(model(server), ASK)
    assert isinstance(found, EndpointFailure) and not found.final


def test_tools_come_back_in_the_form_they_were_sent():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with loopback(
        lambda m, k: {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    ) as s:
        (reply,) = ask(model(s), Request(ASK.messages, tools=[{"type": "function", "function": {"name": "f"}}]))
    assert reply.finish == "tool_calls" and reply.tool_calls[0]["function"] == call["function"]


def test_embeddings():
    def answer(seen, n):
        rows = [
            {"object": "embedding", "index": i, "embedding": [float(len(t))]} for i, t in enumerate(seen.json["input"])
        ]
        return http({"object": "list", "data": rows, "model": "e", "usage": {"prompt_tokens": 6, "total_tokens": 6}})

    with scripted(answer) as server:
        replies = ask(model(server), Request([], embed="a"), Request([], embed="bb"))
    assert [r.vector for r in replies] == [[1.0], [2.0]] and len(server.seen) == 1


def test_a_timeout_that_is_none():
    with pytest.raises(LimbeckError, match="timeout"):
        get("litellm/m", timeout=0)
