"""Buys calls: spread over endpoints that can take them, retries between first tries, budget before, ledger after."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import heapq
import itertools
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from . import spans
from .budget import Budget
from .errors import EndpointFailure, Incomplete, Interrupted, LimbeckError, Refused
from .fingerprint import digest
from .ledger import Ledger, Record
from .pace import PUSHES_BACK, Pace

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
LONGEST_PAUSE = 600.0  # an endpoint that asks for more is away
IN_A_ROW = 3  # failures after which one of several endpoints is set aside
LONGEST_ASIDE = 60.0


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The one event loop of the process, in a background thread: scripts and notebooks share a synchronous API."""
    try:
        import uvloop  # a third of a call's cost less, where it is there

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="limbeck-loop", daemon=True).start()
    return made


def start(work: Coroutine) -> concurrent.futures.Future:
    """Starts a coroutine on the background loop."""
    return asyncio.run_coroutine_threadsafe(work, loop())


def finish(future: concurrent.futures.Future, on_interrupt: Callable[[], None] | None = None) -> Any:
    """Waits for what was started. Ctrl-C drains what is in flight; a second one gives up."""
    try:
        return future.result()
    except KeyboardInterrupt:
        if on_interrupt is None:
            future.cancel()
            raise
        loop().call_soon_threadsafe(on_interrupt)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise


def wait(work: Coroutine, on_interrupt: Callable[[], None] | None = None) -> Any:
    """Runs a coroutine on the background loop and waits for it, as `finish` does."""
    return finish(start(work), on_interrupt)


@dataclasses.dataclass(slots=True)
class Job:
    """One call to buy: who is asked what, under which key, for which row of which place in the recipe."""

    model: Any
    request: Any
    key: str
    words: str
    body: str
    occurrence: int
    draw: int
    salt: str
    site: str
    row: str
    blobs: dict[str, bytes] = dataclasses.field(default_factory=dict)  # digest -> bytes of the request's images
    kind: str = "chat"
    chunk: int = 0  # which part of the rows it belongs to
    answer: asyncio.Future | None = None  # who waits for just this one: (reply, None) or (None, why it was refused)


class Buying:
    """One purchase of many calls: what is wanted, how it goes, and why it stopped."""

    def __init__(self, ledger: Ledger, budget: Budget, progress: Any):
        self.ledger, self.budget, self.progress = ledger, budget, progress
        self.stopped: BaseException | None = None  # nothing new starts once this is set
        self.failed: Counter[str] = Counter()  # calls given up, by cause
        self.why: dict[str, str] = {}  # the last message of each cause
        self.retries: Counter[str] = Counter()
        self.served: dict[str, str | None] = {}
        self.bought, self.unpriced = 0, 0  # calls, and those of them whose price nobody knows
        self.prompt_tokens, self.completion_tokens = 0, 0
        self.left: Counter[int] = Counter()  # calls of each chunk that are still to come; for whoever reads behind
        self.moved = threading.Condition()  # told when a chunk is done and when all is over
        self.over = False
        self.keep_open = False  # more calls may be put: a talk goes on
        self._queues: dict[int, _Queue] = {}
        self._lanes: dict[str, _Lane] = {}
        self._finished: asyncio.Future | None = None
        progress.state = self.state
        self.reply = spans.replies()

    # -- how it goes
    @property
    def in_flight(self) -> int:
        return sum(lane.running for lane in self._lanes.values())

    @property
    def width(self) -> int:
        """How many calls the endpoints take together now."""
        return sum(lane.width for lane in self._lanes.values())

    def state(self) -> dict[str, Any]:
        """What there is to tell while it goes on, from any thread."""
        lanes = list(self._lanes.values())
        return {
            "in_flight": sum(lane.running for lane in lanes),
            "width": sum(lane.width for lane in lanes),
            "bought": self.bought,
            "unpriced": self.unpriced,
            "tokens": [self.prompt_tokens, self.completion_tokens],
            "retries": dict(self.retries),
            "failed": dict(self.failed),
        }

    def interrupt(self) -> None:
        """Starts nothing more. Called on the loop; what is in flight is waited for."""
        self.stop(Interrupted("interrupted: the calls in flight were kept; run the same command again to go on."))

    def stop(self, reason: BaseException) -> None:
        self.stopped = self.stopped or reason
        self.check_finished()

    # -- the whole of it
    async def all(self, wanted: Iterable[tuple[Any, Iterable[Job]]]) -> None:
        """Buys every model's jobs side by side. Raises the first reason that stopped it, after draining."""
        self._finished = asyncio.get_running_loop().create_future()
        try:
            for model, jobs in wanted:
                self._queue(model, iter(jobs))
            for lane in self._lanes.values():
                lane.pump()
            self.check_finished()
            await self._finished
        finally:
            for lane in self._lanes.values():
                lane.close()
            for queue in self._queues.values():
                queue.abandon(self.stopped or self._incomplete())
            await asyncio.get_running_loop().run_in_executor(None, self.ledger.flush)
            with self.moved:
                self.over = True
                self.moved.notify_all()
        for queue in self._queues.values():
            if (left := queue.left()) and not self.stopped:
                self.failed["not asked: the endpoint is away"] += left
        if self.stopped:
            raise self.stopped
        if self.failed:
            raise self._incomplete()

    async def one(self, job: Job) -> tuple[Any, str | None]:
        """Buys one more call while `all` runs, and returns (reply, None) or (None, why it was refused)."""
        if self.stopped:
            raise self.stopped
        job.answer = asyncio.get_running_loop().create_future()
        queue = self._queues.get(id(job.model)) or self._queue(job.model, None)
        if not queue.lanes:
            self.failed[(cause := "not asked: the endpoint is away")] += 1
            raise EndpointFailure(f"{job.model.name}: its endpoint is away", cause=cause)
        queue.put(job)
        return await job.answer

    def _queue(self, model: Any, jobs: Iterator[Job] | None) -> "_Queue":
        queue = self._queues[id(model)] = _Queue(model, jobs)
        for replica in model.replicas:
            lane = self._lanes.setdefault(replica.endpoint, _Lane(self))
            lane.models[queue] = replica
            queue.lanes.append(lane)
        return queue

    def _incomplete(self) -> Incomplete:
        causes = ", ".join(f"{n} x {cause}" for cause, n in self.failed.most_common())
        why = next(iter(self.why.values()), "an endpoint is away").rstrip(". ")
        return Incomplete(
            f"incomplete: {sum(self.failed.values())} calls got no answer ({causes}); {self.bought} were bought "
            f"and kept. {why}. Once that is mended, the same command asks only for the rest."
        )

    def check_finished(self) -> None:
        """Ends `all` once nothing is in flight and nothing more can start."""
        if self._finished is None or self._finished.done() or self.in_flight:
            return
        if self.stopped or (not self.keep_open and all(queue.dry() for queue in self._queues.values())):
            self._finished.set_result(None)

    def keep(self, model: Any, job: Job, reply: Any, refused: str | None, seconds: float) -> None:
        """Hands what was bought to the ledger."""
        key = job.key
        if reply and (wrong := self._wrongly_served(model, reply.served_model)):
            self.stop(wrong)
            key = digest(job.key, str(reply.served_model))  # paid for and kept, but no answer of the model asked
        self.bought += 1
        self.unpriced += reply is not None and reply.cost is None and not model.free
        self.prompt_tokens += reply.prompt_tokens if reply else 0
        self.completion_tokens += reply.completion_tokens if reply else 0
        self.ledger.put(
            Record(
                key=key,
                words=job.words,
                model=model.digest,
                body=job.body,
                occurrence=job.occurrence,
                draw=job.draw,
                salt=job.salt,
                reply=reply.to_json() if reply else None,
                refused=refused,
                served=reply.served_model if reply else None,
                prompt_tokens=reply.prompt_tokens if reply else 0,
                completion_tokens=reply.completion_tokens if reply else 0,
                cost=reply.cost if reply else 0.0,
                seconds=seconds,
                site=job.site,
                row=job.row,
                kind=job.kind,
                blobs=job.blobs,
            )
        )

    def _wrongly_served(self, model: Any, served: str | None) -> LimbeckError | None:
        if served is None:
            return None
        known = self.served
        if model.digest not in known:
            known[model.digest] = self.ledger.served(model.digest)
        before = known[model.digest] = known[model.digest] or served
        if before == served:
            return None
        return LimbeckError(
            f"{model.name!r} was served by {before!r} so far and is now served by {served!r}; to ask the new one, "
            f"say so with revision={served!r} (its replies are bought anew), or bring the old one back."
        )

    def done(self, job: Job) -> None:
        """Counts a call that needs no more waiting for, answered or given up."""
        self.left[job.chunk] -= 1
        if not self.left[job.chunk]:
            with self.moved:
                self.moved.notify_all()

    def wait_for(self, chunk: int) -> bool:
        """Blocks until the calls of a chunk are answered or given up; False when all is over. Not on the loop."""
        with self.moved:
            while self.left[chunk] and not self.over:
                self.moved.wait()
            return not self.left[chunk]


class _Queue:
    """The calls to one model that wait: fresh ones, pulled as they are needed or put by a talk, and due retries."""

    def __init__(self, model: Any, jobs: Iterator[Job] | None):
        self.model, self.fresh = model, jobs
        self.put_here: deque[Job] = deque()
        self.retries: list[tuple[float, int, _Try]] = []
        self.lanes: list[_Lane] = []
        self.last_success = 0.0
        self._order = itertools.count()

    def put(self, job: Job) -> None:
        self.put_here.append(job)
        for lane in self.lanes:
            lane.pump()

    def again(self, again: "_Try", due: float) -> None:
        heapq.heappush(self.retries, (due, next(self._order), again))
        for lane in self.lanes:
            lane.wake(due)

    def take(self, now: float) -> "_Try | None":
        """The next try that may start now."""
        if self.retries and self.retries[0][0] <= now:
            return heapq.heappop(self.retries)[2]
        if self.put_here:
            return _Try(self.put_here.popleft(), 0, now)
        if self.fresh is not None:
            job = next(self.fresh, None)
            if job is not None:
                return _Try(job, 0, now)
            self.fresh = None
        return None

    def due(self) -> float | None:
        """When the next retry may start, if there is one."""
        return self.retries[0][0] if self.retries else None

    def dry(self) -> bool:
        """Whether nothing more will come of it: all is taken, or no endpoint is left to ask."""
        return not self.lanes or not (self.fresh or self.retries or self.put_here)

    def left(self) -> int:
        """How many calls were never taken. Uses up the queue."""
        return len(self.retries) + len(self.put_here) + sum(1 for _ in self.fresh or ())

    def abandon(self, why: BaseException) -> None:
        """Tells those who wait for a single call that it will not come."""
        waiting = [*self.put_here, *(t.job for *_, t in self.retries)]
        for job in waiting:
            if job.answer is not None and not job.answer.done():
                job.answer.set_exception(why)


@dataclasses.dataclass(slots=True)
class _Try:
    job: Job
    attempt: int
    first: float  # when it was first tried


class _Lane:
    """One endpoint: the calls in flight there, as many as its pace allows."""

    def __init__(self, buying: Buying):
        self.buying = buying
        self.models: dict[_Queue, Any] = {}  # who answers a queue's calls here
        self.running = 0
        self.in_a_row = 0  # failures since the last answer
        self._aside_until, self._asides = 0.0, 0
        self._timer: asyncio.Handle | None = None
        self._woken_at = 0.0
        self._tasks: set[asyncio.Task] = set()
        self._turn = 0

    @functools.cached_property
    def pace(self) -> Pace:
        """What the models asked here allow together: as many calls as any of them, at the slowest rate given."""

        def given(option: str) -> list[Any]:
            return [v for m in self.models.values() if (v := getattr(m, option)) is not None]

        rates = (given(o) for o in ("requests_per_second", "requests_per_minute", "tokens_per_minute"))
        return Pace(max(given("max_concurrency"), default=None), *(min(r, default=None) for r in rates))

    @property
    def width(self) -> int:
        """How many calls may be in flight: one alone, to see whether it is back, after it was set aside."""
        return 1 if self._aside_until else self.pace.width

    def pump(self) -> None:
        """Starts as many calls as there is room and work for."""
        while self.running < self.width and (found := self._take()) is not None:
            self.running += 1
            task = asyncio.get_running_loop().create_task(self._work(*found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def wake(self, when: float) -> None:
        """Looks again at `when`, or earlier if that is planned already."""
        if self._timer is not None:
            if self._woken_at <= when:
                return
            self._timer.cancel()
        self._woken_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._woken)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _woken(self) -> None:
        self._timer = None
        self.pump()
        self.buying.check_finished()

    def _take(self) -> tuple["_Queue", "_Try"] | None:
        if self.buying.stopped:
            return None
        now = asyncio.get_running_loop().time()
        hold = max(self._aside_until - now, self.pace.wait(now))
        if hold > 0:
            self.wake(now + hold)
            return None
        queues = [queue for queue in self.models if self in queue.lanes]
        if len(queues) > 1:  # in turn
            self._turn = (self._turn + 1) % len(queues)
            queues = [*queues[self._turn :], *queues[: self._turn]]
        try:
            for queue in queues:
                if (found := queue.take(now)) is not None:
                    return queue, found
        except LimbeckError as error:  # of the code that makes the calls
            self.buying.stop(error)
            return None
        except Exception as error:
            self.buying.stop(error)
            return None
        due = min((d for q in queues if (d := q.due()) is not None), default=None)
        if due is not None:
            self.wake(due)
        return None

    async def _work(self, queue: "_Queue", found: "_Try") -> None:
        """Makes one call after the other while there is room for this one."""
        more: tuple[_Queue, _Try] | None = (queue, found)
        buying = self.buying
        try:
            while more is not None:
                try:
                    await self._try(*more)
                except LimbeckError as error:
                    buying.stop(error)
                except Exception as error:  # a bug in a model: stop everything, keep what is paid for, show it
                    buying.stop(error)
                more = self._take() if self.running <= self.width else None
                if self.running < self.width:
                    self.pump()
        finally:
            self.running -= 1
            buying.check_finished()

    async def _try(self, queue: "_Queue", found: "_Try") -> None:
        buying, budget, model, job = self.buying, self.buying.budget, self.models[queue], found.job
        need = budget.worst(model, job.request)
        while not budget.reserve(need):
            if not budget.reserved["calls"]:  # nothing is in flight that could give some back
                self._unanswered(job, budget.exhausted())
                buying.stop(budget.exhausted())
                return
            await asyncio.sleep(0.01)  # a call in flight may cost less than it reserved
            if buying.stopped:
                self._unanswered(job, buying.stopped)
                return
        clock = asyncio.get_running_loop().time
        pace, started, real = self.pace, clock(), None
        guess = pace.start(model.prompt_tokens_at_most(job.request) / 4 if pace.counts_tokens else 0.0)
        try:
            reply, refused = await buying.reply(model, job.request, job.key), None
        except Refused as refusal:
            reply, refused = None, str(refusal)
            real = {"calls": 1.0, "tokens": 0.0, "money": 0.0}
        except EndpointFailure as failure:
            pace.end(guess, 0)
            self._failed(failure, queue, found, started, clock())
            return
        except BaseException as error:
            self._unanswered(job, error)
            raise
        else:
            if not reply.prompt_tokens + reply.completion_tokens and not model.free:  # it did not say: count the worst
                reply.prompt_tokens = int(need["tokens"])
                reply.cost = reply.cost or need["money"] or reply.cost
            tokens = reply.prompt_tokens + reply.completion_tokens
            real = {"calls": 1.0, "tokens": float(tokens), "money": reply.cost or 0.0}
        finally:
            budget.settle(need, real)
        now = clock()
        self.in_a_row, self._asides, self._aside_until, queue.last_success = 0, 0, 0.0, now
        pace.end(guess, real["tokens"])
        if model.room is not None:
            pace.told(model.room, now)
        pace.answered(now, started, reply.completion_tokens if reply else 0, self.running)
        buying.keep(model, job, reply, refused, now - started)
        buying.progress.advance(money=real["money"])
        if job.answer is not None and not job.answer.done():
            job.answer.set_result((reply, refused))
        buying.done(job)

    def _failed(self, failure: EndpointFailure, queue: "_Queue", found: "_Try", started: float, now: float) -> None:
        buying, job = self.buying, found.job
        if failure.cause in PUSHES_BACK:
            self.pace.pushed_back(now, started)
        if self.models[queue].room is not None:
            self.pace.told(self.models[queue].room, now)
        pause = failure.retry_after or 0.0
        too_long = pause > LONGEST_PAUSE
        if failure.final or too_long:  # nothing more from this endpoint for these calls
            queue.lanes = [lane for lane in queue.lanes if lane is not self]
            if queue.lanes:  # another one answers for it
                buying.retries[failure.cause] += 1
                queue.again(found, now)
                return
        elif found.attempt < job.model.retries:
            self.in_a_row += failure.cause not in PUSHES_BACK
            if self.in_a_row >= IN_A_ROW and len(queue.lanes) > 1 and now >= self._aside_until:
                self._aside_until, self._asides = now + min(2.0**self._asides, LONGEST_ASIDE), self._asides + 1
            buying.retries[failure.cause] += 1
            backoff = min(FIRST_BACKOFF * 2**found.attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
            if pause:
                self.pace.pause(now + pause)
            # Another endpoint may take it at once; where this is the only one, it waits at least as long as was asked.
            alone = len(queue.lanes) == 1
            queue.again(_Try(job, found.attempt + 1, found.first), now + max(backoff, pause if alone else 0.0))
            return
        buying.failed[failure.cause] += 1
        buying.why[failure.cause] = str(failure)
        self._unanswered(job, failure)
        if queue.last_success < found.first:
            # Nobody got through while this call used up all its tries: the endpoint is away, not this call unlucky.
            queue.lanes = []
        if not queue.lanes:
            queue.abandon(failure)
        buying.done(job)

    def _unanswered(self, job: Job, why: BaseException) -> None:
        if job.answer is not None and not job.answer.done():
            job.answer.set_exception(why)
