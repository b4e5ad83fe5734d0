"""stages/<name>/: what a stage made, committed by one atomic rename, and the writer that settles column types."""

import contextlib
import json
import pickle
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import physical
from .disk import aside, lock, sync
from .errors import LimbeckError

BATCH = 1024  # rows in memory at a time
SUMS = "sums.json"  # beside a stage's files: each one's size and the checksum of its end
_END = 1 << 20  # bytes: all of meta.json, and a Parquet file's footer; the pages before it have checksums of their own
# What the store keeps beside the data. `_digest`: the row's hash. `_parent`: the index of the input row.
# `_changed`: which of the parent's columns this stage replaced. `_from`: lineage ids. `_call`: ledger keys.
RESERVED = {
    "_digest": pa.binary(16),
    "_parent": pa.int64(),
    "_changed": pa.list_(pa.string()),
    "_from": pa.list_(pa.string()),
    "_call": pa.list_(pa.string()),
    "_reason": pa.string(),
    "_detail": pa.string(),
    "_row": pa.string(),
}


class Writer:
    """Spools rows to disk, learns each column's kind on the way, and writes one Parquet file with settled types."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self.kinds: dict[str, set[str]] = {}
        self._rows: list[dict[str, Any]] = []
        self._spool: Any = None

    def add(self, row: dict[str, Any]) -> None:
        kinds = self.kinds
        for name, value in row.items():
            seen = kinds.get(name)
            if seen is None:
                if not name.isascii() and physical.kind(name) != "str":
                    raise LimbeckError(f"a column is named {name!r}, which is not valid Unicode; rename it.")
                seen = kinds[name] = set()
            if name not in RESERVED:
                seen.add(physical.kind(value))
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= BATCH:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 (closed with the writer)
            pickle.dump(self._rows, self._spool, pickle.HIGHEST_PROTOCOL)
            self._rows = []

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        if self._spool is not None:
            self._spool.seek(0)
            with contextlib.suppress(EOFError):
                while True:
                    yield pickle.load(self._spool)
        if self._rows:
            yield self._rows

    def close(self) -> dict[str, str]:
        """Writes the file, durably, and returns {column: kind} of the data columns."""
        settled = {name: physical.join(seen) for name, seen in self.kinds.items() if name not in RESERVED}
        fields = [
            pa.field(name, RESERVED[name]) if name in RESERVED else physical.field(name, settled[name])
            for name in self.kinds
        ]
        schema = pa.schema(fields)
        with pq.ParquetWriter(self.path, schema, compression="zstd", write_page_checksum=True) as out:
            for rows in self._batches():
                arrays = [physical.to_array([r.get(f.name) for r in rows], f) for f in fields]
                out.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if self._spool is not None:
            self._spool.close()
        sync(self.path)
        return settled


def read(path: Path, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """Streams the rows of a Parquet file as dicts, None for absent; `columns` limits what is read.

    Raises LimbeckError for a damaged file. If it is of a stage, that is set aside and made anew by the next run.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            wanted = None if columns is None else [c for c in columns if c in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH, columns=wanted):
                names = batch.schema.names
                decoded = [physical.from_array(batch.column(i), batch.schema.field(i)) for i in range(len(names))]
                for values in zip(*decoded, strict=True):
                    yield dict(zip(names, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's refusal, such as too many open files: nothing is known of the bytes
        why = " ".join(str(error).split())
        if not (path.parent / "meta.json").exists():
            raise LimbeckError(f"{path} cannot be read, it may be damaged: {why}") from None
        kept = _set_aside(path.parent)
        raise LimbeckError(
            f"the stage {path.parent} was damaged ({path.name}: {why}): it was set aside as {kept}; run again to go "
            f"on: it is made anew from the replies that the ledger holds."
        ) from None


class Store:
    """The stages of one run directory. A stage exists whole or not at all: its name holds its content's key."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.used: dict[str, None] = {}  # in the order in which this run needed them

    def path(self, name: str) -> Path:
        return self.root / name

    def has(self, name: str) -> bool:
        """Whether a stage is there and whole. A damaged one is set aside, and said: its maker makes it anew."""
        self.used.setdefault(name)
        stage = self.root / name
        if why := damage(stage):
            kept = _set_aside(stage)
            print(f"the stage {stage} was damaged ({why}) and set aside as {kept}; it is made anew.", file=sys.stderr)
        return (stage / "meta.json").exists()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Gives a directory to write a stage in; what was not committed vanishes with the block."""
        path = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        path.chmod(self.root.stat().st_mode & 0o777)  # whoever may read the run may read its stages
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def commit(self, scratch: Path, name: str) -> Path:
        """Makes a scratch directory durable and gives it its name, in one rename. Returns the stage's path."""
        self.used.setdefault(name)
        final = self.root / name
        (scratch / SUMS).write_text(json.dumps({f.name: _sum(f) for f in sorted(scratch.iterdir())}))
        for file in scratch.iterdir():
            sync(file)
        sync(scratch)
        if not (final / "meta.json").exists():  # else an equal stage got there first, with the same rows
            scratch.rename(final)
            sync(self.root)
        return final


def damage(stage: Path) -> str | None:
    """What is wrong with a stage's files; None for a whole stage, or for none at all. Costs no reading of the rows."""
    if not stage.is_dir():
        return None
    try:
        if (stage / SUMS).exists():
            sums = json.loads((stage / SUMS).read_text())
            return next((f"{name} has changed" for name, told in sums.items() if _sum(stage / name) != told), None)
        if not isinstance(meta(stage), dict):  # of an earlier version, without checksums
            return "meta.json holds no record"
        for file in stage.glob("*.parquet"):
            pq.read_metadata(file)
    except FileNotFoundError as error:
        return f"{Path(error.filename or SUMS).name} is missing"
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return " ".join(str(error).split())
    return None


def _sum(file: Path) -> list[int]:
    """A file's size and the checksum of its end."""
    with file.open("rb") as data:
        size = data.seek(0, 2)
        data.seek(max(0, size - _END))
        return [size, zlib.crc32(data.read())]


def _set_aside(stage: Path) -> str:
    kept = aside(stage)
    stage.rename(kept)
    return kept.name


def meta(stage: Path) -> dict[str, Any]:
    """Reads a stage's meta.json."""
    return json.loads((stage / "meta.json").read_text())


def gc(run_dir: Path, models: Iterable[str] = ()) -> tuple[int, list[str]]:
    """Removes the stages that the last finished run did not use, and the trained models named; never the ledger.

    Returns the bytes freed and the names removed. Raises LimbeckError where no run has finished yet.
    """
    record = run_dir / "used.json"
    if not record.exists():
        raise LimbeckError(f"{run_dir} holds no finished run, so nothing is known to be unused; finish it first.")
    with lock(run_dir):
        return _gc(run_dir, set(json.loads(record.read_text())["stages"]), models)


def _gc(run_dir: Path, used: set[str], models: Iterable[str]) -> tuple[int, list[str]]:
    removed, freed = [], 0
    stale = [p for p in sorted((run_dir / "stages").iterdir()) if p.is_dir() and p.name not in used]
    for name in models:
        path = run_dir / "models" / name
        if not path.is_dir():
            have = sorted(p.name for p in (run_dir / "models").glob("*")) or "none"
            raise LimbeckError(f"gc was told to remove the model {name!r}; {run_dir} has {have}.")
        stale.append(path)
    for path in stale:
        freed += sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        shutil.rmtree(path)
        removed.append(path.name)
    return freed, removed
