"""Tables keep any JSON rows as they are, and their digest depends on the rows alone."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import limbeck as lb
from limbeck import store
from limbeck.table import Stored

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=6
)
turns = st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=3)
rows_of_json = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "c", "é", "", "a.b"]), values | turns, max_size=4), max_size=8
)


def plain(rows):
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


@settings(max_examples=150, deadline=None)
@given(rows_of_json)
def test_any_json_rows_come_back_from_the_disk_as_they_were(rows):
    table = lb.Table.from_rows(rows)
    assert list(table) == plain(rows)
    assert len(table) == len(rows)


@settings(max_examples=50, deadline=None)
@given(rows_of_json)
def test_types_survive_not_only_equality(rows):
    back = list(lb.Table.from_rows(rows))
    for row, again in zip(plain(rows), back, strict=True):
        for name, value in row.items():
            if isinstance(value, bool | str | list | dict):
                assert type(again[name]) is type(value)


@settings(max_examples=50, deadline=None)
@given(rows_of_json)
def test_digest_depends_on_rows_and_not_on_files(tmp_path_factory, rows):
    table = lb.Table.from_rows(rows)
    path = table.to_parquet(tmp_path_factory.mktemp("t") / "t.parquet")
    assert lb.Table.from_parquet(path).digest == table.digest
    assert lb.concat(table, lb.Table.from_rows([])).digest == table.digest
    half = len(rows) // 2
    parts = lb.concat(lb.Table.from_rows(rows[:half]), lb.Table.from_rows(rows[half:]))
    assert parts.digest == table.digest


def test_lone_surrogates_and_huge_integers_are_kept(tmp_path):
    rows = [{"a": "\ud800 half", "b": 10**30}, {"a": "whole", "b": -(2**63)}, {"b": 2**53 + 1}]
    assert list(lb.Table.from_rows(rows)) == rows


def test_integers_beside_floats_become_floats_unless_that_would_lose_digits():
    assert list(lb.Table.from_rows([{"x": 1}, {"x": 2.5}])) == [{"x": 1}, {"x": 2.5}]
    exact = [{"x": 2**60 + 1}, {"x": 0.5}]
    assert list(lb.Table.from_rows(exact)) == exact


def test_types_are_settled_over_all_batches(monkeypatch):
    monkeypatch.setattr(store, "BATCH", 3)
    rows = [{"x": i} for i in range(7)] + [{"x": "late text"}, {"y": [1, {"z": None}]}]
    assert list(lb.Table.from_rows(rows)) == rows


def test_order_of_keys_and_absent_values_do_not_change_the_digest():
    a = lb.Table.from_rows([{"a": 1, "b": 2.0}])
    assert a.digest == lb.Table.from_rows([{"b": 2, "c": None, "a": 1.0}]).digest
    assert a.digest != lb.Table.from_rows([{"a": 1, "b": 3}]).digest


def test_golden_digest():
    table = lb.Table.from_rows([{"prompt": "2 + 2?", "answer": "4", "n": 1.5, "tags": ["a", None]}])
    assert table.digest == "4541e500b2b3dce2398d9b88eb669153"


def test_jsonl_plain_and_gzipped_with_byte_order_mark_and_blank_lines(tmp_path):
    text = '\ufeff{"q": "é"}\n\n{"q": null, "n": 3}\n'
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write(text)
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert list(lb.Table.open(tmp_path / name)) == [{"q": "é"}, {"n": 3}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl, line 2"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1 holds a list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", b'{"_row": "x"}\n', "reserved"),
        ("a.jsonl.gz", b"not gzip", "gzip"),
        ("a.json", b'{"a": 1}', "list of objects"),
        ("a.csv", b"a,b\n1,2,3\n", "row 2 has more cells"),
        ("a.parquet", b"PAR1 no", "not a Parquet file"),
        ("a.txt", b"x", "limbeck reads"),
    ],
)
def test_broken_files_are_told_with_file_and_place(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(lb.LimbeckError, match=says):
        lb.Table.open(tmp_path / name)


def test_missing_file_is_told():
    with pytest.raises(lb.LimbeckError, match="there is no file"):
        lb.Table.open("nowhere.jsonl")


def test_csv_values_are_text_and_empty_cells_absent(tmp_path):
    (tmp_path / "a.csv").write_text('q,n\n"a, b",3\nc,\n')
    assert list(lb.Table.open(tmp_path / "a.csv")) == [{"q": "a, b", "n": "3"}, {"q": "c"}]


def test_foreign_parquet_keeps_structs_and_dates(tmp_path):
    import datetime

    table = pa.table({"s": [{"x": 1, "y": None}], "d": [datetime.date(2024, 1, 2)]})
    pq.write_table(table, tmp_path / "f.parquet")
    assert list(lb.Table.open(tmp_path / "f.parquet")) == [{"s": {"x": 1, "y": None}, "d": "2024-01-02"}]


def test_exports_leave_out_what_is_absent_and_reserved(tmp_path):
    table = lb.Table.from_rows([{"a": 1}, {"b": {"x": 1}}])
    lines = table.to_jsonl(tmp_path / "t.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"b": {"x": 1}}]
    with_lineage = pq.read_table(table.to_parquet(tmp_path / "t.parquet", lineage=True))
    assert set(with_lineage.column_names) == {"a", "b", "_row"}


def test_to_hf_and_back():
    pytest.importorskip("datasets")
    rows = [{"prompt": "p", "messages": [{"role": "user", "content": "hi"}], "meta": {"x": [1]}, "score": 1.5}]
    data = lb.Table.from_rows(rows).to_hf()
    assert data.features["score"].dtype == "float64"
    assert data[0]["messages"] == rows[0]["messages"]
    assert json.loads(data[0]["meta"]) == rows[0]["meta"]
    assert lb.Table.from_hf(data).head()[0]["prompt"] == "p"


def test_nearest_column_is_named():
    table = lb.Table.from_rows([{"promt": "x"}])
    with pytest.raises(lb.LimbeckError, match="did you mean 'promt'"):
        table.need("ask", "prompt")


def test_equal_rows_are_stored_once(tmp_path):
    with lb.Run(tmp_path / "r", progress=False) as run:
        a, b = (lb.Table.from_rows([{"a": 1}]) for _ in range(2))
        assert isinstance(a, Stored) and a.path == b.path
        assert len(list(run.store.root.iterdir())) == 1


def test_a_million_rows_open_filter_and_digest_within_memory(tmp_path):
    """In a child, so that its peak memory is its own."""
    code = f"""
import json, resource, limbeck as lb
path = {str(tmp_path / "m.jsonl")!r}
with open(path, "w") as out:
    for i in range(1_000_000):
        out.write(json.dumps({{"id": i, "prompt": f"question number {{i}}"}}) + "\\n")
table = lb.Table.open(path)
kept = lb.keep(table, lambda row: row["id"] % 10 == 0 or "not a tenth")
print(len(table), len(kept), kept.meta["counts"]["rejected"], kept.digest != table.digest)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, peak = done.stdout.splitlines()
    assert first == "1000000 100000 {'not a tenth': 900000} True"
    kilobytes = int(peak) if sys.platform != "darwin" else int(peak) // 1024
    assert kilobytes < 1_500_000
