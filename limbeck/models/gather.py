"""Joins what is asked one by one within a few milliseconds into one request: embedding APIs take lists."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from ..errors import Refused
from .base import Reply, plain

WAIT = 0.003  # seconds that a text waits for company


class Gather:
    """Calls `send(texts, extra)` with what came in within WAIT, at most `most` texts at a time, and deals the replies.

    When a request of several is refused, each text is sent alone: only the one that is at fault stays refused.
    """

    def __init__(self, send: Callable[[list[str], Mapping[str, Any] | None], Awaitable[list[Reply]]], most: int):
        self.send, self.most = send, most
        self._waiting: dict[bytes, list[tuple[str, asyncio.Future[Reply]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, text: str, extra: Mapping[str, Any] | None) -> Reply:
        loop = asyncio.get_running_loop()
        alike = orjson.dumps(extra, default=plain, option=orjson.OPT_SORT_KEYS) if extra else b""
        group = self._waiting.setdefault(alike, [])
        if not group:
            loop.call_later(WAIT, self._go, alike, extra, group)
        answer: asyncio.Future[Reply] = loop.create_future()
        group.append((text, answer))
        if len(group) >= self.most:
            self._go(alike, extra, group)
        return await answer

    def _go(
        self, alike: bytes, extra: Mapping[str, Any] | None, group: list[tuple[str, asyncio.Future[Reply]]]
    ) -> None:
        if self._waiting.get(alike) is group:  # else it was full and has gone
            del self._waiting[alike]
            task = asyncio.get_running_loop().create_task(self._ask(group, extra))
            self._running.add(task)  # the loop itself holds a task only weakly
            task.add_done_callback(self._running.discard)

    async def _ask(self, group: list[tuple[str, asyncio.Future[Reply]]], extra: Mapping[str, Any] | None) -> None:
        group = [(text, answer) for text, answer in group if not answer.done()]  # who gave up is not asked for
        if not group:
            return
        try:
            replies = await self.send([text for text, _ in group], extra)
        except Refused as refusal:
            if len(group) > 1:
                await asyncio.gather(*(self._ask([one], extra) for one in group))
            else:
                _fail(group, refusal)
        except Exception as failure:  # it belongs to whoever asked
            _fail(group, failure)
        else:
            for (_, answer), reply in zip(group, replies, strict=True):
                if not answer.done():
                    answer.set_result(reply)


def _fail(group: list[tuple[str, asyncio.Future[Reply]]], failure: Exception) -> None:
    for _, answer in group:
        if not answer.done():
            answer.set_exception(failure)


def shares(total: int, texts: list[str]) -> list[int]:
    """Splits a count of tokens among texts by their size: at least 1 each, as 0 means that nobody counted.

    The parts add up to the count, where it is not less than the number of texts.
    """
    if not total:
        return [0] * len(texts)
    sizes = list(itertools.accumulate(len(t.encode("utf-8", "replace")) or 1 for t in texts))
    upto = [0, *(max(0, total - len(texts)) * size // sizes[-1] for size in sizes)]
    return [1 + b - a for a, b in itertools.pairwise(upto)]
