"""Google's Gemini API: requests as it writes them, answers as limbeck reads them."""

import pytest

from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import Request, get
from tests.models.scripted import ask, http, scripted

ASK = Request([{"role": "user", "content": "how many legs has a spider"}])
USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 4, "thoughtsTokenCount": 6}


def content(*parts, reason="STOP", **more):
    candidate = {"content": {"role": "model", "parts": parts or ({"text": "8"},)}, "finishReason": reason, **more}
    return {"candidates": [candidate], "usageMetadata": USAGE, "modelVersion": "gemini-x-001"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def said(answer, request=ASK, **options):
    with scripted(answer if isinstance(answer, list) else http(answer)) as server:
        (result,) = ask(get("gemini/gemini-x", base_url=server.url, **options), request)
    return result, server.seen[0]


def test_a_plain_request_and_its_reply():
    reply, seen = said(content(), price="2/10", api_key="AIza-1")
    assert seen.path == "/v1beta/models/gemini-x:generateContent" and seen.headers["x-goog-api-key"] == "AIza-1"
    assert seen.json == {"contents": [{"role": "user", "parts": [{"text": "how many legs has a spider"}]}]}
    assert (reply.text, reply.finish, reply.served_model) == ("8", "stop", "gemini-x-001")
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 10)  # thoughts are paid for as output
    assert reply.cost == pytest.approx((10 * 2 + 10 * 10) / 1e6)


def test_settings_go_into_the_generation_config():
    thinking = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}, "safetySettings": []}
    asked = Request(ASK.messages, temperature=0.0, top_p=0.9, max_tokens=5, stop=["x"], logprobs=3, extra=thinking,
                    schema={"type": "object"})  # fmt: skip
    body = said(content(), asked)[1].json
    assert body["generationConfig"] == {
        "temperature": 0.0, "topP": 0.9, "stopSequences": ["x"], "maxOutputTokens": 5, "responseLogprobs": True,
        "logprobs": 3, "responseMimeType": "application/json", "responseJsonSchema": {"type": "object"},
        "thinkingConfig": {"includeThoughts": True},
    }  # fmt: skip
    assert body["safetySettings"] == []


def test_system_and_model_turns_and_pictures():
    parts = [{"type": "text", "text": "what is it"},
             {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
             {"type": "image_url", "image_url": {"url": "https://example.org/a.webp?x=1"}}]  # fmt: skip
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": parts},
    ]
    body = said(content(), Request(turns))[1].json
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}]}
    assert body["contents"] == [
        {"role": "model", "parts": [{"text": "hi"}]},
        {"role": "user", "parts": [
            {"text": "what is it"}, {"inlineData": {"mimeType": "image/png", "data": "iVBORw0="}},
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://example.org/a.webp?x=1"}},
        ]},
    ]  # fmt: skip


def test_tools_there_and_back_with_the_signature_of_the_thought():
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
    first = {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "c2ln"}
    second = {"functionCall": {"name": "add", "args": {"a": 2}}}
    reply, seen = said(content(first, second), Request(ASK.messages, tools=[tool, {"googleSearch": {}}]))
    declared = {"name": "add", "description": "adds", "parametersJsonSchema": {"type": "object"}}
    assert seen.json["tools"] == [{"functionDeclarations": [declared]}, {"googleSearch": {}}]
    assert reply.finish == "tool_calls" and len({c["id"] for c in reply.tool_calls}) == 2
    assert reply.tool_calls[0]["function"] == {"name": "add", "arguments": '{"a":1}'}
    results = [{"role": "tool", "tool_call_id": c["id"], "content": said} for c, said in
               zip(reply.tool_calls, ('{"sum": 1}', "two"), strict=True)]  # fmt: skip
    turns = [*ASK.messages, {"role": "assistant", "content": "", "tool_calls": reply.tool_calls}, *results]
    _, called, answered = said_contents(turns)
    assert called == {"role": "model", "parts": [first, second]}
    assert answered == {"role": "user", "parts": [
        {"functionResponse": {"name": "add", "response": {"sum": 1}}},
        {"functionResponse": {"name": "add", "response": {"result": "two"}}},
    ]}  # fmt: skip


def test_messages_that_have_no_form_here_are_refused_and_nothing_is_sent():
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    answered = {"role": "tool", "tool_call_id": "other", "content": "1"}
    odd = {
        "'other'": [{"role": "assistant", "content": None, "tool_calls": [call]}, answered],
        "no 'tool_call_id'": [{"role": "tool", "content": "1"}],
        "no 'role'": [{"content": "hi"}],
        "attribute 'get'": [{"role": "user", "content": ["hi"]}],
        "not iterable": [{"role": "user", "content": 5}],
    }
    with scripted(http(content())) as server:
        refused = ask(get("gemini/gemini-x", base_url=server.url), *map(Request, odd.values()))
    assert not server.seen and [type(r) for r in refused] == [Refused] * len(odd)
    assert all(words in str(r) for words, r in zip(odd, refused, strict=True))
    named = said_contents([{**answered, "name": "add"}])[0]["parts"]  # the message itself may say whose result it is
    assert named == [{"functionResponse": {"name": "add", "response": {"result": 1}}}]


@pytest.mark.parametrize(
    ("written", "sent"), [('{"a": ', {"_raw": '{"a": '}), ("[1]", {"_raw": "[1]"}), ({"a": 1}, {"a": 1}), ("", {})]
)
def test_arguments_that_are_no_json_object_go_on_as_text(written, sent):
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": written}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert said_contents(turns)[0]["parts"] == [{"functionCall": {"name": "add", "args": sent}}]


@pytest.mark.parametrize("name", ["generationConfig", "generation_config"])
@pytest.mark.parametrize("limit", ["maxOutputTokens", "max_output_tokens"])
def test_a_limit_in_the_config_counts_whatever_its_spelling(name, limit):
    asked = Request(ASK.messages, max_tokens=10, extra={name: {limit: 1000}})
    assert get("gemini/m", base_url="http://a").written_at_most(asked) == 1000
    assert said(content(), asked)[1].json["generationConfig"][limit] == 1000


def test_several_candidates_are_not_asked_for():
    error, *_ = ask(
        get("gemini/m", base_url="http://a"), Request([], extra={"generationConfig": {"candidateCount": 2}})
    )
    assert type(error) is LimbeckError and "candidateCount=2" in str(error) and "n= of ask" in str(error)
    (failed,) = ask(get("gemini/m", base_url="http://a"), Request([], extra={"generationConfig": 5}))
    assert isinstance(failed, Refused)


def said_contents(turns):
    return said(content(), Request(turns))[1].json["contents"]


def test_thoughts_are_kept_apart():
    reply, _ = said(content({"text": "count", "thought": True}, {"text": "8"}, {"text": " legs"}))
    assert (reply.text, reply.reasoning) == ("8 legs", "count")


def test_cut_off_before_a_word():
    reply, _ = said({"candidates": [{"finishReason": "MAX_TOKENS", "content": {"role": "model"}}]})
    assert (reply.text, reply.finish, reply.cost) == ("", "length", None)


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "SPII", "MALFORMED_FUNCTION_CALL"])
def test_stops_that_are_refusals(reason):
    refused, _ = said(content(reason=reason, finishMessage="because"))
    assert isinstance(refused, Refused) and reason in str(refused) and "because" in str(refused)


def test_a_blocked_prompt_is_refused_and_no_candidates_are_a_failure():
    refused, _ = said({"promptFeedback": {"blockReason": "SAFETY"}})
    assert isinstance(refused, Refused) and "SAFETY" in str(refused)
    assert said({"usageMetadata": {}})[0].cause == "empty"


def test_logprobs_with_ids_and_alternatives():
    def entry(token, i, p):
        return {"token": token, "tokenId": i, "logProbability": p}

    result = {
        "chosenCandidates": [entry("8", 5, -0.1)],
        "topCandidates": [{"candidates": [entry("8", 5, -0.1), entry("6", 7, -2.0)]}],
    }
    reply, _ = said(content(logprobsResult=result))
    assert reply.token_ids == [5] and reply.logprobs[0]["logprob"] == -0.1
    assert [(t["id"], t["token"]) for t in reply.logprobs[0]["top"]] == [(5, "8"), (7, "6")]


@pytest.mark.parametrize(
    ("status", "error", "final"),
    [
        (503, {"status": "UNAVAILABLE", "message": "overloaded"}, False),
        (
            400,
            {"status": "INVALID_ARGUMENT", "message": "API key not valid", "details": [{"reason": "API_KEY_INVALID"}]},
            True,
        ),
        (400, {"status": "FAILED_PRECONDITION", "message": "User location is not supported"}, True),
        (404, {"status": "NOT_FOUND", "message": "models/gemini-x is not found"}, True),
    ],
)
def test_failures(status, error, final):
    failure, _ = said(http({"error": {"code": status, **error}}, status=status))
    assert isinstance(failure, EndpointFailure) and failure.final is final and error["message"] in str(failure)
    assert "OPENAI" not in str(failure)


def test_the_wait_that_the_body_asks_for():
    details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
               {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}]  # fmt: skip
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "quota", "details": details}
    failure, _ = said(http({"error": error}, status=429))
    assert failure.retry_after == 17.5 and not failure.final


def test_a_model_that_takes_no_schema_is_asked_in_words():
    def answer(seen, n):
        if "generationConfig" in seen.json:
            return http({"error": {"message": 'Unknown name "responseJsonSchema"'}}, status=400)
        return http(content())

    with scripted(answer) as server:
        (reply,) = ask(get("gemini/gemini-x", base_url=server.url), Request(ASK.messages, schema={"type": "object"}))
    assert reply.text == "8" and "JSON Schema" in server.seen[1].json["contents"][0]["parts"][0]["text"]


def test_embeddings_go_together():
    def answer(seen, n):
        rows = [{"values": [len(r["content"]["parts"][0]["text"])]} for r in seen.json["requests"]]
        return http({"embeddings": rows, "usageMetadata": {"promptTokenCount": 30}})

    with scripted(answer) as server:
        model = get("gemini/embed-x", base_url=server.url, price="1/0")
        replies = ask(model, *(Request([], embed=t, extra={"outputDimensionality": 1}) for t in ("a", "bb")))
    assert [r.vector for r in replies] == [[1.0], [2.0]] and [r.prompt_tokens for r in replies] == [10, 20]
    (seen,) = server.seen
    assert seen.path == "/v1beta/models/embed-x:batchEmbedContents"
    assert seen.json["requests"][0] == {
        "model": "models/embed-x", "content": {"parts": [{"text": "a"}]}, "outputDimensionality": 1,
    }  # fmt: skip


def test_names_addresses_and_keys(monkeypatch):
    for url in ("http://a", "http://a/v1beta/"):
        assert get("gemini/m", base_url=url).endpoint == "http://a"
    assert (
        get("gemini/tunedModels/my one", base_url="http://a")._path(ASK)
        == "/v1beta/tunedModels/my%20one:generateContent"
    )
    with pytest.raises(LimbeckError, match="GEMINI_API_KEY"):
        get("gemini/m")
    monkeypatch.setenv("GOOGLE_API_KEY", "g")
    assert get("gemini/m").endpoint == "https://generativelanguage.googleapis.com"
