"""Table: a handle on immutable, ordered rows in files, read in batches.

A row is a dict of JSON data; an absent column equals None. Three kinds of table share one face: `Stored` rows in a
file, the `Stage` of a row-wise operation (its new columns beside an index into its parent), and a `View` that is
recomputed whenever it is read.
"""

import atexit
import copy
import csv
import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from . import readers, store
from .errors import LimbeckError
from .fingerprint import canonical, digest

Row = dict[str, Any]
looked: list[Callable[["Table"], None]] = []  # told when somebody's own code looks into a table: a dry run listens
home: list[store.Store] = []  # the open run's store, newest last; without one, rows go to a temporary directory


def place() -> store.Store:
    return home[-1] if home else _temporary()


@functools.cache
def _temporary() -> store.Store:
    path = tempfile.mkdtemp(prefix="limbeck-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return store.Store(Path(path))


def own(row: Row) -> Row:
    """A copy that somebody else's code may change as it likes, in depth."""
    return {k: v if v is None or isinstance(v, str | int | float) else copy.deepcopy(v) for k, v in row.items()}


def row_digest(row: Row) -> bytes:
    """Hashes one row: its set, unreserved columns as canonical JSON. 16 bytes."""
    data = {k: v for k, v in row.items() if v is not None and k not in store.RESERVED}
    return bytes.fromhex(digest(canonical(data)))


class Table:
    """Immutable, ordered rows in files. Iterate it for dicts; `len`, `columns` and `digest` never hold all rows."""

    name: str  # of the stage, or of the view's kind: the first half of its rows' lineage ids
    parents: "tuple[Table, ...]" = ()

    # -- what each kind of table says for itself
    @property
    def columns(self) -> list[str]:
        raise LimbeckError(f"{type(self).__name__} is not a table by itself; build one with Table.from_rows.")

    def tracked(self) -> Iterator[Row]:
        """Streams the rows with their reserved `_row`, the lineage id `stage:index` of the stored row behind them."""
        raise LimbeckError(f"{type(self).__name__} is not a table by itself; build one with Table.from_rows.")

    def describe(self) -> Any:
        """Where the rows come from, as JSON for the stage's meta file."""
        return {"view": self.name, "of": [p.describe() for p in self.parents]}

    # -- what all share
    def __iter__(self) -> Iterator[Row]:
        for listener in looked:
            listener(self)
        for row in self.tracked():
            row.pop("_row", None)
            yield row

    @functools.cached_property
    def row_digests(self) -> bytes:
        """16 bytes a row, in order."""
        return b"".join(map(row_digest, self.tracked()))

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.row_digests) // 16

    def __len__(self) -> int:
        for listener in looked:
            listener(self)
        return self.size

    def __bool__(self) -> bool:
        return len(self) > 0

    @functools.cached_property
    def digest(self) -> str:
        """The hash of the rows' hashes: independent of files, batches and versions."""
        return digest(self.row_digests)

    def head(self, n: int = 5) -> list[Row]:
        return list(itertools.islice(self, n))

    def take(self, n: int) -> "Table":
        """The first `n` rows, as a view."""
        return View("take", (self,), lambda: itertools.islice(self.tracked(), n))

    def need(self, who: str, *columns: str) -> None:
        """Raises LimbeckError where a column is missing, naming the nearest one; a table without rows lacks none."""
        for column in columns:
            if column not in self.columns and self.size:
                near = get_close_matches(column, self.columns, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise LimbeckError(
                    f"{who} wants a column {column!r}; the rows have {self.columns}. {hint}"
                    f"Rename one with fields(rows, {column}='{{{near[0] if near else 'other'}}}') or --rename."
                )

    def __repr__(self) -> str:
        return f"<Table {self.name}: {', '.join(self.columns)}>"

    # -- in
    @staticmethod
    def from_rows(rows: Iterable[Row], *, name: str = "rows") -> "Table":
        """Writes rows to the run's store (or a temporary one) and returns their table."""
        stages = place()
        with stages.scratch() as scratch:
            writer = store.Writer(scratch / "rows.parquet")
            digests = bytearray()
            for row in rows:
                if not isinstance(row, dict):
                    raise LimbeckError(f"a row is a dict; row {writer.count} is a {type(row).__name__}.")
                if clash := [k for k in row if k in store.RESERVED or not isinstance(k, str)]:
                    raise LimbeckError(f"the column name {clash[0]!r} is reserved or not text; rename it.")
                one = row_digest(row)
                digests += one
                writer.add({k: v for k, v in row.items() if v is not None} | {"_digest": one})
            total = digest(bytes(digests))
            record = {"version": 1, "op": name, "scope": "source", "columns": writer.close(), "digest": total}
            record |= {"counts": {"in": writer.count, "out": writer.count, "rejected": {}}, "inputs": []}
            (scratch / "meta.json").write_text(json.dumps(record))
            return Stored(stages.commit(scratch, f"{name}-{total[:16]}"))

    @staticmethod
    def open(path: str | Path, split: str | None = None) -> "Table":
        """Reads rows from .jsonl, .json, .csv, .parquet (each also .gz where text), or `hf://org/name`."""
        text = str(path)
        if text.startswith("hf://"):
            return Table.from_hf(text, split=split)
        suffix = Path(text.removesuffix(".gz")).suffix
        readers = {".jsonl": Table.from_jsonl, ".ndjson": Table.from_jsonl, ".json": Table.from_json}
        readers |= {".csv": Table.from_csv, ".parquet": Table.from_parquet}
        if suffix not in readers:
            raise LimbeckError(f"{text} ends in {suffix or 'nothing'!r}; limbeck reads {', '.join(readers)} and hf://.")
        return readers[suffix](path)

    @staticmethod
    def from_jsonl(path: str | Path) -> "Table":
        """Reads one JSON object a line (.gz too). A broken line is an error with the file and the line."""

        def rows() -> Iterator[Row]:
            with readers.text(path) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield readers.parsed(line, f"{path}, line {number}")

        return Table.from_rows(rows(), name=readers.stem(path))

    @staticmethod
    def from_json(path: str | Path) -> "Table":
        """Reads a JSON file that holds one list of objects."""
        with readers.text(path) as file:
            try:
                data = json.load(file)
            except ValueError as error:
                raise LimbeckError(f"{path} is not JSON: {error}.") from None
        if not isinstance(data, list) or not all(isinstance(r, dict) for r in data):
            raise LimbeckError(f"{path} should hold a list of objects; for one object a line name it .jsonl.")
        return Table.from_rows(data, name=readers.stem(path))

    @staticmethod
    def from_csv(path: str | Path) -> "Table":
        """Reads a CSV file with a header line. Every value is text: CSV has no other type; an empty cell is absent."""

        def rows() -> Iterator[Row]:
            with readers.text(path) as file:
                for number, row in enumerate(csv.DictReader(file), 2):
                    if None in row:
                        raise LimbeckError(f"{path}, row {number} has more cells than the header; quote its commas.")
                    yield {k: v for k, v in row.items() if v not in ("", None)}

        return Table.from_rows(rows(), name=readers.stem(path))

    @staticmethod
    def from_parquet(path: str | Path) -> "Table":
        """Reads a Parquet file (ours or anyone's: structs become JSON data, dates become text)."""
        if not Path(path).is_file():
            raise LimbeckError(f"there is no file {path}; give the path of a table.")
        try:
            pq.read_schema(path)
        except Exception as error:  # pyarrow raises its own kinds for truncated and foreign files
            raise LimbeckError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from None
        rows = (
            {k: readers.jsonable(v) for k, v in r.items() if k not in store.RESERVED} for r in store.read(Path(path))
        )
        return Table.from_rows(rows, name=readers.stem(path))

    @staticmethod
    def from_hf(source: Any, *, split: str | None = None, config: str | None = None) -> "Table":
        """Reads a Hugging Face dataset: "org/name", "hf://org/name" or a loaded `datasets.Dataset`."""
        name = "hf"
        if isinstance(source, str):
            try:
                import datasets
            except ImportError:
                raise LimbeckError(
                    'from_hf wants `datasets`, which is not installed: pip install "limbeck[train]".'
                ) from None
            name = readers.stem(source)
            try:
                source = datasets.load_dataset(source.removeprefix("hf://"), config, split=split)
            except Exception as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise LimbeckError(f"the dataset {source!r} (split {split!r}) could not be loaded: {first}") from None
        if isinstance(source, dict):
            if len(source) > 1:
                raise LimbeckError(f"the dataset has the splits {sorted(source)}; choose one with split=….")
            source = next(iter(source.values()))
        return Table.from_rows(({k: readers.jsonable(v) for k, v in row.items()} for row in source), name=name)

    # -- out
    def to_jsonl(self, path: str | Path) -> Path:
        """Writes one JSON object a line, absent columns left out."""
        path = Path(path)
        with path.open("w", encoding="utf-8") as out:
            for row in self:
                out.write(json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False) + "\n")
        return path

    def to_parquet(self, path: str | Path, *, lineage: bool = False) -> Path:
        """Writes one Parquet file with settled types; `lineage` keeps each row's `_row`."""
        writer = store.Writer(Path(path))
        for name in self.columns:
            writer.kinds[name] = {"null"}
        lineage = lineage or not self.columns  # Parquet cannot count rows that have no column at all
        for row in self.tracked() if lineage else self:
            writer.add(row)
        writer.close()
        return Path(path)

    def to_hf(self) -> Any:
        """Returns a `datasets.Dataset` with features by type: chat turns as lists of role and content, json as text."""
        import datasets

        with tempfile.TemporaryDirectory() as scratch:
            arrow = pq.read_table(self.to_parquet(Path(scratch) / "rows.parquet"))
        return datasets.Dataset(datasets.table.InMemoryTable(arrow.replace_schema_metadata(None)))


class Stored(Table):
    """Whole rows in a stage's own file: what was read in, and what group- and table-wise operations made."""

    def __init__(self, path: Path, parents: tuple[Table, ...] = ()):
        self.path, self.name, self.parents = path, path.name, parents
        self.meta = store.meta(path)

    @property
    def columns(self) -> list[str]:
        return list(self.meta["columns"])

    def tracked(self) -> Iterator[Row]:
        for i, row in enumerate(store.read(self.path / "rows.parquet", [*self.columns, "_digest"])):
            row = {k: v for k, v in row.items() if v is not None and k != "_digest"}
            row["_row"] = f"{self.name}:{i}"
            yield row

    @functools.cached_property
    def row_digests(self) -> bytes:
        with pq.ParquetFile(self.path / "rows.parquet") as file:
            if "_digest" not in file.schema_arrow.names:
                return b""
            batches = file.iter_batches(store.BATCH * 8, columns=["_digest"])
            return b"".join(b"".join(b.column(0).to_pylist()) for b in batches)

    @functools.cached_property
    def digest(self) -> str:
        return self.meta["digest"]

    @property
    def size(self) -> int:
        return self.meta["counts"]["out"]

    def describe(self) -> Any:
        return {"stage": self.name}


class Stage(Stored):
    """A row-wise operation's output: its new columns, beside an index, never going back, into its parent's rows."""

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys([*self.parents[0].columns, *self.meta["columns"]]))

    def tracked(self) -> Iterator[Row]:
        own_columns = list(self.meta["columns"])
        before = enumerate(self.parents[0].tracked())
        at, parent = -1, dict[str, Any]()
        own = store.read(self.path / "rows.parquet", [*own_columns, "_parent", "_changed"])
        for i, new in enumerate(own):
            while at < new["_parent"]:
                at, parent = next(before)
            row = dict(parent)
            row.update((c, new[c]) for c in own_columns if new[c] is not None)
            for column in new.get("_changed") or ():
                if new[column] is None:
                    row.pop(column, None)
            row["_row"] = f"{self.name}:{i}"
            yield row


class View(Table):
    """Rows that are computed from other tables whenever they are read, and stored nowhere."""

    def __init__(
        self,
        name: str,
        parents: tuple[Table, ...],
        rows: Callable[[], Iterable[Row]],
        columns: list[str] | None = None,
    ):
        self.name, self.parents, self._rows = name, parents, rows
        self._columns = columns if columns is not None else parents[0].columns

    @property
    def columns(self) -> list[str]:
        return self._columns

    def tracked(self) -> Iterator[Row]:
        return iter(self._rows())


class Concat(View):
    """Tables one after the other. Their row hashes are joined, not computed again."""

    def __init__(self, tables: Iterable[Table]):
        parts = tuple(p for t in tables for p in (t.parents if isinstance(t, Concat) else (t,)))
        columns = list(dict.fromkeys(c for t in parts for c in t.columns))
        super().__init__("concat", parts, lambda: itertools.chain.from_iterable(t.tracked() for t in parts), columns)

    @functools.cached_property
    def row_digests(self) -> bytes:
        return b"".join(t.row_digests for t in self.parents)

    @property
    def size(self) -> int:
        return sum(t.size for t in self.parents)
