"""Buys calls: spread over endpoints that can take them, retries between first tries, budget before, ledger after."""

import asyncio
import concurrent.futures
import functools
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from . import spans
from .budget import Budget
from .errors import EndpointFailure, Incomplete, Interrupted, LimbeckError
from .fingerprint import digest
from .lane import Job, Lane, Queue
from .ledger import GROUP_CALLS, Ledger, Record

LOOP = "limbeck-loop"  # the thread of the event loop


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The one event loop of the process, in a background thread: scripts and notebooks share a synchronous API."""
    try:
        import uvloop  # a call costs a tenth less

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name=LOOP, daemon=True).start()
    return made


def start(work: Coroutine) -> concurrent.futures.Future:
    """Starts a coroutine on the background loop."""
    if threading.current_thread().name == LOOP:
        work.close()
        raise LimbeckError("a talk cannot wait for a verb, which would wait for the talk: ask with `await call(…)`.")
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
        self._queues: list[Queue] = []
        self._lanes: dict[str, Lane] = {}
        self._finished: asyncio.Future | None = None
        self._catching: asyncio.Future | None = None
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
            "stopping": self.stopped is not None,
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
            for queue in self._queues:
                queue.abandon(self.stopped or self._incomplete())
            await self.close()
        for queue in self._queues:
            if (left := queue.left()) and not self.stopped:
                self.failed["not asked: the endpoint is away"] += left
        if self.stopped:
            raise self.stopped
        if self.failed:
            raise self._incomplete()

    async def close(self) -> None:
        """Makes what was bought durable and tells who waits that nothing more comes, whatever the disk says."""
        try:
            await asyncio.to_thread(self.ledger.flush)
        finally:
            with self.moved:
                self.over = True
                self.moved.notify_all()

    async def one(self, job: Job) -> tuple[Any, str | None]:
        """Buys one more call while `all` runs, and returns (reply, None) or (None, why it was refused)."""
        if self.stopped:
            raise self.stopped
        job.answer = asyncio.get_running_loop().create_future()
        queue = next((q for q in self._queues if q.model is job.model), None) or self._queue(job.model, None)
        if not queue.lanes:
            self.failed[(cause := "not asked: the endpoint is away")] += 1
            raise EndpointFailure(f"{job.model.name}: its endpoint is away", cause=cause)
        queue.put(job)
        return await job.answer

    def _queue(self, model: Any, jobs: Iterator[Job] | None) -> "Queue":
        queue = Queue(model, jobs)
        self._queues.append(queue)
        for replica in model.replicas:
            lane = self._lanes.setdefault(replica.endpoint, Lane(self))
            lane.serve(queue, replica)
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
        if self.stopped or (not self.keep_open and all(queue.dry() for queue in self._queues)):
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
                recipe=self.ledger.recipe,
                blobs=job.blobs,
            )
        )

    async def caught_up(self) -> None:
        """Waits for the ledger where it falls behind: one thread for all who wait."""
        if self.ledger.behind > GROUP_CALLS:
            if self._catching is None or self._catching.done():
                self._catching = asyncio.ensure_future(asyncio.to_thread(self.ledger.catch_up))
            await asyncio.shield(self._catching)

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
