"""Lanes and queues: the calls in flight at one endpoint, and those to one model that wait for a lane."""

import asyncio
import dataclasses
import functools
import heapq
import itertools
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

from .errors import EndpointFailure, Refused
from .pace import PUSHES_BACK, Pace

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
LONGEST_PAUSE = 600.0  # an endpoint that asks for more is away
IN_A_ROW = 3  # failures after which one of several endpoints is set aside
LONGEST_ASIDE = 60.0
ELSEWHERE = 1.0  # seconds for which a retry is left to the other endpoints
_LIMITS = ("max_concurrency", "requests_per_second", "requests_per_minute", "tokens_per_minute")


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


class Queue:
    """The calls to one model that wait: fresh ones, pulled as they are needed or put by a talk, and due retries."""

    def __init__(self, model: Any, jobs: Iterator[Job] | None):
        self.model, self.fresh = model, jobs
        self.put_here: deque[Job] = deque()
        self.retries: list[tuple[float, int, Try]] = []
        self.lanes: list[Lane] = []
        self.last_success = 0.0
        self._order = itertools.count()

    def put(self, job: Job) -> None:
        self.put_here.append(job)
        for lane in self.lanes:
            lane.pump()

    def again(self, again: "Try", due: float) -> None:
        heapq.heappush(self.retries, (due, next(self._order), again))
        for lane in self.lanes:
            lane.wake(due)

    def take(self, now: float, lane: "Lane") -> "Try | None":
        """The next try that may start now on this lane."""
        if self.retries and self.ready(lane) <= now:
            return heapq.heappop(self.retries)[2]
        if self.put_here:
            return Try(self.put_here.popleft(), 0, now)
        if self.fresh is not None:
            job = next(self.fresh, None)
            if job is not None:
                return Try(job, 0, now)
            self.fresh = None
        return None

    def ready(self, lane: "Lane") -> float:
        """When the next retry may start on this lane: a little later where it failed, so that another may be first."""
        due, _, again = self.retries[0]
        return due + (ELSEWHERE if again.failed_at is lane and len(self.lanes) > 1 else 0.0)

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
class Try:
    job: Job
    attempt: int
    first: float  # when it was first tried
    guess: float = 0.0  # tokens that it is thought to take
    failed_at: Any = None  # the lane where it failed last


class Lane:
    """One endpoint: the calls in flight there, as many as its pace allows."""

    def __init__(self, buying: Any):
        self.buying = buying
        self.models: dict[Queue, Any] = {}  # who answers a queue's calls here
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

        most, *rates = map(given, _LIMITS)
        return Pace(max(most, default=None), *(min(r, default=None) for r in rates))

    @property
    def width(self) -> int:
        """How many calls may be in flight: one alone, to see whether it is back, after it was set aside."""
        return 1 if self._aside_until else self.pace.width

    def gone(self, looks: int) -> bool:
        """Whether it was looked for so often, each time in vain."""
        return self._asides >= max(looks, 1)

    def serve(self, queue: Queue, model: Any) -> None:
        """Answers a queue's calls from now on, by `model`, whose limits count too."""
        self.models[queue] = model
        queue.lanes.append(self)
        if any(getattr(model, option) is not None for option in _LIMITS):
            self.__dict__.pop("pace", None)

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

    def _take(self) -> tuple["Queue", "Try"] | None:
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
                if (found := queue.take(now, self)) is not None:
                    request, counts = found.job.request, self.pace.counts_tokens
                    prompt = self.models[queue].prompt_tokens_at_most(request) / 4 if counts else 0.0
                    found.guess = self.pace.start(prompt)  # before the next one looks
                    return queue, found
        except Exception as error:  # of the code that makes the calls
            self.buying.stop(error)
            return None
        due = min((q.ready(self) for q in queues if q.retries), default=None)
        if due is not None:
            self.wake(due)
        return None

    async def _work(self, queue: "Queue", found: "Try") -> None:
        """Makes one call after the other while there is room for this one."""
        more: tuple[Queue, Try] | None = (queue, found)
        buying = self.buying
        try:
            while more is not None:
                try:
                    await self._try(*more)
                except Exception as error:  # a bug in a model: stop everything, keep what is paid for, show it
                    buying.stop(error)
                more = self._take() if self.running <= self.width else None
                if self.running < self.width:
                    self.pump()
        finally:
            self.running -= 1
            buying.check_finished()

    async def _try(self, queue: "Queue", found: "Try") -> None:
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
        try:
            reply, refused = await buying.reply(model, job.request, job.key), None
        except Refused as refusal:
            reply, refused = None, str(refusal)
            real = {"calls": 1.0, "tokens": 0.0, "money": 0.0}
        except EndpointFailure as failure:
            pace.end(found.guess, 0)
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
        pace.end(found.guess, real["tokens"])
        if model.room is not None:
            pace.told(model.room, now)
        pace.answered(now, started, reply.completion_tokens if reply else 0, self.running)
        buying.keep(model, job, reply, refused, now - started)
        buying.progress.advance(money=real["money"])
        if job.answer is not None and not job.answer.done():
            job.answer.set_result((reply, refused))
        buying.done(job)
        await buying.caught_up()

    def _failed(self, failure: EndpointFailure, queue: "Queue", found: "Try", started: float, now: float) -> None:
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
        elif found.attempt < job.model.retries and not all(lane.gone(job.model.retries) for lane in queue.lanes):
            self.in_a_row += 1
            others = any(not lane._aside_until for lane in queue.lanes if lane is not self)  # never all of them
            nobody = failure.cause == "connect"  # one call at a time looks whether somebody is there again
            if self.in_a_row >= IN_A_ROW and (others or nobody) and now >= self._aside_until:
                aside = min(FIRST_BACKOFF * 2.0**self._asides, LONGEST_ASIDE)
                self._aside_until, self._asides = now + aside, self._asides + 1
            buying.retries[failure.cause] += 1
            backoff = min(FIRST_BACKOFF * 2**found.attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
            if pause:
                self.pace.pause(now + pause)
            queue.again(Try(job, found.attempt + 1, found.first, failed_at=self), now + backoff)
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
