"""Structured replies: the schema as the endpoint takes it, or in words where it takes none."""

import pytest

from limbeck.errors import Refused
from limbeck.models import Request, get
from limbeck.models.base import in_words
from tests.models.scripted import ask, http, scripted

SCHEMA = {
    "type": "object",
    "properties": {"legs": {"type": "integer"}},
    "required": ["legs"],
    "additionalProperties": False,
}
ASK = Request([{"role": "system", "content": "s"}, {"role": "user", "content": "legs?"}], schema=SCHEMA)
REPLY = {"choices": [{"message": {"content": '{"legs": 8}'}}]}


def test_the_words_stand_at_the_end_of_the_last_user_turn():
    said = in_words(ASK)
    assert said.schema is None and said.messages[0] == ASK.messages[0]
    assert (
        said.messages[1]["content"].startswith("legs?\n\n")
        and '"legs": {"type": "integer"}' in said.messages[1]["content"]
    )
    assert in_words(ASK) == said and in_words(said) is said  # deterministic, and nothing is said twice
    talk = Request([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], schema=SCHEMA)
    assert in_words(talk).messages[0]["content"].startswith("a\n\n")
    alone = in_words(Request([{"role": "system", "content": "s"}], schema=SCHEMA))
    assert [m["role"] for m in alone.messages] == ["system", "user"]


def test_the_words_beside_a_picture_are_a_part():
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    (turn,) = in_words(Request([{"role": "user", "content": parts}], schema=SCHEMA)).messages
    assert turn["content"][0] is parts[0] and turn["content"][1]["type"] == "text" and len(parts) == 1


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (SCHEMA, True),
        ({**SCHEMA, "required": []}, False),
        ({"type": "object", "properties": {}}, False),
        ({**SCHEMA, "properties": {"legs": {"type": "object", "properties": {"n": {}}}}}, False),
        ({**SCHEMA, "properties": {"legs": {"type": "array", "items": SCHEMA}}}, True),
    ],
)
def test_strict_is_asked_for_where_the_schema_allows_it(schema, strict):
    with scripted(http(REPLY)) as server:
        ask(get("openai/m", base_url=server.url), Request(ASK.messages, schema=schema))
    assert server.seen[0].json["response_format"]["json_schema"]["strict"] is strict


@pytest.mark.parametrize(
    "words",
    ["This response_format type is unavailable now", "json_schema is not supported", "guided decoding is off"],
)
def test_an_endpoint_that_takes_no_schema_is_asked_in_words_and_that_is_remembered(words):
    def answer(seen, n):
        return http({"error": {"message": words}}, status=400) if "response_format" in seen.json else http(REPLY)

    other = {"type": "array"}
    with scripted(answer) as server:
        model = get("openai/m", base_url=server.url)
        for request in (ASK, ASK, Request(ASK.messages, schema=other)):
            assert ask(model, request)[0].text == '{"legs": 8}'
    sent = ["response_format" in s.json for s in server.seen]
    assert sent == [True, False, False, True, False]  # each schema is tried once
    assert server.seen[1].json == server.seen[2].json and "JSON Schema" in server.seen[1].json["messages"][1]["content"]


def test_a_refusal_for_another_reason_stays_one():
    with scripted(http({"error": {"message": "the context is too long"}}, status=400)) as server:
        assert isinstance(ask(get("openai/m", base_url=server.url), ASK)[0], Refused)
    assert len(server.seen) == 1
