"""What goes wrong in a talk, or around it: shown as it is, nothing lost, and no row made of it."""

import asyncio
import os
import signal
import traceback

import pytest
from talks import Brain, once, rows, thrice

import limbeck as lb
from limbeck import lane, plan
from limbeck.errors import EndpointFailure
from limbeck.models.fake import Fake


@pytest.fixture
def brain():
    return Brain()


def test_an_error_in_a_talk_shows_its_line_and_row_and_keeps_what_was_bought(tmp_path, brain):
    async def broken(row, call):
        reply = await call("model", "{prompt}")
        if row["prompt"] == "question 2":
            return {}["missing"]  # the faulty line
        return {**row, "response": reply.text}

    with pytest.raises(KeyError, match="missing") as stopped, lb.Run(tmp_path, progress=False):
        lb.converse(rows(), broken, model=Fake(brain, max_concurrency=1))
    assert any("the faulty line" in frame.line for frame in traceback.extract_tb(stopped.tb))
    assert stopped.value.__notes__ == ['in the talk \'broken\' about row 2: {"prompt": "question 2"}']
    bought = brain.calls
    assert bought >= 3 and not list((tmp_path / "stages").glob("converse-*"))
    with lb.Run(tmp_path, progress=False) as run:
        assert run.ledger.spent()["calls"] == bought
        assert len(lb.converse(rows(), once, model=Fake(brain))) == 4
    assert brain.calls == 4


def test_a_budget_stops_the_talks_and_what_is_finished_can_be_had(tmp_path, brain):
    model = Fake(brain, max_concurrency=2)
    recipe = lambda: lb.converse(rows(20), thrice, model=model)  # noqa: E731
    with pytest.raises(lb.BudgetError), lb.Run(tmp_path, progress=False, budget="40 calls"):
        recipe()
    assert brain.calls == 40
    with lb.Run(tmp_path, progress=False) as run:
        salvage = plan.Salvage()
        finished = list(salvage.walk(run, recipe))
        assert 5 <= len(finished) <= 13 and salvage.partial == ["1:converse (thrice)"]
        assert run.ledger.spent()["calls"] == brain.calls == 40
    with lb.Run(tmp_path, progress=False):
        assert [r for r in recipe() if r in finished] == finished and brain.calls == 60


def test_an_endpoint_that_fails_is_never_a_row_or_a_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(lane, "FIRST_BACKOFF", 0.001)
    down = [True]

    def answer(request):
        if down[0] and "question 2" in request.messages[-1]["content"]:
            raise EndpointFailure("the server is busy", cause="HTTP 503")
        return "x"

    async def careless(row, call):
        try:
            return {**row, "response": (await call("m", "{prompt}")).text}
        except Exception:
            return lb.Reject("it did not work")

    model = Fake(answer, retries=1)

    def go():
        with lb.Run(tmp_path, progress=False):
            return lb.converse(rows(20), careless, m=model)

    with pytest.raises(lb.Incomplete, match="1 calls got no answer .1 x HTTP 503.; 19 were bought and kept"):
        go()
    down[0] = False
    assert len(go()) == 20 and model.calls == 22


def test_an_endpoint_that_is_away_ends_the_run_while_others_go_on(tmp_path):
    def gone(request):
        raise EndpointFailure("the key is wrong", cause="HTTP 401", final=True)

    async def talk(row, call):
        which = "bad" if int(row["prompt"].split()[1]) % 2 else "good"
        return {**row, "response": (await call(which, "{prompt}")).text}

    good, bad = Fake(lambda r: "x", name="good"), Fake(gone, name="bad", max_concurrency=2)
    with (
        pytest.raises(lb.Incomplete, match="20 calls got no answer.*the key is wrong"),
        lb.Run(tmp_path, progress=False),
    ):
        lb.converse(rows(40), talk, good=good, bad=bad)
    assert good.calls == 20 and bad.calls <= 4


def test_ctrl_c_drains_and_keeps_what_was_in_flight(tmp_path):
    async def slow(request):
        model.seen = getattr(model, "seen", 0) + 1
        if model.seen == 10:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.02)
        return "x"

    model = Fake(slow, max_concurrency=4)
    with pytest.raises(lb.errors.Interrupted), lb.Run(tmp_path, progress=False):
        lb.converse(rows(40), thrice, model=model)
    asked = model.calls
    assert asked <= 20
    with lb.Run(tmp_path, progress=False) as run:
        assert run.ledger.spent()["calls"] == asked
        lb.converse(rows(40), thrice, model=model)
    assert model.calls == 120


async def returns_text(row, call):
    return "text"


async def cancels_itself(row, call):
    raise asyncio.CancelledError


async def asks_nobody(row, call):
    await call("techer", "{prompt}")


async def asks_without_words(row, call):
    await call("m", "Say {promt}")


async def asks_for_logprobs(row, call):
    await call("m", "{prompt}", logprobs=2)


async def asks_with_a_verb(row, call):
    lb.ask(rows(1), Fake(lambda r: "x"), "{prompt}")


async def names_no_branch(row, call):
    call.branch(None)


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        (lambda row, call: row, "async def <lambda>"),
        (returns_text, "returned a str; it should return a row"),
        (cancels_itself, "ended itself by CancelledError"),
        (asks_nobody, "asks 'techer'; converse was given m"),
        (asks_without_words, "promt"),
        (asks_for_logprobs, "wants logprobs; 'fake' gives none"),
        (asks_with_a_verb, "a talk cannot wait for a verb"),
        (names_no_branch, "named by a text or a whole number"),
    ],
)
def test_mistakes_are_told(run, brain, talk, says):
    with pytest.raises(lb.LimbeckError, match=says):
        lb.converse(rows(2), talk, m=Fake(brain))
    assert brain.calls == 0


def test_a_model_or_a_column_that_is_not_there_is_told_at_once(run, brain):
    with pytest.raises(lb.LimbeckError, match="wants a column 'promt'"):
        lb.converse(rows(1), once, on="promt", model=Fake(brain))
    with pytest.raises(lb.LimbeckError, match="can chat"):
        lb.converse(rows(1), once, model=Fake(brain, can=("embed",)))
    with pytest.raises(lb.LimbeckError, match="wants a Table first"):
        lb.converse([{"prompt": "x"}], once, model=Fake(brain))
