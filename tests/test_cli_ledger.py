"""`limbeck ledger` tells what was bought, from whom, for how much, also while the run goes on."""

import json

import pyarrow.parquet as pq
import pytest

import limbeck as lb
from limbeck.cli.ledger import ledger as told
from limbeck.errors import LimbeckError, Refused
from limbeck.models.base import Price
from limbeck.models.fake import Fake

from .test_ledger import record


def teacher(request):
    if "3" in request.messages[-1]["content"]:
        raise Refused("content filter")
    return "one two three"


@pytest.fixture
def run(tmp_path):
    """An open run with two asks, a refusal, a tool's call and a borrowed one."""
    with lb.Run(tmp_path / "run", progress=False) as it:
        rows = lb.Table.from_rows({"prompt": f"number {i}"} for i in range(5))
        answered = lb.ask(rows, Fake(teacher, "large", price=Price(1e6, 2e6)), "Say {prompt}")
        lb.ask(answered, Fake(teacher, "small", price=Price(0, 0)), "Judge {response}", into="verdict", n=2)
        it.ledger.put(record("tool", kind="tool", recipe="debate", cost=0.0, site="3:converse"))
        it.ledger.put(record("unknown price", recipe="debate", cost=None, served="m-1", site="3:converse"))
        other = lb.ledger.Ledger(tmp_path / "other" / "ledger")
        other.put(record("lent", recipe="debate", served="m-1", site="3:converse"))
        other.close()
        it.ledger.borrow(tmp_path / "other", ["lent"])
        it.ledger.flush()
        yield tmp_path / "run"


def test_it_counts_by_model_recipe_and_stage(run, capsys):
    told(run, None, True)
    found = json.loads(capsys.readouterr().out)
    by = {(g["model"], g["recipe"], g["stage"]): g for g in found["bought"]}
    large = by["large", None, "1:ask 'Say {prompt}'"]
    assert (large["calls"], large["refused"], large["reused"], large["tools"]) == (5, 1, 0, 0)
    assert large["tokens_out"] == 12 and large["money"] == large["tokens_in"] + 2 * large["tokens_out"]
    small = by["small", None, "2:ask 'Judge {response}'"]
    assert (small["calls"], small["money"]) == (8, 0)
    served = by["m-1", "debate", "3:converse"]
    assert (served["calls"], served["reused"], served["unpriced"], served["tools"]) == (1, 1, 1, 0)
    assert sum(g["tools"] for g in found["bought"]) == 1
    assert found["total"]["calls"] == 14 == lb.ledger.Ledger(run / "ledger", readonly=True).spent()["calls"]


def test_it_prints_a_table_with_totals(run, capsys):
    told(run, None, False)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "model recipe stage calls tokens in tokens out paid refused reused tools"
    assert lines[1].startswith("large") and lines[-1].startswith("total") and len({len(x) for x in lines[:-1]}) <= 2
    assert "and 1 calls of unknown price" in lines[-1]


def test_it_exports_every_call_to_parquet(run, tmp_path, capsys):
    told(run, tmp_path / "calls.parquet", False)
    assert "16 calls written to" in capsys.readouterr().out
    calls = {c["key"]: c for c in pq.read_table(tmp_path / "calls.parquet").to_pylist()}
    assert len(calls) == 16
    said = [c for c in calls.values() if c["model"] == "large"]
    assert sorted(c["reply"] or c["refused"] for c in said) == ["content filter", *["one two three"] * 4]
    assert json.loads(said[0]["request"])["messages"] == [{"content": "Say number 0", "role": "user"}]
    assert (said[0]["prompt"], said[0]["finish"], said[0]["kind"]) == ("'Say {prompt}'", "stop", "chat")
    assert calls["lent"]["reused"] and not calls["unknown price"]["reused"] and calls["tool"]["kind"] == "tool"
    assert not list(tmp_path.glob(".*writing"))


def test_a_directory_without_a_ledger_is_told(tmp_path):
    with pytest.raises(LimbeckError, match="holds no ledger"):
        told(tmp_path, None, False)
