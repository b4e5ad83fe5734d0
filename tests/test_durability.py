"""Real kills of a real process against a real server: nothing is bought twice, and nothing acknowledged is lost."""

import itertools
import shutil

import pytest

import limbeck as lb
from tests import durability
from tests.loopback import loopback

ROWS = 60


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_buys_what_a_clean_one_buys_but_for_what_was_in_flight(tmp_path, seed):
    with loopback(latency=0.04, jitter=1.0, seed=seed) as server:
        told = durability.kill_and_resume(server, tmp_path / "killed", ROWS, kills=1, seed=seed)
        assert told["bought"] == durability.clean_calls(ROWS, told["result"]) + told["lost"]
        bought = server.bought
        again = durability.recipe(server.url, tmp_path / "killed", ROWS)
        assert server.bought == bought and again.digest == told["result"].digest


@pytest.mark.parametrize("seed", range(4))
def test_rows_stay_the_same_after_a_kill_though_the_server_never_repeats_itself(tmp_path, seed):
    tick = itertools.count()
    with loopback(fn=lambda messages, k: f"reply {next(tick)}", latency=0.04, jitter=1.0, seed=seed) as server:
        resumed = durability.kill_and_resume(server, tmp_path / "run", ROWS, kills=1, seed=100 + seed)["result"]
        bought, rows = server.bought, list(resumed)
        assert list(durability.recipe(server.url, tmp_path / "run", ROWS)) == rows
        shutil.rmtree(tmp_path / "run" / "stages")
        third = durability.recipe(server.url, tmp_path / "run", ROWS)
        assert server.bought == bought
        assert list(third) == rows


def test_dropping_a_row_upstream_buys_nothing_again(tmp_path):
    def run(rows):
        with lb.Run(tmp_path / "run", progress=False):
            model = lb.models.get("openai/loopback", base_url=server.url)
            drawn = lb.assign(lb.Table.from_rows(rows), "style", ["plain", "formal", "short"], seed=3)
            first = lb.ask(drawn, model, "{prompt}, {style}", n=2)
            return list(lb.ask(first, model, "Judge: {response}", into="verdict"))

    rows = [{"prompt": f"question {i}"} for i in range(12)]
    with loopback() as server:
        whole = run(rows)
        bought = server.bought
        fewer = run(rows[:3] + rows[4:])
        assert server.bought == bought
        assert fewer == [row for row in whole if row["prompt"] != "question 3"]


def test_a_server_that_stays_away_leaves_an_incomplete_run_and_no_stage_with_holes(tmp_path):
    with loopback(trouble=lambda body, tries: 503 if "5" in str(body["messages"]) else None) as server:

        def run():
            with lb.Run(tmp_path / "run", progress=False):
                model = lb.models.get("openai/loopback", base_url=server.url, retries=1)
                table = lb.Table.from_rows({"prompt": f"question {i}"} for i in range(10))
                return lb.ask(table, model, "{prompt}")

        with pytest.raises(lb.Incomplete, match="1 x .*503.*kept") as stopped:
            run()
        assert stopped.value.exit_code == 4
        assert not list((tmp_path / "run" / "stages").glob("ask-*"))
        assert server.bought == 9
        server.trouble = None
        assert len(run()) == 10
        assert server.bought == 10
