"""A real OpenAI-compatible server on 127.0.0.1, for tests and benchmarks: in a thread, or as a process of its own.

In a test:      with loopback(fn=lambda messages, k: "…", latency=0.05, fail=0.1) as server:
                    get("openai/m", base_url=server.url); server.requests; server.bought
As a process:   python -m tests.loopback --port 8777 --log served.jsonl --latency 0.05 --jitter 1 --fail 0.05 --code 500
                    --faults "503=0.02,reset body=0.01" --capacity 8 --fn benchmarks.kill:answer

`k` counts how often these words (model and messages) were answered before: a server that answers with it shows whether
a call was bought twice. `bought` counts the answers that were sent whole, `lost` those that were made, and would be
billed, but were spoiled on the way (see `tests/faulty.py`). With a log, one JSON line {"words", "k", "n", "whole",
"at"} per answer is on disk before the answer is sent. Chance is a function of seed, words and try, never of arrival:
two clients that ask the same meet the same tail and the same faults. GET /stats tells {"bought", "lost", "in_flight"}.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import importlib
import json
import math
import random
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from . import faulty

Answer = str | dict[str, Any]  # the text; or the choice's fields: {"message": …, "finish_reason": …, "logprobs": …}
# What to do instead of answering: a status, or a name of faulty.MISBEHAVIOURS; None answers.
Trouble = int | str | None


def numbered(messages: list[dict], k: int) -> str:
    """The default answer: a digest of the question, and how often it was asked before."""
    return f"answer {hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:8]} #{k}"


@dataclasses.dataclass
class Server:
    """What the server does (set before or while it runs), and what it has seen."""

    fn: Callable[[list[dict], int], Answer] = numbered
    latency: float = 0.0  # seconds, the mean
    jitter: float = 0.0  # sigma of a log-normal factor whose mean is 1
    fail: float = 0.0  # share of tries that end in `code`
    code: int = 500
    faults: Mapping[Trouble, float] = dataclasses.field(default_factory=dict)  # share of tries for each trouble
    trouble: Callable[[dict, int], Trouble] | None = None  # (body, how many tries these words had before)
    pause: float = 30.0  # seconds: of a stall, and between two bytes of a drip
    headers: dict[str, str] = dataclasses.field(default_factory=dict)  # sent with failures: {"Retry-After": "1"}
    error: Any = None  # the error's body; by default OpenAI's form
    capacity: int | None = None  # calls in flight at most; one more gets 429 at once
    saturation: int | None = None  # calls in flight beyond which each takes longer: no more answers a second
    rate: tuple[int, float] | None = None  # calls in so many seconds at most; one more gets 429 and Retry-After
    tell: bool = False  # say with each answer what is left of the rate, in x-ratelimit headers
    keepalive: float = 75.0  # seconds until an idle connection is closed
    tls: tuple[Path, Path] | None = None  # certificate and key
    served_model: str | None = None  # by default the model that was asked for
    usage: bool = True
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the answer's top level
    log: Path | None = None
    seed: int = 0
    port: int = 0
    requests: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # body, key, at, answered, status
    bought: int = 0
    lost: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._tries: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._taken: deque[float] = deque()  # when calls of this rate's window came
        self._runner: web.AppRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    @property
    def statuses(self) -> Counter[Trouble]:
        """How often each thing was done: 200, a status, or the name of a misbehaviour."""
        return Counter(r["status"] for r in self.requests)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        seen = {"body": body, "key": request.headers.get("Authorization"), "at": time.time(), "status": None}
        self.requests.append(seen)
        words = hashlib.sha256(json.dumps([body["model"], body["messages"]], sort_keys=True).encode()).hexdigest()
        if turned_away := self._turned_away():
            seen["status"] = 429
            return turned_away
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if delay := self._delay(words):
                await asyncio.sleep(delay)
            answer = await self._answer(request, body, words, seen)
        finally:
            self.in_flight -= 1
        seen["answered"] = time.time()
        return answer

    def _turned_away(self) -> web.Response | None:
        """The answer to a call that is one too many."""
        if self.capacity is not None and self.in_flight >= self.capacity:
            return self._status(429)
        if self.rate is None:
            return None
        now, (most, seconds) = time.monotonic(), self.rate
        while self._taken and self._taken[0] <= now - seconds:
            self._taken.popleft()
        if len(self._taken) < most:
            self._taken.append(now)
            return None
        return self._status(429, {"Retry-After": f"{self._taken[0] + seconds - now:.3f}", **self._left()})

    def _left(self) -> dict[str, str]:
        if self.rate is None or not self.tell:
            return {}
        most, seconds = self.rate
        reset = max(0.0, self._taken[0] + seconds - time.monotonic()) if self._taken else 0.0
        told = {"limit": most, "remaining": most - len(self._taken), "reset": f"{reset * 1000:.0f}ms"}
        return {f"x-ratelimit-{name}-requests": str(value) for name, value in told.items()}

    def _chance(self, *about: Any) -> random.Random:
        return random.Random(repr((self.seed, *about)))

    def _delay(self, words: str) -> float:
        crowd = max(1.0, self.in_flight / self.saturation) if self.saturation else 1.0
        if not self.jitter:
            return self.latency * crowd
        tail = self._chance("latency", words).gauss(0, self.jitter)
        return self.latency * crowd * math.exp(tail - self.jitter**2 / 2)

    def _drawn(self, words: str, tries: int) -> Trouble:
        at = self._chance("fault", words, tries).random()
        for trouble, share in [(self.code, self.fail), *self.faults.items()]:
            if at < share:
                return trouble
            at -= share
        return None

    async def _answer(self, request: web.Request, body: dict, words: str, seen: dict) -> web.StreamResponse:
        trouble = self.trouble(body, self._tries[words]) if self.trouble else None
        if trouble is None:
            trouble = self._drawn(words, self._tries[words])
        self._tries[words] += 1
        seen["status"] = 200 if trouble is None else trouble
        if isinstance(trouble, int):
            return self._status(trouble)
        if trouble is not None and trouble not in faulty.AFTER_ANSWERING:
            return await self._misbehave(request, trouble, b"")
        k, n = self._answers[words], self.bought + self.lost
        self._answers[words] += 1
        self.bought, self.lost = self.bought + (trouble is None), self.lost + (trouble is not None)
        reply = json.dumps(self._completion(body, k)).encode()
        if self.log:
            with self.log.open("a") as file:  # before the answer goes out: what was bought is known after a kill
                file.write(
                    json.dumps({"words": words, "k": k, "n": n, "whole": trouble is None, "at": time.time()}) + "\n"
                )
        if trouble is not None:
            return await self._misbehave(request, trouble, reply)
        return web.Response(body=reply, content_type="application/json", headers=self._left())

    async def _misbehave(self, request: web.Request, trouble: str, reply: bytes) -> web.StreamResponse:
        with contextlib.suppress(ConnectionResetError):  # the client has left already
            made = await faulty.MISBEHAVIOURS[trouble](request, reply, self.pause)
            if made is not None:
                return made
        return web.Response()  # into a connection that is gone

    def _status(self, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
        """An error of the model's own, in its own words."""
        error = self.error if self.error is not None else {"error": {"message": f"injected {status}", "code": None}}
        return web.json_response(error, status=status, headers={**self.headers, **(headers or {})})

    def _completion(self, body: dict, k: int) -> dict[str, Any]:
        made = self.fn(body["messages"], k)
        choice = {"message": {"role": "assistant", "content": made}} if isinstance(made, str) else made
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, **choice}
        reply = {"id": f"chatcmpl-{self.bought + self.lost}", "object": "chat.completion", "created": int(time.time())}
        reply |= {"model": self.served_model or body["model"], "choices": [choice], **self.extra}
        if self.usage:
            asked = sum(len(str(m.get("content")).split()) for m in body["messages"])
            written = len((choice["message"].get("content") or "").split())
            reply["usage"] = {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
        return reply

    async def start(self) -> None:
        """Opens the port; port 0 takes a free one and keeps it."""
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/stats", self.stats)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, keepalive_timeout=self.keepalive)
        await self._runner.setup()
        secure = None
        if self.tls:
            secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            secure.load_cert_chain(*self.tls)
        at = ("127.0.0.1", self.port)
        site = web.TCPSite(self._runner, *at, backlog=2048, reuse_address=True, ssl_context=secure)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response({"bought": self.bought, "lost": self.lost, "in_flight": self.in_flight})

    async def stop(self) -> None:
        """Closes the port and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def away(self) -> None:
        """Closes the port, as a server that crashed; from another thread than the server's."""
        self._do(self.stop())

    def back(self) -> None:
        """Opens the same port again."""
        self._do(self.start())

    def restart(self, after: float) -> None:
        """Crashes now and opens the same port again after so many seconds; from the server's own thread."""

        async def work() -> None:
            await self.stop()
            await asyncio.sleep(after)
            await self.start()

        assert self._loop is not None
        self._restart = asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _do(self, work: Any) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)


@contextlib.contextmanager
def loopback(fn: Callable[[list[dict], int], Answer] = numbered, **settings: Any) -> Iterator[Server]:
    """Runs a Server in a thread while the block runs."""
    server = Server(fn, **settings)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loopback", daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(timeout=10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(server: Server) -> None:
    await server.start()
    print(server.url, flush=True)
    await asyncio.Event().wait()


def _faults(text: str) -> dict[Trouble, float]:
    """Reads "503=0.02,reset body=0.01"."""
    parts = [part.rpartition("=") for part in text.split(",")]
    return {int(name) if name.isdigit() else name: float(share) for name, _, share in parts}


def _named(place: str) -> Callable[[list[dict], int], Answer]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--fail", type=float, default=0.0)
    parser.add_argument("--code", type=int, default=500)
    parser.add_argument("--faults", type=_faults, default={})
    parser.add_argument("--pause", type=float, default=30.0)
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--saturation", type=int)
    parser.add_argument("--retry-after")
    parser.add_argument("--fn", type=_named, default=numbered, help="module:function that writes the answers")
    parser.add_argument("--seed", type=int, default=0)
    asked = vars(parser.parse_args())
    wait = asked.pop("retry_after")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Server(headers={"Retry-After": wait} if wait else {}, **asked)))
