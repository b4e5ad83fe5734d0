"""Any server that speaks OpenAI's `/chat/completions`: OpenAI itself, vLLM, SGLang, llama.cpp, a router, a gateway.

One try per call: the engine retries, paces and pays. What comes back is told apart here: a refusal of this one request
(never ask again), a failure of the endpoint (ask later), a failure that no retry can mend (stop asking).
"""

import asyncio
import datetime
import email.utils
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from ..errors import EndpointFailure, LimbeckError, Refused
from ..fingerprint import fingerprint
from .base import Model, Reply, Request
from .prices import price_of

_OPENAI = "https://api.openai.com/v1"
_IMAGE_TOKENS = 50_000  # what the dearest vision models count for one large picture, rounded up
_LATER = {408, 409, 425, 429}
_NEVER = {400, 413, 422}
_UNKNOWN = re.compile(r"not exist|not found|no such|unknown|not a valid|not supported", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"\W*((unknown|invalid|no such) model\b|model (does )?not (exist|found))", re.IGNORECASE)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class OpenAI(Model):
    """Asks `base_url` + "/chat/completions" (or OPENAI_BASE_URL, or OpenAI's own address) for the model `name`.

    `api_key` or OPENAI_API_KEY is sent as a bearer token, and needed for OpenAI's own address alone. `timeout` is in
    seconds, for one try as a whole. `revision` tells the replies of one state of the served model from another's.
    """

    can = frozenset({"chat", "logprobs", "tools", "vision"})

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        revision: str | None = None,
    ):
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/").removesuffix("/chat/completions")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise LimbeckError(f'openai/{name} wants base_url as "http://host:port/v1"; it got {url!r}.')
        if not timeout > 0:
            raise LimbeckError(f"openai/{name} wants timeout in seconds, more than 0; it got {timeout!r}.")
        self._key = api_key or os.environ.get("OPENAI_API_KEY")
        if not self._key and url == _OPENAI:
            raise LimbeckError(
                f"openai/{name} needs a key for api.openai.com and has none: set OPENAI_API_KEY, "
                f"or name your own server with base_url=http://host:port/v1."
            )
        self.model, self.name, self.endpoint, self.timeout = name, f"openai/{name}", url, float(timeout)
        self.host = urlsplit(url).netloc.rpartition("@")[2]
        self.digest = fingerprint(["openai", name, revision])
        self.price, self.max_output = price_of(name)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def reply(self, request: Request, key: str) -> Reply:
        """Sends the request once; only what it sets is sent."""
        try:
            raw = orjson.dumps(self._body(request), default=_plain)
        except orjson.JSONEncodeError as e:  # half a surrogate pair, say: no server can be sent that
            raise Refused(f"{self.name}: this request cannot be written as JSON ({e})") from e
        try:
            url = f"{self.endpoint}/chat/completions"
            async with self._pool().post(url, data=raw, allow_redirects=False) as answer:
                status, headers, got = answer.status, answer.headers, await answer.read()
        except aiohttp.ConnectionTimeoutError as e:
            raise self._away("connect", "no connection in time; is the server running?") from e
        except TimeoutError as e:  # before the others: aiohttp's timeouts are client errors as well
            raise self._away("timeout", f"no answer within {self.timeout:g} s") from e
        except aiohttp.ClientConnectorError as e:
            raise self._away("connect", f"no connection ({e.strerror or e.os_error}); is the server running?") from e
        except (aiohttp.ClientError, OSError) as e:
            raise self._away("disconnect", f"the connection broke ({type(e).__name__})") from e
        try:
            data = orjson.loads(got)
        except orjson.JSONDecodeError as e:
            if status == 200:
                raise self._away("broken body", f"its answer is not JSON: {_short(got)}") from e
            data = None
        if isinstance(data, list) and data:  # some gateways wrap an error body in a list
            data = data[0]
        if status != 200:
            raise self._failed(status, headers, _message(data) or _short(got), data)
        try:
            return self._read(data)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise self._away("broken body", f"its answer is no chat completion: {_short(got)}") from e

    def prompt_tokens_at_most(self, request: Request) -> int:
        """Bounds the prompt's tokens from above, tools, schema and pictures included."""
        total = super().prompt_tokens_at_most(request)
        total += len(orjson.dumps([request.tools, request.schema, request.extra], default=_plain))
        parts = (p for m in request.messages if not isinstance(m.get("content"), str | None) for p in m["content"])
        return total + sum(_IMAGE_TOKENS for p in parts if p.get("type", "text") != "text")

    async def close(self) -> None:
        """Closes the connections; a later reply opens new ones."""
        session, self._session = self._session, None
        if session and not session.closed:
            await session.close()

    def _pool(self) -> aiohttp.ClientSession:
        """The open connections, made in the loop that uses them."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            headers = {"Content-Type": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.max_concurrency or 0, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=min(30.0, self.timeout)),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(request.messages)}
        for field in ("temperature", "top_p", "stop", "tools"):
            if (value := getattr(request, field)) is not None:
                body[field] = value
        limit = request.max_tokens or self.limit
        if limit is not None:  # OpenAI's reasoning models refuse the older name, other servers know no other
            body["max_completion_tokens" if self.endpoint == _OPENAI else "max_tokens"] = limit
        if request.logprobs is not None:
            body["logprobs"] = True
            if request.logprobs:
                body["top_logprobs"] = request.logprobs
        if request.schema is not None:
            strict = request.schema.get("additionalProperties") is False  # OpenAI's own condition for it
            form = {"name": "answer", "schema": request.schema, "strict": strict}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return {**body, **(request.extra or {})}

    def _read(self, data: Any) -> Reply:
        if not data.get("choices"):
            if isinstance(error := data.get("error"), dict):  # routers report upstream errors with status 200
                code = error.get("code")
                raise self._failed(code if isinstance(code, int) else 502, {}, _message(data), data)
            raise self._away("empty", "it sent no choices")
        choice = data["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason") or "stop"
        if finish == "content_filter" or message.get("refusal"):
            raise Refused(f"{self.name}: {_short(message.get('refusal') or 'stopped by the content filter')}")
        if finish == "error":
            raise self._away("upstream", "the model behind it failed")
        usage = data.get("usage") or {}
        n_in, n_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        entries = [_entry(e) for e in (choice.get("logprobs") or {}).get("content") or ()] or None
        ids = choice.get("token_ids")
        if ids and entries and len(ids) == len(entries):
            for entry, i in zip(entries, ids, strict=True):
                entry["id"] = i
        elif entries and not ids and all("id" in e for e in entries):
            ids = [e["id"] for e in entries]
        return Reply(
            text=_text(message.get("content")),
            reasoning=message.get("reasoning_content") or _words(message.get("reasoning")),
            finish="tool_calls" if finish == "function_call" else finish,
            prompt_tokens=n_in,
            completion_tokens=n_out,
            cost=self.price.of(n_in, n_out) if self.price and usage else None,
            served_model=data.get("model"),
            token_ids=ids or None,
            logprobs=entries,
            tool_calls=message.get("tool_calls") or None,
        )

    def _failed(self, status: int, headers: Mapping[str, str], message: str, data: Any) -> Exception:
        """What a status other than 200 means."""
        error = data.get("error") if isinstance(data, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        said, cause = f"HTTP {status}: {message}", f"HTTP {status}"
        if status in _NEVER:
            unknown = code == "model_not_found" or _UNKNOWN_MODEL.match(message)
            unknown = unknown or ("model" in message.lower() and self.model in message and _UNKNOWN.search(message))
            if status == 413 or not unknown:
                return Refused(f"{self.name} refused this request with {said}")
            return self._final(cause, f"does not serve {self.model!r} ({said}); name a model that it has.")
        if code == "insufficient_quota":
            return self._final(cause, f"has no credit left for this key ({said}); top it up, or use another api_key=.")
        if status in (401, 403):
            return self._final(cause, f"does not accept the key ({said}); set OPENAI_API_KEY or api_key=.")
        if status == 404:
            return self._final(
                cause, f"has no {self.model!r} at {self.endpoint} ({said}); check the model's name and base_url=."
            )
        if status in _LATER or status >= 500:
            wait = _wait(headers, status)
            return EndpointFailure(f"{self.name} at {self.host}: {said}", cause=cause, retry_after=wait)
        moved = f"; it points to {headers['Location']}" if "Location" in headers else ""
        return self._final(cause, f"answered with {said}{moved}; check base_url=.")

    def _final(self, cause: str, words: str) -> EndpointFailure:
        return EndpointFailure(f"{self.name}: {self.host} {words}", cause=cause, final=True)

    def _away(self, cause: str, words: str) -> EndpointFailure:
        way = "its address is base_url= (teacher.base_url= for a teacher on the command line)."
        return EndpointFailure(f"{self.name} at {self.host}: {words}; {way}", cause=cause)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set):
        return list(value)
    raise TypeError(f"a request holds a {type(value).__name__}, which JSON has no form for")


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One token's log-probability; vLLM can name the token by its id, as "token_id:123"."""
    out: dict[str, Any] = {"token": entry["token"], "logprob": entry["logprob"]}
    if entry["token"].startswith("token_id:"):
        out["id"] = int(entry["token"][9:])
    if entry.get("bytes") is not None:
        out["bytes"] = entry["bytes"]
    if entry.get("top_logprobs"):
        out["top"] = [_entry(e) for e in entry["top_logprobs"]]
    return out


def _text(content: Any) -> str:
    """The answer's text; some servers send it in parts, with the thinking among them."""
    if isinstance(content, list):
        return "".join(p.get("text") or "" for p in content if p.get("type", "text") == "text")
    return content or ""


def _words(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _message(data: Any) -> str:
    """The words of an error body, whatever form the server gave it."""
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return _short(error if isinstance(error, str) else orjson.dumps(error)) if error else ""


def _short(text: str | bytes) -> str:
    words = text if isinstance(text, str) else text[:2000].decode("utf-8", "replace")
    line = " ".join(words.split())
    return line if len(line) <= 200 else line[:197] + "…"


def _wait(headers: Mapping[str, str], status: int) -> float | None:
    """How long the server asks us to wait, in seconds: Retry-After as seconds or a date, else its rate-limit reset."""
    if asked := headers.get("Retry-After"):
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", asked):
            return float(asked)
        try:
            at = email.utils.parsedate_to_datetime(asked)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
        return max(0.0, at.timestamp() - time.time())
    spans = _SPAN.findall(headers.get("x-ratelimit-reset-requests", "")) if status == 429 else []
    return sum(float(n) * _SECONDS[unit] for n, unit in spans) if spans else None
