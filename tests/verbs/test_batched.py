"""ask(batch=True) hands calls to the provider's batch API once, whatever happens, and takes the same rows from it."""

import base64
import signal
import subprocess
import sys
import threading

import pytest
from aiohttp import web

import limbeck as lb
from limbeck.models import batch, get
from limbeck.verbs import batched
from tests.batch_server import provider


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batched, "FIRST_POLL", 0.01)
    monkeypatch.setattr(batched, "FIRST_BACKOFF", 0.01)


def rows(n=6):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def model(server, api="openai", name="m", **options):
    address = server.url if api == "openai" else server.home
    return get(f"{api}/{name}", base_url=address, **{"price": "2/8", "max_output": 50, **options})


apis = pytest.mark.parametrize("api", ["openai", "anthropic"])


def ask(directory, who, n=6, budget=None, **options):
    with lb.Run(directory, progress=False, budget=budget):
        return list(lb.ask(rows(n), who, "{prompt}", batch=True, **options))


@apis
def test_a_batch_gives_the_rows_that_single_calls_give_and_both_share_their_replies(tmp_path, api):
    with provider(looks=3) as server:
        made = ask(tmp_path, model(server, api), n=5)
        assert [r["prompt"] for r in made] == [f"question {i}" for i in range(5)]
        assert all(r["response"].endswith("#0") for r in made)
        assert len(server.batches) == 1 and set(server.asked.values()) == {1}
        with lb.Run(tmp_path, progress=False) as run:
            single = list(lb.ask(rows(5), model(server, api), "{prompt}"))
            assert run.ledger.batches.all() == []
        assert single == made and server.single == 0


@apis
def test_what_single_calls_have_bought_is_not_handed_in(tmp_path, api):
    with provider() as server:
        who = model(server, "openai")
        with lb.Run(tmp_path, progress=False):
            list(lb.ask(rows(2), who, "{prompt}"))
        assert len(ask(tmp_path, who, n=5)) == 5
        assert server.single == 2 and [len(b["requests"]) for b in server.batches] == [3]


@apis
def test_the_ledger_holds_half_the_price(tmp_path, api):
    with provider() as server:
        ask(tmp_path, model(server, api), n=3)
        with lb.Run(tmp_path, progress=False) as run:
            spent = run.ledger.spent()
            held = run.ledger._all("select prompt_tokens, completion_tokens, cost from call")
    assert len(held) == spent["calls"] == 3
    assert all(cost == pytest.approx((i * 2 + o * 8) / 1e6 / 2) and i and o for i, o, cost in held)
    assert spent["money"] == pytest.approx(sum(cost for *_, cost in held))


def test_draws_models_shards_and_log_probabilities_go_together(tmp_path):
    with provider(looks=2) as server:
        who = [model(server, name="a"), model(server, name="b")]
        made = ask(tmp_path, who, n=4, **{"logprobs": 0, "meta": ["logprobs"], "shard": (0, 2)})
        assert [(r["prompt"], r["writer"]) for r in made] == [
            (f"question {i}", f"openai/{name}") for i in (0, 2) for name in "ab"
        ]
        assert all(r["response_logprobs"][0]["logprob"] == -0.5 for r in made)
        more = ask(tmp_path, who, n=4, **{"logprobs": 0, "meta": ["logprobs"], "salt": 1})
        assert len(more) == 8 and len(server.batches) == 4
        assert set(server.asked.values()) == {1}


def test_draws_of_one_row_are_separate_requests_of_a_batch(tmp_path):
    with provider() as server, lb.Run(tmp_path, progress=False):
        made = list(lb.ask(rows(2), model(server), "{prompt}", n=3, batch=True))
    assert sorted(r["response"][-2:] for r in made) == ["#0", "#0", "#1", "#1", "#2", "#2"]
    assert len(server.batches) == 1 and len(server.asked) == 6


@apis
def test_what_cannot_be_parsed_is_asked_again_in_a_second_batch(tmp_path, api):
    def answer(messages, k):
        return "7" if len(messages) > 1 else "no number"

    with provider(answer) as server:
        made = ask(tmp_path, model(server, api), n=3, parse=int_or_reject, again=1)
    assert [r["response"] for r in made] == [7, 7, 7]
    assert [len(b["requests"]) for b in server.batches] == [3, 3]


def int_or_reject(text):
    from limbeck.parse import Reject

    return int(text) if text.isdigit() else Reject("no number")


@apis
def test_a_schema_that_is_not_taken_is_said_in_words_in_the_next_batch(tmp_path, api):
    def fate(key, body, k):
        return 400 if "response_format" in body or "output_config" in body else None

    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    with provider(lambda messages, k: '{"x": 3}', fate=fate, message="json_schema is not supported") as server:
        made = ask(tmp_path, model(server, api), n=2, schema=schema)
    assert [r["response"] for r in made] == [{"x": 3}] * 2
    assert [len(b["requests"]) for b in server.batches] == [2, 2]


@apis
def test_batches_are_split_by_requests_and_by_bytes_and_run_side_by_side(tmp_path, api, monkeypatch):
    kind = {"openai": batch.OpenAIBatches, "anthropic": batch.AnthropicBatches}[api]
    with provider(looks=4) as server:
        monkeypatch.setattr(kind, "most_requests", 4)
        assert len(ask(tmp_path / "a", model(server, api), n=10)) == 10
        assert [len(b["requests"]) for b in server.batches] == [4, 4, 2]
        assert max(b["made"] for b in server.batches) < min(b["ended"] for b in server.batches)
        monkeypatch.setattr(kind, "most_bytes", 700)
        assert len(ask(tmp_path / "b", model(server, api), n=7)) == 7
        assert sum(len(b["requests"]) for b in server.batches[3:]) == 7 and len(server.batches[3:]) > 2


# -- requests that come to nothing
@apis
def test_a_refused_request_is_a_reject_and_is_not_asked_again(tmp_path, api):
    with provider(fate=lambda key, body, k: 400 if "question 1" in str(body) else None) as server:
        assert [r["prompt"] for r in ask(tmp_path, model(server, api), n=3)] == ["question 0", "question 2"]
        with lb.Run(tmp_path, progress=False):
            table = lb.ask(rows(3), model(server, api), "{prompt}", batch=True)
            assert "HTTP 400" in next(iter(table.rejects))["_reason"] and len(server.batches) == 1


@apis
@pytest.mark.parametrize("fate", [500, "expired", "canceled", "lost"])
def test_what_was_not_done_goes_into_the_next_batch(tmp_path, api, fate):
    with provider(fate=lambda key, body, k: fate if k == 0 and "question 2" in str(body) else None) as server:
        made = ask(tmp_path, model(server, api), n=4)
    assert len(made) == 4 and [len(b["requests"]) for b in server.batches] == [4, 1]
    assert sorted(server.asked.values()) == [1, 1, 1, 2]


@apis
def test_what_is_never_done_ends_incomplete_and_the_next_run_asks_for_it_alone(tmp_path, api):
    bad = {"question 2": 500}
    with provider(fate=lambda key, body, k: next((f for q, f in bad.items() if q in str(body)), None)) as server:
        with pytest.raises(lb.Incomplete, match=r"1 calls got no answer \(1 x HTTP 500\); 3 were bought"):
            ask(tmp_path, model(server, api, retries=2), n=4)
        assert [len(b["requests"]) for b in server.batches] == [4, 1, 1]
        bad.clear()
        assert len(ask(tmp_path, model(server, api), n=4)) == 4
        assert [len(b["requests"]) for b in server.batches[3:]] == [1]


def test_a_full_queue_is_met_with_one_smaller_batch_after_the_other(tmp_path):
    with provider(queue=3) as server:
        assert len(ask(tmp_path, model(server), n=10)) == 10
        assert set(server.asked.values()) == {1}
        assert max(len(b["requests"]) for b in server.batches if not b["failed"]) <= 3


def test_a_batch_that_fails_its_check_says_why_and_costs_nothing(tmp_path):
    with provider() as server:
        server.refuses = "invalid_json_line"
        with pytest.raises(lb.LimbeckError, match=r"batch batch_000 was not taken: not taken"):
            ask(tmp_path, model(server), budget="4 calls", n=4)
        server.refuses = None
        assert len(ask(tmp_path, model(server), budget="4 calls", n=4)) == 4


# -- money
@apis
def test_a_cap_that_allows_a_part_buys_that_part(tmp_path, api):
    with provider() as server:
        with pytest.raises(lb.BudgetError, match="4 of 4 calls"):
            ask(tmp_path, model(server, api), budget="4 calls", n=6)
        assert [len(b["requests"]) for b in server.batches] == [4]
        assert len(ask(tmp_path, model(server, api), budget="6 calls", n=6)) == 6
        assert [len(b["requests"]) for b in server.batches] == [4, 2]


def test_the_worst_price_of_a_batch_is_halved_and_what_it_leaves_over_is_used(tmp_path):
    with provider() as server:
        who = model(server, price="0/1", max_output=1000)  # at most 0.0005 dollars a call, in truth 0.0000015
        with pytest.raises(lb.BudgetError):
            ask(tmp_path / "a", who, budget="$0.0004", n=3)
        assert not server.batches
        assert len(ask(tmp_path / "b", who, budget="$0.00101", n=5)) == 5
        assert [len(b["requests"]) for b in server.batches] == [2, 2, 1]


# -- an end in the middle
CLIENT = """
import sys
import limbeck as lb
from limbeck.models import get
from limbeck.verbs import batched
batched.FIRST_POLL = 0.02
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


@pytest.mark.parametrize(
    ("api", "what"),
    [("openai", "uploaded")] + [(api, what) for api in ("openai", "anthropic") for what in ("created", "looked", "results")],
)  # fmt: skip
def test_a_kill_anywhere_hands_nothing_in_twice(tmp_path, api, what):
    with provider(looks=3) as server:
        code, _ = ended_at(server, tmp_path / "run", api, what)
        assert code == -signal.SIGKILL
        made = ask(tmp_path / "run", model(server, api))
        assert len(server.batches) == 1 and set(server.asked.values()) == {1}
        with lb.Run(tmp_path / "run", progress=False) as run:
            assert run.ledger.spent()["calls"] == 6 and run.ledger.batches.all() == []
        assert made == ask(tmp_path / "whole", model(server, api)) or len(made) == 6
        assert all(r["response"].endswith("#0") for r in made)


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


# -- what is shown and how often is looked
def test_the_bar_ends_at_its_total_whatever_was_asked_again(tmp_path, monkeypatch):
    bars = []
    made = lb.Run.bar
    monkeypatch.setattr(lb.Run, "bar", lambda run, *args: bars.append(made(run, *args)) or bars[-1])
    with provider(looks=3, fate=lambda key, body, k: "expired" if k == 0 else None) as server:
        ask(tmp_path, model(server))
    assert (bars[0].done, bars[0].total) == (6, 6) and bars[0].money > 0


def test_looks_grow_rarer_up_to_a_limit(tmp_path, monkeypatch):
    pauses = []

    async def pause(self, seconds):
        pauses.append(seconds)

    monkeypatch.setattr(batched.Batched, "pause", pause)
    monkeypatch.setattr(batched, "FIRST_POLL", 5.0)
    with provider(looks=12) as server:
        ask(tmp_path, model(server))
    assert pauses[:3] == [5, 7.5, 11.25] and pauses[-1] == 60 and pauses == sorted(pauses)


def test_images_of_a_batch_are_kept_with_its_calls(tmp_path):
    image = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n no more").decode()
    table = lb.Table.from_rows([{"prompt": "what is it?", "seen": image}])
    with provider() as server, lb.Run(tmp_path, progress=False) as run:
        made = list(lb.ask(table, model(server), "{prompt}", images="seen", batch=True))
        assert len(made) == 1
        (key,) = run.ledger._all("select key from call")[0]
        assert "image" in str(run.ledger.call(key)["request"]) and run.ledger._all("select * from image")
