"""Serves any model over the OpenAI chat protocol, for trying a method against a real server on one's own machine.

Not a production server: one process, no keys, no streaming. (`transformers serve` needs further packages.)
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

from .errors import EndpointFailure, LimbeckError, Refused
from .fingerprint import canonical, digest
from .models.base import Model, Reply, Request

_SENT = ("temperature", "top_p", "max_tokens", "stop", "tools")


def application(model: Model) -> Any:
    """Makes the aiohttp application: POST /v1/chat/completions, GET /v1/models."""
    from aiohttp import web

    async def completions(request: web.Request) -> web.Response:
        try:
            body = await request.json()
            asked, n = _request(body), int(body.get("n") or 1)
        except (ValueError, TypeError, KeyError) as error:
            return _error(400, f"the request is not understood: {error!r}")
        # A seed makes an answer repeatable; without one each request draws afresh.
        seed = str(body["seed"]) if body.get("seed") is not None else secrets.token_hex(8)
        keys = [digest(canonical(asked.canonical()), seed, str(i)) for i in range(n)]
        try:
            replies = await asyncio.gather(*(model.reply(asked, key) for key in keys))
        except Refused as refused:
            return _error(400, str(refused))
        except EndpointFailure as failure:
            return _error(503, str(failure))
        return web.json_response(_completion(model, replies))

    async def listed(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": model.name, "object": "model"}]})

    def _error(status: int, message: str) -> web.Response:
        return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)

    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.post("/v1/chat/completions", completions), web.get("/v1/models", listed)])
    return app


def serve(model: Model, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Serves until interrupted; port 0 takes a free one. Prints the URL once it answers."""
    try:
        from aiohttp import web
    except ImportError:
        raise LimbeckError('serving wants aiohttp, which is not here: pip install "limbeck[serve]".') from None

    async def run() -> None:
        runner = web.AppRunner(application(model), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise LimbeckError(
                    f"port {port} on {host} cannot be used ({error.strerror}); give another --port."
                ) from None
            print(f"{model.name} at http://{host}:{runner.addresses[0][1]}/v1", flush=True)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            await model.close()

    asyncio.run(run())


def _request(body: dict[str, Any]) -> Request:
    if body.get("stream"):
        raise ValueError("streaming is not offered")
    settings = {k: body[k] for k in _SENT if body.get(k) is not None}
    if isinstance(settings.get("stop"), str):
        settings["stop"] = [settings["stop"]]
    if body.get("max_completion_tokens") is not None:
        settings["max_tokens"] = body["max_completion_tokens"]
    if body.get("logprobs"):
        settings["logprobs"] = int(body.get("top_logprobs") or 0)
    if not body["messages"]:
        raise ValueError("messages is empty")
    return Request(messages=body["messages"], **settings)


def _completion(model: Model, replies: Sequence[Reply]) -> dict[str, Any]:
    usage = {
        "prompt_tokens": replies[0].prompt_tokens,
        "completion_tokens": sum(r.completion_tokens for r in replies),
    }
    usage["total_tokens"] = sum(usage.values())
    choices = [_choice(i, r) for i, r in enumerate(replies)]
    answer = {"id": f"chatcmpl-{secrets.token_hex(8)}", "object": "chat.completion", "created": int(time.time())}
    return answer | {"model": model.name, "choices": choices, "usage": usage}


def _choice(index: int, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = reply.tool_calls
    choice = {"index": index, "message": message, "finish_reason": reply.finish}
    if reply.logprobs is not None:
        choice["logprobs"] = {"content": [_token(t) for t in reply.logprobs]}
    return choice


def _token(token: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {k: token[k] for k in ("token", "logprob", "bytes") if k in token}
    if "top" in token:
        shown["top_logprobs"] = [_token(t) for t in token["top"]]
    return shown
