"""A real OpenAI-compatible server on 127.0.0.1, for tests and benchmarks: in a thread, or as a process of its own.

In a test:      with loopback(fn=lambda messages, k: "…", latency=0.05, fail=0.1) as server:
                    get("openai/m", base_url=server.url); server.requests; server.bought
As a process:   python -m tests.loopback --port 8777 --log served.jsonl --latency 0.05 --jitter 1 --fail 0.05 --code 500

`k` counts how often these words (model and messages) were answered before: a server that answers with it shows whether
a call was bought twice. With a log, one JSON line {"words", "k", "n"} per answer is on disk before the answer is sent.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

Answer = str | dict[str, Any]  # the text; or the choice's fields: {"message": …, "finish_reason": …, "logprobs": …}
# What to do instead of answering: a status, "disconnect", "broken" (no JSON) or "empty" (no choices); None answers.
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
    trouble: Callable[[dict, int], Trouble] | None = None  # (body, how many tries these words had before)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)  # sent with failures: {"Retry-After": "1"}
    error: Any = None  # the error's body; by default OpenAI's form
    served_model: str | None = None  # by default the model that was asked for
    usage: bool = True
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the answer's top level
    log: Path | None = None
    seed: int = 0
    port: int = 0
    requests: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # body, key, at, answered, status
    bought: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._tries: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        seen = {"body": body, "key": request.headers.get("Authorization"), "at": time.time(), "status": None}
        self.requests.append(seen)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if delay := self._delay():
                await asyncio.sleep(delay)
            answer = self._answer(request, body, seen)
        finally:
            self.in_flight -= 1
        seen["answered"] = time.time()
        return answer

    def _delay(self) -> float:
        if not self.jitter:
            return self.latency
        return self.latency * math.exp(self._random.gauss(0, self.jitter) - self.jitter**2 / 2)

    def _answer(self, request: web.Request, body: dict, seen: dict) -> web.StreamResponse:
        words = hashlib.sha256(json.dumps([body["model"], body["messages"]], sort_keys=True).encode()).hexdigest()
        trouble = self.trouble(body, self._tries[words]) if self.trouble else None
        self._tries[words] += 1
        if trouble is None and self.fail and self._random.random() < self.fail:
            trouble = self.code
        if trouble is not None:
            seen["status"] = trouble
            return self._troubled(request, trouble)
        k, n = self._answers[words], self.bought
        self._answers[words] += 1
        self.bought += 1
        seen["status"] = 200
        reply = self._completion(body, k)
        if self.log:
            with self.log.open("a") as file:  # before the answer goes out: what was bought is known after a kill
                file.write(json.dumps({"words": words, "k": k, "n": n}) + "\n")
        return web.json_response(reply)

    def _troubled(self, request: web.Request, trouble: int | str) -> web.StreamResponse:
        if trouble == "disconnect":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if trouble == "broken":
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if trouble == "empty":
            return web.json_response({"choices": []})
        error = self.error if self.error is not None else {"error": {"message": f"injected {trouble}", "code": None}}
        return web.json_response(error, status=int(trouble), headers=self.headers)

    def _completion(self, body: dict, k: int) -> dict[str, Any]:
        made = self.fn(body["messages"], k)
        choice = {"message": {"role": "assistant", "content": made}} if isinstance(made, str) else made
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, **choice}
        reply = {"id": f"chatcmpl-{self.bought}", "object": "chat.completion", "created": int(time.time())}
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
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=2048, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--fail", type=float, default=0.0)
    parser.add_argument("--code", type=int, default=500)
    parser.add_argument("--retry-after")
    parser.add_argument("--seed", type=int, default=0)
    asked = vars(parser.parse_args())
    wait = asked.pop("retry_after")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Server(headers={"Retry-After": wait} if wait else {}, **asked)))
