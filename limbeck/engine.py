"""Buys calls: concurrency per endpoint, retries between first tries, the budget before a call, the ledger after it."""

import asyncio
import contextlib
import dataclasses
import functools
import heapq
import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

from .errors import BudgetError, EndpointFailure, Incomplete, Interrupted, LimbeckError, Refused
from .fingerprint import digest
from .ledger import Ledger, Record

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
LONGEST_PAUSE = 600.0  # an endpoint that asks for more is away


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The one event loop of the process, in a background thread: scripts and notebooks share a synchronous API."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="limbeck-loop", daemon=True).start()
    return made


def wait(work: Coroutine, on_interrupt: Callable[[], None] | None = None) -> Any:
    """Runs a coroutine on the background loop and waits. Ctrl-C drains what is in flight; a second one gives up."""
    future = asyncio.run_coroutine_threadsafe(work, loop())
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


class Budget:
    """A cap in money, calls or tokens over all that a directory ever buys. A call reserves its worst price first."""

    def __init__(self, caps: dict[str, float], spent: dict[str, float]):
        self.caps, self.spent = caps, dict(spent)
        self.reserved = dict.fromkeys(("money", "calls", "tokens"), 0.0)

    @staticmethod
    def parse(text: str | float | None) -> dict[str, float]:
        """Reads "$5", "5 usd", "100 calls", "1.5M tokens", or several with commas; a bare number is dollars."""
        caps: dict[str, float] = {}
        for part in str(text).split(",") if text is not None else ():
            m = re.fullmatch(r"\s*(\$)?\s*([\d.]+)\s*([kKmM])?\s*(usd|dollars?|calls?|tokens?)?\s*", part)
            number = float(m[2]) if m and m[2].count(".") < 2 and m[2] != "." else None
            if m is None or number is None or (m[1] and m[4] not in (None, "usd")):
                raise LimbeckError(
                    f"the budget {part.strip()!r} is not understood; write '$5' (the shell wants the single quotes), "
                    "'100 calls' or '1M tokens'."
                )
            number *= {"k": 1e3, "m": 1e6}.get((m[3] or "").lower(), 1)
            unit = (m[4] or "usd").rstrip("s")
            caps["calls" if unit == "call" else "tokens" if unit == "token" else "money"] = number
        return caps

    def worst(self, model: Any, request: Any) -> dict[str, float]:
        """The most that one call can take. Raises LimbeckError where a cap is set on what has no bound."""
        need = {"calls": 1.0, "tokens": 0.0, "money": 0.0}
        if not self.caps.keys() & {"tokens", "money"}:
            return need
        prompt = model.prompt_tokens_at_most(request)
        written = request.max_tokens if request.max_tokens is not None else model.max_output
        if ("tokens" in self.caps or ("money" in self.caps and not model.free)) and written is None:
            raise LimbeckError(
                f"a budget wants to know the most that {model.name!r} may write, and no max_tokens is set; "
                f"give max_tokens, or the option max_output, or cap the calls."
            )
        need["tokens"] = prompt + (written or 0)
        if "money" in self.caps and not model.free:
            if model.price is None:
                raise LimbeckError(
                    f"a budget in money wants a price, and none is known for {model.name!r}; "
                    f'give one (price="0.15/0.60", dollars per million tokens in/out), or cap calls or tokens.'
                )
            need["money"] = model.price.of(prompt, written)
        return need

    def reserve(self, need: dict[str, float]) -> bool:
        for unit, cap in self.caps.items():
            if self.spent[unit] + self.reserved[unit] + need[unit] > cap * (1 + 1e-9):
                return False
        for unit, amount in need.items():
            self.reserved[unit] += amount
        return True

    def settle(self, need: dict[str, float], real: dict[str, float] | None) -> None:
        """Gives a reservation back and books what the call really took (None: nothing was bought)."""
        for unit, amount in need.items():
            self.reserved[unit] -= amount
            self.spent[unit] += (real or {}).get(unit, 0.0)

    def exhausted(self) -> BudgetError:
        words = {"money": "${:.4f} of ${:g}", "calls": "{:.0f} of {:g} calls", "tokens": "{:.0f} of {:g} tokens"}
        had = ", ".join(words[u].format(self.spent[u], cap) for u, cap in self.caps.items())
        return BudgetError(
            f"the budget is used up: {had}, and the next call may pass it; all replies are kept: "
            f"run again with a higher --budget to go on, or `limbeck export DIR --partial` for the finished rows."
        )


class Buying:
    """One purchase of many calls: what is wanted, how it goes, and why it stopped."""

    def __init__(self, ledger: Ledger, budget: Budget, progress: Any):
        self.ledger, self.budget, self.progress = ledger, budget, progress
        self.stopped: BaseException | None = None  # nothing new starts once this is set
        self.failed: Counter[str] = Counter()  # calls given up, by cause
        self.why: dict[str, str] = {}  # the last message of each cause
        self.retries: Counter[str] = Counter()
        self.served: dict[str, str | None] = {}
        self.bought = 0
        self.endpoints: list[_Endpoint] = []

    def interrupt(self) -> None:
        self.stopped = self.stopped or Interrupted(
            "interrupted: the calls in flight were kept; run the same command again to go on."
        )
        for endpoint in self.endpoints:
            endpoint.changed.set()  # nobody waits out a pause for nothing

    async def all(self, endpoints: Mapping[str, tuple[int, Iterable[Job]]]) -> None:
        """Buys every endpoint's jobs side by side. Raises the first reason that stopped it, after draining."""
        self.endpoints = [_Endpoint(self, width, iter(jobs)) for width, jobs in endpoints.values()]
        await asyncio.gather(*(endpoint.run() for endpoint in self.endpoints))
        await asyncio.get_running_loop().run_in_executor(None, self.ledger.flush)
        if self.stopped:
            raise self.stopped
        if self.failed:
            causes = ", ".join(f"{n} x {cause}" for cause, n in self.failed.most_common())
            why = next(iter(self.why.values())).rstrip(". ")
            raise Incomplete(
                f"incomplete: {sum(self.failed.values())} calls got no answer ({causes}); {self.bought} were bought "
                f"and kept. {why}. Once that is mended, the same command asks only for the rest."
            )


class _Endpoint:
    """The calls to one endpoint: as many at a time as it takes, due retries before first tries, pauses obeyed."""

    def __init__(self, buying: Buying, width: int, jobs: Iterator[Job]):
        self.buying, self.width, self.jobs = buying, width, jobs
        self.retries: list[tuple[float, int, int, Job, float]] = []  # (due, tie-break, attempt, job, first tried)
        self.order = itertools.count()
        self.active, self.paused_until, self.last_success = 0, 0.0, 0.0
        self.away = False
        self.changed = asyncio.Event()

    async def run(self) -> None:
        workers = [asyncio.create_task(self._worker())]

        def spawn() -> None:
            if len(workers) < self.width:
                workers.append(asyncio.create_task(self._worker()))

        self.spawn = spawn  # one more worker for as long as there is work for all: three rows open three or four
        try:
            while pending := [w for w in workers if not w.done()]:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for worker in workers:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
        if self.away and not self.buying.stopped:
            left = len(self.retries) + sum(1 for _ in self.jobs)
            if left:
                self.buying.failed["not asked: the endpoint is away"] += left

    def _next(self) -> tuple[int, Job, float] | float | None:
        """The next try; or how long to wait for one; or None when there is nothing left to do."""
        now = time.monotonic()
        if self.buying.stopped or self.away:
            return None
        if now < self.paused_until:
            return self.paused_until - now
        if self.retries and self.retries[0][0] <= now:
            _, _, attempt, job, first = heapq.heappop(self.retries)
            return attempt, job, first
        fresh = next(self.jobs, None)
        if fresh is not None:
            return 0, fresh, now
        if self.retries:
            return self.retries[0][0] - now
        return 60.0 if self.active else None  # a call in flight may yet come back as a retry

    async def _worker(self) -> None:
        while (found := self._next()) is not None:
            if isinstance(found, float):
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), found)
                continue
            self.active += 1
            self.spawn()
            try:
                await self._try(*found)
            except LimbeckError as error:
                self.buying.stopped = self.buying.stopped or error
            except Exception as error:  # a bug in a model: stop everything, keep what is paid for, show it
                self.buying.stopped = self.buying.stopped or error
            finally:
                self.active -= 1
                self.changed.set()
        self.changed.set()

    async def _try(self, attempt: int, job: Job, first: float) -> None:
        buying, budget, model = self.buying, self.buying.budget, job.model
        need = budget.worst(model, job.request)
        while not budget.reserve(need):
            if not budget.reserved["calls"]:  # nothing is in flight that could give some back
                buying.stopped = buying.stopped or budget.exhausted()
                return
            await asyncio.sleep(0.01)  # a call in flight may cost less than it reserved
            if buying.stopped:
                return
        started, real = time.monotonic(), None
        try:
            reply, refused = await model.reply(job.request, job.key), None
        except Refused as refusal:
            reply, refused = None, str(refusal)
            real = {"calls": 1.0, "tokens": 0.0, "money": 0.0}
        except EndpointFailure as failure:
            self._failed(failure, attempt, job, first)
            return
        else:
            if not reply.prompt_tokens + reply.completion_tokens and not model.free:  # it did not say: count the worst
                reply.prompt_tokens = int(need["tokens"])
                reply.cost = reply.cost or need["money"] or reply.cost
            tokens = reply.prompt_tokens + reply.completion_tokens
            real = {"calls": 1.0, "tokens": float(tokens), "money": reply.cost or 0.0}
        finally:
            budget.settle(need, real)
        self.last_success = time.monotonic()
        buying.bought += 1
        key = job.key
        if reply and (wrong := self._wrongly_served(model, reply.served_model)):
            buying.stopped = buying.stopped or wrong
            key = digest(job.key, str(reply.served_model))  # paid for and kept, but no answer of the model asked
        buying.ledger.put(
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
                seconds=self.last_success - started,
                site=job.site,
                row=job.row,
            )
        )
        buying.progress.advance(money=real["money"] if real else 0.0)

    def _failed(self, failure: EndpointFailure, attempt: int, job: Job, first: float) -> None:
        buying, now = self.buying, time.monotonic()
        too_long = (failure.retry_after or 0.0) > LONGEST_PAUSE
        if failure.final or too_long or attempt >= job.model.retries:
            buying.failed[failure.cause] += 1
            buying.why[failure.cause] = str(failure)
            # Nobody got through while this call used up all its tries: the endpoint is away, not this call unlucky.
            self.away = self.away or failure.final or too_long or self.last_success < first
            return
        buying.retries[failure.cause] += 1
        buying.progress.advance(0, retries=1)
        pause = min(FIRST_BACKOFF * 2**attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
        if failure.retry_after is not None:
            pause = max(pause, failure.retry_after)
            self.paused_until = max(self.paused_until, now + failure.retry_after)
        heapq.heappush(self.retries, (now + pause, next(self.order), attempt + 1, job, first))

    def _wrongly_served(self, model: Any, served: str | None) -> LimbeckError | None:
        if served is None:
            return None
        known = self.buying.served
        if model.digest not in known:
            known[model.digest] = self.buying.ledger.served(model.digest)
        before = known[model.digest] = known[model.digest] or served
        if before == served:
            return None
        return LimbeckError(
            f"{model.name!r} was served by {before!r} so far and is now served by {served!r}; to ask the new one, "
            f"say so with revision={served!r} (its replies are bought anew), or bring the old one back."
        )
