"""The model that is a function."""

import asyncio

import pytest

from limbeck.errors import EndpointFailure, Refused
from limbeck.models import Price, Reply, Request, get
from limbeck.models.fake import Fake

ASK = Request([{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}])


def ask(model, request=ASK):
    return asyncio.run(model.reply(request, "0"))


def test_a_text_is_counted_by_words_and_priced():
    model = Fake(lambda r: "four five", price=Price(1.0, 10.0))
    reply = ask(model)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("four five", 5, 2)
    assert reply.cost == pytest.approx(25e-6)
    assert ask(Fake(lambda r: "x")).cost is None


def test_a_reply_passes_as_it_is():
    given = Reply("x", finish="length", reasoning="y", cost=0.5)
    assert ask(Fake(lambda r: given, price=Price(1, 1))) is given and given.cost == 0.5


def test_async_functions_and_failures():
    async def slow(request):
        await asyncio.sleep(0)
        return "late"

    assert ask(Fake(slow)).text == "late"
    for error in (Refused("no"), EndpointFailure("away", cause="connect")):

        def fails(request, error=error):
            raise error

        model = Fake(fails)
        with pytest.raises(type(error)):
            ask(model)
        assert model.calls == 1


def test_the_digest_is_the_name():
    assert Fake(lambda r: "a", "m").digest == Fake(lambda r: "b", "m", price=Price(1, 1), retries=0).digest
    assert len({Fake(str, n, revision=v).digest for n in "ab" for v in (None, "2")}) == 4


def test_what_it_can_do_is_what_it_is_told():
    assert Fake(str, can=("chat", "logprobs")).can == {"chat", "logprobs"}


def test_echo_answers_with_the_last_user_turn():
    turns = [*ASK.messages, {"role": "assistant", "content": "a"}]
    assert ask(get("fake/echo"), Request(turns)).text == "one two three"
    parts = [{"role": "user", "content": [{"type": "text", "text": "seen"}, {"type": "image_url", "image_url": {}}]}]
    assert ask(get("fake/echo"), Request(parts)).text == "seen"
    assert ask(get("fake/echo")).cost == 0
