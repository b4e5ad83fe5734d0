"""Reads what others wrote: text plain or gzipped, JSON lines, the values of foreign Parquet files and data sets."""

import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import LimbeckError


@contextlib.contextmanager
def text(path: str | Path) -> Iterator[io.TextIOBase]:
    if not Path(path).is_file():
        raise LimbeckError(f"there is no file {path}; give the path of a table.")
    reader = gzip.open if str(path).endswith(".gz") else open
    try:
        with reader(path, "rt", encoding="utf-8-sig", newline="") as file:  # type: ignore[operator]
            yield file
    except UnicodeDecodeError as error:
        raise LimbeckError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise LimbeckError(f"{path} is not a whole gzip file: {error}.") from None


def parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LimbeckError(f"{where} is not JSON: {error}. Mend or remove that line.") from None
    if not isinstance(row, dict):
        raise LimbeckError(f"{where} holds a {type(row).__name__}; each line must be one JSON object.")
    return row


def jsonable(value: Any) -> Any:
    """Foreign Parquet and datasets values as JSON data: dates become ISO text, decimals text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        raise LimbeckError("a column holds bytes, which JSON has no form for; drop it or store it as text.")
    return str(value)


def stem(path: str | Path) -> str:
    """A stage name from a file name: letters, digits and dashes."""
    first = Path(str(path)).name.split(".")[0]
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in first).strip("-")[:40] or "rows"
