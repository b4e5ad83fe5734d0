"""Every model call that this run directory ever bought: SQLite, one writer thread, grouped durable commits."""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import LimbeckError
from .blobs import Blobs, Damaged, frame, frame_json, is_whole, unframe, unframe_json
from .file import COLUMNS, INSERT, columns, is_damage, readable, suspect, writable
from .record import Record
from .submitted import Submitted
from .tokens import LARGE, decode, encode

KEY_SCHEMA = 1  # what a call's key is made of; a change here means that old replies are not found
GROUP_SECONDS, GROUP_CALLS = 0.02, 500  # a kill loses what the open group holds


class Ledger:
    """One run directory's calls. `put` returns at once; `flush` returns when all that was put is on the disk.

    Reading has a connection of its own: it never waits for a write, and sees only what is durable. On a network file
    system both share one; `network` then names its kind.
    """

    def __init__(self, directory: Path, *, readonly: bool = False):
        self.path = directory / "calls.sqlite"
        self.blobs = Blobs(directory / "blobs")
        self.batches = Submitted(self)
        self.recipe: str | None = None  # on whose behalf is bought from now on
        self.network: str | None = None
        self._db: sqlite3.Connection | None = None
        try:
            if not readonly:
                directory.mkdir(parents=True, exist_ok=True)
                self._db, self.network = writable(self.path)
            self._reader = readable(self.path) if self.network is None or self._db is None else self._db
            found = self._reader.execute("select value from meta where name='key_schema'").fetchone()
        except (sqlite3.OperationalError, OSError) as error:
            raise LimbeckError(f"the ledger {self.path} cannot be opened: {error}; it wants to write there.") from None
        except sqlite3.DatabaseError as error:
            raise LimbeckError(
                f"the ledger {self.path} cannot be read ({error}); it may be damaged: running its recipe again saves "
                f"what can be read of it."
            ) from None
        if found is None and self._db is not None:
            with self._db:
                self._db.execute("insert into meta values ('key_schema', ?)", (str(KEY_SCHEMA),))
        elif found is not None and found[0] != str(KEY_SCHEMA):
            raise LimbeckError(
                f"the ledger {self.path} was written with call keys of version {found[0]}, this limbeck makes version "
                f"{KEY_SCHEMA}: its replies would be bought again. Use the limbeck that wrote it, or another --out."
            )
        self._writing = threading.Lock()
        self._reading = self._writing if self._reader is self._db else threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._waiting: list[Record] = []
        self._put = self._durable = 0  # how many calls were put, and how many of them are on the disk
        self._hurry = self._closing = False
        self._failed: BaseException | None = None
        self._writer: threading.Thread | None = None
        if self._db is not None:
            self._writer = threading.Thread(target=self._write, name="limbeck-ledger", daemon=True)
            self._writer.start()

    # -- writing
    def put(self, record: Record) -> None:
        """Hands a bought call to the writer thread. Raises LimbeckError once the disk has refused one."""
        with self._turn:
            self._waiting.append(record)
            self._put += 1
            if len(self._waiting) in (1, GROUP_CALLS):
                self._turn.notify_all()
        if self._failed:
            raise self._unwritten()

    def flush(self) -> None:
        """Blocks until every call that was put is durable."""
        with self._turn:
            upto = self._put
            self._hurry = bool(self._waiting)
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._durable >= upto or self._failed)
        if self._failed:
            raise self._unwritten()

    @property
    def behind(self) -> int:
        """How many calls were put and are not durable yet."""
        return self._put - self._durable

    def catch_up(self) -> None:
        """Blocks until no more than a group is waiting to be written: a kill shall lose no more than that."""
        with self._turn:
            self._turn.wait_for(lambda: self.behind <= GROUP_CALLS or self._failed)

    def _unwritten(self) -> LimbeckError:
        return LimbeckError(f"the ledger {self.path} cannot be written: {self._failed}; free space, then run again.")

    def _write(self) -> None:
        """The writer thread: takes what came in within a group's time, commits it, and starts over."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or self._closing)
                self._turn.wait_for(
                    lambda: self._hurry or self._closing or len(self._waiting) >= GROUP_CALLS, GROUP_SECONDS
                )
                group = self._waiting[:GROUP_CALLS]
                if not group:
                    return
            try:
                self._commit(group)
            except BaseException as error:  # told to whoever puts or flushes; the group is tried once more at the end
                with self._turn:
                    self._failed = error
                    self._turn.notify_all()
                return
            with self._turn:
                del self._waiting[: len(group)]
                self._durable += len(group)
                self._hurry = self._hurry and bool(self._waiting)
                self._turn.notify_all()

    def _commit(self, group: list[Record]) -> None:
        """Makes a group durable: first the files that its rows name, then the rows."""
        assert self._db is not None
        now, at = time.time(), 0
        packed: dict[int, tuple[int, int]] = {}
        entries: list[bytes] = []
        for r in group:
            if r.reply is not None and (large := {k: r.reply[k] for k in LARGE if r.reply.get(k) is not None}):
                entries.append(frame(encode(large), r.key))
                packed[id(r)] = (at, len(entries[-1]))
                at += len(entries[-1])
        images = {d: data for r in group for d, data in r.blobs.items()}
        calls = []
        with self._writing:
            pack = self.blobs.write(images, entries) if images or entries else None
            for r in group:
                place = (pack, *packed[id(r)]) if id(r) in packed else (None, None, None)
                reply = r.reply and {k: v for k, v in r.reply.items() if k not in LARGE or v is None}
                calls.append((
                    r.key, r.words, r.model, r.occurrence, r.draw, r.salt,
                    None if reply is None else frame_json(reply, r.key), r.refused, r.served, r.prompt_tokens,
                    r.completion_tokens, r.cost, r.seconds, now, r.site, r.row, 0, r.kind, r.recipe, *place,
                ))  # fmt: skip
            asked = {r.words: (r.words, r.model, frame(r.body.encode(), r.words)) for r in group}
            shown = [(r.words, d) for r in group for d in r.blobs]
            self._insert(asked.values(), shown, calls)

    def _insert(self, requests: Iterable[tuple], images: Iterable[tuple], calls: Iterable[tuple]) -> None:
        assert self._db is not None
        try:
            with self._db:
                self._db.executemany("insert or ignore into request values (?, ?, ?)", requests)
                self._db.executemany("insert or ignore into image values (?, ?)", images)
                self._db.executemany(INSERT, calls)
        except sqlite3.DatabaseError as error:
            self._suspect(error)
            raise

    # -- reading
    def _all(self, sql: str, values: Iterable = ()) -> list[tuple]:
        try:
            with self._reading:
                return self._reader.execute(sql, tuple(values)).fetchall()
        except sqlite3.DatabaseError as error:
            self._suspect(error)
            raise LimbeckError(
                f"the ledger {self.path} cannot be read ({error}); run again: what is damaged is set aside and named."
            ) from None

    def _suspect(self, error: sqlite3.Error) -> None:
        if self._db is not None and is_damage(error):
            with contextlib.suppress(OSError):
                suspect(self.path).touch()

    def have(self, keys: list[str]) -> set[str]:
        """Which of these keys are held."""
        found: set[str] = set()
        for chunk in _chunks(keys):
            found.update(k for (k,) in self._all(f"select key from call where key in ({_marks(chunk)})", chunk))
        return found

    def replies(self, keys: list[str], whole: bool = False) -> dict[str, tuple[dict[str, Any] | None, str | None]]:
        """Per key: the reply as JSON, or None and the reason why the model refused.

        `whole` adds the reply's log-probabilities, token ids and vector. Raises LimbeckError for damaged replies,
        after they are set aside: the next run buys them anew.
        """
        found: dict[str, tuple[dict[str, Any] | None, str | None]] = {}
        damaged: dict[str, str] = {}
        names = "key, reply, refused" + (", pack, pack_at, pack_size" if whole else "")
        for chunk in _chunks(keys):
            for key, stored, refused, *place in self._all(
                f"select {names} from call where key in ({_marks(chunk)})", chunk
            ):
                try:
                    reply = None if stored is None else unframe_json(stored, key)
                    if reply is not None and place and place[0] is not None:
                        reply |= decode(unframe(self.blobs.entry(*place), key)[0])
                    found[key] = (reply, refused)
                except Damaged as error:
                    damaged[key] = str(error)
        if damaged:
            raise self._set_aside(damaged)
        return found

    def bought_before(self, site: str, rows: set[str]) -> dict[str, dict[str, tuple[str, str, str]]]:
        """Per row digest, what this place in the recipe bought for it earlier: key -> (model, request, salt)."""
        found: dict[str, dict[str, tuple[str, str, str]]] = {}
        calls = list[tuple]()
        for chunk in _chunks(list(rows)):
            sql = f"select row, key, model, words, salt from call where site = ? and row in ({_marks(chunk)})"
            calls += self._all(sql, (site, *chunk))
        bodies: dict[str, str] = {}
        for chunk in _chunks(list({c[3] for c in calls})):
            for words, body in self._all(f"select words, body from request where words in ({_marks(chunk)})", chunk):
                bodies[words] = self._body(words, body)
        for row, key, model, words, salt in calls:
            if words in bodies:
                found.setdefault(row, {})[key] = (model, bodies[words], salt)
        return found

    def _body(self, words: str, stored: bytes | str) -> str:
        if isinstance(stored, str):  # of an earlier version
            return stored
        try:
            return unframe(stored, words)[0].decode()
        except Damaged as error:
            asking = self._all("select key from call where words = ?", (words,))
            raise self._set_aside({key: str(error) for (key,) in asking}, words) from None

    def _set_aside(self, damaged: dict[str, str], words: str | None = None) -> LimbeckError:
        """Moves damaged calls to the table `damaged`, so that they are bought anew; returns the error that says so."""
        key, why = next(iter(damaged.items()))
        told = f"the ledger {self.path} holds {len(damaged):,} damaged calls, such as {key} ({why})"
        if self._db is None:
            return LimbeckError(f"{told}; running its recipe again sets them aside and buys them anew.")
        names = ", ".join(COLUMNS)
        try:
            with self._writing, self._db:
                for chunk in _chunks(list(damaged)):
                    which = f"from call where key in ({_marks(chunk)})"
                    self._db.execute(f"insert into damaged ({names}) select {names} {which}", chunk)
                    self._db.execute(f"delete {which}", chunk)
                if words is not None:
                    self._db.execute("delete from request where words = ?", (words,))
        except sqlite3.DatabaseError as error:  # more of the file is damaged than these
            suspect(self.path).write_text(str(error))
            return LimbeckError(f"{told}, and more of it is ({error}); run again: what can be read is saved then.")
        return LimbeckError(f"{told}; they were set aside: run again to go on, which buys them anew.")

    def calls_at(self, site: str) -> int:
        """How many calls this place in the recipe has bought so far."""
        found = self._all("select calls from total where site = ?", (site,))
        return found[0][0] if found else 0

    def served(self, model: str) -> str | None:
        """The model that the endpoint last said it served under this model digest."""
        found = self._all("select served from call where model = ? and served is not null limit 1", (model,))
        return found[0][0] if found else None

    def spent(self) -> dict[str, float]:
        """What this directory has bought so far: calls, tokens, money (of the calls whose price is known)."""
        found = self._all("select total(calls), total(tokens), total(money) from total")[0]
        return {"calls": int(found[0]), "tokens": int(found[1]), "money": found[2]}

    def call(self, key: str) -> dict[str, Any] | None:
        """Everything held about one call, its request and the whole reply included."""
        for values in self._all(f"select {columns(self._reader)} from call where key = ?", (key,)):
            found = dict(zip(COLUMNS, values, strict=True))
            asked = self._all("select body from request where words = ?", (found["words"],))
            found["request"] = json.loads(self._body(found["words"], asked[0][0])) if asked else None
            found["reply"] = self.replies([key], whole=found["pack"] is not None)[key][0]
            return {name: value for name, value in found.items() if name not in ("pack", "pack_at", "pack_size")}
        return None

    def calls(self, size: int = 500) -> Iterator[list[dict[str, Any]]]:
        """Every call in the order in which it was kept, some at a time; replies without their large parts.

        Each part is read on its own, so that nobody who writes is kept waiting. `request` is text. Raises LimbeckError
        for what is damaged.
        """
        names = [f"c.{name}" for name in ("rowid", *COLUMNS)]
        part = f"select rowid, {columns(self._reader)} from call where rowid > ? order by rowid limit {size}"
        sql = f"select {', '.join(names)}, r.body from ({part}) c left join request r using (words) order by c.rowid"
        last = 0
        while rows := self._all(sql, (last,)):
            last, found = rows[-1][0], []
            for _, *values, body in rows:
                call = dict(zip(COLUMNS, values, strict=True))
                call["request"] = None if body is None else self._body(call["words"], body)
                try:
                    call["reply"] = None if call["reply"] is None else unframe_json(call["reply"], call["key"])
                except Damaged as error:
                    raise self._set_aside({call["key"]: str(error)}) from None
                found.append(call)
            yield found

    def select(self, sql: str) -> list[tuple]:
        """Asks about all calls at once; `{calls}` in the SQL stands for the table with all columns of today."""
        return self._all(sql.format(calls=f"select {columns(self._reader)} from call"))

    def borrow(self, other: Path, keys: list[str]) -> set[str]:
        """Copies those of `keys` that another run's ledger holds into this one, marked as reused and free.

        What is damaged there is left there.
        """
        path = other / "ledger" / "calls.sqlite"
        if not path.exists():
            raise LimbeckError(f"--reuse {other} holds no ledger; give the directory of an earlier run.")
        taken: set[str] = set()
        self.flush()
        with contextlib.closing(readable(path)) as source:
            if not source.execute("select 1 from sqlite_master where name = 'call'").fetchone():
                return taken  # its owner has only just opened it
            for chunk in _chunks(keys):
                taken |= self._borrow(source, Blobs(path.parent / "blobs"), chunk)
        return taken

    def _borrow(self, source: sqlite3.Connection, beside: Blobs, keys: list[str]) -> set[str]:
        held = source.execute(f"select {columns(source)} from call where key in ({_marks(keys)})", keys)
        calls = [dict(zip(COLUMNS, values, strict=True)) for values in held]
        words = list({c["words"] for c in calls})
        asked = source.execute(f"select words, model, body from request where words in ({_marks(words)})", words)
        requests = {w: (w, model, body) for w, model, body in asked if is_whole(body, w)}
        shown: list[tuple[str, str]] = []
        if source.execute("select 1 from sqlite_master where name = 'image'").fetchone():
            shown = source.execute(
                f"select words, digest from image where words in ({_marks(words)})", words
            ).fetchall()
        images: dict[str, bytes] = {}
        entries: list[bytes] = []
        whole = []
        for call in calls:
            with contextlib.suppress(Damaged):
                if call["words"] not in requests or not is_whole(call["reply"], call["key"]):
                    continue
                images |= {d: beside.image(d) for w, d in shown if w == call["words"] and d not in images}
                if call["pack"] is not None:
                    entry = beside.entry(call["pack"], call["pack_at"], call["pack_size"])
                    unframe(entry, call["key"])
                    call["pack_at"] = sum(map(len, entries))
                    entries.append(entry)
                whole.append(call | {"reused": 1})
        with self._writing:
            pack = self.blobs.write(images, entries) if images or entries else None
            rows = [c | {"pack": pack if c["pack"] is not None else None} for c in whole]
            self._insert(requests.values(), shown, [tuple(row.values()) for row in rows])
        return {call["key"] for call in whole}

    def close(self) -> None:
        """Writes what is waiting and closes the file. What the disk refused before is tried once more."""
        if self._writer is not None and self._db is not None:
            with self._turn:
                self._closing = True
                self._turn.notify_all()
            self._writer.join()
            with contextlib.suppress(Exception):  # whoever put these was told
                self._commit(self._waiting)
            self._waiting = []
        self._reader.close()
        if self._db is not None:
            self._db.close()


def _chunks(values: list[str], size: int = 500) -> Iterator[list[str]]:
    for i in range(0, len(values), size):
        yield values[i : i + size]


def _marks(values: Iterable) -> str:
    return ",".join("?" for _ in values)
