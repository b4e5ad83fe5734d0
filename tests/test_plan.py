"""What a run costs is known before: an upper bound that holds, or the word unbounded; an estimate from real rows."""

import math
import zlib

import pytest

import limbeck as lb
from limbeck import plan
from limbeck.models.base import Price
from limbeck.models.fake import Fake


def rows(n=10):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def model(fn=lambda r: "x", **options):
    return Fake(fn, **({"price": Price(1.0, 2.0)} | options))


def never(request):
    raise AssertionError("a dry run asked a model")


def dry(tmp_path, recipe):
    with lb.Run(tmp_path, progress=False) as run:
        walked = plan.DryRun()
        walked.walk(run, recipe)
        return walked


def chain(who):
    def recipe():
        first = lb.ask(rows(), who, "{prompt}", n=2, max_tokens=100)
        kept = lb.keep(lb.dedup(first, on="response"), lambda r: len(r["response"]) > 3)
        best = lb.pick(lb.score(kept, lb.Judge(who, "Rate {response}", max_tokens=5)), by="prompt", on="score")
        return lb.ask(lb.fields(best, text="{response}!"), who, "Again: {text}", into="again", max_tokens=100)

    return recipe


def test_a_dry_run_buys_nothing_and_bounds_what_a_real_run_buys(tmp_path):
    walked = dry(tmp_path / "dry", chain(model(never)))
    assert [a["calls"] for a in walked.asks] == [20, 20, 20] and walked.unbounded is None
    total = walked.totals()
    with lb.Run(tmp_path / "real", progress=False) as run:
        chain(model(lambda r: lb.Reply("7 long text", prompt_tokens=20, completion_tokens=80, cost=20e-6 + 160e-6)))()
        spent = run.ledger.spent()
    assert 0 < spent["calls"] <= total["calls"] and 0 < spent["money"] <= total["money"]
    assert spent["tokens"] <= total["tokens"]


def test_asking_again_is_within_the_bound(tmp_path):
    def recipe(who):
        return lambda: lb.ask(rows(5), who, "{prompt}", parse="json", max_tokens=50, again=2)

    def cut(request):  # each reply as long as it may be, and of no use
        tokens = request.max_tokens, sum(len(m["content"]) for m in request.messages)
        finish = "length" if request.max_tokens < 100 else "stop"
        return lb.Reply("y " * tokens[0], completion_tokens=tokens[0], prompt_tokens=tokens[1] // 2, finish=finish)

    total = dry(tmp_path / "dry", recipe(model(never))).totals()
    with lb.Run(tmp_path / "real", progress=False) as run:
        recipe(model(cut))()
        spent = run.ledger.spent()
    assert spent["calls"] == total["calls"] == 15
    assert spent["tokens"] <= total["tokens"] and spent["money"] <= total["money"]
    assert dry(tmp_path / "real", recipe(model(never))).totals()["calls"] == 0


def test_what_is_held_already_is_not_counted(tmp_path):
    with lb.Run(tmp_path, progress=False):
        lb.ask(rows(4), model(), "{prompt}", max_tokens=9)
    walked = dry(tmp_path, lambda: lb.ask(rows(10), model(never), "{prompt}", max_tokens=9))
    assert walked.totals()["calls"] == 6 and walked.totals()["replayed"] == 4
    assert "at most 6 calls (4 more are held already)" in str(walked)


def test_money_without_a_bound_is_said(tmp_path):
    walked = dry(tmp_path, lambda: lb.ask(rows(), model(never), "{prompt}"))
    assert math.isinf(walked.totals()["money"]) and "money is unbounded: no max_tokens" in str(walked)
    walked = dry(tmp_path, lambda: lb.ask(rows(), model(never, price=None), "{prompt}", max_tokens=3))
    assert "no price is known" in str(walked)


def test_a_loop_that_data_decides_is_unbounded(tmp_path):
    def recipe():
        pool = rows()
        for i in range(100):
            new = lb.ask(pool, model(never), "More like {prompt}", into="new", max_tokens=5, salt=i)
            if len(new) > 50:
                break
        return pool

    walked = dry(tmp_path, recipe)
    assert walked.unbounded and "unbounded" in str(walked) and len(walked.asks) == 1


def test_a_dry_run_still_tells_mistakes(tmp_path):
    with pytest.raises(lb.LimbeckError, match="promt"):
        dry(tmp_path, lambda: lb.ask(rows(), model(never), "{promt}"))


def test_a_pilot_buys_its_rows_for_good_and_its_interval_covers_the_truth(tmp_path):
    def brain(request):
        words = 10 + zlib.crc32(request.messages[-1]["content"].encode()) % 50
        return lb.Reply("x", prompt_tokens=5, completion_tokens=words, cost=words * 2e-6)

    calls = []
    who = model(lambda r: calls.append(1) or brain(r))
    with lb.Run(tmp_path, progress=False) as run:
        pilot = plan.Pilot()
        pilot.walk(run, lambda: lb.ask(rows(200).take(20), who, "{prompt}", n=2))
        told = pilot.estimate(run.ledger, rows=20, of=200)
    assert told["calls"] == (400, 400, 400)
    with lb.Run(tmp_path, progress=False) as run:
        lb.ask(rows(200), who, "{prompt}", n=2)
        spent = run.ledger.spent()
    assert len(calls) == 400
    assert told["money"][1] <= spent["money"] <= told["money"][2]
    assert told["money"][2] - told["money"][1] < told["money"][0]


def test_salvage_gives_finished_rows_that_passed_every_later_step(tmp_path):
    who = model(lambda r: r.messages[-1]["content"][-1], price=None)

    def recipe():
        tries = lb.keep(lb.ask(rows(9), who, "{prompt}"), lambda r: int(r["response"]) % 2 == 0 or "odd")
        return lb.fields(lb.ask(tries, who, "Then {response}", into="more"), text="{more}!")

    with pytest.raises(lb.BudgetError), lb.Run(tmp_path, progress=False, budget="6 calls"):
        recipe()
    with lb.Run(tmp_path, progress=False) as run:
        salvage = plan.Salvage()
        assert salvage.walk(run, recipe) is None  # nothing of the second ask is there
        assert len(salvage.rows) == 6 and salvage.partial == ["1:ask ('{prompt}')", "2:ask ('Then {response}')"]
        assert run.ledger.spent()["calls"] == 6
    with pytest.raises(lb.BudgetError), lb.Run(tmp_path, progress=False, budget="11 calls"):
        recipe()
    with lb.Run(tmp_path, progress=False) as run:
        finished = plan.Salvage().walk(run, recipe)
        assert [r["text"] for r in finished] == ["0!", "2!"] and run.ledger.spent()["calls"] == 11


def test_replies_that_become_several_rows_have_no_bound(tmp_path):
    def recipe():
        many = lb.ask(rows(), model(never), "List {prompt}", parse="lines", into="item", max_tokens=50)
        return lb.ask(many, model(never), "{item}", into="more", max_tokens=5)

    walked = dry(tmp_path, recipe)
    assert walked.unbounded == "a reply may become several rows" and walked.totals()["calls"] == 10


def test_a_list_judge_is_bounded_by_the_rows(tmp_path):
    prompt = lb.Prompt("list", "{responses}", ("responses",), "scores", lb.parse.get("json"))

    def recipe():
        wrote = lb.ask(rows(), model(never), "{prompt}", n=3, max_tokens=50)
        return lb.score(wrote, lb.Judge(model(never), prompt, together="response", max_tokens=9))

    assert [a["calls"] for a in dry(tmp_path, recipe).asks] == [30, 30]


def test_a_dry_run_tells_a_cap_that_the_run_would_refuse(tmp_path):
    with pytest.raises(lb.LimbeckError, match="wants a price"), lb.Run(tmp_path, progress=False, budget="$1") as run:
        plan.DryRun().walk(run, lambda: lb.ask(rows(), model(never, price=None), "{prompt}", max_tokens=5))


def test_a_pilot_ends_where_replies_decide_what_is_asked(tmp_path):
    def recipe():
        pool = rows(2)
        while len(pool) < 1000:
            pool = lb.concat(
                pool, lb.ask(pool, model(lambda r: "x"), "More like {prompt}", into="prompt", salt=len(pool))
            )
        return pool

    with lb.Run(tmp_path, progress=False) as run:
        pilot = plan.Pilot()
        assert pilot.walk(run, recipe) is None
        assert run.ledger.spent()["calls"] == 2 and "looks at replies" in pilot.ends


def test_a_plan_goes_through_training_and_judging(tmp_path):
    student = Fake(never, name="student", can=("chat", "weights"))

    def recipe():
        taught = lb.train(student, lb.ask(rows(), model(never), "{prompt}", max_tokens=5), lb.SFT)
        return taught, lb.evaluate(taught, lb.Task(lb.fields(rows(3), answer="1")), max_tokens=5)

    walked = dry(tmp_path / "dry", recipe)
    assert [a["calls"] for a in walked.asks] == [10, 3] and walked.unbounded is None
    with lb.Run(tmp_path / "pilot", progress=False) as run:
        pilot = plan.Pilot()
        answering = model(lambda r: lb.Reply("7", cost=0.5))
        bought = lambda: lb.train(student, lb.ask(rows(2), answering, "{prompt}"), lb.SFT)  # noqa: E731
        assert pilot.walk(run, bought) is None  # it ends where training begins
        assert pilot.estimate(run.ledger, 2, 10)["money"] == (5.0, 5.0, 5.0)
