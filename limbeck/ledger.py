"""Every model call that this run directory ever bought: SQLite, one writer thread, grouped durable commits."""

import contextlib
import dataclasses
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import LimbeckError

KEY_SCHEMA = 1  # what a call's key is made of; a change here means that old replies are not found
GROUP_SECONDS, GROUP_CALLS = 0.01, 500  # a kill loses what the open group holds

_SCHEMA = """
create table if not exists meta (name text primary key, value text);
create table if not exists request (words text primary key, model text, body text);
create table if not exists call (
    key text primary key, words text, model text, occurrence int, draw int, salt text, reply text, refused text,
    served text, prompt_tokens int, completion_tokens int, cost real, seconds real, at real, site text, row text,
    reused int default 0
);
create index if not exists call_site on call (site, row);
"""


@dataclasses.dataclass(slots=True)
class Record:
    """One bought call: its key, what was asked, what came back, and what it cost."""

    key: str
    words: str  # digest of model and canonical request
    model: str
    body: str  # the canonical request as JSON, stored once per words
    occurrence: int
    draw: int
    salt: str
    reply: dict[str, Any] | None
    refused: str | None
    served: str | None
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float
    site: str
    row: str


class Ledger:
    """One run directory's calls. `put` returns at once; `flush` returns when all that was put is on the disk."""

    def __init__(self, directory: Path, *, readonly: bool = False):
        self.path = directory / "calls.sqlite"
        self._writer: threading.Thread | None = None
        try:
            if readonly:
                self._db = opened(self.path)
            else:
                directory.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(self.path, check_same_thread=False)
                self._db.executescript("pragma journal_mode=wal; pragma synchronous=full;" + _SCHEMA)
            found = self._db.execute("select value from meta where name='key_schema'").fetchone()
        except (sqlite3.OperationalError, OSError) as error:
            raise LimbeckError(f"the ledger {self.path} cannot be opened: {error}; it wants to write there.") from None
        except sqlite3.DatabaseError as error:
            raise LimbeckError(
                f"the ledger {self.path} cannot be read ({error}); it may be damaged: move it away and keep it."
            ) from None
        if found is None and not readonly:
            self._db.execute("insert into meta values ('key_schema', ?)", (str(KEY_SCHEMA),))
            self._db.commit()
        elif found is not None and found[0] != str(KEY_SCHEMA):
            raise LimbeckError(
                f"the ledger {self.path} was written with call keys of version {found[0]}, this limbeck makes version "
                f"{KEY_SCHEMA}: its replies would be bought again. Use the limbeck that wrote it, or another --out."
            )
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Record | threading.Event | None] = queue.SimpleQueue()
        self._failed: BaseException | None = None
        if not readonly:
            self._writer = threading.Thread(target=self._write, name="limbeck-ledger", daemon=True)
            self._writer.start()

    # -- writing
    def put(self, record: Record) -> None:
        """Hands a bought call to the writer thread."""
        if self._failed:
            raise LimbeckError(f"the ledger {self.path} cannot be written: {self._failed}; free space, then run again.")
        self._queue.put(record)

    def flush(self) -> None:
        """Blocks until every call that was put is durable."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()
        if self._failed:
            raise LimbeckError(f"the ledger {self.path} cannot be written: {self._failed}; free space, then run again.")

    def _write(self) -> None:
        open_ = True
        while open_:
            group, waiting = [], []
            item = self._queue.get()
            until = time.monotonic() + GROUP_SECONDS
            while True:
                if item is None:
                    open_ = False
                elif isinstance(item, threading.Event):
                    waiting.append(item)
                else:
                    group.append(item)
                if not open_ or waiting or len(group) >= GROUP_CALLS:
                    break
                try:
                    item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
            try:
                self._commit(group)
            except BaseException as error:  # told to whoever puts or flushes next
                self._failed = error
            for event in waiting:
                event.set()

    def _commit(self, group: list[Record]) -> None:
        if not group:
            return
        now = time.time()
        with self._lock, self._db:
            self._db.executemany(
                "insert or ignore into request values (?, ?, ?)", [(r.words, r.model, r.body) for r in group]
            )
            self._db.executemany(
                "insert or ignore into call values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0)",
                [
                    (
                        r.key, r.words, r.model, r.occurrence, r.draw, r.salt,
                        None if r.reply is None else json.dumps(r.reply, ensure_ascii=True), r.refused, r.served,
                        r.prompt_tokens, r.completion_tokens, r.cost, r.seconds, now, r.site, r.row,
                    )
                    for r in group
                ],
            )  # fmt: skip

    # -- reading
    def _all(self, sql: str, values: tuple = ()) -> list[tuple]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def have(self, keys: list[str]) -> set[str]:
        """Which of these keys are held."""
        found: set[str] = set()
        for chunk in _chunks(keys):
            found.update(k for (k,) in self._all(f"select key from call where key in ({_marks(chunk)})", tuple(chunk)))
        return found

    def replies(self, keys: list[str]) -> dict[str, tuple[dict[str, Any] | None, str | None]]:
        """Per key: the reply as JSON, or None and the reason why the model refused."""
        found = {}
        for chunk in _chunks(keys):
            sql = f"select key, reply, refused from call where key in ({_marks(chunk)})"
            for key, reply, refused in self._all(sql, tuple(chunk)):
                found[key] = (json.loads(reply) if reply else None, refused)
        return found

    def bought_before(self, site: str, rows: set[str]) -> dict[str, dict[str, tuple[str, str, str]]]:
        """Per row digest, what this place in the recipe bought for it earlier: key -> (model, request, salt)."""
        found: dict[str, dict[str, tuple[str, str, str]]] = {}
        sql = "select c.row, c.key, c.model, r.body, c.salt from call c join request r using (words) where c.site = ?"
        for row, key, *asked in self._all(sql, (site,)):
            if row in rows:
                found.setdefault(row, {})[key] = tuple(asked)
        return found

    def served(self, model: str) -> str | None:
        """The model that the endpoint last said it served under this model digest."""
        found = self._all("select served from call where model = ? and served is not null limit 1", (model,))
        return found[0][0] if found else None

    def spent(self) -> dict[str, float]:
        """What this directory has bought so far: calls, tokens, money (of the calls whose price is known)."""
        sql = """select count(*), coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(cost), 0)
                 from call where reused = 0"""
        calls, tokens, money = self._all(sql)[0]
        return {"calls": calls, "tokens": tokens, "money": money}

    def call(self, key: str) -> dict[str, Any] | None:
        """Everything held about one call, its request included."""
        sql = """select c.key, c.model, r.body, c.reply, c.refused, c.served, c.prompt_tokens, c.completion_tokens,
                 c.cost, c.seconds, c.at, c.draw, c.occurrence, c.row from call c left join request r using (words)
                 where c.key = ?"""
        for values in self._all(sql, (key,)):
            names = "key model request reply refused served prompt_tokens completion_tokens cost seconds at draw"
            found = dict(zip([*names.split(), "occurrence", "row"], values, strict=True))
            found |= {n: json.loads(found[n]) for n in ("request", "reply") if found[n]}
            return found
        return None

    def borrow(self, other: Path, keys: list[str]) -> set[str]:
        """Copies those of `keys` that another run's ledger holds into this one, marked as reused and free."""
        path = other / "ledger" / "calls.sqlite"
        if not path.exists():
            raise LimbeckError(f"--reuse {other} holds no ledger; give the directory of an earlier run.")
        taken: set[str] = set()
        self.flush()
        with self._lock, contextlib.closing(opened(path)) as source:
            if not source.execute("select 1 from sqlite_master where name = 'call'").fetchone():
                return taken  # its owner has only just opened it
            for chunk in _chunks(keys):
                calls = source.execute(f"select * from call where key in ({_marks(chunk)})", tuple(chunk)).fetchall()
                words = [c[1] for c in calls]
                asked = source.execute(
                    f"select * from request where words in ({_marks(words)})", tuple(words)
                ).fetchall()
                with self._db:
                    self._db.executemany("insert or ignore into request values (?,?,?)", asked)
                    self._db.executemany(
                        f"insert or ignore into call values ({_marks(range(17))})", [(*c[:-1], 1) for c in calls]
                    )
                taken.update(c[0] for c in calls)
        return taken

    def close(self) -> None:
        """Writes what is waiting and closes the file."""
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
        self._db.close()


def opened(path: Path) -> sqlite3.Connection:
    """Opens a ledger for reading, also where nothing can be written, not even SQLite's own side files."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
    try:
        db.execute("select 1 from sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    return db


def _chunks(values: list[str], size: int = 500) -> Iterator[list[str]]:
    for i in range(0, len(values), size):
        yield values[i : i + size]


def _marks(values: Iterable) -> str:
    return ",".join("?" for _ in values)
