"""Anthropic's Messages API: requests as it writes them, answers as limbeck reads them."""

import pytest

import limbeck as lb
from limbeck import store
from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import Request, get
from tests.models.scripted import ask, http, scripted

ASK = Request([{"role": "user", "content": "how many legs has a spider"}])
USAGE = {"input_tokens": 10, "output_tokens": 4}


def message(*blocks, stop="end_turn", **more):
    blocks = blocks or ({"type": "text", "text": "8"},)
    return {"type": "message", "role": "assistant", "model": "claude-x-1", "content": blocks, "stop_reason": stop,
            "usage": USAGE, **more}  # fmt: skip


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)


def said(answer, request=ASK, **options):
    """The reply or error, and the body that was sent."""
    with scripted(answer if isinstance(answer, list) else http(answer)) as server:
        (result,) = ask(get("anthropic/claude-x", base_url=server.url, **options), request)
    return result, server.seen[0]


def test_a_plain_request_and_its_reply():
    reply, seen = said(message(), price="2/10", api_key="sk-ant-1")
    assert seen.path == "/v1/messages" and seen.headers["x-api-key"] == "sk-ant-1"
    assert seen.headers["anthropic-version"] == "2023-06-01" and "authorization" not in seen.headers
    turn = {"role": "user", "content": [{"type": "text", "text": "how many legs has a spider"}]}
    assert seen.json == {"model": "claude-x", "max_tokens": 4096, "messages": [turn]}
    assert (reply.text, reply.finish, reply.served_model) == ("8", "stop", "claude-x-1")
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 4)
    assert reply.cost == pytest.approx((10 * 2 + 4 * 10) / 1e6) and reply.reasoning is reply.tool_calls is None


def test_the_limit_is_what_the_model_can_write_or_what_was_asked():
    assert get("anthropic/claude-haiku-4-5", api_key="k").limit == 64_000
    assert (get("anthropic/unheard-of", api_key="k").limit, get("anthropic/m", api_key="k").max_output) == (4096, 4096)
    assert said(message(), max_output=99)[1].json["max_tokens"] == 99
    assert said(message(), Request(ASK.messages, max_tokens=5), max_output=99)[1].json["max_tokens"] == 5


def test_settings_and_extra():
    asked = Request(
        ASK.messages, temperature=0.0, top_p=0.9, stop=["x"], extra={"top_k": 3, "thinking": {"type": "adaptive"}}
    )
    body = said(message(), asked)[1].json
    assert (body["temperature"], body["top_p"], body["stop_sequences"], body["top_k"]) == (0.0, 0.9, ["x"], 3)
    assert body["thinking"] == {"type": "adaptive"}


def test_the_systems_words_stand_apart_and_empty_texts_are_left_out():
    turns = [{"role": "system", "content": "be brief"}, {"role": "developer", "content": "be kind"},
             {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "hi"}]}]  # fmt: skip
    body = said(message(), Request(turns))[1].json
    assert body["system"] == "be brief\n\nbe kind"
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_pictures_as_data_and_as_addresses():
    urls = ["data:image/png;base64,iVBORw0=", "https://example.org/a.jpg"]
    parts = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    (turn,) = said(message(), Request([{"role": "user", "content": parts}]))[1].json["messages"]
    assert [p["source"] for p in turn["content"]] == [
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0="},
        {"type": "url", "url": "https://example.org/a.jpg"},
    ]


def test_messages_that_have_no_form_here_are_refused_and_nothing_is_sent():
    odd = {
        "no 'tool_call_id'": [{"role": "tool", "content": "1"}],
        "no 'role'": [{"content": "hi"}],
        "no 'text'": [{"role": "user", "content": [{"type": "text"}]}],
        "attribute 'get'": [{"role": "user", "content": ["hi"]}],
        "no 'url'": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
    }
    with scripted(http(message())) as server:
        refused = ask(get("anthropic/claude-x", base_url=server.url), *map(Request, odd.values()))
    assert not server.seen and [type(r) for r in refused] == [Refused] * len(odd)
    assert all(words in str(r) for words, r in zip(odd, refused, strict=True))


def test_a_message_without_a_form_costs_its_row_alone(tmp_path):
    turns = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": [{"type": "text"}]}],
             [{"role": "user", "content": ["hi"]}]]  # fmt: skip
    rows = lb.Table.from_rows({"messages": said} for said in turns)
    with scripted(http(message())) as server, lb.Run(tmp_path, budget="$1", progress=False):
        model = get("anthropic/claude-x", base_url=server.url, price="1/1")
        made = lb.ask(rows, model, lb.Column("messages"), max_tokens=5)
        assert [r["response"] for r in made] == ["8"] and len(server.seen) == 1
        rejects = list(store.read(made.path / "rejects.parquet"))
    assert ["no 'text'" in r["_reason"] or "'get'" in r["_reason"] for r in rejects] == [True, True]


def test_arguments_that_are_no_json_object_go_on_as_text_and_addresses_of_images_stand_alone():
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": '}}
    picture = {"type": "image_url", "image_url": "https://example.org/a.png"}
    turns = [{"role": "assistant", "content": [picture], "tool_calls": [call]}]
    (turn,) = said(message(), Request(turns))[1].json["messages"]
    assert turn["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "tool_use", "id": "c", "name": "add", "input": {"_raw": '{"a": '}},
    ]


def test_tools_there_and_back_with_their_results_in_one_turn():
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
    thought = {"type": "thinking", "thinking": "add them", "signature": "c2ln"}
    uses = [{"type": "tool_use", "id": f"t{i}", "name": "add", "input": {"a": i}} for i in range(2)]
    reply, seen = said(message(thought, *uses, stop="tool_use"), Request(ASK.messages, tools=[tool]))
    assert seen.json["tools"] == [{"name": "add", "description": "adds", "input_schema": {"type": "object"}}]
    assert (reply.finish, reply.reasoning, reply.text) == ("tool_calls", "add them", "")
    assert [(c["id"], c["function"]) for c in reply.tool_calls] == [
        ("t0", {"name": "add", "arguments": '{"a":0}'}), ("t1", {"name": "add", "arguments": '{"a":1}'}),
    ]  # fmt: skip
    results = [{"role": "tool", "tool_call_id": f"t{i}", "content": str(i)} for i in range(2)]
    turns = [*ASK.messages, {"role": "assistant", "content": None, "tool_calls": reply.tool_calls}, *results]
    first, second, third = said(message(), Request(turns))[1].json["messages"]
    assert second == {"role": "assistant", "content": [thought, *uses]}  # signed thinking first, as the API wants it
    assert third["role"] == "user" and [(b["type"], b["tool_use_id"]) for b in third["content"]] == [
        ("tool_result", "t0"), ("tool_result", "t1"),
    ]  # fmt: skip
    assert third["content"][0]["content"] == [{"type": "text", "text": "0"}]


def test_thinking_is_kept_apart():
    reply, _ = said(message({"type": "thinking", "thinking": "count"}, {"type": "redacted_thinking", "data": "x"},
                            {"type": "text", "text": "8"}))  # fmt: skip
    assert (reply.text, reply.reasoning) == ("8", "count")


@pytest.mark.parametrize(
    ("stop", "finish"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("pause_turn", "length"),
     ("model_context_window_exceeded", "length"), ("tool_use", "tool_calls")],
)  # fmt: skip
def test_why_it_stopped(stop, finish):
    assert said(message(stop=stop))[0].finish == finish


def test_a_refusal_is_the_rows():
    refused, _ = said(message(stop="refusal", stop_details={"explanation": "not that"}))
    assert isinstance(refused, Refused) and "not that" in str(refused)


def test_cached_tokens_count_and_cost_what_they_cost():
    usage = {
        "input_tokens": 100,
        "cache_creation_input_tokens": 1000,
        "cache_read_input_tokens": 2000,
        "output_tokens": 1,
    }
    reply, _ = said(message(usage=usage), price="1/0")
    assert reply.prompt_tokens == 3100 and reply.cost == pytest.approx((100 + 1250 + 200) / 1e6)


def test_a_schema_is_closed_before_it_is_sent():
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": inner}}, "additionalProperties": False}
    asked = Request(ASK.messages, schema=schema, extra={"output_config": {"effort": "low"}})
    config = said(message(), asked)[1].json["output_config"]
    assert config["effort"] == "low" and config["format"]["type"] == "json_schema"
    assert config["format"]["schema"]["properties"]["a"]["items"]["additionalProperties"] is False
    assert "additionalProperties" not in inner


def test_a_model_without_structured_outputs_is_asked_in_words():
    words = "output_config.format: this model does not support structured outputs"

    def answer(seen, n):
        return http({"error": {"message": words}}, status=400) if "output_config" in seen.json else http(message())

    with scripted(answer) as server:
        (reply,) = ask(get("anthropic/claude-x", base_url=server.url), Request(ASK.messages, schema={"type": "object"}))
    assert reply.text == "8" and "JSON Schema" in server.seen[1].json["messages"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    ("status", "kind", "words", "final"),
    [
        (529, "overloaded_error", "Overloaded", False),
        (500, "api_error", "oops", False),
        (401, "authentication_error", "invalid x-api-key", True),
        (404, "not_found_error", "model: claude-x", True),
        (400, "invalid_request_error", "Your credit balance is too low", True),
        (400, "invalid_request_error", "max_tokens: 99999 > 64000", True),
    ],
)
def test_failures(status, kind, words, final):
    failure, _ = said(http({"type": "error", "error": {"type": kind, "message": words}}, status=status))
    assert isinstance(failure, EndpointFailure) and failure.final is final and failure.cause == f"HTTP {status}"
    assert words in str(failure) and "OPENAI" not in str(failure)


def test_a_prompt_that_is_too_long_is_refused():
    failure, _ = said(http({"error": {"message": "prompt is too long: 300000 tokens"}}, status=400))
    assert isinstance(failure, Refused)


def test_room_and_the_wait_that_is_asked_for():
    past = "2020-01-01T00:00:00Z"
    headers = {"anthropic_ratelimit_requests_remaining": "0", "anthropic_ratelimit_requests_reset": past,
               "anthropic_ratelimit_tokens_remaining": "500", "retry_after": "12"}  # fmt: skip
    with scripted(http({"error": {"message": "slow down"}}, status=429, **headers)) as server:
        model = get("anthropic/claude-x", base_url=server.url)
        (failure,) = ask(model, ASK)
    assert failure.retry_after == 12 and model.room.requests == 0 and model.room.tokens == 500
    assert model.room.requests_reset == 0.0  # in the past


def test_the_address_in_its_forms_and_the_key(monkeypatch):
    for url in ("http://a", "http://a/", "http://a/v1", "http://a/v1/messages"):
        assert get("anthropic/m", base_url=url).endpoint == "http://a"
    with pytest.raises(LimbeckError, match="ANTHROPIC_API_KEY"):
        get("anthropic/m")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://b")
    assert get("anthropic/m").endpoint == "http://b"
    with pytest.raises(LimbeckError, match="no embeddings"):
        raise ask(get("anthropic/m"), Request([], embed="x"))[0]
