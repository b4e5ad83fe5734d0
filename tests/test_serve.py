"""A model served over HTTP answers as it does in this process."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from limbeck.errors import EndpointFailure, Refused
from limbeck.models.base import Reply
from limbeck.models.fake import Fake
from limbeck.serve import application


def ask(model, *bodies, path="/v1/chat/completions"):
    """The status and JSON of each request, all sent at once."""

    async def go():
        async with TestClient(TestServer(application(model))) as client:
            sent = [client.post(path, json=body) if body else client.get(path) for body in bodies]
            replies = await asyncio.gather(*sent)
            return [(r.status, await r.json()) for r in replies]

    return asyncio.run(go())


def body(text="hi", **settings):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **settings}


def test_it_answers_in_the_protocol():
    logprobs = [{"token": "a", "logprob": -0.5, "bytes": [97], "id": 3, "top": [{"token": "b", "logprob": -1.0}]}]

    def answer(request):
        return Reply("a", prompt_tokens=3, completion_tokens=1, finish="length", reasoning="so", logprobs=logprobs)

    [(status, found)] = ask(Fake(answer, "m"), body(n=2, logprobs=True, top_logprobs=1))
    assert status == 200 and [c["index"] for c in found["choices"]] == [0, 1]
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "a", "reasoning_content": "so"}
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    token = found["choices"][0]["logprobs"]["content"][0]
    assert token == {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0}]}
    [(_, listed)] = ask(Fake(answer, "m"), None, path="/v1/models")
    assert [m["id"] for m in listed["data"]] == ["m"]


def test_settings_reach_the_model():
    seen = []

    def answer(request):
        seen.append(request)
        return "ok"

    ask(Fake(answer), body(temperature=0.5, top_p=0.9, max_completion_tokens=7, stop="#", logprobs=True))
    assert (seen[0].temperature, seen[0].top_p, seen[0].max_tokens, seen[0].stop, seen[0].logprobs) == (
        0.5,
        0.9,
        7,
        ["#"],
        0,
    )


def test_a_seed_makes_an_answer_repeatable():
    class Drawing(Fake):
        async def reply(self, request, key):
            return Reply(key)

    def texts(settings):
        found = ask(Drawing(str), body(n=2, **settings), body(n=2, **settings))
        return [[c["message"]["content"] for c in f["choices"]] for _, f in found]

    first, second = texts({"seed": 1})
    assert first == second and first[0] != first[1]
    first, second = texts({})
    assert len({*first, *second}) == 4


@pytest.mark.parametrize(
    ("sent", "error", "status"),
    [
        ({"model": "m"}, None, 400),
        (body(stream=True), None, 400),
        ({"model": "m", "messages": []}, None, 400),
        (body(), Refused("too long"), 400),
        (body(), EndpointFailure("away", cause="connect"), 503),
    ],
)
def test_errors_have_the_protocols_form(sent, error, status):
    def answer(request):
        if error:
            raise error
        return "ok"

    [(found, told)] = ask(Fake(answer), sent)
    assert found == status and told["error"]["message"]
