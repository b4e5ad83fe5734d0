"""Any server that speaks OpenAI's chat completions: OpenAI itself, vLLM, SGLang, llama.cpp, Ollama, TGI, a router."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import EndpointFailure, LimbeckError, Refused
from .base import Reply, Request
from .gather import Gather, shares
from .http import HTTP

_UNKNOWN = re.compile(r"not exist|not found|no such|unknown|not a valid|not supported", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"\W*((unknown|invalid|no such) model\b|model (does )?not (exist|found))", re.IGNORECASE)
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,")
_FLAGGED = re.compile(r"flagged|moderation", re.IGNORECASE)


class OpenAI(HTTP):
    """Asks `base_url` + "/chat/completions" (or OPENAI_BASE_URL, or OpenAI's own address) for the model `name`.

    `api_key` or OPENAI_API_KEY is sent as a bearer token, and needed for OpenAI's own address alone. Texts to embed
    that arrive together go to "/embeddings" in one request of at most `embed_batch`. The other options are HTTP's.
    """

    provider = "openai"
    home = "https://api.openai.com/v1"
    key_names = ("OPENAI_API_KEY",)
    home_names = ("OPENAI_BASE_URL",)
    suffixes = ("/chat/completions",)
    room_headers = (
        "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
        "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
    )  # fmt: skip
    can = frozenset({"chat", "logprobs", "tools", "vision", "embed", "batch"})

    def __init__(
        self,
        name: str,
        *,
        base_url: str | list | tuple | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        stall: float = 120.0,
        revision: str | None = None,
        embed_batch: int = 128,
    ):
        if embed_batch < 1:
            raise LimbeckError(f"openai/{name} wants embed_batch as at least 1; it got {embed_batch!r}.")
        self.embed_batch = embed_batch
        super().__init__(
            name, base_url=base_url, api_key=api_key, timeout=timeout, stall=stall, revision=revision
        )  # fmt: skip

    def _settle(self, url: str, query: str, userinfo: str) -> None:
        super()._settle(url, query, userinfo)
        self._gather = Gather(self._vectors, self.embed_batch)
        self._newer = url == self.home  # it takes max_completion_tokens alone

    def _path(self, request: Request) -> str:
        return "/chat/completions"

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(request.messages)}
        for field in ("temperature", "top_p", "stop", "tools"):
            if (value := getattr(request, field)) is not None:
                body[field] = value
        limit = request.max_tokens or self.limit
        if limit is not None:  # OpenAI's reasoning models refuse the older name, other servers know no other
            body["max_completion_tokens" if self._newer else "max_tokens"] = limit
        if request.logprobs is not None:
            body["logprobs"] = True
            if request.logprobs:
                body["top_logprobs"] = request.logprobs
        if request.schema is not None:
            form = {"name": "answer", "schema": request.schema, "strict": _strict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return {**body, **request.extra} if request.extra else body

    def _read(self, data: Any) -> Reply:
        if not data.get("choices"):
            if error := data.get("error"):  # routers report upstream errors with status 200
                code = error.get("code") if isinstance(error, dict) else None
                if isinstance(code, int):
                    raise self._failed(code, {}, self._message(data), data)
                raise self._away("error body", f"it sent an error for an answer: {self._message(data)}")
            raise self._away("empty", "it sent no choices")
        choice = data["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason") or "stop"
        if finish == "content_filter" or message.get("refusal"):
            why = self._short(message.get("refusal") or "stopped by the content filter")
            raise Refused(f"{self.name}: {why}")
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
        text, reasoning = _text(message.get("content")), _said(message, "reasoning_content", "reasoning")
        if reasoning is None and text.lstrip().startswith("<think>"):
            text, reasoning, whole = _apart(text.lstrip())
            finish = finish if whole else "length"
        return Reply(
            text=text,
            reasoning=reasoning,
            finish="tool_calls" if finish == "function_call" else finish,
            prompt_tokens=n_in,
            completion_tokens=n_out,
            cost=self._cost(usage, n_in, n_out),
            served_model=data.get("model"),
            token_ids=ids or None,
            logprobs=entries,
            tool_calls=message.get("tool_calls") or None,
        )

    def _cost(self, usage: Mapping[str, Any], n_in: int, n_out: int) -> float | None:
        """Dollars: by the known price, else as a router says itself."""
        if self.price and usage:
            return self.price.of(n_in, n_out)
        cost = usage.get("cost")
        return float(cost) if isinstance(cost, int | float) else None

    def _fault(self, status: int, message: str, error: Mapping[str, Any]) -> Exception | None:
        code, said, cause = error.get("code"), f"HTTP {status}: {message}", f"HTTP {status}"
        if status in (400, 422):
            unknown = code == "model_not_found" or _UNKNOWN_MODEL.match(message)
            unknown = unknown or ("model" in message.lower() and self.model in message and _UNKNOWN.search(message))
            if unknown:
                return self._final(cause, f"does not serve {self.model!r} ({said}); name a model that it has.")
            if "max_completion_tokens" in message and self.endpoint != self.home:
                self._newer = True
                words = "it gets max_completion_tokens instead of max_tokens from now on"
                return EndpointFailure(f"{self.name} at {self.host}: {words} ({said})", cause="max_tokens")
            if code in ("unsupported_parameter", "unsupported_value") and "response_format" not in message:
                return self._final(cause, f"takes no such setting ({said}); leave it out.")
        if code == "insufficient_quota":
            return self._final(cause, f"has no credit left for this key ({said}); top it up, or use another api_key=.")
        if status == 403 and _FLAGGED.search(message):
            return Refused(f"{self.name} refused this request with {said}")
        return None

    # -- embeddings
    async def _vector(self, request: Request) -> Reply:
        return await self._gather(request.embed or "", request.extra)

    async def _vectors(self, texts: list[str], extra: Mapping[str, Any] | None) -> list[Reply]:
        data = await self._post("/embeddings", {"model": self.model, "input": texts, **(extra or {})})
        try:
            rows = sorted(data["data"], key=lambda row: row["index"])
            vectors = [[float(x) for x in row["embedding"]] for row in rows]
        except (KeyError, TypeError, ValueError) as e:
            raise self._away("broken body", f"its answer holds no embeddings: {self._message(data)}") from e
        if len(vectors) != len(texts):
            raise self._away("broken body", f"it was sent {len(texts)} texts and gave {len(vectors)} embeddings")
        usage = data.get("usage") or {}
        counts = shares(int(usage.get("prompt_tokens") or 0), texts)
        costs = [self._cost(usage, n, 0) for n in counts] if any(counts) else [None] * len(texts)
        if not self.price:  # a router says what all of them cost together
            costs = [c and c * n / sum(counts) for c, n in zip(costs, counts, strict=True)]
        return [
            Reply("", vector=v, prompt_tokens=n, cost=c, served_model=data.get("model"))
            for v, n, c in zip(vectors, counts, costs, strict=True)
        ]


def image_url(part: Mapping[str, Any]) -> str:
    """The address in a part of type image_url, which some write without the object around it."""
    said = part["image_url"]
    return said if isinstance(said, str) else said["url"]


def image_data(url: str) -> tuple[str, str] | None:
    """The kind and the base64 of an image that stands in its address ("data:image/png;base64,…"); else None."""
    found = _DATA.match(url)
    return (found[1], url[found.end() :]) if found else None


def arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a tool call as an object; what a model wrote that is none goes on as {"_raw": its text}."""
    said = call["function"].get("arguments") or "{}"
    try:
        value = orjson.loads(said) if isinstance(said, str) else said
    except orjson.JSONDecodeError:
        value = None
    return dict(value) if isinstance(value, Mapping) else {"_raw": said}


def _strict(schema: Any) -> bool:
    """Whether every object of a schema is closed and wants all of its fields, as OpenAI's strict replies need it."""
    if isinstance(schema, Mapping):
        fields = schema.get("properties")
        if schema.get("type") == "object" or isinstance(fields, Mapping):
            closed = schema.get("additionalProperties") is False
            if not closed or set(schema.get("required") or ()) != set(fields or ()):
                return False
        return all(map(_strict, schema.values()))
    return all(map(_strict, schema)) if isinstance(schema, list | tuple) else True


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


def _said(message: Mapping[str, Any], *fields: str) -> str | None:
    return next((v for f in fields if isinstance(v := message.get(f), str) and v), None)


def _apart(text: str) -> tuple[str, str, bool]:
    """Splits "<think>…</think>answer"; thinking that does not end was cut short, and there is no answer."""
    thought, end, answer = text.removeprefix("<think>").partition("</think>")
    return answer.lstrip(), thought.strip(), bool(end)
