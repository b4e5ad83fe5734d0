"""@op: a function becomes a memoised stage; and the one place where a stage's rows, rejects and counts are written."""

import functools
import heapq
import inspect
import json
import pickle
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import spans, store, table
from .errors import LimbeckError
from .fingerprint import canonical, digest, fingerprint
from .parse import Reject
from .run import current_or_none
from .table import Row, Stage, Stored, Table, own, row_digest

IN_MEMORY = 50_000  # rows of groups that are held at a time


class Made(NamedTuple):
    """What a row-wise stage yields: the index of the input row, its new row or the Reject, the calls behind it."""

    parent: int
    result: Row | Reject
    calls: tuple[str, ...] = ()
    detail: str | None = None  # of a reject: what the model wrote


class Dropped(NamedTuple):
    """What a group- or table-wise op yields for a row that it leaves out."""

    row: Row
    reason: str


def row_stage(
    name: str,
    rows: Table,
    parameters: Any,
    generate: Callable[[Iterator[tuple[int, Row]]], Iterable[Made]],
    *,
    code: str,
) -> Table:
    """Memoises a row-wise operation: new columns and a parent index are stored, not the rows again.

    `generate` turns (index, row) pairs into `Made`, indices never going back. Every input row gives at least one.
    """

    def write(writer: store.Writer, rejects: store.Writer, seen: Counter, digests: bytearray) -> None:
        before = dict.fromkeys(rows.columns)
        held: deque[tuple[int, Row]] = deque()

        def watched() -> Iterator[tuple[int, Row]]:
            for i, row in enumerate(rows.tracked()):
                held.append((i, row))
                seen["in"] += 1
                yield i, row

        def kept(made: Made) -> None:
            nonlocal digests
            while held[0][0] < made.parent:
                held.popleft()
            parent = held[0][1]
            if isinstance(made.result, Reject):
                seen[made.result.reason] += 1
                rejects.add(_rejected(parent, made.result.reason, [parent["_row"]], made.calls, made.detail))
                return
            row = made.result
            new = {k: v for k, v in row.items() if k not in store.RESERVED and not (k in before and parent.get(k) is v)}
            new |= {k: None for k in before if k in parent and k not in row}
            changed = [k for k in new if k in before and not _same(parent.get(k), new[k])]
            new = {k: v for k, v in new.items() if k in changed or (k not in before and v is not None)}
            one = row_digest(row)
            digests += one
            new |= {"_parent": made.parent, "_digest": one}
            if changed:
                new["_changed"] = changed
            if not isinstance(rows, Stored):
                new["_from"] = [parent["_row"]]
            if made.calls:
                new["_call"] = list(made.calls)
            writer.add(new)

        found = iter(generate(watched()))
        try:
            for made in found:
                kept(made)
        finally:  # an interrupt here ends what it was doing
            if isinstance(found, Generator):
                found.close()

    key = digest(name, "row", code, fingerprint(parameters, name), rows.digest)
    with spans.span(f"stage {name}"):
        return _stage(name, key, "row", (rows,), parameters, write, lambda path: Stage(path, (rows,)))


def whole_stage(
    name: str, scope: str, tables: tuple[Table, ...], parameters: Any, generate: Callable[[], Iterable], *, code: str
) -> Table:
    """Memoises a group- or table-wise operation: its rows are stored whole, with the lineage of each."""

    def write(writer: store.Writer, rejects: store.Writer, seen: Counter, digests: bytearray) -> None:
        seen["in"] = tables[0].size
        for made in generate():
            if isinstance(made, Dropped):
                seen[made.reason] += 1
                rejects.add(_rejected(made.row, made.reason, _lineage(made.row), (), None))
                continue
            one = row_digest(made)
            digests += one
            row = {k: v for k, v in made.items() if k not in store.RESERVED and v is not None}
            writer.add(row | {"_digest": one, "_from": _lineage(made)})

    key = digest(name, scope, code, fingerprint(parameters, name), *(t.digest for t in tables))
    with spans.span(f"stage {name}"):
        return _stage(name, key, scope, tables, parameters, write, lambda path: Stored(path, tables))


def _stage(
    name: str, key: str, scope: str, tables: tuple[Table, ...], parameters: Any, write: Callable, opened: Callable
) -> Table:
    place, run, started = table.place(), current_or_none(), time.monotonic()
    stage = f"{name}-{key[:16]}"
    reused = place.has(stage)
    if not reused:
        with place.scratch() as scratch:
            seen: Counter[str] = Counter()
            digests = bytearray()
            writer = store.Writer(scratch / "rows.parquet")
            rejects = store.Writer(scratch / "rejects.parquet")
            write(writer, rejects, seen, digests)
            taken = seen.pop("in", 0)
            record = {"version": 1, "op": name, "key": key, "scope": scope, "columns": writer.close()}
            rejects.close()
            record |= {
                "counts": {"in": taken, "out": writer.count, "rejected": dict(seen)},
                "digest": digest(bytes(digests)),
                "parameters": _told(parameters)[:2000],
                "inputs": [t.describe() for t in tables],
                "seconds": round(time.monotonic() - started, 3),
            }
            (scratch / "meta.json").write_text(json.dumps(record))
            place.commit(scratch, stage)
    made = opened(place.path(stage))
    if run:
        counts = made.meta["counts"]
        run.event("stage", name=stage, op=name, reused=reused, **counts, seconds=made.meta["seconds"])
        rejected = sum(counts["rejected"].values())
        spans.note(reused=reused, rows_in=counts["in"], rows_out=counts["out"], rejected=rejected)
    return made


def _told(value: Any) -> str:
    """Parameters as a reader of meta.json wants them: functions by their names, tables and models by theirs."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={_told(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    return str(getattr(value, "__qualname__", None) or getattr(value, "name", None) or repr(value))


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and a == b)


def _rejected(row: Row, reason: str, lineage: list[str], calls: tuple[str, ...], detail: str | None) -> Row:
    kept = {k: v for k, v in row.items() if k not in store.RESERVED}
    kept |= {"_reason": reason, "_from": lineage, "_call": list(calls) or None, "_detail": detail}
    return {k: v for k, v in kept.items() if v is not None}


def _lineage(row: Row) -> list[str]:
    return list(row["_from"]) if row.get("_from") else [row["_row"]] if row.get("_row") else []


def groups(rows: Table, by: list[str]) -> Iterator[list[Row]]:
    """Yields the rows of each group, groups in order of their first row, without holding more than a part of them."""

    def key_of(row: Row) -> bytes:
        return canonical([row.get(c) for c in by])

    if rows.size <= IN_MEMORY:
        found: dict[bytes, list[Row]] = {}
        for row in rows.tracked():
            found.setdefault(key_of(row), []).append(row)
        yield from found.values()
        return
    parts = rows.size // IN_MEMORY + 1
    with tempfile.TemporaryDirectory() as scratch:
        spools = [(Path(scratch) / str(i)).open("w+b") for i in range(parts)]
        for i, row in enumerate(rows.tracked()):
            group = key_of(row)
            pickle.dump((i, group, row), spools[int(digest(group)[:8], 16) % parts], pickle.HIGHEST_PROTOCOL)
        for spool in spools:  # each part in memory once, to put its groups together in order of their first row
            spool.seek(0)
            whole: dict[bytes, tuple[int, list[Row]]] = {}
            for i, group, row in _unpickled(spool):
                whole.setdefault(group, (i, []))[1].append(row)
            spool.seek(0)
            spool.truncate()
            for first in whole.values():
                pickle.dump(first, spool, pickle.HIGHEST_PROTOCOL)
            spool.seek(0)
        for _, members in heapq.merge(*map(_unpickled, spools), key=lambda pair: pair[0]):
            yield members
        for spool in spools:
            spool.close()


def _unpickled(file: Any) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


def op(scope: str = "row", by: str | list[str] | None = None) -> Callable[[Callable], Callable[..., Table]]:
    """Turns a function into a memoised stage that takes a Table first.

    scope "row": `fn(row, *params)` returns or yields rows or Reject. "group" (needs `by`): `fn(rows, *params)` gets the
    rows of one group; "table": `fn(table, *params)`. These two yield rows or `Dropped(row, reason)`; a row of a group
    has all members as its lineage unless it is `{**row}` of one of them or says `_from`. The key is the function's
    code with what it imports beside it, its parameters and the rows; a parameter without a fingerprint is an error.
    """
    if scope not in ("row", "group", "table"):
        raise LimbeckError(f"@op has no scope {scope!r}; there are row, group and table.")
    if (scope == "group") != (by is not None):
        raise LimbeckError('@op(scope="group") and by= go together: by names the column or columns that make a group.')

    def wrap(fn: Callable) -> Callable[..., Table]:
        name = fn.__name__.strip("_").replace("_", "-")
        signature = inspect.signature(fn)

        @functools.wraps(fn)
        def stage(rows: Table, *args: Any, **kwargs: Any) -> Table:
            if not isinstance(rows, Table):
                raise LimbeckError(f"{name} wants a Table first; it got a {type(rows).__name__}.")
            signature.bind(rows, *args, **kwargs)
            run = current_or_none()
            if run and run.plan is not None and run.plan.holds(rows):
                return run.plan.as_is(rows, decides=name)
            parameters, code = [args, kwargs], fingerprint(fn, name)
            if scope == "row":
                return row_stage(name, rows, parameters, lambda it: _each(fn, it, args, kwargs), code=code)
            if scope == "table":
                others = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, Table))
                make = lambda: fn(_Tracked(rows), *map(_tracked, args), **{k: _tracked(v) for k, v in kwargs.items()})  # noqa: E731
                return whole_stage(name, scope, (rows, *others), parameters, make, code=code)
            columns = [by] if isinstance(by, str) else list(by or ())
            return group_stage(name, rows, columns, parameters, lambda members: fn(members, *args, **kwargs), code=code)

        return stage

    return wrap


def _each(fn: Callable, rows: Iterator[tuple[int, Row]], args: tuple, kwargs: dict) -> Iterator[Made]:
    for i, row in rows:
        made, any_ = fn(own(row), *args, **kwargs), False
        for result in [made] if isinstance(made, dict | Reject) else made or ():
            any_ = True
            yield Made(i, result)
        if not any_:
            yield Made(i, Reject("gave no row"))


def group_stage(
    name: str, rows: Table, by: list[str], parameters: Any, fn: Callable[[list[Row]], Iterable], *, code: str
) -> Table:
    """Memoises an operation on the rows of each group: `fn` yields rows or `Dropped`."""
    rows.need(name, *by)

    def generate() -> Iterator[Row | Dropped]:
        for members in groups(rows, by):
            told: set[str] = set()
            for made in fn(members):
                if not isinstance(made, Dropped) and "_row" not in made and "_from" not in made:
                    made = made | {"_from": [m["_row"] for m in members]}
                told.update(_lineage(made.row if isinstance(made, Dropped) else made))
                yield made
            yield from (Dropped(m, "left out") for m in members if m["_row"] not in told)

    return whole_stage(name, "group", (rows,), [by, parameters], generate, code=code)


class _Tracked(Table):
    """The table as a table-wise op sees it: its rows carry `_row`."""

    def __init__(self, rows: Table):
        self._rows, self.name, self.parents = rows, rows.name, (rows,)

    @property
    def columns(self) -> list[str]:
        return self._rows.columns

    def tracked(self) -> Iterator[Row]:
        return self._rows.tracked()

    def __iter__(self) -> Iterator[Row]:
        return self._rows.tracked()


def _tracked(value: Any) -> Any:
    return _Tracked(value) if isinstance(value, Table) else value
