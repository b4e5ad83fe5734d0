"""Buying: retries between first tries, pauses obeyed, the budget never passed, bugs shown and nothing lost."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import limbeck as lb
from limbeck import engine, lane
from limbeck.engine import Budget
from limbeck.errors import EndpointFailure
from limbeck.models.base import Price
from limbeck.models.fake import Fake
from tests.loopback import loopback


def rows(n):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lane, "FIRST_BACKOFF", 0.01)


def test_first_backoff_is_at_most_half_a_second():
    assert lane.FIRST_BACKOFF <= 0.5


def test_errors_are_retried_until_all_is_there(run, quick):
    with loopback(trouble=lambda body, tries: [500, 429, None][min(tries, 2)]) as server:
        made = lb.ask(rows(30), lb.models.get("openai/m", base_url=server.url), "{prompt}")
        assert len(made) == 30 and server.bought == 30 and len(server.requests) == 90


def test_a_failing_row_does_not_hold_up_the_others(run):
    """Its retries wait for their time while first tries go on."""
    order = []

    async def brain(request):
        text = request.messages[-1]["content"]
        order.append(text)
        if text == "question 0" and order.count(text) == 1:
            raise EndpointFailure("busy", cause="429")
        await asyncio.sleep(0.005)
        return text

    assert len(lb.ask(rows(10), Fake(brain, max_concurrency=1), "{prompt}")) == 10
    assert (
        order[0] == "question 0" and order.index("question 9") < len(order) - 1 - order[::-1].index("question 0") + 10
    )
    assert order[1] == "question 1" and order.count("question 0") == 2


def test_retry_after_pauses_the_whole_endpoint(run, quick):
    times = []

    def brain(request):
        times.append(time.monotonic())
        if len(times) == 1:
            raise EndpointFailure("slow down", cause="429", retry_after=0.3)
        return "x"

    lb.ask(rows(5), Fake(brain, max_concurrency=1), "{prompt}")
    assert len(times) == 6 and times[1] - times[0] >= 0.29


def test_an_endpoint_that_is_away_is_given_up_as_a_whole(run, quick):
    with loopback() as server:
        url = server.url
    model = lb.models.get("openai/m", base_url=url, retries=2, max_concurrency=4)
    started = time.monotonic()
    with pytest.raises(lb.Incomplete, match="calls got no answer"):
        lb.ask(rows(500), model, "{prompt}")
    assert time.monotonic() - started < 5  # not 500 rows times all their retries


def test_a_wrong_key_is_not_tried_again(run):
    with loopback(trouble=lambda body, tries: 401) as server:
        with pytest.raises(lb.Incomplete, match="401"):
            lb.ask(rows(50), lb.models.get("openai/m", base_url=server.url, max_concurrency=4), "{prompt}")
        assert len(server.requests) <= 4


def test_concurrency_belongs_to_the_endpoint(run):
    with loopback(latency=0.02) as server:
        models = [lb.models.get(f"openai/{m}", base_url=server.url, max_concurrency=5) for m in "ab"]
        lb.ask(rows(30), models, "{prompt}")
        assert server.bought == 60 and 4 <= server.most_in_flight <= 5


def test_a_bug_in_a_model_is_shown_and_what_was_bought_is_kept(tmp_path):
    calls = []

    def brain(request):
        calls.append(request)
        if len(calls) == 4:
            raise ZeroDivisionError("a bug")
        return "x"

    model = Fake(brain, max_concurrency=1)
    with pytest.raises(ZeroDivisionError), lb.Run(tmp_path, progress=False):
        lb.ask(rows(10), model, "{prompt}")
    with lb.Run(tmp_path, progress=False) as run:
        assert run.ledger.spent()["calls"] == 3
        assert len(lb.ask(rows(10), model, "{prompt}")) == 10
    assert len(calls) == 11


@pytest.mark.parametrize(
    ("text", "caps"),
    [
        ("$5", {"money": 5}), ("0.5", {"money": 0.5}), ("5 usd", {"money": 5}), (2, {"money": 2}), (None, {}),
        ("100 calls", {"calls": 100}), ("1 call", {"calls": 1}), ("1.5M tokens", {"tokens": 1.5e6}),
        ("$1, 2k calls", {"money": 1, "calls": 2000}),
    ],
)  # fmt: skip
def test_budgets_are_read(text, caps):
    assert Budget.parse(text) == caps


@pytest.mark.parametrize("text", ["five", "$", "5 euros", "$5 calls", "-3", "1.2.3", ""])
def test_budgets_that_are_not_understood_are_errors(text):
    with pytest.raises(lb.LimbeckError, match="not understood"):
        Budget.parse(text)


def test_a_budget_in_calls_is_never_passed_and_counts_over_the_directory(tmp_path):
    with loopback(latency=0.005) as server:
        model = lb.models.get("openai/m", base_url=server.url)
        for n, bought in ((5, 5), (10, 7), (10, 7)):
            try:
                with lb.Run(tmp_path, budget="7 calls", progress=False):
                    lb.ask(rows(n), model, "{prompt}")
            except lb.BudgetError as error:
                assert n == 10 and error.exit_code == 3 and "7 of 7 calls" in str(error)
            assert server.bought == bought
        with lb.Run(tmp_path, budget="10 calls", progress=False):
            assert len(lb.ask(rows(10), model, "{prompt}")) == 10
        assert server.bought == 10


def test_a_budget_in_money_reserves_the_worst_price_first(tmp_path):
    """Each call may cost $0.001 and costs half of that: concurrency must not carry the sum past the cap."""

    async def brain(request):
        await asyncio.sleep(0.005)
        return lb.Reply("x", completion_tokens=500, cost=0.0005)

    model = Fake(brain, price=Price(0.0, 1.0))
    with pytest.raises(lb.BudgetError, match=r"of \$0.01"), lb.Run(tmp_path, budget=0.01, progress=False):
        lb.ask(rows(100), model, "{prompt}", max_tokens=1000)
    with lb.Run(tmp_path, progress=False) as run:
        spent = run.ledger.spent()
    assert 0.008 <= spent["money"] <= 0.01 and spent["calls"] == round(spent["money"] / 0.0005)


def test_a_cap_without_a_bound_or_price_is_told_before_the_first_call(tmp_path):
    calls = []
    for caps, options, says in (
        ("$1", {"price": None}, "wants a price"),
        ("$1", {"price": Price(1, 1)}, "no max_tokens"),
        ("9k tokens", {}, "no max_tokens"),
    ):
        model = Fake(lambda r: calls.append(r) or "x", **options)
        limit = 10 if says == "wants a price" else None
        with pytest.raises(lb.LimbeckError, match=says), lb.Run(tmp_path, budget=caps, progress=False):
            lb.ask(rows(3), model, "{prompt}", max_tokens=limit)
    assert not calls


def test_ctrl_c_drains_keeps_what_came_and_goes_on_later(tmp_path):
    code = (
        "import sys, limbeck as lb\n"
        "with lb.Run(sys.argv[2], progress=False):\n"
        "    model = lb.models.get('openai/m', base_url=sys.argv[1], max_concurrency=4)\n"
        "    lb.ask(lb.Table.from_rows({'prompt': f'question {i}'} for i in range(200)), model, '{prompt}')\n"
    )
    with loopback(latency=0.05) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        while server.bought < 20 and child.poll() is None:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGINT)
        error = child.communicate(timeout=20)[1]
        assert "Interrupted" in error and "run the same command again" in error
        assert server.bought < 60
        with lb.Run(tmp_path, progress=False) as run:
            assert run.ledger.spent()["calls"] == server.bought  # nothing in flight was thrown away


def test_a_budget_ends_though_prices_leave_a_residue(tmp_path):
    """Floating-point sums never quite return to zero; the end must not wait for that."""
    model = Fake(lambda r: lb.Reply("x", prompt_tokens=len(str(r)) % 7, completion_tokens=3), price=Price(0.3, 0.7))
    table = lb.Table.from_rows({"prompt": "x" * (i % 97)} for i in range(500))
    with pytest.raises(lb.BudgetError), lb.Run(tmp_path, budget="$0.001", progress=False):
        lb.ask(table, model, "{prompt}!", max_tokens=50)


def test_refused_calls_count_against_a_cap_in_calls(tmp_path):
    def brain(request):
        if int(request.messages[-1]["content"].split()[-1]) % 2:
            raise lb.errors.Refused("no")
        return "x"

    model = Fake(brain)
    with pytest.raises(lb.BudgetError), lb.Run(tmp_path, budget="5 calls", progress=False):
        lb.ask(rows(20), model, "{prompt}")
    assert model.calls == 5


def test_failed_tries_cost_no_budget(tmp_path, quick):
    tries = []

    def brain(request):
        tries.append(1)
        if len(tries) % 2:
            raise EndpointFailure("busy", cause="503")
        return "x"

    with lb.Run(tmp_path, budget="5 calls", progress=False):
        assert len(lb.ask(rows(5), Fake(brain, max_concurrency=1), "{prompt}")) == 5


def test_a_reply_without_usage_is_counted_as_the_worst(tmp_path):
    model = Fake(lambda r: lb.Reply("x"), price=Price(1.0, 1.0), max_concurrency=1)
    with pytest.raises(lb.BudgetError), lb.Run(tmp_path, budget="2k tokens", progress=False):
        lb.ask(rows(50), model, "{prompt}", max_tokens=300)
    assert 1 <= model.calls <= 6
    with pytest.raises(lb.BudgetError), lb.Run(tmp_path / "money", budget="$0.002", progress=False):
        lb.ask(rows(50), model, "{prompt}", max_tokens=300)
    with lb.Run(tmp_path / "money", progress=False) as run:
        assert 0 < run.ledger.spent()["money"] <= 0.002


def test_ctrl_c_does_not_wait_out_a_pause(run):
    import asyncio as aio

    async def scene():
        async def brain(request):
            raise EndpointFailure("slow down", cause="429", retry_after=60.0)

        buying = engine.Buying(run.ledger, run.budget, run.bar("x", 1))
        request = lb.Request(messages=[{"role": "user", "content": "x"}])
        job = engine.Job(Fake(brain), request, "k", "w", "{}", 0, 0, "0", "1:ask", "r")
        work = aio.create_task(buying.all([(job.model, [job])]))
        await aio.sleep(0.2)
        buying.interrupt()
        with pytest.raises(lb.errors.Interrupted):
            await aio.wait_for(work, 5)

    engine.wait(scene())


def test_a_disk_that_fails_ends_the_ask_with_its_reason(run, monkeypatch):
    def full(self, group):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(run.ledger), "_commit", full)
    with pytest.raises(lb.LimbeckError, match="cannot be written.*No space left"):
        lb.ask(rows(300), Fake(lambda r: "x"), "{prompt}")
    monkeypatch.undo()


def test_the_same_model_twice_answers_twice_through_errors(run, quick):
    draw = random.Random(0)

    def brain(request):
        if draw.random() < 0.3:
            raise EndpointFailure("sorry", cause="HTTP 500")
        return "x"

    model = Fake(brain)
    made = lb.ask(rows(100), [model, model], "{prompt}")
    assert made.size == 200 and run.ledger.spent()["calls"] == 200


def test_a_purchase_that_ends_early_never_makes_a_stage(run, monkeypatch):
    async def nothing(self, wanted):
        await self.close()

    monkeypatch.setattr(engine.Buying, "all", nothing)
    with pytest.raises(lb.LimbeckError, match="not every call was answered"):
        lb.ask(rows(5), Fake(str), "{prompt}")
    monkeypatch.undo()
    assert lb.ask(rows(5), Fake(str), "{prompt}").size == 5


def test_an_endpoint_that_asks_for_an_hour_is_away(run):
    def brain(request):
        raise EndpointFailure("later", cause="HTTP 429", retry_after=3600.0)

    with pytest.raises(lb.Incomplete):
        lb.ask(rows(5), Fake(brain), "{prompt}")
