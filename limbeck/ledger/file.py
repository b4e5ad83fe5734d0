"""calls.sqlite: its tables, how it is opened on local and network disks, and what is saved of a damaged one."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import disk
from ..errors import LimbeckError
from .blobs import is_whole
from .submitted import TABLES as _BATCHES

_TABLES = """
create table if not exists meta (name text primary key, value text);
create table if not exists request (words text primary key, model text, body text);
create table if not exists call (
    key text primary key, words text, model text, occurrence int, draw int, salt text, reply text, refused text,
    served text, prompt_tokens int, completion_tokens int, cost real, seconds real, at real, site text, row text,
    reused int default 0
);
create index if not exists call_site on call (site, row);
create table if not exists image (words text, digest text, primary key (words, digest)) without rowid;
"""
# Came later than the rest: an older ledger gets these columns when it is opened for writing.
_ADDED = {"kind": "text default 'chat'", "recipe": "text", "pack": "text", "pack_at": "int", "pack_size": "int"}
_TOTALS = """
create table total (site text primary key, calls int, tokens int, money real);
insert into total select coalesce(site, ''), count(*), sum(prompt_tokens + completion_tokens), total(cost)
    from call where reused = 0 group by 1;
create trigger call_counted after insert on call when new.reused = 0 and new.kind != 'tool' begin
    insert or ignore into total values (new.site, 0, 0, 0);
    update total set calls = calls + 1, tokens = tokens + new.prompt_tokens + new.completion_tokens,
        money = money + coalesce(new.cost, 0) where site = new.site;
end;
create table damaged as select * from call where 0;
"""
COLUMNS = (
    "key", "words", "model", "occurrence", "draw", "salt", "reply", "refused", "served", "prompt_tokens",
    "completion_tokens", "cost", "seconds", "at", "site", "row", "reused", *_ADDED,
)  # fmt: skip
INSERT = f"insert or ignore into call ({', '.join(COLUMNS)}) values ({', '.join('?' * len(COLUMNS))})"
_KEEP_LARGER = """
insert into total values (?, ?, ?, ?) on conflict (site) do update set
    calls = max(calls, excluded.calls), tokens = max(tokens, excluded.tokens), money = max(money, excluded.money)
"""
_CHECKED = 256 << 20  # bytes; beyond a third of a second's reading, damage by a kill shows when it is read
_SPAN, _GAP = 1024, 16  # rows read at a time of a damaged file, and how many such spans without any are its end
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error of SQLite says that the file's bytes are wrong, rather than a full disk or a lock."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _CORRUPT


def writable(path: Path) -> tuple[sqlite3.Connection, str | None]:
    """Opens a ledger to write, makes or completes its tables, and says which network file system it lies on.

    There, WAL cannot work (it wants memory that all machines share): a rollback journal takes its place. Raises
    LimbeckError for a damaged file, after it is set aside and what can be read of it is saved.
    """
    unclean = suspect(path).exists() or (path.with_name(f"{path.name}-wal").exists() and _size(path) <= _CHECKED)
    new = not path.exists()
    kind = disk.network(path.parent)
    bare = kind is not None and not disk.keeps_locks(path.parent)  # the run's own lock has to do
    db = sqlite3.connect(f"{path.absolute().as_uri()}{'?nolock=1' if bare else ''}", uri=True, check_same_thread=False,
                         timeout=60)  # fmt: skip
    try:
        db.execute("pragma cell_size_check=on")
        if kind is None:
            db.execute("pragma journal_mode=wal")
        else:  # a journal in WAL form, from a local disk, is taken over without its shared memory
            db.execute("pragma locking_mode=exclusive")
            db.execute("pragma journal_mode=delete")
            db.execute("pragma locking_mode=normal")
        db.execute("pragma synchronous=full")
        if suspect(path).exists() and (sure := suspect(path).read_text()):  # seen while it was written to
            raise sqlite3.DatabaseError(sure)
        if unclean and (told := db.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(told)
        complete(db)
    except sqlite3.DatabaseError as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError) and not is_damage(error):
            raise
        raise LimbeckError(
            _replace(path, " ".join(str(error).replace("*** in database main ***", "").split()))
        ) from None
    if new:
        disk.sync(path.parent)
        disk.sync(path.parent.parent)
    suspect(path).unlink(missing_ok=True)
    return db, kind


def complete(db: sqlite3.Connection) -> None:
    """Makes the tables that are missing and adds the columns that an older ledger lacks, in one transaction."""
    have = {name for _, name, *_ in db.execute("pragma table_info(call)")}
    steps = [f"alter table call add column {name} {kind};" for name, kind in _ADDED.items() if name not in have]
    if not db.execute("select 1 from sqlite_master where name = 'total'").fetchone():
        steps.append(_TOTALS)
    if not db.execute("select 1 from sqlite_master where name = 'batch'").fetchone():
        steps.append(_BATCHES)
    if steps:
        db.executescript("\n".join(["begin;", _TABLES, *steps, "commit;"]))


def readable(path: Path) -> sqlite3.Connection:
    """Opens a ledger for reading, also where nothing can be written, not even SQLite's own side files."""
    where = path.absolute().as_uri()
    db = sqlite3.connect(f"{where}?mode=ro", uri=True, check_same_thread=False, timeout=60)
    try:
        db.execute("select 1 from sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        db = sqlite3.connect(f"{where}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    db.execute("pragma cell_size_check=on")
    return db


def columns(db: sqlite3.Connection) -> str:
    """The columns of `call` as SQL, with a stand-in for each that an older ledger lacks."""
    have = {name for _, name, *_ in db.execute("pragma table_info(call)")}
    stand_in = {"kind": "'chat'"}
    return ", ".join(c if c in have else f"{stand_in.get(c, 'null')} as {c}" for c in COLUMNS)


def suspect(path: Path) -> Path:
    """The mark that a ledger's bytes were found wrong: the next opening reads it through."""
    return path.with_name(f"{path.name}.suspect")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _replace(path: Path, why: str) -> str:
    """Saves what can be read of a damaged ledger into a new one in its place; returns the line that tells it."""
    kept = disk.aside(path)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    saved, lost = _salvage(path, fresh)
    wal = path.with_name(f"{path.name}-wal")
    shutil.copyfile(path, kept)
    if wal.exists():  # left beside the new file, SQLite would play it into that
        wal.rename(kept.with_name(f"{kept.name}-wal"))
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    os.replace(fresh, path)
    disk.sync(path.parent)
    suspect(path).unlink(missing_ok=True)
    missing = "" if lost == 0 else f" and {lost:,} were lost" if lost else "; how many were lost is not known"
    return (
        f"the ledger {path} was damaged ({why}): it was set aside as {kept.name}, {saved:,} calls of it were saved"
        f"{missing}; run again to go on: what was lost is bought anew."
    )


def _salvage(path: Path, fresh: Path) -> tuple[int, int | None]:
    """Copies every readable call, row by row, with its request. Returns how many, and how many were lost if known."""
    with contextlib.closing(sqlite3.connect(path)) as old, contextlib.closing(sqlite3.connect(fresh)) as new:
        new.execute("pragma synchronous=full")
        complete(new)
        with new:
            try:
                old.execute("pragma writable_schema=on")  # or SQLite refuses a truncated file outright
                version = old.execute("select value from meta where name = 'key_schema'").fetchone()
                sql = f"select {columns(old)} from call"
                new.execute("insert into meta values ('key_schema', ?)", version)
            except sqlite3.Error:  # nothing tells what these bytes were
                return 0, None
            with contextlib.suppress(sqlite3.DatabaseError):  # images: an older ledger has none
                new.executemany("insert into image values (?, ?)", old.execute("select words, digest from image"))
            for table, width in (("batch", 9), ("batch_call", 10)):  # an older ledger has none
                with contextlib.suppress(sqlite3.DatabaseError):
                    handed_in = old.execute(f"select * from {table}").fetchall()
                    new.executemany(f"insert into {table} values ({', '.join('?' * width)})", handed_in)
            known: set[str] = set()
            for rows in _rows(old, "request", "select words, model, body from request"):
                whole = [r for r in rows if is_whole(r[2], r[0])]
                new.executemany("insert or ignore into request values (?, ?, ?)", whole)
                known.update(r[0] for r in whole)
            for rows in _rows(old, "call", sql):
                whole = [c for c in rows if c[1] in known and is_whole(c[6], c[0]) and not any(map(_blank, c))]
                new.executemany(INSERT, whole)
            saved = new.execute("select count(*) from call").fetchone()[0]
            with contextlib.suppress(sqlite3.DatabaseError):  # what was lost was paid for; an older ledger kept no sums
                spent = old.execute("select site, calls, tokens, money from total").fetchall()
                new.executemany(_KEEP_LARGER, (one for one in spent if not _blank(one[0])))
        try:
            held = old.execute("select count(*) from call").fetchone()[0]  # counts an index, not the rows
        except sqlite3.DatabaseError:
            return saved, None
        return saved, held - saved if held >= saved else None


def _blank(value: Any) -> bool:
    """Whether a text is what a disk gives for bytes that it never got."""
    return isinstance(value, str) and "\0" in value


def _rows(db: sqlite3.Connection, table: str, sql: str) -> Iterator[list[tuple]]:
    """The rows of a table that can be read, some at a time: a span that cannot is halved, down to single rows."""
    last = 0
    with contextlib.suppress(sqlite3.DatabaseError):
        last = db.execute(f"select max(rowid) from {table}").fetchone()[0] or 0
    start, nothing = 1, 0
    while start <= last or nothing < _GAP:  # `last` itself may be damaged
        found = list(_readable(db, sql, start, start + _SPAN - 1))
        yield found
        start, nothing = start + _SPAN, 0 if found else nothing + 1


def _readable(db: sqlite3.Connection, sql: str, low: int, high: int) -> Iterator[tuple]:
    try:
        yield from db.execute(f"{sql} where rowid between ? and ?", (low, high)).fetchall()
    except sqlite3.DatabaseError:
        if low < high:
            middle = (low + high) // 2
            yield from _readable(db, sql, low, middle)
            yield from _readable(db, sql, middle + 1, high)
