"""The OpenAI-compatible client against a real server on loopback."""

import asyncio
import datetime
import email.utils
import time

import pytest

from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import Request, get
from limbeck.models.openai import OpenAI
from tests.loopback import Server, loopback

ASK = Request([{"role": "user", "content": "how many legs has a spider"}])


def ask(server: Server | str, *requests: Request, times: int = 1, **options):
    """Sends the requests once each, together; gives the replies or errors in order."""
    url = server if isinstance(server, str) else server.url

    async def go():
        model = get("openai/m-1", base_url=url, **options)
        tries = [model.reply(r, "00") for r in (requests or (ASK,)) for _ in range(times)]
        try:
            return await asyncio.gather(*tries, return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(go())


def error(server: Server | str, *requests: Request, **options) -> LimbeckError:
    (result,) = ask(server, *requests, **options)
    assert isinstance(result, LimbeckError), result
    assert "\n" not in str(result)
    return result


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_usage_served_model_and_cost():
    with loopback(lambda m, k: "eight legs", served_model="m-1-0613") as server:
        (reply,) = ask(server, price="2/10")
    assert (reply.text, reply.finish, reply.served_model) == ("eight legs", "stop", "m-1-0613")
    assert (reply.prompt_tokens, reply.completion_tokens) == (6, 2)
    assert reply.cost == pytest.approx((6 * 2 + 2 * 10) / 1e6)
    assert reply.reasoning is reply.logprobs is reply.token_ids is reply.tool_calls is None


def test_unknown_price_or_usage_is_no_cost_rather_than_zero():
    with loopback() as server:
        assert ask(server)[0].cost is None
    with loopback(usage=False) as server:
        assert ask(server, price="2/10")[0].cost is None


def test_only_what_is_set_is_sent():
    with loopback() as server:
        ask(server)
        full = Request(
            ASK.messages, temperature=0.0, top_p=0.9, max_tokens=7, stop=("a", "b"), logprobs=3, tools=({"type": "f"},),
            schema={"type": "object"}, extra={"top_k": 5, "temperature": 0.5},
        )  # fmt: skip
        ask(server, full)
        ask(server, Request(ASK.messages, logprobs=0))
    plain, body, chosen_only = (r["body"] for r in server.requests)
    assert plain == {"model": "m-1", "messages": ASK.messages}
    assert body["temperature"] == 0.5 and body["top_k"] == 5  # extra goes in as it is
    assert (body["top_p"], body["max_tokens"], body["stop"], body["tools"]) == (0.9, 7, ["a", "b"], [{"type": "f"}])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    form = {"name": "answer", "schema": {"type": "object"}, "strict": False}
    assert body["response_format"] == {"type": "json_schema", "json_schema": form}
    assert chosen_only["logprobs"] is True and "top_logprobs" not in chosen_only


def test_max_output_is_sent_where_it_was_asked_for():
    with loopback() as server:
        ask(server, max_output=99)
        ask(server, Request(ASK.messages, max_tokens=5), max_output=99)
    assert [r["body"]["max_tokens"] for r in server.requests] == [99, 5]


def test_openai_itself_gets_its_newer_name_for_max_tokens():
    model = OpenAI("gpt-4o-mini", api_key="k")
    assert "max_completion_tokens" in model._body(Request(ASK.messages, max_tokens=5))
    assert "max_completion_tokens" not in model._body(ASK)  # the table's limit bounds the price and is not sent


def test_logprobs_with_bytes_alternatives_and_ids():
    def fn(messages, k):
        top = [{"token": "token_id:5", "logprob": -0.1, "bytes": None}, {"token": "token_id:6", "logprob": -2.5}]
        content = [
            {"token": "token_id:5", "logprob": -0.1, "bytes": [240, 159], "top_logprobs": top},
            {"token": "token_id:9", "logprob": -1.0, "bytes": [152, 128], "top_logprobs": []},
        ]
        return {"message": {"content": "😀"}, "logprobs": {"content": content}}

    with loopback(fn) as server:
        (reply,) = ask(server, Request(ASK.messages, logprobs=2))
    assert reply.token_ids == [5, 9]
    first, second = reply.logprobs
    assert first["bytes"] + second["bytes"] == list("😀".encode())
    assert [(t["id"], t["logprob"]) for t in first["top"]] == [(5, -0.1), (6, -2.5)]
    assert "top" not in second and second["logprob"] == -1.0


def test_token_ids_beside_logprobs_name_the_entries():
    entries = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]
    choice = {"message": {"content": "ab"}, "logprobs": {"content": entries}, "token_ids": [11, 12]}
    with loopback(lambda m, k: choice) as server:
        (reply,) = ask(server)
    assert reply.token_ids == [11, 12] == [e["id"] for e in reply.logprobs]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(field):
    with loopback(lambda m, k: {"message": {"content": "8", field: "count them"}}) as server:
        (reply,) = ask(server)
    assert (reply.text, reply.reasoning) == ("8", "count them")


@pytest.mark.parametrize(
    ("said", "text", "reasoning", "finish"),
    [
        ("<think>\ncount them\n</think>\n\n8", "8", "count them", "stop"),
        ("\n<think>one, two", "", "one, two", "length"),  # it was cut off while it thought
        ("8 <think>no</think>", "8 <think>no</think>", None, "stop"),  # words of the answer
    ],
)
def test_thinking_that_the_server_did_not_split_off(said, text, reasoning, finish):
    with loopback(lambda m, k: said) as server:
        (reply,) = ask(server)
    assert (reply.text, reply.reasoning, reply.finish) == (text, reasoning, finish)


def test_tool_calls_length_parts_and_empty_answers():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answers = {
        "tools": {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"},
        "length": {"message": {"content": "cut"}, "finish_reason": "length"},
        "parts": {"message": {"content": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "yes"}]}},
        "nothing": "",
    }
    with loopback(lambda m, k: answers[m[0]["content"]], usage=False) as server:
        tools, length, parts, nothing = ask(server, *(Request([{"role": "user", "content": a}]) for a in answers))
    assert (tools.text, tools.finish, tools.tool_calls) == ("", "tool_calls", [call])
    assert (length.text, length.finish) == ("cut", "length")
    assert parts.text == "yes"
    assert (nothing.text, nothing.finish) == ("", "stop")  # an answer of no words is an answer


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_of_this_request(status):
    words = {"error": {"message": "maximum context length is 8 tokens"}}
    with loopback(trouble=lambda b, k: status, error=words) as server:
        refusal = error(server)
    assert isinstance(refusal, Refused)
    assert str(status) in str(refusal) and "maximum context length" in str(refusal)


def test_the_content_filter_refuses():
    with loopback(lambda m, k: {"message": {"content": "I"}, "finish_reason": "content_filter"}) as server:
        assert isinstance(error(server), Refused)
    with loopback(lambda m, k: {"message": {"content": None, "refusal": "I cannot do that"}}) as server:
        assert "I cannot do that" in str(error(server))


def test_a_request_that_is_no_json_is_refused():
    with loopback() as server:
        assert isinstance(error(server, Request([{"role": "user", "content": "\ud800"}])), Refused)
    assert not server.requests


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_a_failure_that_may_pass(status):
    with loopback(trouble=lambda b, k: status) as server:
        failure = error(server)
    assert isinstance(failure, EndpointFailure) and not failure.final
    assert failure.cause == f"HTTP {status}" and failure.retry_after is None
    assert f"127.0.0.1:{server.port}" in str(failure)


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404, 405])
def test_a_failure_that_no_retry_mends(status):
    with loopback(trouble=lambda b, k: status) as server:
        server.headers = {"Location": server.url + "/chat/completions"}
        failure = error(server)
    assert isinstance(failure, EndpointFailure) and failure.final
    assert len(server.requests) == 1  # a redirect is not followed: it would send the key to another address
    way = {301: server.url, 401: "OPENAI_API_KEY", 403: "OPENAI_API_KEY"}
    assert way.get(status, "base_url") in str(failure)


@pytest.mark.parametrize(
    ("words", "final"),
    [
        ({"error": {"message": "The model `m-1` does not exist.", "code": None}}, True),
        ({"error": {"message": "no", "code": "model_not_found"}}, True),
        ([{"error": {"message": "Model Not Exist"}}], True),
        ({"detail": "temperature of the model must be under 2"}, False),
        ({"object": "error", "message": "tool 'x' not found"}, False),
    ],
)
def test_an_unknown_model_is_no_refusal_of_a_row(words, final):
    with loopback(trouble=lambda b, k: 400, error=words) as server:
        failure = error(server)
    assert isinstance(failure, EndpointFailure) is final
    assert isinstance(failure, Refused) is not final


def test_an_empty_account_is_final_though_it_is_a_429():
    words = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with loopback(trouble=lambda b, k: 429, error=words) as server:
        assert error(server).final


def test_a_setting_that_the_model_does_not_take_is_no_fault_of_the_row():
    words = {"error": {"message": "'temperature' does not support 0.5", "code": "unsupported_value"}}
    with loopback(trouble=lambda b, k: 400, error=words) as server:
        failure = error(server)
    assert isinstance(failure, EndpointFailure) and failure.final and "temperature" in str(failure)


def test_a_gateway_to_reasoning_models_gets_the_newer_name_once_it_says_so():
    words = {
        "error": {"message": "Unsupported parameter: use 'max_completion_tokens'.", "code": "unsupported_parameter"}
    }
    asked = Request(ASK.messages, max_tokens=5)
    with loopback(trouble=lambda b, k: 400 if "max_tokens" in b else None, error=words) as server:
        model = get("openai/m-1", base_url=server.url)

        async def twice():
            tries = [model.reply(asked, "00") for _ in range(3)]
            for failure in await asyncio.gather(*tries, return_exceptions=True):
                assert failure.cause == "max_tokens" and not failure.final
            try:
                return await model.reply(asked, "00")
            finally:
                await model.close()

        assert asyncio.run(twice()).text
    assert server.requests[3]["body"]["max_completion_tokens"] == 5


def test_a_moderated_prompt_is_refused_though_it_is_a_403():
    with loopback(trouble=lambda b, k: 403, error={"error": {"message": "your input was flagged"}}) as server:
        assert isinstance(error(server), Refused)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "soon"}, None),
        ({"x-ratelimit-reset-requests": "1m2s"}, 62.0),
        ({"x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"Retry-After": "3", "x-ratelimit-reset-requests": "9s"}, 3.0),
        ({"Retry-After-Ms": "250", "Retry-After": "1"}, 0.25),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "9s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
    ],
)
def test_how_long_the_server_asks_to_wait(headers, seconds):
    with loopback(trouble=lambda b, k: 429, headers=headers) as server:
        assert error(server).retry_after == pytest.approx(seconds)


def test_how_long_the_words_of_an_error_ask_to_wait():
    words = {"error": {"message": "Rate limit reached. Please try again in 1m1.5s. Visit our page."}}
    with loopback(trouble=lambda b, k: 429, error=words) as server:
        assert error(server).retry_after == 61.5


def test_retry_after_as_a_date():
    in_a_minute = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    header = {"Retry-After": email.utils.format_datetime(in_a_minute)}
    with loopback(trouble=lambda b, k: 503, headers=header) as server:
        assert 30 < error(server).retry_after <= 60
    past = email.utils.formatdate(time.time() - 60)
    with loopback(trouble=lambda b, k: 503, headers={"Retry-After": past}) as server:
        assert error(server).retry_after == 0


def test_a_server_that_is_away_and_comes_back():
    with loopback() as server:
        server.away()
        failure = error(server)
        assert failure.cause == "connect" and not failure.final
        assert f"127.0.0.1:{server.port}" in str(failure) and "base_url" in str(failure)
        server.back()
        assert ask(server)[0].text


@pytest.mark.parametrize("cause", ["disconnect", "broken body", "empty"])
def test_broken_answers(cause):
    trouble = cause.split()[0]
    with loopback(trouble=lambda b, k: trouble) as server:
        failure = error(server)
    assert failure.cause == cause and not failure.final


def test_an_answer_of_another_shape():
    with loopback(lambda m, k: {"message": {"content": "a"}, "logprobs": {"content": [{"x": 1}]}}) as server:
        assert error(server).cause == "broken body"


def test_an_error_in_a_body_with_status_200():
    late, wrong = {"error": {"message": "upstream", "code": 503}}, {"error": {"message": "bad words", "code": 400}}
    with loopback(extra={"choices": [], **late}) as server:
        assert error(server).cause == "HTTP 503"
    with loopback(extra={"choices": [], **wrong}) as server:
        assert isinstance(error(server), Refused)
    with loopback(extra={"choices": [], "error": "the gateway is tired"}) as server:
        failure = error(server)
    assert failure.cause == "error body" and "tired" in str(failure)


def test_timeout():
    with loopback(latency=5.0) as server:
        failure = error(server, timeout=0.05)
    assert failure.cause == "timeout" and "0.05 s" in str(failure)


def test_what_a_router_says_it_cost_counts_where_no_price_is_known():
    with loopback(usage=False, extra={"usage": {"prompt_tokens": 3, "completion_tokens": 1, "cost": 0.5}}) as server:
        assert ask(server)[0].cost == 0.5
        assert ask(server, price="1/1")[0].cost == pytest.approx(4e-6)


def test_a_model_serves_one_event_loop_after_another():
    with loopback() as server:
        model = get("openai/m-1", base_url=server.url)

        async def once():
            try:
                return (await model.reply(ASK, "00")).text
            finally:
                await model.close()

        assert asyncio.run(once())[-1] == "0" and asyncio.run(once())[-1] == "1"
