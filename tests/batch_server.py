"""The batch APIs of OpenAI and Anthropic on 127.0.0.1: files, batches that advance with each look, results.

    with provider(looks=2) as server:
        get("openai/m", base_url=server.url); get("anthropic/m", base_url=server.home); server.batches; server.asked

`fate` says what becomes of a request, by its custom_id, its body and how often it was handed in before: a Fate. `hook`
is called with a word at every turn (uploaded, created, looked, results, errors) before the server answers: it can kill
whoever asked. `k` of `fn` counts how often these words were answered before, so that a reply shows what was bought
twice.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import email
import email.policy
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

from limbeck.models import get

from .loopback import numbered

# None answers; a status is an error of the request; "expired" and "canceled" are what they say; "lost" is nowhere.
Fate = int | str | None
_TYPES = {400: "invalid_request_error", 404: "not_found_error", 500: "api_error", 529: "overloaded_error"}


@dataclasses.dataclass
class Provider:
    """What the server does (set before or while it runs), and what it has seen."""

    fn: Callable[[list[dict], int], str] = numbered
    fate: Callable[[str, dict, int], Fate] = lambda key, body, k: None
    hook: Callable[[str], None] = lambda what: None
    looks: int = 1  # at a batch, until it has ended
    trouble: Callable[[str, str], int | None] = lambda method, path: None  # a status instead of an answer
    cut: Callable[[str], bool] = lambda path: False  # whether a download breaks off in the middle
    queue: int | None = None  # requests that may wait in all; a batch beyond that fails (OpenAI's enqueued limit)
    refuses: str | None = None  # the code of an error that every batch fails with (OpenAI's check of the file)
    message: str = "injected"  # the words of a request's error
    port: int = 0
    batches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    asked: Counter[str] = dataclasses.field(default_factory=Counter)  # how often each custom_id was handed in
    calls: Counter[str] = dataclasses.field(default_factory=Counter)  # "GET /v1/batches/…": what was called how often
    single: int = 0  # calls to /chat/completions

    def __post_init__(self) -> None:
        self._answers: Counter[str] = Counter()

    @property
    def home(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.home}/v1"

    # -- what both share
    def _create(self, api: str, requests: list[tuple[str, dict]], **more: Any) -> dict[str, Any]:
        keys = [key for key, _ in requests]
        assert len(set(keys)) == len(keys) and all(0 < len(k) <= 64 and k.replace("-", "").isalnum() for k in keys)
        waiting = sum(len(b["requests"]) for b in self.batches if not b["over"])
        batch = {"id": f"batch_{len(self.batches):03}", "api": api, "requests": requests, "looks": 0, "over": False}
        batch |= {"made": time.time(), "results": None, "failed": None, **more}
        self.batches.append(batch)
        if self.queue is not None and waiting + len(requests) > self.queue:
            batch |= {"failed": "token_limit_exceeded", "over": True}
        elif self.refuses:
            batch |= {"failed": self.refuses, "over": True}
        else:
            for key, body in requests:
                batch.setdefault("fates", {})[key] = self.fate(key, body, self.asked[key])
                self.asked[key] += 1
        self.hook("created")
        return batch

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["looks"] += 1
        if batch["looks"] >= self.looks and not batch["over"]:
            batch |= {"over": True, "ended": time.time()}
            batch["results"] = [(key, body, batch["fates"][key]) for key, body in reversed(batch["requests"])]
        self.hook("looked")
        return batch

    def _done(self, batch: dict[str, Any]) -> int:
        return len(batch["requests"]) if batch["over"] else len(batch["requests"]) * batch["looks"] // self.looks // 2

    def _find(self, request: web.Request, api: str) -> dict[str, Any]:
        found = [b for b in self.batches if b["id"] == request.match_info["id"] and b["api"] == api]
        if not found:
            raise web.HTTPNotFound(text=json.dumps({"error": {"message": "no such batch"}}))
        return found[0]

    def _page(self, request: web.Request, api: str, cursor: str, shown: Callable) -> web.Response:
        """The batches, newest first, two a page whatever was asked for."""
        listed = [b for b in reversed(self.batches) if b["api"] == api]
        if after := request.query.get(cursor):
            listed = listed[[b["id"] for b in listed].index(after) + 1 :]
        return web.json_response({"data": [shown(b) for b in listed[:2]], "has_more": len(listed) > 2})

    def _reply(self, body: dict) -> tuple[str, dict[str, int]]:
        words = json.dumps(body["messages"], sort_keys=True)
        text = self.fn(body["messages"], self._answers[words])
        self._answers[words] += 1
        return text, {"asked": len(words.split()), "written": len(text.split())}

    # -- OpenAI
    async def upload(self, request: web.Request) -> web.Response:
        raw = b"Content-Type: " + request.headers["Content-Type"].encode() + b"\r\n\r\n" + await request.read()
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in email.message_from_bytes(raw, policy=email.policy.HTTP).iter_parts()
        }
        assert parts["purpose"].get_payload().strip() == "batch"
        assert parts["file"].get_filename().endswith(".jsonl")
        name = f"file_{len(self.files)}"
        self.files[name] = parts["file"].get_payload(decode=True)
        self.hook("uploaded")
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def create(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        assert wanted["completion_window"] == "24h" and wanted["endpoint"] == "/v1/chat/completions"
        lines = [json.loads(line) for line in self.files[wanted["input_file_id"]].splitlines() if line.strip()]
        assert all(line["method"] == "POST" and line["url"] == wanted["endpoint"] for line in lines)
        assert len({line["body"]["model"] for line in lines}) == 1
        requests = [(line["custom_id"], line["body"]) for line in lines]
        return web.json_response(self._openai(self._create("openai", requests, metadata=wanted.get("metadata"))))

    def _openai(self, batch: dict[str, Any]) -> dict[str, Any]:
        shown = {"id": batch["id"], "object": "batch", "created_at": int(batch["made"]), "errors": None}
        shown |= {"status": "completed" if batch["over"] else "in_progress", "metadata": batch["metadata"]}
        if batch["failed"]:
            shown |= {"status": "failed", "errors": {"data": [{"code": batch["failed"], "message": "not taken"}]}}
        counts = {"total": len(batch["requests"]), "completed": self._done(batch), "failed": 0}
        if batch["results"] is not None:
            bad = [fate for *_, fate in batch["results"] if fate is not None]
            if "expired" in bad:
                shown["status"] = "expired"
            counts |= {"completed": counts["total"] - len(bad), "failed": len(bad)}
            shown["output_file_id"] = f"{batch['id']}-out" if len(bad) < counts["total"] else None
            shown["error_file_id"] = f"{batch['id']}-err" if bad else None
        return {**shown, "request_counts": counts}

    async def look(self, request: web.Request) -> web.Response:
        return web.json_response(self._openai(self._look(self._find(request, "openai"))))

    async def list(self, request: web.Request) -> web.Response:
        return self._page(request, "openai", "after", self._openai)

    async def content(self, request: web.Request) -> web.StreamResponse:
        name, _, which = request.match_info["id"].rpartition("-")
        batch = next(b for b in self.batches if b["id"] == name)
        lines = []
        for key, body, fate in batch["results"]:
            if (fate is None) != (which == "out") or fate == "lost":
                continue
            line: dict[str, Any] = {"custom_id": key, "response": None, "error": None}
            if fate is None:
                line["response"] = {"status_code": 200, "body": batch.setdefault("made_" + key, self._chat(body))}
            elif isinstance(fate, int):
                line["response"] = {"status_code": fate, "body": {"error": {"message": self.message}}}
            else:
                line["error"] = {"code": f"batch_{fate}", "message": "not in time"}
            lines.append(line)
        return await self._file(request, lines)

    def _chat(self, body: dict) -> dict[str, Any]:
        text, n = self._reply(body)
        message = {"role": "assistant", "content": text}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": w, "logprob": -0.5, "bytes": None} for w in text.split()]}
        usage = {"prompt_tokens": n["asked"], "completion_tokens": n["written"]}
        return {"model": body["model"], "choices": [choice], "usage": usage}

    async def chat(self, request: web.Request) -> web.Response:
        self.single += 1
        return web.json_response(self._chat(await request.json()))

    # -- Anthropic
    async def message_batch(self, request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/json" and request.headers["anthropic-version"]
        requests = [(r["custom_id"], r["params"]) for r in (await request.json())["requests"]]
        return web.json_response(self._anthropic(self._create("anthropic", requests)))

    def _anthropic(self, batch: dict[str, Any]) -> dict[str, Any]:
        total, done = len(batch["requests"]), self._done(batch)
        counts = {"processing": total - done, "succeeded": done, "errored": 0, "canceled": 0, "expired": 0}
        made = datetime.datetime.fromtimestamp(batch["made"], datetime.UTC).isoformat().replace("+00:00", "Z")
        return {"id": batch["id"], "type": "message_batch", "created_at": made, "request_counts": counts,
                "processing_status": "ended" if batch["over"] else "in_progress",
                "results_url": "https://elsewhere.invalid/results" if batch["over"] else None}  # fmt: skip

    async def message_look(self, request: web.Request) -> web.Response:
        return web.json_response(self._anthropic(self._look(self._find(request, "anthropic"))))

    async def message_list(self, request: web.Request) -> web.Response:
        return self._page(request, "anthropic", "after_id", self._anthropic)

    async def message_results(self, request: web.Request) -> web.StreamResponse:
        batch = self._find(request, "anthropic")
        lines = []
        for key, body, fate in batch["results"]:
            if fate is None:
                result = {"type": "succeeded", "message": batch.setdefault("made_" + key, self._message(body))}
            elif isinstance(fate, int):
                error = {"type": _TYPES[fate], "message": self.message}
                result = {"type": "errored", "error": {"type": "error", "error": error}}
            else:
                result = {"type": fate}
            if fate != "lost":
                lines.append({"custom_id": key, "result": result})
        return await self._file(request, lines)

    def _message(self, body: dict) -> dict[str, Any]:
        text, n = self._reply(body)
        usage = {"input_tokens": n["asked"], "output_tokens": n["written"]}
        return {"model": body["model"], "content": [{"type": "text", "text": text}], "stop_reason": "end_turn",
                "usage": usage}  # fmt: skip

    # -- the server
    async def _file(self, request: web.Request, lines: list) -> web.StreamResponse:
        raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
        answer = web.StreamResponse(headers={"Content-Length": str(len(raw)), "Content-Type": "application/octet"})
        with contextlib.suppress(ConnectionError):  # whoever asked may be dead by now
            await answer.prepare(request)
            await answer.write(raw[: len(raw) // 2])
            self.hook("errors" if request.path.endswith("-err/content") else "results")
            if not self.cut(request.path):
                await answer.write(raw[len(raw) // 2 :])
                return answer
        if request.transport is not None:
            request.transport.close()
        return answer

    async def start(self) -> None:
        @web.middleware
        async def troubled(request: web.Request, handler: Any) -> web.StreamResponse:
            self.calls[f"{request.method} {request.path}"] += 1
            if status := self.trouble(request.method, request.path):
                return web.json_response({"error": {"message": f"injected {status}"}}, status=status)
            return await handler(request)

        app = web.Application(client_max_size=64 << 20, middlewares=[troubled])
        app.add_routes([
            web.post("/v1/files", self.upload), web.get("/v1/files/{id}/content", self.content),
            web.post("/v1/batches", self.create), web.get("/v1/batches", self.list),
            web.get("/v1/batches/{id}", self.look), web.post("/v1/chat/completions", self.chat),
            web.post("/v1/messages/batches", self.message_batch), web.get("/v1/messages/batches", self.message_list),
            web.get("/v1/messages/batches/{id}", self.message_look),
            web.get("/v1/messages/batches/{id}/results", self.message_results),
        ])  # fmt: skip
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]


@contextlib.contextmanager
def provider(fn: Callable[[list[dict], int], str] = numbered, **settings: Any) -> Iterator[Provider]:
    """Runs a Provider in a thread while the block runs."""
    server, loop = Provider(fn, **settings), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="provider", daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(timeout=10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server._runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def model(server: Provider, api: str = "openai", name: str = "m", **options: Any) -> Any:
    """A model at this server, with a price and a bound on what it writes."""
    address = server.url if api == "openai" else server.home
    return get(f"{api}/{name}", base_url=address, **{"price": "2/8", "max_output": 50, **options})


def echo(messages: list[dict], k: int) -> str:
    """Answers with the question, in either API's form, and how often it was asked before."""
    content = messages[-1]["content"]
    return f"{content if isinstance(content, str) else content[0]['text']} #{k}"
