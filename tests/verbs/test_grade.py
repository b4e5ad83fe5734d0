"""Verbs that put numbers on rows and use them."""

import pytest

import limbeck as lb
from limbeck.models.fake import Fake


@pytest.fixture
def table(run):
    return lb.Table.from_rows({"prompt": f"p{i // 3}", "response": f"r{i}"} for i in range(6))


def test_score_is_the_mean_of_the_votes_that_parsed(table):
    said = iter(["Score: 4", "Score: 2", "what?", "Score: 5", "no", "none"])
    judge = lb.Judge(Fake(lambda r: next(said), max_concurrency=1), "Rate: {response}", votes=2)
    judge = lb.Judge(
        judge.who, lb.Prompt("rate", "Rate: {response}", ("response",), "score", lb.parse.get("number")), votes=2
    )
    scored = lb.score(lb.where(table, prompt="p0"), judge)
    assert [(r["response"], r["score"]) for r in scored] == [("r0", 3.0), ("r1", 5.0)]
    assert scored.meta["counts"]["rejected"] == {"the judge gave no score": 1}


def test_together_judges_a_group_in_one_reply(table):
    seen = []

    def judge(request):
        seen.append(request.messages[-1]["content"])
        return "[1, 2, 3]" if "r0" in seen[-1] else "[1, 2]"

    prompt = lb.Prompt("list", "For {prompt}:\n{responses}", ("prompt", "responses"), "scores", lb.parse.get("json"))
    scored = lb.score(table, lb.Judge(Fake(judge), prompt, together="prompt"))
    assert len(seen) == 2 and "[1]\nr0\n\n[2]\nr1\n\n[3]\nr2" in seen[0]
    assert [(r["response"], r["score"]) for r in scored] == [("r0", 1.0), ("r1", 2.0), ("r2", 3.0)]
    assert list(scored.meta["counts"]["rejected"].values()) == [3]


def test_mean_keeps_what_the_group_agrees_on(run):
    rows = [{"p": 1, "a": "x", "aspect": i, "score": s} for i, s in enumerate([1, 2, None])] + [{"p": 2, "a": "y"}]
    made = lb.mean(lb.Table.from_rows(rows), by="p")
    assert list(made) == [{"p": 1, "a": "x", "score": 1.5}]
    assert made.meta["counts"]["rejected"] == {"no score": 1}


def test_pair_takes_best_and_worst_and_no_ties(run):
    rows = [{"prompt": "p", "response": r, "score": s} for r, s in [("a", 1.0), ("b", 3.0), ("c", 2.0)]]
    rows += [{"prompt": "q", "response": r, "score": 1.0} for r in "de"]
    made = lb.pair(lb.Table.from_rows(rows))
    assert list(made) == [{"prompt": "p", "chosen": "b", "rejected": "a", "chosen_score": 3.0, "rejected_score": 1.0}]
    assert sum(made.meta["counts"]["rejected"].values()) == 3
    drawn = lb.pair(lb.Table.from_rows(rows), rejected="random", margin=1.5)
    assert [r["rejected"] for r in drawn] == ["a"]
    with pytest.raises(lb.LimbeckError, match="worst"):
        lb.pair(lb.Table.from_rows(rows), rejected="last")
