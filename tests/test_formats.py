"""Records that other tools read."""

import json

import pytest

from limbeck import Table
from limbeck.errors import LimbeckError
from limbeck.formats import export
from limbeck.formats.trl import record_of


def test_trl_takes_answers_conversations_and_pairs():
    asked, answered = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    worse = {"role": "assistant", "content": "b"}
    assert record_of(["prompt", "response", "score"])({"prompt": "q", "response": "a", "score": 1}) == {
        "prompt": [asked], "completion": [answered],
    }  # fmt: skip
    assert record_of(["messages"])({"messages": [asked, answered]}) == {"messages": [asked, answered]}
    pair = {"prompt": [asked], "chosen": [answered], "rejected": [worse]}
    assert record_of(["prompt", "chosen", "rejected"])({"prompt": "q", "chosen": "a", "rejected": "b"}) == pair
    assert record_of(["messages", "chosen", "rejected"])({"messages": [asked], "chosen": "a", "rejected": "b"}) == pair
    with pytest.raises(LimbeckError, match=r"the rows have \['question'\]"):
        record_of(["question"])


def test_every_format_writes_all_rows(tmp_path):
    rows = Table.from_rows([{"prompt": f"q{i}", "response": "ä\n"} for i in range(3)])
    jsonl = export(rows, "jsonl", tmp_path / "new" / "a.jsonl")
    assert list(Table.from_jsonl(jsonl)) == list(rows)
    assert list(Table.from_parquet(export(rows, "parquet", tmp_path / "a.parquet"))) == list(rows)
    lines = export(rows, "trl", tmp_path / "a.trl.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and json.loads(lines[1])["completion"][0]["content"] == "ä\n"
    with pytest.raises(LimbeckError, match="did you mean 'jsonl'"):
        export(rows, "json", tmp_path / "a")


def test_trl_loads_the_records(tmp_path):
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    path = export(Table.from_rows([{"prompt": "q", "response": "a"}]), "trl", tmp_path / "a.jsonl")
    row = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))[0]
    assert data_utils.is_conversational(row)
