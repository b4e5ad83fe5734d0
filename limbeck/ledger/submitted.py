"""Batches that a provider was handed: written down before and after, so that no kill makes one be handed in twice."""

import dataclasses
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .blobs import frame
from .record import Record

if TYPE_CHECKING:
    from . import Ledger

TABLES = """
create table if not exists batch (
    tag text primary key, model text, endpoint text, remote text, at real, count int,
    calls real, tokens real, money real
);
create table if not exists batch_call (
    tag text, key text, words text, model text, occurrence int, draw int, salt text, site text, row text, kind text,
    primary key (key, tag)
) without rowid;
create index if not exists batch_call_tag on batch_call (tag);
"""
_ASKED = ("key", "words", "model", "occurrence", "draw", "salt", "site", "row", "kind")


@dataclasses.dataclass(slots=True)
class Batch:
    """One batch: our tag for it, the provider's name for it once it is known, and the most that it may take."""

    tag: str
    model: str  # the model's digest
    endpoint: str
    count: int
    worst: dict[str, float]  # calls, tokens, money
    remote: str | None = None
    at: float = dataclasses.field(default_factory=time.time)


class Submitted:
    """The batches whose replies are not in the ledger yet. Every change is durable when its method returns."""

    def __init__(self, ledger: "Ledger"):
        self.ledger = ledger

    def add(self, batch: Batch, calls: Iterable[Record]) -> None:
        """Writes down a batch that is about to be handed in: all that its replies need to become calls."""
        asked = list(calls)
        images = {d: data for call in asked for d, data in call.blobs.items()}
        with self.ledger._writing:
            assert self.ledger._db is not None
            if images:
                self.ledger.blobs.write(images, [])
            with self.ledger._db as db:
                db.executemany(
                    "insert or ignore into request values (?, ?, ?)",
                    {c.words: (c.words, c.model, frame(c.body.encode(), c.words)) for c in asked}.values(),
                )
                db.executemany(
                    "insert or ignore into image values (?, ?)", [(c.words, d) for c in asked for d in c.blobs]
                )
                db.executemany(
                    f"insert into batch_call values (?, {', '.join('?' * len(_ASKED))})",
                    ((batch.tag, *(getattr(call, name) for name in _ASKED)) for call in asked),
                )
                db.execute(
                    "insert into batch values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (batch.tag, batch.model, batch.endpoint, batch.remote, batch.at, batch.count,
                     *(batch.worst[unit] for unit in ("calls", "tokens", "money"))),
                )  # fmt: skip

    def name(self, batch: Batch, remote: str) -> None:
        """Writes down what the provider calls a batch."""
        batch.remote = remote
        self._do(("update batch set remote = ? where tag = ?", (remote, batch.tag)))

    def remove(self, batch: Batch) -> None:
        """Forgets a batch: its replies are in the ledger, or it was never taken."""
        self._do(
            ("delete from batch_call where tag = ?", (batch.tag,)), ("delete from batch where tag = ?", (batch.tag,))
        )

    def _do(self, *statements: tuple[str, tuple]) -> None:
        with self.ledger._writing:
            assert self.ledger._db is not None
            with self.ledger._db as db:
                for sql, values in statements:
                    db.execute(sql, values)

    def all(self) -> list[Batch]:
        """The batches, the earliest first."""
        found = self.ledger._all(
            "select tag, model, endpoint, count, calls, tokens, money, remote, at from batch order by at"
        )
        return [
            Batch(tag, model, endpoint, count, {"calls": calls, "tokens": tokens, "money": money}, remote, at)
            for tag, model, endpoint, count, calls, tokens, money, remote, at in found
        ]

    def holding(self, keys: list[str]) -> dict[str, str]:
        """Which of these calls are in a batch: key -> its tag. At most a few hundred keys at a time."""
        marks = ",".join("?" * len(keys))
        return dict(self.ledger._all(f"select key, tag from batch_call where key in ({marks})", keys))

    def calls(self, batch: Batch) -> list[Record]:
        """The calls of a batch, without replies."""
        held = self.ledger._all(
            f"select {', '.join(f'b.{name}' for name in _ASKED)}, r.body from batch_call b "
            "left join request r on r.words = b.words where b.tag = ?",
            (batch.tag,),
        )
        return [
            Record(
                **dict(zip(_ASKED, values, strict=True)), body=self.ledger._body(values[1], body), reply=None,
                refused=None, served=None, prompt_tokens=0, completion_tokens=0, cost=None, seconds=0.0,
            )
            for *values, body in held
        ]  # fmt: skip

    def promised(self) -> dict[str, float]:
        """The most that all these batches may take: calls, tokens, money."""
        calls, tokens, money = self.ledger._all("select total(calls), total(tokens), total(money) from batch")[0]
        return {"calls": calls, "tokens": tokens, "money": money}
