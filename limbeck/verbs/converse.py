"""converse: each row has a talk of its own, an async function that asks as often as the replies make it."""

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import engine, models
from .. import prompt as prompts
from ..engine import Buying, Job
from ..errors import Interrupted, LimbeckError, Refused
from ..fingerprint import data_half
from ..models.base import Model
from ..op import Made, row_stage
from ..parse import Reject
from ..progress import Progress, summary
from ..run import Run, current
from ..table import Row, Table, own, row_digest
from .purchase import _earlier
from .talk import Call, Held, Rejected, Talk, as_held

HELD = 2048  # talks begun, or done and waiting for an earlier one; more do not begin
AT_ONCE = 1024  # talks that go on at the same time, at most
TOOLS = 64  # plain functions that run at the same time


def converse(
    rows: Table,
    talk: Callable[[Row, Call], Awaitable[Any]],
    *,
    on: str | Sequence[str] | None = None,
    salt: int | str = 0,
    **models: Model | str,
) -> Table:
    """Runs `async def talk(row, call)` for each row, many at a time, and stores the row, or rows, that it returns.

    A talk asks with `await call(who, prompt)`, where `who` is the keyword of one of the `models`, and decides by the
    replies what it asks next; `call.tool` runs functions, `call.branch` parts what goes on at once. It returns a row (a
    dict), a Reject, or a list of those. A refusal that it does not catch makes its row a reject; any other error stops
    the run and shows where it was.

    Nothing is bought twice: a call's key is the row's `on` columns (by default all of them), how many earlier rows are
    the same there, `salt`, and how often this row's talk (this branch of it) said the same words. So a talk may be
    changed, or killed and run again, and gets the replies that it had. Raises BudgetError, Incomplete, Interrupted;
    the replies are kept.
    """
    run = current("converse")
    if not isinstance(rows, Table):
        raise LimbeckError(f"converse wants a Table first; it got a {type(rows).__name__}.")
    talks = Conversation(rows, talk, [on] if isinstance(on, str) else on, salt, models, run, run.site("converse"))
    return talks.stage() if run.plan is None else run.plan.converse(talks)


class Conversation:
    """The talks of one converse: which calls they make, under which keys, and what they come to."""

    def __init__(
        self,
        rows: Table,
        talk: Callable[[Row, Call], Awaitable[Any]],
        on: Sequence[str] | None,
        salt: int | str,
        who: dict[str, Model | str],
        run: Run,
        site: str,
    ):
        self.rows, self.talk, self.on, self.salt, self.run, self.site = rows, talk, on, salt, run, site
        self.label: str = getattr(talk, "__name__", type(talk).__name__)
        if not any(map(inspect.iscoroutinefunction, (talk, getattr(talk, "__call__", None)))):  # noqa: B004
            raise LimbeckError(f"converse wants `async def {self.label}(row, call)`, which returns rows; it is none.")
        self.models = {name: models.get(m) if isinstance(m, str) else m for name, m in who.items()}
        for model in self.models.values():
            self.model(model)
        rows.need("converse", *(on or ()))
        self.buying: Buying | None = None  # None: what is held is replayed, and nothing bought
        self.stopped: BaseException | None = None
        self.replayed = 0
        self._bar: Progress | None = None
        self._prompts: dict[str, prompts.Prompt] = {}
        self._told: dict[str, str] = {}  # the digest of each prompt that was said, by name
        self._tasks: set[asyncio.Task] = set()  # talks that go on
        self._over = False
        self._running, self._waiting = 0, deque[asyncio.Future]()
        self._asked: dict[str, tuple[asyncio.Future, bool]] = {}  # keys to look up
        self._reading: asyncio.Task | None = None

    def parameters(self) -> dict[str, Any]:
        return {"talk": self.talk, "models": self.models, "on": self.on, "salt": self.salt}

    def stage(self) -> Table:
        """Has all talks, buys what they lack, and stores their rows."""
        started, looks = time.monotonic(), list[dict[str, Any]]()
        made: Any = None
        try:
            answers = functools.partial(self._answers, looks=looks)
            made = row_stage("converse", self.rows, self.parameters(), answers, code=data_half())
            return made
        except KeyboardInterrupt:  # while rows were written; what was in flight is kept by now
            raise Interrupted("interrupted: what is bought is kept; run the same command again to go on.") from None
        finally:
            if looks:
                counts = None if made is None else made.meta["counts"]
                self.run.say(summary(self.label, looks, self.replayed, counts, time.monotonic() - started))

    # -- without buying
    def look_up(self) -> int:
        """How many talks cannot be replayed as a whole."""
        return sum(made is None for made in self._talks(enumerate(self.rows.tracked())))

    def finished(self) -> Iterator[Row]:
        """The rows of the talks that can be replayed as a whole."""
        for made in self._talks(enumerate(self.rows.tracked())):
            yield from (one.result for one in made or () if isinstance(one.result, dict))

    # -- buying
    def _answers(self, rows: Iterator[tuple[int, Row]], looks: list[dict[str, Any]]) -> Iterator[Made]:
        with self._bought(looks):
            for made in self._talks(rows):
                yield from made or ()

    @contextlib.contextmanager
    def _bought(self, looks: list[dict[str, Any]]) -> Iterator[None]:
        """Buys what the talks ask while the block runs. Raises what stopped it once what was in flight is kept."""
        run, names = self.run, [m.name for m in self.models.values()]
        run.consent(self.models.values(), buys=False)
        run.event("ask", site=self.site, prompt=self.label, prompts={}, models=names, calls=None, to_buy=None)
        with run.bar(self.label, self.rows.size, ", ".join(names)[:40], self.site) as bar:
            self._bar, self.buying = bar, Buying(run.ledger, run.budget, _Calls(bar))
            bar.state, self.buying.keep_open = self.buying.state, True
            future = engine.start(self._all(self.buying))
            try:
                yield
                engine.loop().call_soon_threadsafe(self._close, self.buying)
                engine.finish(future, self.buying.interrupt)
            except BaseException as error:
                if not future.done():
                    engine.loop().call_soon_threadsafe(self.buying.interrupt)
                    with contextlib.suppress(*() if isinstance(error, KeyboardInterrupt) else (LimbeckError,)):
                        engine.finish(future)  # what is in flight is paid for
                raise
            finally:
                run.ledger.flush()
                looks.append(bar.look())
                run.event("bought", site=self.site, calls=self.buying.bought, money=bar.money,
                          tokens=[self.buying.prompt_tokens, self.buying.completion_tokens],
                          retries=dict(self.buying.retries), failed=dict(self.buying.failed),
                          prompts=self._told, spent=run.ledger.spent())  # fmt: skip
                self.buying = self._bar = None

    async def _all(self, buying: Buying) -> None:
        try:
            await buying.all([(model, ()) for model in {id(m): m for m in self.models.values()}.values()])
        finally:
            self._over = True
            for task in self._tasks:  # they wait for what will not come
                task.cancel()

    def _close(self, buying: Buying) -> None:
        buying.keep_open = False
        buying.check_finished()

    # -- talks
    def _talks(self, rows: Iterator[tuple[int, Row]]) -> Iterator[list[Made] | None]:
        """What each talk came to, in order; None where a call got no answer. Begins no more than it can hold."""
        begun: deque[concurrent.futures.Future] = deque()
        self._about  # noqa: B018 (reads the rows: not on the event loop)
        for index, row in rows:
            if self._over or self.stopped:
                break
            if len(begun) == HELD:
                yield begun.popleft().result()
            begun.append(engine.start(self._have(index, row)))
        while begun:
            yield begun.popleft().result()
        if self.stopped:
            raise self.stopped

    async def _have(self, index: int, row: Row) -> list[Made] | None:
        """Has one row's talk."""
        if self._over or (task := asyncio.current_task()) is None:
            return None
        self._tasks.add(task)
        digests, occurrences = self._about
        mine = own({name: value for name, value in row.items() if name != "_row"})
        whole = self.rows.row_digests[16 * index : 16 * index + 16].hex()
        talk = Talk(mine, digests[16 * index : 16 * index + 16].hex(), int(occurrences[index]), whole)
        began = False
        try:
            await self._turn()
            began = True
            made = self._results(await self.talk(mine, Call(self, talk)))
        except BaseException as raised:
            error = _alone(raised)
            if not isinstance(error, Refused | Rejected):
                if not (self._over or talk.unanswered):
                    self._stop(error, index, mine)
                return None
            made = [error.reject if isinstance(error, Rejected) else Reject(f"refused: {error}"[:200])]
        finally:
            talk.over = True
            self._tasks.discard(task)
            if began:
                self._leave()
        if talk.unanswered:  # whatever the talk made of that
            return None
        if self._bar is not None:
            self._bar.advance()
        calls = tuple(talk.keys)
        return [Made(index, one, calls, talk.last if isinstance(one, Reject) else None) for one in made]

    def _results(self, made: Any) -> list[Row | Reject]:
        results = list(made) if isinstance(made, list | tuple) else [] if made is None else [made]
        for one in results:
            if not isinstance(one, dict | Reject):
                raise LimbeckError(
                    f"the talk {self.label!r} returned a {type(one).__name__}; "
                    "it should return a row (a dict), a Reject, or a list of those."
                )
        return results or [Reject("gave no row")]

    def _stop(self, error: BaseException, index: int, row: Row) -> None:
        """Starts nothing more, because of an error in the code of a talk."""
        if not isinstance(error, Exception):  # a cancelled task, sys.exit: not the event loop's end
            error = LimbeckError(f"the talk {self.label!r} about row {index} ended itself by {type(error).__name__}.")
        shown = json.dumps(row, ensure_ascii=False, default=str)
        error.add_note(f"in the talk {self.label!r} about row {index}: {shown[:300]}")
        if self.buying is not None:
            self.buying.stop(error)
        else:
            self.stopped = self.stopped or error

    @functools.cached_property
    def _about(self) -> tuple[bytes, np.ndarray]:
        """Per row, a digest of the columns that its talk is about, and how many earlier rows have the same."""
        digests = self.rows.row_digests
        if self.on is not None:
            digests = b"".join(row_digest({c: row.get(c) for c in self.on}) for row in self.rows.tracked())
        return digests, _earlier(bytearray(digests))

    @property
    def _most(self) -> int:
        """How many talks go on at once: enough to keep the endpoints busy while some do other things than wait."""
        return AT_ONCE // 4 if self.buying is None else min(max(2 * self.buying.width, 8), AT_ONCE)

    async def _turn(self) -> None:
        """Waits until a talk may begin; earlier ones come first."""
        if self._running < self._most and not self._waiting:
            self._running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def _leave(self) -> None:
        self._running -= 1
        while self._waiting and self._running < self._most:
            if not (place := self._waiting.popleft()).done():
                self._running += 1
                place.set_result(None)

    # -- what a call needs
    def model(self, who: str | Model) -> Model:
        """The model that a talk names. Raises LimbeckError for one that converse was not given."""
        model = self.models.get(who) if isinstance(who, str) else who
        if not isinstance(model, Model):
            given = ", ".join(self.models) or "none"
            raise LimbeckError(
                f"the talk {self.label!r} asks {who!r}; converse was given {given}: name one of these, or pass a Model."
            )
        if "chat" not in model.can:
            raise LimbeckError(f"converse wants a model that can chat; {model.name!r} can {sorted(model.can)}.")
        self.run.models[id(model)] = model
        return model

    def prompt(self, prompt: str | prompts.Prompt) -> prompts.Prompt:
        """A prompt by its name or template, read once; what is said is remembered for the record."""
        if isinstance(prompt, str):
            if prompt not in self._prompts:
                self._prompts[prompt] = prompts.get(prompt, self.run.search)
            prompt = self._prompts[prompt]
        self._told[prompt.name] = prompt.digest
        return prompt

    async def held(self, talk: Talk, key: str, whole: bool = False) -> Held | None:
        """What the ledger, or a run that lends, holds under a key. Keys that are asked for together are one query."""
        while True:
            future = asyncio.get_running_loop().create_future()
            self._asked[key] = future, whole
            if self._reading is None:
                self._reading = asyncio.get_running_loop().create_task(self._read())
            try:
                found: Held | None = await future
            except Exception as error:
                raise self._unreadable(talk, error) from None
            if found is not None or self.run.leader is None:
                return found
            await asyncio.sleep(0.2)  # another process buys for this one

    def _unreadable(self, talk: Talk, error: Exception) -> BaseException:
        if self.buying is not None:
            self.buying.stop(error)
        self.stopped = self.stopped or error
        return talk.give_up(error)

    async def _read(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            work = functools.partial(self._look_up, list(asked), any(whole for _, whole in asked.values()))
            found: dict[str, Held] | Exception
            try:
                found = await asyncio.get_running_loop().run_in_executor(None, work)
            except Exception as error:
                found = error
            for key, (future, _) in asked.items():
                if future.done():
                    continue
                if isinstance(found, Exception):
                    future.set_exception(found)
                else:
                    future.set_result(found.get(key))
        self._reading = None

    def _look_up(self, keys: list[str], whole: bool) -> dict[str, Held]:
        ledger = self.run.ledger
        found = ledger.replies(keys, whole)
        for other in self.run.lenders():
            if (lost := [k for k in keys if k not in found]) and ledger.borrow(other, lost):
                found |= ledger.replies(lost, whole)
        return found

    def may_go_on(self, talk: Talk) -> Buying:
        """Ends a talk that needs what is not held, where nothing (more) is bought."""
        if self.buying is None or self.buying.stopped:
            raise talk.give_up((self.buying and self.buying.stopped) or LimbeckError("nothing is bought here."))
        return self.buying

    async def buy(self, talk: Talk, job: Job) -> Held:
        """Buys one call. Ends the talk where no answer comes."""
        buying = self.may_go_on(talk)
        self.run.consent([job.model], buys=True)
        try:
            reply, refused = await buying.one(job)
        except Exception as error:
            raise talk.give_up(error) from None
        return (None, refused) if reply is None else (as_held(reply, job.request.logprobs is not None), None)

    async def worked(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Runs a tool: an async function here, any other in a thread."""
        work = functools.partial(fn, *args, **kwargs)
        if inspect.iscoroutinefunction(fn):
            return await work()
        return await asyncio.get_running_loop().run_in_executor(_threads(), work)


def _alone(error: BaseException) -> BaseException:
    """What a TaskGroup wrapped: its one error, or the first where all of them only reject the row."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = [_alone(inner) for inner in error.exceptions]
    return found[0] if len(found) == 1 or all(isinstance(e, Refused | Rejected) for e in found) else error


class _Calls:
    """Shows calls on a bar that counts rows."""

    def __init__(self, bar: Progress):
        self.bar, self.count, self.state = bar, 0.0, dict

    def advance(self, steps: float = 1, *, money: float = 0.0) -> None:
        self.count += steps
        self.bar.advance(0, money=money, note=f"{self.count:,.0f} calls")


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(TOOLS, "limbeck-tool")
