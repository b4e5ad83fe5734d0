"""Verbs that leave rows out say why, and counts add up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import limbeck as lb


def counts(table):
    found = table.meta["counts"]
    assert found["in"] == found["out"] + sum(found["rejected"].values())
    return found["rejected"]


def even(row):
    return row["n"] % 2 == 0


def test_keep_gives_the_first_failing_rule_as_reason(run):
    table = lb.Table.from_rows([{"n": i} for i in range(6)] + [{"m": 1}])
    kept = lb.keep(table, even, lambda r: r["n"] < 4 or "too big")
    assert [r["n"] for r in kept] == [0, 2]
    assert counts(kept) == {"even": 3, "too big": 1, "no n": 1}


def test_keep_tells_a_rule_that_wants_a_column_nobody_has(run):
    with pytest.raises(lb.LimbeckError, match="rule even wants a column 'n'"):
        lb.keep(lb.Table.from_rows([{"m": 1}]), even)
    with pytest.raises(lb.LimbeckError, match="at least one rule"):
        lb.keep(lb.Table.from_rows([{"m": 1}]))


def test_dedup_exact_keeps_the_first(run):
    table = lb.Table.from_rows([{"prompt": "a", "i": 0}, {"prompt": "b", "i": 1}, {"prompt": "a", "i": 2}])
    made = lb.dedup(table)
    assert [r["i"] for r in made] == [0, 1] and counts(made) == {"duplicate": 1}
    against = lb.dedup(table, against=[lb.Table.from_rows([{"prompt": "b"}])])
    assert [r["i"] for r in against] == [0]
    assert len(lb.dedup(table, on=["prompt", "i"])) == 3


def test_dedup_by_rouge_and_within_groups(run):
    texts = ["write a poem about the sea", "write a poem about the blue sea", "count the birds"]
    table = lb.Table.from_rows({"prompt": t, "g": i % 2} for i, t in enumerate(texts))
    near = lb.dedup(table, like=0.7)
    assert [r["prompt"] for r in near] == [texts[0], texts[2]]
    assert counts(near) == {"too similar (ROUGE-L >= 0.7)": 1}
    assert len(lb.dedup(table, like=0.7, by="g")) == 3
    with pytest.raises(lb.LimbeckError, match="one text column"):
        lb.dedup(table, on=["prompt", "g"], like=0.7)


def test_pick_takes_the_best_of_each_group(run):
    table = lb.Table.from_rows({"prompt": f"p{i % 2}", "score": float(i), "i": i} for i in range(6))
    assert [r["i"] for r in lb.pick(table, by="prompt", on="score")] == [4, 5]
    assert [r["i"] for r in lb.pick(table, 2, by="prompt", on="score")] == [2, 3, 4, 5]
    assert counts(lb.pick(table, 2)) == {"not picked": 4}


def test_pick_by_vote_keeps_all_that_agree(run):
    answers = ["7", "8", "7", None, "9", "9"]
    table = lb.Table.from_rows({"prompt": "p", "answer": a, "i": i} for i, a in enumerate(answers))
    made = lb.pick(table, by="prompt", vote="answer")
    assert [r["i"] for r in made] == [0, 2]  # a tie of two: the value that came first
    assert counts(made) == {"outvoted": 4}
    assert [r["i"] for r in lb.pick(table, 1, by="prompt", vote="answer")] == [0]


def test_random_pick_does_not_depend_on_other_rows(run):
    table = lb.Table.from_rows({"prompt": f"p{i % 3}", "i": i} for i in range(30))
    chosen = {r["prompt"]: r["i"] for r in lb.pick(table, by="prompt", seed=4)}
    fewer = {r["prompt"]: r["i"] for r in lb.pick(lb.where(table, lambda r: r["prompt"] != "p0"), by="prompt", seed=4)}
    assert fewer == {k: v for k, v in chosen.items() if k != "p0"}


def test_mix_draws_in_shares(run):
    a, b = (lb.Table.from_rows({"t": t, "i": i} for i in range(50)) for t in "ab")
    mixed = list(lb.mix([a, b], [3, 1], n=40))
    assert [r["t"] for r in mixed] == ["a"] * 30 + ["b"] * 10
    assert len({(r["t"], r["i"]) for r in mixed}) == 40
    assert len(lb.mix([a, b], [3, 1])) == 66
    with pytest.raises(lb.LimbeckError, match="at most n=66"):
        lb.mix([a, b], [3, 1], n=100)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12))
def test_dedup_counts_add_up_and_leaves_no_duplicates(letters):
    made = lb.dedup(lb.Table.from_rows({"prompt": x} for x in letters))
    assert [r["prompt"] for r in made] == list(dict.fromkeys(letters))
    counts(made)
