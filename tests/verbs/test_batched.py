"""ask(batch=True) hands calls to the provider's batch API once, whatever happens, and takes the same rows from it."""

import base64

import pytest

import limbeck as lb
from limbeck import plan
from limbeck.models import batch
from limbeck.verbs import batched
from tests.batch_server import model, provider


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batched, "FIRST_POLL", 0.01)
    monkeypatch.setattr(batched, "LONGEST_POLL", 0.05)
    monkeypatch.setattr(batched, "FIRST_BACKOFF", 0.01)


def rows(n=6):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


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


def test_what_single_calls_have_bought_is_not_handed_in(tmp_path):
    with provider() as server:
        who = model(server)
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
        monkeypatch.setattr(kind, "most_bytes", {"openai": 600, "anthropic": 400}[api])
        assert len(ask(tmp_path / "b", model(server, api), n=7)) == 7
        assert sum(len(b["requests"]) for b in server.batches[3:]) == 7 and len(server.batches[3:]) > 2


# -- requests that come to nothing
@apis
def test_a_refused_request_is_a_reject_and_is_not_asked_again(tmp_path, api):
    with provider(fate=lambda key, body, k: 400 if "question 1" in str(body) else None) as server:
        assert [r["prompt"] for r in ask(tmp_path, model(server, api), n=3)] == ["question 0", "question 2"]
        with lb.Run(tmp_path, progress=False):
            again = lb.ask(rows(3), model(server, api), "{prompt}", batch=True)
            (reason,) = again.meta["counts"]["rejected"]
        assert "HTTP 400" in reason and len(server.batches) == 1


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


def test_a_plan_counts_half_the_price_and_hands_nothing_in(tmp_path):
    with provider() as server, lb.Run(tmp_path, progress=False) as run:
        bound = {}
        for one in (False, True):
            walked = plan.DryRun()
            walked.walk(run, lambda one=one: lb.ask(rows(), model(server), "{prompt}", batch=one))
            bound[one] = walked.asks[0]["money"]
        assert bound[True] == pytest.approx(bound[False] / 2) and not server.calls


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
    monkeypatch.setattr(batched, "LONGEST_POLL", 60.0)
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
