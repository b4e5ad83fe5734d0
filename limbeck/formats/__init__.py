"""Writes tables in the record formats of other tools. Other column names than limbeck's exist only here."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

from ..errors import LimbeckError
from ..table import Row, Table
from . import trl


def _jsonl(rows: Table, path: Path) -> None:
    rows.to_jsonl(path)


def _parquet(rows: Table, path: Path) -> None:
    rows.to_parquet(path)


def _trl(rows: Table, path: Path) -> None:
    import json

    record = trl.record_of(rows.columns)

    def records() -> Iterator[Row]:
        for row in rows:
            yield record(row)

    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in records())


FORMATS: dict[str, tuple[Callable[[Table, Path], None], str]] = {
    "jsonl": (_jsonl, ".jsonl"),
    "parquet": (_parquet, ".parquet"),
    "trl": (_trl, ".trl.jsonl"),
}


def export(rows: Table, format: str, path: str | Path) -> Path:
    """Writes `rows` to `path` as jsonl, parquet or trl (the records TRL's trainers take). Returns the path."""
    if format not in FORMATS:
        near = get_close_matches(format, FORMATS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise LimbeckError(f"export knows no format {format!r}; it has {', '.join(FORMATS)}{hint}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[format][0](rows, path)
    return path
