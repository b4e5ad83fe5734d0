"""A row is walked back from the result to its seed, with every call and its price."""

import pytest

import limbeck as lb
from limbeck.models.fake import Fake
from limbeck.trace import trace


@pytest.fixture
def made(tmp_path):
    writer = Fake(
        lambda r: lb.Reply(f"re {r.messages[-1]['content']}", prompt_tokens=4, completion_tokens=2, cost=0.25)
    )
    judge = Fake(lambda r: "Score: 4", name="judge")
    rate = lb.Prompt("rate", "Rate {response}", ("response",), "score", lb.parse.get("number"))
    with lb.Run(tmp_path, progress=False):
        seeds = lb.Table.from_rows({"prompt": f"q{i}"} for i in range(4))
        asked = lb.ask(lb.concat(lb.where(seeds, prompt="q3"), seeds), writer, "{prompt}?")
        scored = lb.score(lb.keep(asked, lambda r: r["prompt"] != "q0" or "not this"), lb.Judge(judge, rate, votes=2))
        result = lb.fields(scored, text="{response} {score}")
        result.to_parquet(tmp_path / "rows.parquet", lineage=True)
    return tmp_path, result


def test_a_row_is_walked_back_to_its_seed(made):
    directory, _ = made
    steps = trace(directory, 1)  # q1: q3 comes first
    assert [s["op"] for s in steps] == ["score", "keep", "ask", "rows"]
    assert [s["depth"] for s in steps] == [0, 1, 2, 3]
    score, _, ask, seed = steps
    assert score["row"] == {"score": 4.0} and len(score["calls"]) == 2
    assert ask["calls"][0]["request"]["messages"] == [{"role": "user", "content": "q1?"}]
    assert ask["calls"][0]["reply"]["text"] == "re q1?" and ask["calls"][0]["cost"] == 0.25
    assert seed["row"] == {"prompt": "q1"} and seed["from"] == []


def test_any_stage_row_is_traced_by_its_id(made):
    directory, _ = made
    by_number = trace(directory, 0)
    assert trace(directory, by_number[2]["id"])[0] == by_number[2] | {"depth": 0}


@pytest.mark.parametrize(
    ("row", "says"), [("99", "rows 0 to 3"), ("x", "number or a lineage id"), ("gone-1:0", "no stage")]
)
def test_rows_that_are_not_there_are_told(made, row, says):
    with pytest.raises(lb.LimbeckError, match=says):
        trace(made[0], row)


def test_a_pair_is_traced_to_both_of_its_answers(tmp_path):
    with lb.Run(tmp_path, progress=False):
        rows = [{"prompt": "p", "response": r, "score": s} for r, s in [("a", 1.0), ("b", 3.0), ("c", 2.0)]]
        lb.pair(lb.Table.from_rows(rows)).to_parquet(tmp_path / "rows.parquet", lineage=True)
    steps = trace(tmp_path, 0)
    assert [s["row"]["response"] for s in steps[1:]] == ["b", "a"]
