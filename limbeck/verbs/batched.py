"""Buying through batch APIs: hand in, wait, collect; a batch that was handed in outlives this process.

What a batch holds is written down before it is handed in, and its name at the provider as soon as that is known. A run
that died between the two looks for the batch at the provider before it hands anything in again.
"""

import asyncio
import contextlib
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..budget import Budget
from ..engine import Buying, Job
from ..errors import BudgetError, EndpointFailure, Interrupted, LimbeckError, Refused
from ..lane import FIRST_BACKOFF, LONGEST_BACKOFF
from ..ledger import Ledger, Record
from ..ledger.submitted import Batch
from ..models.base import Model, Request, in_words
from ..models.batch import State, batch_api
from ..models.http import NoSchema

FIRST_POLL, LONGEST_POLL, SLOWER = 5.0, 60.0, 1.5  # seconds between two looks at a batch, and how they grow
_LOOKED_UP = 500  # calls


class Batched(Buying):
    """One purchase through batch APIs; reading behind it begins when all is there."""

    def __init__(self, ledger: Ledger, budget: Budget, progress: Any):
        self._leaving = asyncio.Event()
        self.collecting = asyncio.Lock()  # one batch at a time: its calls and results are held in memory
        self._desks: list[_Desk] = []
        super().__init__(ledger, budget, progress)

    @property
    def in_flight(self) -> int:
        return sum(batch.count for batch in self._handed_in())

    def _handed_in(self) -> list[Batch]:
        return [batch for desk in self._desks for batch in list(desk.batches.values())]

    def state(self) -> dict[str, Any]:
        return super().state() | {"in_flight": self.in_flight, "width": self.in_flight}

    def stop(self, reason: BaseException) -> None:
        """Hands nothing more in. Unless the budget is why, it waits for no batch either: they go on without it."""
        self.stopped = self.stopped or reason
        if not isinstance(self.stopped, BudgetError):
            self._leaving.set()

    def interrupt(self) -> None:
        named = [batch.remote for batch in self._handed_in() if batch.remote]
        shown = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
        going = f"{len(named)} batches ({shown}) go on at the provider" if named else "no batch is at the provider"
        self.stopped = Interrupted(f"interrupted: {going}; run the same command again to collect them and to go on.")
        self._leaving.set()

    @property
    def leaving(self) -> bool:
        return self._leaving.is_set()

    async def pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    async def all(self, wanted: Iterable[tuple[Model, Iterable[Job]]]) -> None:
        """Buys every model's jobs, which it may walk several times. Raises the first reason that stopped it."""
        self._desks = [_Desk(self, model, jobs) for model, jobs in wanted]
        try:
            await asyncio.gather(*(desk.all() for desk in self._desks))
        finally:
            if not self.stopped and not self.failed:
                self.left.clear()
            await self.close()
        if self.stopped:
            raise self.stopped
        if self.failed:
            raise self._incomplete()


class _Part:
    """Requests that are to become one batch."""

    def __init__(self) -> None:
        self.calls: list[Record] = []
        self.lines: list[bytes] = []
        self.size = 0
        self.worst = {"calls": 0.0, "tokens": 0.0, "money": 0.0}

    def add(self, job: Job, line: bytes, need: dict[str, float]) -> None:
        self.calls.append(_unanswered(job))
        self.lines.append(line)
        self.size += len(line) + 1
        for unit in self.worst:
            self.worst[unit] += need[unit]


class _Desk:
    """What one model is handed: its batches, and the calls of them that are asked again."""

    def __init__(self, buying: Batched, model: Model, jobs: Iterable[Job]):
        self.buying, self.ledger, self.budget = buying, buying.ledger, buying.budget
        self.model, self.jobs, self.api = model, jobs, batch_api(model)
        self.batches: dict[str, Batch] = {}  # handed in and not collected, by tag
        self.most = self.api.most_requests
        self.alone = False  # one batch at a time, where the provider lets no more wait
        self._shown = Counter[str]()  # how many answers of each batch the progress bar has counted
        self._tries = Counter[str]()
        self._given_up = set[str]()
        self._wordy = set[str]()  # calls whose schema is said in words
        self._others = set[str]()  # batches that looked like ours and were not
        self._again = self._away = False
        self._begun = 0  # batches handed in or taken over in this round
        self._real: dict[str, dict[str, float]] = {}  # what each batch is known to have taken so far
        self._following: set[asyncio.Task] = set()

    async def all(self) -> None:
        try:
            while await self._round():
                pass
        except Exception as error:
            self.buying.stop(error)
            await asyncio.gather(*self._following)

    async def _round(self) -> bool:
        """Hands in what is neither held nor on its way, and collects all. True where calls are to be asked again."""
        self._again, self._begun, out_of_budget, part = False, 0, False, _Part()
        for job in self._open():
            try:
                line = self.api.line(job.key, self._request(job))
            except Refused as refusal:
                self.budget.settle(dict.fromkeys(part.worst, 0.0), {"calls": 1.0})
                self.buying.keep(self.model, job, None, str(refusal), 0.0)
                self.buying.progress.advance()
                continue
            need = self._worst(job)
            if part.calls and (len(part.calls) >= self.most or part.size + len(line) > self.api.most_bytes):
                await self._hand_in(part)
                part = _Part()
            if self.buying.stopped or self._away:
                break
            if not self.budget.reserve(need):
                out_of_budget = True
                break
            part.add(job, line, need)
        await self._hand_in(part)
        await asyncio.gather(*self._following)
        if self.buying.stopped or self._away:
            return False
        if out_of_budget and not self._begun:
            self.buying.stop(self.budget.exhausted())
            return False
        return self._again or out_of_budget

    def _open(self) -> Iterator[Job]:
        """The jobs that are neither held, given up nor on their way; batches of an earlier process are followed."""
        known = {b.tag: b for b in self.ledger.batches.all()}
        jobs = iter(self.jobs)
        while chunk := list(itertools.islice(jobs, _LOOKED_UP)):
            keys = [job.key for job in chunk]
            on_their_way = self.ledger.batches.holding(keys)  # before `have`: what leaves a batch is in the ledger
            held = self.ledger.have(keys)
            for tag in set(on_their_way.values()) - self.batches.keys():
                self._follow(known[tag])
            gone = held | on_their_way.keys() | self._given_up
            yield from (job for job in chunk if job.key not in gone)

    def _request(self, job: Job) -> Request:
        return in_words(job.request) if job.key in self._wordy else job.request

    def _worst(self, job: Job) -> dict[str, float]:
        need = self.budget.worst(self.model, job.request)
        return need | {"money": need["money"] * (self.model.price.batch if self.model.price else 1.0)}

    # -- handing in
    async def _hand_in(self, part: _Part) -> None:
        """Makes a batch of a part and follows it."""
        if not part.calls or self.buying.stopped or self._away:
            self.budget.settle(part.worst, None)
            return
        batch = Batch(uuid.uuid4().hex, self.model.digest, self.model.endpoint, len(part.calls), part.worst)
        self.budget.settle(part.worst, part.worst)  # counts as spent until what it takes is known
        await asyncio.to_thread(self.ledger.batches.add, batch, part.calls)
        self.batches[batch.tag] = batch
        with self._or_away(batch):
            await self._submit(batch, part.lines)
            self._follow(batch)
            if self.alone:
                await asyncio.gather(*self._following)

    async def _submit(self, batch: Batch, lines: list[bytes]) -> None:
        """Hands a batch in. After a failure that leaves open whether it arrived, the provider is asked for it first."""
        for attempt in itertools.count():
            try:
                if attempt and await self._find(batch):
                    return
                remote = await self.api.submit(batch.tag, lines)
                return await asyncio.to_thread(self.ledger.batches.name, batch, remote)
            except EndpointFailure as failure:
                if failure.final and not attempt:
                    await self._forget(batch)
                if failure.final or attempt >= self.model.retries or self.buying.leaving:
                    raise
                self.buying.retries[failure.cause] += 1
                backoff = min(FIRST_BACKOFF * 2**attempt, LONGEST_BACKOFF)
                await self.buying.pause(max(backoff, FIRST_POLL, failure.retry_after or 0.0))  # it may still arrive
            except LimbeckError as error:
                if not attempt:
                    await self._forget(batch)
                if isinstance(error, Refused):
                    raise LimbeckError(f"a batch was not taken: {error}; ask without batch=True, or mend it.") from None
                raise

    async def _find(self, batch: Batch) -> bool:
        """Looks for a batch that may have been handed in. What is found may yet turn out to be another's.

        That is why its name is not written down: what the ledger names is certain, and no other batch's.
        """
        others = self._others | {b.remote for b in self.ledger.batches.all() if b.remote}
        found = await self.api.find(batch.tag, batch.count, batch.at)
        batch.remote = next((remote for remote in found if remote not in others), None)
        return batch.remote is not None

    async def _forget(self, batch: Batch, real: dict[str, float] | None = None) -> None:
        """Ends a batch: in the ledger, and in the budget, where what it took replaces the most that it could take."""
        await asyncio.to_thread(self.ledger.batches.remove, batch)
        self.batches.pop(batch.tag, None)
        none = dict.fromkeys(batch.worst, 0.0)
        self.budget.settle(none, {unit: (real or none)[unit] - worst for unit, worst in batch.worst.items()})

    @contextlib.contextmanager
    def _or_away(self, batch: Batch) -> Iterator[None]:
        """Counts a batch's calls as unanswered where the endpoint fails for good; other errors stop everything."""
        try:
            yield
        except EndpointFailure as failure:
            self._away = True
            self.batches.pop(batch.tag, None)
            if not self.buying.leaving:
                self.buying.failed[failure.cause] += batch.count
                self.buying.why[failure.cause] = str(failure)
        except Exception as error:
            self.buying.stop(error)

    # -- waiting and collecting
    def _follow(self, batch: Batch) -> None:
        async def work() -> None:
            with self._or_away(batch):
                await self._course(batch)

        self.batches[batch.tag] = batch
        self._begun += 1
        task = asyncio.get_running_loop().create_task(work())
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _course(self, batch: Batch) -> None:
        """Looks at a batch, less and less often, until it has ended; then collects it."""
        pause, failures = FIRST_POLL, 0
        while not self.buying.leaving:
            try:
                if batch.remote is None and batch.endpoint != self.model.endpoint:
                    raise self._unknown(batch)
                if batch.remote or await self._find(batch):
                    if await self._is_over(batch):
                        return
                elif time.time() - batch.at > LONGEST_POLL:  # it never arrived
                    self._again = True
                    return await self._forget(batch)
                failures = 0
            except EndpointFailure as failure:
                if failure.cause == "HTTP 404":
                    raise self._unknown(batch) from failure
                failures += 1
                if failure.final or failures > self.model.retries:
                    raise
                self.buying.retries[failure.cause] += 1
                pause = max(pause, failure.retry_after or 0.0)
            await self.buying.pause(pause)
            pause = min(pause * SLOWER, LONGEST_POLL)

    async def _is_over(self, batch: Batch) -> bool:
        """Looks at a batch once, and collects it where it has ended."""
        assert batch.remote is not None
        state = await self.api.state(batch.remote)
        if state.failed is not None:
            await self._not_taken(batch, state)
            return True
        if state.ended:
            async with self.buying.collecting:
                return await self._collect(batch)
        self._show(batch, state.answered)
        return False

    def _show(self, batch: Batch, answered: int) -> None:
        answered = min(answered, batch.count)
        self.buying.progress.advance(answered - self._shown[batch.tag])
        self._shown[batch.tag] = answered

    def _unknown(self, batch: Batch) -> LimbeckError:
        elsewhere = f", which was handed in at {batch.endpoint}" if batch.endpoint != self.model.endpoint else ""
        name = batch.remote or batch.tag
        return LimbeckError(
            f"{self.model.name}: {self.model.endpoint} does not know the batch {name}{elsewhere}; use the base_url and "
            f"the key of then to collect it, or ask without batch=True to buy its calls anew."
        )

    async def _not_taken(self, batch: Batch, state: State) -> None:
        """A batch that failed as a whole cost nothing. Where too much was waiting, smaller ones follow one by one."""
        await self._forget(batch)
        if not state.full or (self.alone and batch.count == 1):
            raise LimbeckError(f"{self.model.name}: the batch {batch.remote} was not taken: {state.failed}")
        if self.alone:
            self.most = max(1, batch.count // 2)
            await self.buying.pause(LONGEST_POLL)
        self.alone = self._again = True
        self.buying.retries["batch queue full"] += 1

    async def _collect(self, batch: Batch) -> bool:
        """Puts a batch's results into the ledger. False where the batch turned out to be another's."""
        assert batch.remote is not None
        await asyncio.to_thread(self.ledger.flush)
        waiting = {call.key: call for call in await asyncio.to_thread(self.ledger.batches.calls, batch)}
        held, seen, lost = self.ledger.have(list(waiting)), 0, dict[str, EndpointFailure]()
        real = self._real.setdefault(batch.tag, dict.fromkeys(batch.worst, 0.0))
        async for key, outcome in self.api.results(batch.remote):
            seen += 1
            if (call := waiting.pop(key, None)) is not None and key not in held:
                if isinstance(outcome, EndpointFailure):
                    lost[key] = outcome
                else:
                    self._take(batch, call, outcome, real)
        if seen and len(waiting) == batch.count:
            self._others.add(batch.remote)
            batch.remote = None
            return False
        nothing = EndpointFailure(f"{self.model.name}: the batch {batch.remote} ended without it", cause="no result")
        for key, failure in (lost | dict.fromkeys(waiting.keys() - held, nothing)).items():
            self._lost(key, failure)
        await asyncio.to_thread(self.ledger.flush)
        self._show(batch, int(real["calls"]))
        await self._forget(batch, real)
        return True

    def _take(self, batch: Batch, call: Record, outcome: Any, real: dict[str, float]) -> None:
        """Hands one answer or refusal to the ledger."""
        if isinstance(outcome, NoSchema) and call.key not in self._wordy:
            self._wordy.add(call.key)
            self._again = True
            return
        reply, refused = (None, str(outcome)) if isinstance(outcome, Refused) else (outcome, None)
        if reply and not reply.prompt_tokens + reply.completion_tokens:  # it did not say: count the worst
            reply.prompt_tokens = int(batch.worst["tokens"] / batch.count)
            reply.cost = reply.cost or batch.worst["money"] / batch.count or reply.cost
        real["calls"] += 1
        if reply:
            real["tokens"] += reply.prompt_tokens + reply.completion_tokens
            real["money"] += reply.cost or 0.0
            self.buying.progress.advance(0, money=reply.cost or 0.0)
        self.buying.keep(self.model, _job(self.model, call), reply, refused, time.time() - batch.at)

    def _lost(self, key: str, failure: EndpointFailure) -> None:
        """Asks a call again in the next batch, or gives it up."""
        self._tries[key] += 1
        if failure.final or self._tries[key] > self.model.retries:
            self._given_up.add(key)
            self.buying.failed[failure.cause] += 1
            self.buying.why[failure.cause] = str(failure)
        else:
            self.buying.retries[failure.cause] += 1
            self._again = True


_SHARED = ("key", "words", "body", "occurrence", "draw", "salt", "site", "row", "kind", "blobs")


def _unanswered(job: Job) -> Record:
    """What has to be known of a call when its reply comes, perhaps to another process."""
    return Record(
        **{name: getattr(job, name) for name in _SHARED}, model=job.model.digest, reply=None, refused=None, served=None,
        prompt_tokens=0, completion_tokens=0, cost=None, seconds=0.0,
    )  # fmt: skip


def _job(model: Model, call: Record) -> Job:
    return Job(model=model, request=None, **{name: getattr(call, name) for name in _SHARED})
