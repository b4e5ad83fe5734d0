"""A batch that was handed in is handed in once, wherever the process ends and however the provider fails."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from aiohttp import web

import limbeck as lb
from limbeck.verbs import batched
from tests.batch_server import echo, model, provider

apis = pytest.mark.parametrize("api", ["openai", "anthropic"])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batched, "FIRST_POLL", 0.01)
    monkeypatch.setattr(batched, "LONGEST_POLL", 0.05)
    monkeypatch.setattr(batched, "FIRST_BACKOFF", 0.01)


def rows(n=6):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def ask(directory, who, **options):
    with lb.Run(directory, progress=False):
        return list(lb.ask(rows(), who, "{prompt}", batch=True, **options))


CLIENT = """
import sys
import limbeck as lb
from limbeck.models import get
from limbeck.verbs import batched
batched.FIRST_POLL, batched.LONGEST_POLL = 0.02, 0.05
directory, name, url = sys.argv[1:]
try:
    with lb.Run(directory, progress=False):
        rows = lb.Table.from_rows({"prompt": f"question {i}"} for i in range(6))
        list(lb.ask(rows, get(name, base_url=url, price="2/8", max_output=50), "{prompt}", batch=True))
except lb.LimbeckError as error:
    sys.exit(print(error) or error.exit_code)
"""


def ended_at(server, directory, api, what, how=signal.SIGKILL):
    """Runs the ask in a process that gets a signal when the server comes to `what`; returns it and what it said."""
    child, go = [], threading.Event()

    def hook(now):
        if now == what:
            assert go.wait(10)
            time.sleep(0.2)  # what came before is on the disk by now
            server.hook = lambda now: None
            child[0].send_signal(how)
            if how == signal.SIGKILL:
                child[0].wait(10)

    server.hook = hook
    address = server.url if api == "openai" else server.home
    command = [sys.executable, "-c", CLIENT, str(directory), f"{api}/m", address]
    child.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    go.set()
    said, _ = child[0].communicate(timeout=30)
    return child[0].returncode, said


@apis
@pytest.mark.parametrize("what", ["uploaded", "created", "looked", "results"])
def test_a_kill_anywhere_hands_nothing_in_twice(tmp_path, api, what):
    what = "created" if (api, what) == ("anthropic", "uploaded") else what
    with provider(echo, looks=3) as server:
        code, _ = ended_at(server, tmp_path, api, what)
        assert code == -signal.SIGKILL
        made = ask(tmp_path, model(server, api))
        assert [r["response"] for r in made] == [f"question {i} #0" for i in range(6)]
        assert len(server.batches) == 1 and set(server.asked.values()) == {1}
        with lb.Run(tmp_path, progress=False) as run:
            assert run.ledger.spent()["calls"] == 6 and run.ledger.batches.all() == []


def test_a_kill_between_answers_and_errors_keeps_the_answers_and_counts_them_once(tmp_path):
    fates = {"question 2": 400, "question 4": "expired"}

    def fate(key, body, k):
        return next((f for q, f in fates.items() if q in str(body)), None) if k == 0 else None

    with provider(echo, fate=fate) as server:
        code, _ = ended_at(server, tmp_path, "openai", "errors")
        assert code == -signal.SIGKILL
        with lb.Run(tmp_path, progress=False) as run:
            assert run.ledger.spent()["calls"] == 4 and run.budget.spent["calls"] == 10
        made = ask(tmp_path, model(server))
        assert [r["response"] for r in made] == [f"question {i} #0" for i in (0, 1, 3, 4, 5)]
        assert sorted(server.asked.values()) == [1] * 5 + [2]
        with lb.Run(tmp_path, progress=False) as run:
            assert run.ledger.spent()["calls"] == run.budget.spent["calls"] == 6


def test_ctrl_c_leaves_the_batch_at_the_provider_and_says_how_to_come_back(tmp_path):
    with provider(looks=10_000) as server:
        code, said = ended_at(server, tmp_path, "openai", "looked", signal.SIGINT)
        assert code == 130
        assert "1 batches (batch_000) go on at the provider; run the same command again" in said
        server.looks = 1
        assert len(ask(tmp_path, model(server))) == 6 and len(server.batches) == 1


def test_what_was_promised_to_a_batch_counts_until_it_is_collected(tmp_path):
    with provider(looks=2) as server:
        ended_at(server, tmp_path, "openai", "looked")
        with lb.Run(tmp_path, progress=False, budget="7 calls") as run:
            assert run.budget.spent["calls"] == 6 and run.ledger.spent()["calls"] == 0
            with pytest.raises(lb.BudgetError):
                list(lb.ask(rows(2), model(server), "other {prompt}"))
            assert len(list(lb.ask(rows(6), model(server), "{prompt}", batch=True))) == 6
            assert run.budget.spent == pytest.approx(run.ledger.spent())


def test_anothers_batch_of_the_same_size_is_not_taken_for_ours(tmp_path):
    with provider(looks=2) as server:
        code, _ = ended_at(server, tmp_path / "ours", "anthropic", "created")
        others = lb.Table.from_rows({"prompt": f"another's {i}"} for i in range(6))
        with lb.Run(tmp_path / "others", progress=False):
            list(lb.ask(others, model(server, "anthropic"), "{prompt}", batch=True))
        assert [len(b["requests"]) for b in server.batches] == [6, 6]
        made = ask(tmp_path / "ours", model(server, "anthropic"))
        assert len(made) == 6 and len(server.batches) == 2 and set(server.asked.values()) == {1}


# -- endpoints that fail
@apis
def test_a_batch_that_was_made_while_its_answer_was_lost_is_found(tmp_path, api):
    def hook(what):
        if what == "created" and len(server.batches) == 1:
            raise web.HTTPBadGateway

    with provider(hook=hook) as server:
        assert len(ask(tmp_path, model(server, api))) == 6
        assert len(server.batches) == 1


@apis
def test_looks_that_fail_are_repeated_and_a_provider_that_stays_away_ends_incomplete(tmp_path, api):
    failing = [503] * 2
    with provider(looks=2) as server:
        server.trouble = lambda method, path: failing.pop() if failing and "/batch_0" in path else None
        assert len(ask(tmp_path / "a", model(server, api))) == 6
        failing += [503] * 4
        with pytest.raises(lb.Incomplete, match=r"6 x HTTP 503"):
            ask(tmp_path / "b", model(server, api, retries=3))
        assert len(ask(tmp_path / "b", model(server, api))) == 6
        assert set(server.asked.values()) == {2} and len(server.batches) == 2  # once for each directory


@apis
def test_a_download_that_breaks_off_is_repeated_and_counts_once(tmp_path, api):
    cuts = [1, 1]
    with provider(cut=lambda path: bool(cuts and cuts.pop())) as server, lb.Run(tmp_path, progress=False) as run:
        assert len(list(lb.ask(rows(), model(server, api), "{prompt}", batch=True))) == 6
        assert run.budget.spent == pytest.approx(run.ledger.spent()) and run.ledger.spent()["calls"] == 6
        assert not cuts and len(server.batches) == 1


@apis
def test_a_server_without_a_batch_api_is_an_error_that_says_the_way_out(tmp_path, api):
    with provider(trouble=lambda method, path: 404 if "batches" in path or "files" in path else None) as server:
        with pytest.raises(lb.LimbeckError, match=r"has no batch API .*ask without batch=True"):
            ask(tmp_path, model(server, api))
        with lb.Run(tmp_path, progress=False) as run:
            assert run.ledger.batches.all() == []


def test_a_model_without_a_batch_api_is_an_error_that_names_those_that_have_one(run):
    with pytest.raises(lb.LimbeckError, match=r"anthropic/… and openai/….*fake/echo"):
        lb.ask(rows(), "fake/echo", "{prompt}", batch=True)


def test_a_batch_handed_in_elsewhere_is_not_handed_in_again(tmp_path):
    with provider(looks=10_000) as server, provider() as other:
        ended_at(server, tmp_path, "openai", "looked")
        with pytest.raises(lb.LimbeckError, match=rf"does not know the batch batch_000, .*{server.url}"):
            ask(tmp_path, model(other))
        assert not other.batches


def test_a_wrong_key_is_final_and_nothing_is_left_behind(tmp_path):
    with provider(trouble=lambda method, path: 401) as server:
        with pytest.raises(lb.Incomplete, match="does not accept the key"):
            ask(tmp_path, model(server))
        with lb.Run(tmp_path, progress=False) as run:
            assert run.ledger.batches.all() == [] and sum(server.calls.values()) == 1


def test_two_batches_of_one_size_that_lost_their_names_are_told_apart(tmp_path):
    def hook(what):
        if what == "created" and len(server.batches) <= 2:
            raise web.HTTPBadGateway

    with provider(echo, hook=hook, looks=2) as server:
        made = ask(tmp_path, [model(server, "anthropic", name) for name in "ab"])
    assert [(r["writer"][-1], r["response"][:10]) for r in made] == [
        (name, f"question {i}") for i in range(6) for name in "ab"
    ]
    assert len(server.batches) == 2 and set(server.asked.values()) == {1}
