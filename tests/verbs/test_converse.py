"""converse: each row's talk is replayed word for word, whatever arrives when."""

import asyncio
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import talks
from talks import Brain, once, rows, thrice

import limbeck as lb
from limbeck import plan
from limbeck.models.fake import Fake
from tests import durability
from tests.loopback import loopback

CONVERSE = importlib.import_module("limbeck.verbs.converse")


@pytest.fixture
def brain():
    return Brain()


# -- keys
def test_golden_key(run, brain):
    """Keys are how paid replies are found again: a change of this test is a change of KEY_SCHEMA."""

    async def talk(row, call):
        for _ in range(2):
            said = await call("model", "{prompt}", temperature=0.5, branch="left")
        return {**row, "response": said.text, "at": await call.tool(time.gmtime, 0)}

    table = lb.Table.from_rows([{"prompt": "2 + 2?", "id": i} for i in range(2)])
    lb.converse(table, talk, on="prompt", salt=3, model=Fake(brain, name="golden"))
    golden = [
        "605c6459ee4ce64914443db58c3968a7", "f168e8ac7b86ea14baf0f67ef0f5573d", "0203264c397f84c749b47acf86286a87",
        "11875b483c4c1e5768c94137a19f14ab", "1b272f83cafcc7730fc4e4873858b818", "bc379f1f7fa67344f579ea28c9779543",
    ]  # fmt: skip
    assert run.ledger.have(golden) == set(golden)


def test_the_same_words_again_are_another_draw_and_replayed_as_such(tmp_path, brain):
    def go():
        with lb.Run(tmp_path, progress=False):
            return list(lb.converse(rows(), thrice, model=Fake(brain)))

    first = go()
    assert brain.calls == 12 and len({reply for row in first for reply in row["replies"]}) == 12
    shutil.rmtree(tmp_path / "stages")
    assert go() == first and brain.calls == 12


def test_rows_that_are_the_same_are_separate_and_keep_their_replies(run, brain):
    model = Fake(brain)
    same = [r["response"] for r in lb.converse(lb.Table.from_rows([{"prompt": "same"}] * 5), once, model=model)]
    more = lb.Table.from_rows([{"prompt": "new"}] + [{"prompt": "same"}] * 6)
    assert [r["response"] for r in lb.converse(more, once, model=model)][1:6] == same
    assert brain.calls == 7 and len(set(same)) == 5


def test_on_says_which_columns_a_talk_is_about_and_salt_draws_afresh(run, brain):
    model = Fake(brain)
    tables = [lb.fields(rows(), note=note) for note in ("a", "b")]
    first, second = ([r["response"] for r in lb.converse(table, once, on="prompt", model=model)] for table in tables)
    assert first == second and brain.calls == 4
    lb.converse(tables[1], once, model=model)
    lb.converse(tables[1], once, on="prompt", salt=1, model=model)
    assert brain.calls == 12


def test_a_changed_talk_replays_its_calls(run, brain):
    async def changed(row, call):
        reply = await call("model", "{prompt}")
        return {**row, "response": reply.text.upper()}

    model = Fake(brain)
    lb.converse(rows(), once, model=model)
    assert lb.converse(rows(), changed, model=model).head(1)[0]["response"].startswith("REPLY")
    assert brain.calls == 4


def test_replies_of_another_run_are_reused_for_free(tmp_path, brain):
    with lb.Run(tmp_path / "a", progress=False):
        first = list(lb.converse(rows(), thrice, model=Fake(brain)))
    with lb.Run(tmp_path / "b", progress=False, reuse=[tmp_path / "a"], budget="1 call"):
        assert list(lb.converse(rows(), thrice, model=Fake(brain))) == first
    assert brain.calls == 12


def test_a_reply_is_the_same_fresh_and_replayed(run):
    entries = [{"token": "x", "logprob": -0.1, "id": 5}]
    reply = lb.Reply("x", token_ids=[5], logprobs=entries, tool_calls=({"id": "1"},), reasoning="why")
    seen = []

    async def talk(row, call):
        seen.append([await call("m", "{prompt}", logprobs=n) for n in (None, 0)])
        return row

    model = Fake(lambda r: reply, can=("chat", "logprobs"))
    lb.converse(rows(1), talk, model=model, m=model)
    lb.converse(rows(1), talk, m=model)
    assert model.calls == 2 and seen[0] == seen[1]
    assert seen[0][0].logprobs is None and seen[0][1].logprobs == entries and seen[0][0].tool_calls == [{"id": "1"}]


# -- what arrives when
def test_rows_do_not_depend_on_the_order_in_which_replies_arrive(tmp_path):
    """Runs from nothing against a server that answers the same, each time in another order."""
    answer = lambda messages, k: f"answer {hash(json.dumps(messages)) % 10_000}"  # noqa: E731
    results, orders = [], []
    for seed in range(4):
        with loopback(fn=answer, latency=0.01, jitter=1.5, seed=seed) as server:
            made = talks.recipe(server.url, tmp_path / str(seed), 12, talk=no_coin)
            results.append(list(made))
            done = sorted(server.requests, key=lambda r: r["answered"])
            orders.append([json.dumps(r["body"]) for r in done])
    assert all(result == results[0] for result in results)
    assert len({tuple(order) for order in orders}) == 4 and len({tuple(sorted(order)) for order in orders}) == 1


async def no_coin(row, call):
    made = await talks.debate(row, call)
    return {k: v for k, v in made.items() if k != "coin"}


def test_a_replay_in_another_process_buys_nothing_and_gives_the_same_rows(tmp_path):
    tick = itertools.count()
    with loopback(fn=lambda messages, k: f"reply {next(tick)}", latency=0.01, jitter=1.5) as server:
        first = list(talks.recipe(server.url, tmp_path, 12))
        bought = server.bought
        (stage,) = (tmp_path / "stages").glob("converse-*")
        shutil.rmtree(stage)
        subprocess.run([sys.executable, talks.__file__, server.url, str(tmp_path), "12"], check=True)
        assert stage.exists() and list(talks.recipe(server.url, tmp_path, 12)) == first
        assert server.bought == bought == 12 * 8


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_goes_on_where_it_was(tmp_path, seed):
    tick = itertools.count()
    with loopback(fn=lambda messages, k: f"reply {next(tick)}", latency=0.02, jitter=1.0, seed=seed) as server:
        child = subprocess.Popen([sys.executable, talks.__file__, server.url, str(tmp_path), "24"])
        after = random.Random(seed).randint(20, 120)
        while server.bought < after and child.poll() is None:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        while server.in_flight:
            time.sleep(0.01)
        held, served = durability.durable(tmp_path), server.bought
        made = list(talks.recipe(server.url, tmp_path, 24))
        tools = 24
        lost = server.bought - 24 * 8
        assert 0 <= lost <= durability.IN_FLIGHT and len(held) >= served - durability.IN_FLIGHT
        after = durability.durable(tmp_path)
        assert all(after[key] == reply for key, reply in held.items()) and len(after) == 24 * 8 + tools
        shutil.rmtree(tmp_path / "stages")
        bought = server.bought
        assert list(talks.recipe(server.url, tmp_path, 24)) == made and server.bought == bought


def test_a_slow_first_row_holds_no_more_than_a_window(run, monkeypatch):
    monkeypatch.setattr(CONVERSE, "HELD", 16)
    begun, first = [], []

    async def talk(row, call):
        begun.append(row["prompt"])
        if row["prompt"] == "question 0":
            while len(begun) < 16:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            first.append(len(begun))
        return row

    made = lb.converse(rows(60), talk)
    assert first == [16] and len(begun) == 60 and [r["prompt"] for r in made] == [f"question {i}" for i in range(60)]


def test_no_more_talks_go_on_than_the_endpoints_can_use(run):
    now, most = [], []

    async def talk(row, call):
        now.append(1)
        most.append(len(now))
        await call("m", "{prompt}")
        now.pop()
        return row

    async def slow(request):
        await asyncio.sleep(0.005)
        return "x"

    model = Fake(slow, max_concurrency=5)
    lb.converse(rows(60), talk, m=model)
    assert max(most) == 10


# -- plans and events
def test_a_dry_run_asks_nobody_and_says_that_talks_have_no_bound(tmp_path, brain):
    def recipe():
        first = lb.ask(rows(5), Fake(brain), "{prompt}", into="draft", max_tokens=5)
        made = lb.converse(first, once, model=Fake(brain))
        return lb.ask(made, Fake(brain), "{response}", into="more", max_tokens=5)

    with lb.Run(tmp_path, progress=False) as run:
        walked = plan.DryRun()
        walked.walk(run, recipe)
    assert brain.calls == 0 and walked.totals()["calls"] == float("inf")
    assert "at least once for each of 5 rows; up to there at most 5 calls" in str(walked) and "5+" in str(walked)


def test_a_dry_run_of_talks_that_are_held_goes_on_behind_them(tmp_path, brain):
    recipe = lambda: lb.ask(lb.converse(rows(5), once, model=Fake(brain)), Fake(brain), "{response}!", into="more")  # noqa: E731
    with lb.Run(tmp_path, progress=False):
        lb.converse(rows(5), once, model=Fake(brain))
    shutil.rmtree(tmp_path / "stages")
    with lb.Run(tmp_path, progress=False) as run:
        walked = plan.DryRun()
        walked.walk(run, recipe)
    assert walked.unbounded is None and walked.totals()["calls"] == 5 and brain.calls == 5


def test_a_pilot_counts_calls_and_no_tools(tmp_path):
    async def talk(row, call):
        await call.tool(random.random)
        return {**row, "replies": [(await call("m", "{prompt}")).text for _ in range(2)]}

    model = Fake(lambda r: lb.Reply("x", prompt_tokens=1, completion_tokens=1, cost=0.5))
    with lb.Run(tmp_path, progress=False) as run:
        pilot = plan.Pilot()
        pilot.walk(run, lambda: lb.converse(rows(3), talk, m=model))
        told = pilot.estimate(run.ledger, rows=3, of=30)
    assert told["calls"] == (60, 60, 60) and told["money"][0] == 30


def test_events_say_what_was_bought_where(run, brain):
    lb.converse(rows(3), thrice, model=Fake(brain))
    events = [json.loads(line) for line in (Path(run.dir) / "events.jsonl").read_text().splitlines()]
    told = {e["event"]: e for e in events}
    assert told["ask"]["site"] == told["bought"]["site"] == "1:converse" and told["ask"]["prompt"] == "thrice"
    assert (
        list(told["bought"]["prompts"]) == ["'{prompt}'"]
        and told["bought"]["calls"] == 9
        and told["stage"]["op"] == "converse"
        and told["stage"]["out"] == 3
    )
