"""A stage exists whole or not at all; one that a disk harmed is named, set aside, and made anew."""

import json

import pyarrow.parquet as pq
import pytest

import limbeck as lb
from limbeck import store
from limbeck.errors import LimbeckError


def made(directory, n=3000):
    """Runs one step over rows with text; returns what it made."""
    with lb.Run(directory, progress=False):
        rows = lb.Table.from_rows({"text": f"line {i} of some text"} for i in range(n))
        return list(lb.assign(rows, "style", ["plain", "formal"], seed=3))


@pytest.fixture
def stage(tmp_path):
    """A finished run's stage."""
    made(tmp_path / "run")
    (path,) = (tmp_path / "run" / "stages").glob("draw-*")
    return path


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_whole_stage_is_not_damaged(stage):
    assert store.damage(stage) is None and store.damage(stage.parent / "none") is None


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda s: (s / "meta.json").write_text('{"op": "lou'), "meta.json has changed"),
        (lambda s: (s / "meta.json").unlink(), "meta.json is missing"),
        (lambda s: flip(s / "rows.parquet", -20), "rows.parquet has changed"),
        (lambda s: (s / "rows.parquet").write_bytes((s / "rows.parquet").read_bytes()[:-500]), "rows.parquet"),
        (lambda s: (s / "rejects.parquet").unlink(), "rejects.parquet is missing"),
        (lambda s: (s / store.SUMS).write_text("{"), "line 1"),
    ],
    ids=["half a meta", "no meta", "a byte of a footer", "cut short", "no rejects", "half the sums"],
)
def test_a_harmed_stage_is_named_set_aside_and_made_anew(stage, capsys, harm, why):
    harm(stage)
    assert len(made(stage.parents[1])) == 3000
    said = capsys.readouterr().err
    assert str(stage) in said and why in said and f"{stage.name}.damaged" in said and said.count("\n") == 1
    assert stage.with_name(f"{stage.name}.damaged").is_dir() and store.damage(stage) is None


def test_a_byte_changed_among_the_rows_of_a_large_stage_is_found_when_they_are_read(stage, monkeypatch):
    monkeypatch.setattr(store, "_END", 100)  # as if the file were larger than what is checked at the start
    sums = {f.name: store._sum(f) for f in stage.iterdir() if f.name != store.SUMS}
    (stage / store.SUMS).write_text(json.dumps(sums))
    column = pq.read_metadata(stage / "rows.parquet").row_group(0).column(0)
    flip(stage / "rows.parquet", (column.dictionary_page_offset or column.data_page_offset) + 200)
    assert store.damage(stage) is None
    with pytest.raises(LimbeckError, match=f"{stage.name} was damaged.*set aside as {stage.name}.damaged; run again"):
        made(stage.parents[1])
    assert len(made(stage.parents[1])) == 3000


def test_stages_of_the_first_version_have_no_sums_and_are_checked_without(stage, capsys):
    (stage / store.SUMS).unlink()
    assert store.damage(stage) is None
    (stage / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    assert len(made(stage.parents[1])) == 3000
    assert "was damaged" in capsys.readouterr().err


def test_a_damaged_file_of_the_user_is_left_where_it_is(tmp_path):
    file = lb.Table.from_rows([{"text": "a" * 500}] * 500).to_parquet(tmp_path / "mine.parquet")
    flip(file, 40)
    with pytest.raises(LimbeckError, match="mine.parquet cannot be read, it may be damaged"):
        list(store.read(file))
    assert file.exists()


def test_what_the_machine_refuses_is_not_taken_for_damage(stage, monkeypatch):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(store.pq, "ParquetFile", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        list(store.read(stage / "rows.parquet"))
    assert stage.exists()
