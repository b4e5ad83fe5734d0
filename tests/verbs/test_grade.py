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


def test_rank_gathers_a_prompts_replies_best_first(run):
    rows = [
        {"prompt": "p", "response": r, "score": s, "who": "x"}
        for r, s in [("a", 1), ("b", 3.0), ("c", None), ("d", 2.0), ("e", 3.0)]
    ]
    rows += [{"prompt": "q", "response": r, "score": 1.0} for r in "fg"] + [{"prompt": "r", "response": "h"}]
    made = lb.rank(lb.Table.from_rows(rows))
    assert list(made) == [
        {"prompt": "p", "responses": ["b", "e", "d", "a"], "scores": [3.0, 3.0, 2.0, 1.0], "who": "x"}
    ]
    assert made.meta["counts"]["rejected"] == {"no score": 2, "no order: nothing in its group is better": 2}
    assert made.meta["counts"]["in"] == 4 + 4, "of a group that makes a row, all others are lost with a reason"


def test_a_random_rejected_reply_is_drawn_by_the_prompt_and_the_seed_alone(run):
    rows = [{"prompt": f"p{i}", "response": f"{i}{r}", "score": float(r)} for i in range(30) for r in range(5)]
    whole = {row["prompt"]: row["rejected"] for row in lb.pair(lb.Table.from_rows(rows), rejected="random", seed=1)}
    part = {row["prompt"]: row["rejected"] for row in lb.pair(lb.Table.from_rows(rows[60:]), rejected="random", seed=1)}
    assert part == {prompt: one for prompt, one in whole.items() if prompt in part} and len(part) == 18
    assert {one[-1] for one in whole.values()} == set("0123"), "any of the rest, and never the best"
    other = {row["prompt"]: row["rejected"] for row in lb.pair(lb.Table.from_rows(rows), rejected="random", seed=2)}
    assert other != whole


@pytest.mark.parametrize(
    ("prompts", "partners"),
    [
        ("abc", "120"),  # the next row, in a circle
        ("aab", "220"),  # and never one with the same prompt
        ("abb", "100"),
        ("aba", "121"),
        ("aabba", "22442"),
    ],
)
def test_mismatch_takes_the_reply_to_another_prompt(prompts, partners, run):
    rows = [{"prompt": p, "response": str(i)} for i, p in enumerate(prompts)]
    made = list(lb.mismatch(lb.Table.from_rows(rows)))
    assert [row["responses"] for row in made] == [[str(i), partner] for i, partner in enumerate(partners)]


def test_mismatch_wants_a_second_prompt(run):
    made = lb.mismatch(lb.Table.from_rows([{"prompt": "a", "response": r} for r in "xy"]))
    assert len(made) == 0 and made.meta["counts"]["rejected"] == {"no other prompt": 2}
