"""Run: one directory with its store, ledger, budget and events. The only thing in limbeck that has a state."""

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import engine, spans, table
from .budget import Budget
from .errors import LimbeckError
from .ledger import Ledger
from .progress import Progress
from .store import Store, lock

EVENTS_VERSION = 1
_open: list["Run"] = []


def current(who: str = "this") -> "Run":
    """The run that is open. Raises LimbeckError that says how to open one."""
    if not _open:
        raise LimbeckError(f'{who} needs an open run, and there is none; write `with limbeck.Run("out"):` around it.')
    return _open[-1]


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def current_or_none() -> "Run | None":
    return _open[-1] if _open else None


class Run:
    """Opens a run directory: `with Run("out", budget="$5"):` makes it the one that verbs, train and evaluate use.

    `budget` caps all that the directory ever buys ("$5", "100 calls", "1M tokens"). `reuse` names earlier run
    directories whose replies are taken over for free. An edited prompt or changed code that would buy
    paid calls again stops first, unless `accept_changes`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        budget: str | float | None = None,
        reuse: Iterable[str | Path] = (),
        accept_changes: bool = False,
        progress: bool | None = None,
    ):
        self.dir = Path(directory)
        self.caps = Budget.parse(budget)
        self.reuse = [Path(r) for r in reuse]
        self.accept_changes = accept_changes
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.plan: Any = None  # of plan.py: what asks do instead of buying, in a dry run, a pilot or a salvage
        self.trained_on: Any = None  # the table that a model was last trained on
        self.search: list[Path] = []  # folders in which a user's own prompts lie
        self.leader: Path | None = None  # under torchrun, the directory of the process that buys for all
        self.models: dict[int, Any] = {}  # asked so far: closed with the run
        self._noted, self._warned = set[str](), set[str]()  # models whose terms were written down, and shown
        self._telling = threading.Lock()

    def __enter__(self) -> "Run":
        if rank := int(os.environ.get("RANK", "0")):
            self._follow(rank)
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LimbeckError(
                f"{self.dir} cannot be made a run directory: {error.strerror}; choose another."
            ) from None
        self._lock = lock(self.dir)
        self.store = Store(self.dir / "stages")
        self.ledger = Ledger(self.dir / "ledger")
        if kind := self.ledger.network:
            self.say(f"{self.dir} lies on {kind}, a network file system: the ledger is safe there, but slower.")
        promised = self.ledger.batches.promised()  # to batches that a provider works on
        self.budget = Budget(self.caps, {unit: n + promised[unit] for unit, n in self.ledger.spent().items()})
        self._events = (self.dir / "events.jsonl").open("a+", encoding="utf-8")
        if not _ends_well(self.dir / "events.jsonl"):
            self._events.write("\n")  # a kill cut the last line short
        self._sites = 0
        _open.append(self)
        table.home.append(self.store)
        self.event("open", pid=os.getpid())
        self._span = spans.span("run", directory=self.dir.name)
        self._span.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        _open.remove(self)
        table.home.remove(self.store)
        for model in self.models.values():
            engine.wait(model.close())
        if error is None and self.plan is None:
            record = self.dir / "used.json.tmp"
            record.write_text(json.dumps({"stages": list(self.store.used)}))
            record.rename(self.dir / "used.json")
        self.event("close", error=f"{kind.__name__}: {error}" if kind else None, spent=self.ledger.spent())
        spans.note(spent=self.ledger.spent())
        self._span.__exit__(kind, error, trace)
        self._events.close()
        self.ledger.close()
        self._lock.close()

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one line to events.jsonl: {"v", "at", "event", …}."""
        line = {"v": EVENTS_VERSION, "at": round(time.time(), 3), "event": kind, **fields}
        with self._telling:
            self._events.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            self._events.flush()

    def lenders(self) -> list[Path]:
        """The directories whose replies are taken over for free."""
        leads = self.leader is not None and (self.leader / "ledger" / "calls.sqlite").exists()
        return [*self.reuse, *([self.leader] if self.leader and leads else [])]

    def site(self, verb: str) -> str:
        """Names a place in the recipe by order of execution: the third ask of a run is the third ask of its re-run."""
        self._sites += 1
        return f"{self._sites}:{verb}"

    def say(self, line: str) -> None:
        """Tells the user something in passing, on standard error."""
        if self.progress:
            print(line, file=sys.stderr)

    def consent(self, models: Iterable[Any], buys: bool) -> None:
        """Says once what the terms of each model's outputs are, before the first call to it is bought; keeps it."""
        for model in models:
            if model.digest not in self._noted:
                self._noted.add(model.digest)
                self.event("terms", model=model.name, digest=model.digest, terms=model.terms)
            if buys and model.terms and model.digest not in self._warned:
                self._warned.add(model.digest)
                print(f"terms of {model.name}: {model.terms}", file=sys.stderr)

    def bar(self, label: str, total: int | None, note: str = "", site: str | None = None) -> Progress:
        """A bar for work of this run; of an ask (`site`), how it goes is told in events too, and a summary follows."""
        tell = functools.partial(self.event, "progress", site=site) if site else None
        return Progress(label, total, shown=self.progress, note=note, tell=tell, stays=site is None)

    def _follow(self, rank: int) -> None:
        """Makes this a process that torchrun started beside the first: it buys nothing, and shares what is trained."""
        self.leader, self.dir = self.dir, self.dir / "ranks" / str(rank)
        self.progress = False
        self.dir.mkdir(parents=True, exist_ok=True)
        (self.leader / "models").mkdir(exist_ok=True)
        if not (self.dir / "models").is_symlink():
            (self.dir / "models").symlink_to(self.leader.absolute() / "models")
