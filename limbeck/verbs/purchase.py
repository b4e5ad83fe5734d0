"""A purchase: which calls an ask is made of, which of them the ledger lacks, buying those, reading the answers behind.

Three passes over the rows. The first renders every request and counts how often the same words came before: a call's
key never depends on the order in which replies arrive. The second renders again what the ledger lacks, as the engine
takes it. The third reads the replies from the ledger, in order, while the second is still buying. Between them, 16
bytes a call are held and no row.
"""

import contextlib
import functools
import itertools
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np

from .. import engine, spans
from ..engine import Buying, Job
from ..errors import Interrupted, LimbeckError
from ..fingerprint import data_half, digest
from ..models.base import Model, Reply, Request
from ..op import Made, row_stage
from ..parse import Reject
from ..pictures import held_in
from ..progress import summary
from ..run import Run
from ..table import Row, Table
from .asking import Asking
from .changes import stop_if_changed
from .shape import Column

CHUNK = 1000  # rows that are read at a time
_LOOKED_UP = 2000  # keys
_EARLY, _OVERHEAD = 8_000_000, 800  # bytes of rendered requests that are kept; and what one takes beside its words

Said = tuple[Model, Request, str, str]  # who is asked, what, its canonical JSON, the digest of both


class Purchase:
    """The calls of one ask, in the order of rows, models and draws."""

    def __init__(self, asking: Asking, run: Run, site: str):
        self.asking, self.run, self.site, self.label = asking, run, site, asking.label
        self.verb = site.partition(":")[2]
        self.each = len(asking.models) * asking.n  # calls a row
        self.asked = Counter[int]()  # how many rows of each chunk are asked about
        self.instead: dict[int, list[str]] = {}  # calls that were asked again: the keys of that, in order
        self.lacks = bytearray()  # a mark per call: does the ledger lack it?
        self._early: list[tuple[int, list[Said]]] = []  # the first requests, as they were rendered
        self.looks: list[dict[str, Any]] = []  # how each buying went

    @functools.cached_property
    def _rendered(self) -> tuple[bytes, np.ndarray]:
        """The render pass: a key of 16 bytes a call, and for each (row, model) how many earlier rows said the same."""
        asking, words, inside, room = self.asking, bytearray(), bytearray(), _EARLY
        for index, row in enumerate(asking.rows.tracked()):
            if asking.lacking(row):
                continue
            mine = asking.in_shard(index)
            said = list(asking.said(row))
            for *_, word in said:
                words += bytes.fromhex(word)
                inside.append(mine)
            self.asked[index // CHUNK] += mine
            if mine and room > 0 and not asking.images:
                self._early.append((index, said))
                room -= sum(_OVERHEAD + 2 * len(body) for _, _, body, _ in said)
        occurrences = _earlier(words)
        keys = bytearray()
        for at, occurrence in enumerate(occurrences.tolist()):
            if inside[at]:
                word = words[16 * at : 16 * at + 16].hex()
                for draw in range(asking.n):
                    keys += bytes.fromhex(asking.key(word, occurrence, draw))
        return bytes(keys), occurrences[np.frombuffer(inside, dtype=bool)]

    def key(self, call: int) -> str:
        return self._rendered[0][16 * call : 16 * call + 16].hex()

    def rows(self) -> Iterator[tuple[int, Row, int]]:
        """(index, row, its first call) of the rows that are asked about."""
        first = 0
        for index, row in enumerate(self.asking.rows.tracked()):
            if self.asking.asks(index, row):
                yield index, row, first
                first += self.each

    def requests(self) -> Iterator[tuple[Model, Request, range]]:
        """(model, request, its calls), one for each draw, in order."""
        n = self.asking.n
        for _, row, first in self.rows():
            for which, (model, request, *_) in enumerate(self.asking.said(row)):
                yield model, request, range(first + which * n, first + (which + 1) * n)

    def look_up(self) -> int:
        """Marks what the ledger lacks, after taking over what other runs lend. Returns how many calls that is."""
        ledger, total = self.run.ledger, len(self._rendered[0]) // 16
        self.lacks = bytearray(total)
        for start in range(0, total, _LOOKED_UP):
            chunk = [self.key(call) for call in range(start, min(start + _LOOKED_UP, total))]
            have = ledger.have(chunk)
            for other in self.run.lenders():
                if lost := [k for k in chunk if k not in have]:
                    have |= ledger.borrow(other, lost)
            self.lacks[start : start + len(chunk)] = bytes(k not in have for k in chunk)
        return sum(self.lacks)

    # -- buying
    def jobs(self, which: int) -> Iterator[Job]:
        """The calls to one of the models that the ledger lacks, rendered again as they are needed."""
        n, left = self.asking.n, sum(self.lacks)
        for index, row, first in self._again_rendered():
            left -= sum(self.lacks[first : first + self.each])
            first += which * n
            if any(self.lacks[first : first + n]):
                said = row[which] if isinstance(row, list) else list(self.asking.said(row))[which]
                for draw in range(n):
                    if self.lacks[first + draw]:
                        yield self._job(said, self.key(first + draw), first + draw, index)
            if not left:
                return

    def _again_rendered(self) -> Iterator[tuple[int, list[Said] | Row, int]]:
        """(index, what was said or the row to say it of, its first call): the first rows' requests are still here."""
        for at, (index, said) in enumerate(self._early):
            yield index, said, at * self.each
        yield from itertools.islice(self.rows(), len(self._early), None)

    def _job(self, said: Said, key: str, call: int, index: int) -> Job:
        (model, request, body, words), n = said, self.asking.n
        return Job(
            model=model, request=request, key=key, words=words, body=body,
            occurrence=int(self._rendered[1][call // n]), draw=call % n, salt=str(self.asking.salt), site=self.site,
            row=self.asking.rows.row_digests[16 * index : 16 * index + 16].hex(), blobs=held_in(request.messages),
            kind=self.asking.kind, chunk=index // CHUNK,
        )  # fmt: skip

    @contextlib.contextmanager
    def buying(self) -> Iterator[Buying | None]:
        """Buys what the ledger lacks while the block runs; None where nothing is lacking.

        Raises what stopped it (changed prompts, budget, an endpoint that stays away) once what was in flight is kept.
        A block that ends with an exception stops it too.
        """
        asking, run, lacking = self.asking, self.run, self.look_up()
        while lacking and run.leader:  # another process buys for this one
            time.sleep(0.2)
            lacking = self.look_up()
        said = asking.loaded.values() if isinstance(asking.prompt, Column) else [asking.prompt]
        calls, names = len(self.lacks), [m.name for m in asking.models]
        run.consent(asking.models, buys=False)
        run.event("ask", site=self.site, prompt=asking.label, prompts={p.name: p.digest for p in said}, models=names,
                  calls=calls, to_buy=lacking)  # fmt: skip
        if not lacking:
            yield None
            return
        stop_if_changed(self)
        run.consent(asking.models, buys=True)
        if lacking < calls:
            run.say(f"{asking.label}: {calls - lacking:,} calls are replayed, {lacking:,} are to buy")
        for which in range(len(asking.models)):  # a cap on what has no bound is an error before the first call
            if (first := next(self.jobs(which), None)) is not None:
                run.budget.worst(first.model, first.request)
        with self._bought([(m, _Jobs(self, i)) for i, m in enumerate(asking.models)], lacking) as buying:
            yield buying

    @contextlib.contextmanager
    def _bought(self, wanted: list[tuple[Model, Iterable[Job]]], total: int) -> Iterator[Buying]:
        run, names = self.run, ", ".join(m.name for m in self.asking.models)
        with (
            spans.span("buy", site=self.site, models=[m.name for m in self.asking.models], calls=total),
            run.bar(self.asking.label, total, names[:40], self.site) as bar,
        ):
            buying = self._buyer()(run.ledger, run.budget, bar)
            buying.left.update(self._by_chunk())
            future = engine.start(buying.all(wanted))
            try:
                yield buying
                engine.finish(future, buying.interrupt)
            except BaseException as error:
                if not future.done():
                    engine.loop().call_soon_threadsafe(buying.interrupt)
                    with contextlib.suppress(*() if isinstance(error, KeyboardInterrupt) else (LimbeckError,)):
                        engine.finish(future)  # what is in flight is paid for
                raise
            finally:
                run.ledger.flush()
                self.looks.append(bar.look())
                spans.note(money=bar.money, **buying.state())
                run.event("bought", site=self.site, calls=buying.bought, money=bar.money,
                          tokens=[buying.prompt_tokens, buying.completion_tokens], retries=dict(buying.retries),
                          failed=dict(buying.failed), spent=run.ledger.spent())  # fmt: skip

    def _buyer(self) -> type[Buying]:
        if not self.asking.batch or self.run.plan is not None:  # a pilot is to be over soon
            return Buying
        from .batched import Batched  # brings the HTTP models with it

        return Batched

    def _by_chunk(self) -> dict[int, int]:
        """How many calls each chunk of rows lacks."""
        found, first = {}, 0
        for chunk, rows in sorted(self.asked.items()):
            found[chunk] = sum(self.lacks[first : first + rows * self.each])
            first += rows * self.each
        return found

    def stage(self) -> Table:
        """Buys what is missing and stores the answers: the whole of ask, where nothing is only planned."""
        asking, started = self.asking, time.monotonic()
        made: Any = None
        try:
            made = row_stage(self.verb, asking.rows, asking.parameters(), self.answers, code=data_half())
            return made
        except KeyboardInterrupt:  # while rows were written; what was in flight is kept by now
            raise Interrupted("interrupted: what is bought is kept; run the same command again to go on.") from None
        finally:
            if self.lacks and (made is not None or self.looks):
                counts = None if made is None else made.meta["counts"]
                replayed = len(self.lacks) - sum(self.lacks)
                self.run.say(summary(asking.label, self.looks, replayed, counts, time.monotonic() - started))

    # -- asking again
    def ask_again(self) -> None:
        """Asks again, up to `again` times, what was cut off or does not parse; buys what the ledger lacks of that."""
        for _ in range(self.asking.again):
            if lost := self._lost():
                whom = {id(job.model): job.model for job in lost}.values()
                with self._bought([(m, [j for j in lost if j.model is m]) for m in whom], len(lost)):
                    pass

    def _lost(self) -> list[Job]:
        """The calls of the next round that the ledger lacks."""
        jobs = list(self._again())
        have = self.run.ledger.have([job.key for job in jobs])
        return [job for job in jobs if job.key not in have]

    def _again(self) -> Iterator[Job]:
        """One more call for each whose last reply will not do."""
        for _, part in itertools.groupby(self.rows(), key=lambda found: found[0] // CHUNK):
            rows = list(part)
            replies = self.run.ledger.replies([self._last(first + i) for *_, first in rows for i in range(self.each)])
            for index, row, first in rows:
                for which, (model, request, *_) in enumerate(self.asking.said(row)):
                    for call in range(first + which * self.asking.n, first + (which + 1) * self.asking.n):
                        data, _ = replies.get(self._last(call), (None, None))
                        tries = len(self.instead.get(call, ())) + 1
                        better = self.asking.better(row, model, request, data, tries) if data else None
                        if better is not None:
                            said = self.asking.worded(model, better)
                            key = digest("again", str(tries), said[3], self.key(call))
                            self.instead.setdefault(call, []).append(key)
                            yield self._job(said, key, call, index)

    def _last(self, call: int) -> str:
        return self.instead[call][-1] if call in self.instead else self.key(call)

    def _tries(self, call: int) -> tuple[str, ...]:
        """The keys of a call and of those that were asked instead, in order."""
        return (self.key(call), *self.instead.get(call, ()))

    # -- reading
    def answers(self, rows: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        """Buys, and turns replies into rows behind it, in order."""
        if self.asking.again:  # which replies do is known when all have come
            with self.buying():
                pass
            self.ask_again()
        with self.buying() if not self.asking.again else contextlib.nullcontext() as buying:
            first, whole = 0, True
            for chunk, part in itertools.groupby(rows, key=lambda pair: pair[0] // CHUNK):
                if buying is not None:
                    whole = buying.wait_for(chunk)
                    self.run.ledger.flush()
                if whole:
                    whole = yield from self.read(list(part), first)
                if not whole:
                    break  # it stopped; the reason is raised on the way out
                first += self.asked[chunk] * self.each
        if not whole:
            raise LimbeckError(f"{self.label}: not every call was answered; run the same command again for the rest.")

    def read(self, part: list[tuple[int, Row]], first: int) -> Generator[Made, None, bool]:
        """Turns the replies to some rows, whose calls begin with `first`, into rows. Returns whether all were held."""
        asking, calls = self.asking, list[tuple[int, Row, int | None]]()
        for index, row in part:
            if asking.in_shard(index):
                calls.append((index, row, None if asking.lacking(row) else first))
                first += 0 if calls[-1][2] is None else self.each
        whole = True
        keys = [k for _, _, at in calls if at is not None for i in range(self.each) for k in self._tries(at + i)]
        held = self.run.ledger.replies(keys, whole=asking.whole)
        for index, row, at in calls:
            if at is None:
                yield Made(index, Reject(f"no {asking.lacking(row)}"))
                continue
            for i in range(self.each):
                paid = tuple(key for key in self._tries(at + i) if key in held)
                if not paid:
                    whole = False
                    continue
                data, refused = next((held[k] for k in reversed(paid) if held[k][0]), held[paid[0]])
                if data is None:
                    yield Made(index, Reject(f"refused: {refused}"[:200]), paid)
                    continue
                reply = Reply.from_json(data)
                for made in asking.columns(row, asking.models[i // asking.n], reply):
                    yield Made(index, made, paid, reply.text if isinstance(made, Reject) else None)
        return whole

    def finished(self) -> Iterator[Row]:
        """The rows whose replies the ledger holds, without buying any."""
        first = 0
        for _ in range(self.asking.again):
            self._lost()
        for chunk, part in itertools.groupby(enumerate(self.asking.rows.tracked()), key=lambda pair: pair[0] // CHUNK):
            for made in self.read(list(part), first):
                if isinstance(made.result, dict):
                    yield made.result
            first += self.asked[chunk] * self.each


class _Jobs:
    """The jobs for one model, rendered anew each time they are walked: what a batch leaves open is asked again."""

    def __init__(self, purchase: Purchase, which: int):
        self.purchase, self.which = purchase, which

    def __iter__(self) -> Iterator[Job]:
        return self.purchase.jobs(self.which)


def _earlier(words: bytearray) -> np.ndarray:
    """For each digest of 16 bytes, how many equal ones come before it."""
    high, low = np.frombuffer(words, dtype=np.uint64).reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable: equal ones stay in their order
    new = np.ones(len(order), dtype=bool)
    new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    starts = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    earlier = np.empty(len(order), dtype=np.uint32)
    earlier[order] = np.arange(len(order)) - starts
    return earlier
