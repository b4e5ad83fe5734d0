"""Providers' batch APIs: many requests handed in at once, answered within a day, for half the price.

OpenAI takes a file of JSON lines and gives files back, one of answers and one of errors; other servers that speak its
protocol may do the same. Anthropic takes the requests in the call itself and gives one list of results. Both hold what
came back for about a month.
"""

import abc
import dataclasses
import datetime
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from ..errors import EndpointFailure, LimbeckError, Refused
from .base import Model, Reply, Request, plain

if TYPE_CHECKING:
    from .http import HTTP

SKEW = 300.0  # seconds by which our clock and the provider's may differ
_ABSENT = {"HTTP 404", "HTTP 405", "HTTP 501"}
# Anthropic's errors within a batch have a type and no status.
_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504,
    "overloaded_error": 529,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """How far a batch is; `failed` says why none of it was done, `full` that too much was waiting already."""

    answered: int
    total: int
    ended: bool
    failed: str | None = None
    full: bool = False


class BatchAPI(abc.ABC):
    """One model's requests through its provider's batch API; raises as `Model.reply` does."""

    most_requests: ClassVar[int]
    most_bytes: ClassVar[int]
    path: ClassVar[str]
    cursor: ClassVar[str]  # how a later page of the list is asked for

    def __init__(self, model: "HTTP"):
        self.model = model

    def line(self, key: str, request: Request) -> bytes:
        """One request as the batch holds it, under its call's key. Raises Refused for one that JSON cannot hold."""
        try:
            return orjson.dumps(self._line(key, request), default=plain)
        except orjson.JSONEncodeError as error:
            raise Refused(f"{self.model.name}: this request cannot be written as JSON ({error})") from error

    @abc.abstractmethod
    def _line(self, key: str, request: Request) -> dict[str, Any]: ...

    async def submit(self, tag: str, lines: list[bytes]) -> str:
        """Hands a batch in and returns the name that the provider gave it."""
        try:
            return (await self._submit(tag, lines))["id"]
        except EndpointFailure as failure:
            if failure.cause not in _ABSENT:
                raise
            raise LimbeckError(
                f"{self.model.name}: {self.model.endpoint} has no batch API ({failure.cause} at {self.path}); "
                f"ask without batch=True, or name the base_url of one that has it."
            ) from failure

    @abc.abstractmethod
    async def _submit(self, tag: str, lines: list[bytes]) -> dict[str, Any]: ...

    async def find(self, tag: str, count: int, since: float) -> list[str]:
        """The batches made after `since` (Unix seconds) that may be the one that was to be handed in as `tag`."""
        found, page = [], ""
        while True:
            listed = await self._json("GET", f"{self.path}?limit=100{page}")
            recent = [b for b in listed["data"] if self._made(b) > since - SKEW]
            found += [b["id"] for b in recent if self._may_be(b, tag, count)]
            if not listed.get("has_more") or not recent:
                return found
            page = f"&{self.cursor}={listed['data'][-1]['id']}"

    @abc.abstractmethod
    def _made(self, batch: Mapping[str, Any]) -> float: ...

    @abc.abstractmethod
    def _may_be(self, batch: Mapping[str, Any], tag: str, count: int) -> bool: ...

    async def state(self, remote: str) -> State:
        """How far a batch is."""
        return self._state(await self._json("GET", f"{self.path}/{remote}"))

    @abc.abstractmethod
    def _state(self, batch: Mapping[str, Any]) -> State: ...

    @abc.abstractmethod
    def results(self, remote: str) -> AsyncIterator[tuple[str, Reply | Refused | EndpointFailure]]:
        """What became of each request of a batch that has ended, by its call's key, in any order."""

    # -- shared
    async def _json(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        _, _, got = await self.model.call(method, path, **sent)
        try:
            return orjson.loads(got)
        except orjson.JSONDecodeError:
            raise self._broken(path) from None

    async def _lines(self, path: str) -> Iterator[dict[str, Any]]:
        _, _, got = await self.model.call("GET", path)
        return self._each(path, got)

    def _each(self, path: str, got: bytes) -> Iterator[dict[str, Any]]:
        for line in io.BytesIO(got):
            if line.strip():
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError:
                    raise self._broken(path) from None

    def _broken(self, path: str) -> EndpointFailure:
        return EndpointFailure(
            f"{self.model.name} at {self.model.host}: what {path.partition('?')[0]} sent is not JSON; try again later.",
            cause="broken body",
        )

    @abc.abstractmethod
    def _read(self, result: Mapping[str, Any]) -> Reply:
        """The reply that one result holds. Raises what it says instead of one."""

    def _outcome(self, result: Mapping[str, Any]) -> Reply | Refused | EndpointFailure:
        try:
            reply = self._read(result)
        except (Refused, EndpointFailure) as error:
            return error
        if reply.cost is not None and self.model.price is not None:
            reply.cost *= self.model.price.batch
        return reply

    def _failure(self, status: int, data: Any) -> Exception:
        return self.model._failed(status, {}, self.model._message(data), data)

    def _undone(self, cause: str, words: str) -> EndpointFailure:
        return EndpointFailure(f"{self.model.name}: a request of a batch was not done: {words}", cause=cause)


class OpenAIBatches(BatchAPI):
    """OpenAI's: a file of requests in, a file of answers and one of errors out. A batch carries our tag with it."""

    most_requests, most_bytes = 50_000, 200_000_000
    path, cursor = "/batches", "after"

    def _line(self, key: str, request: Request) -> dict[str, Any]:
        asked = {"custom_id": key, "method": "POST", "url": f"/v1{self.model._path(request)}"}
        return {**asked, "body": self.model._sent(request)}

    async def _submit(self, tag: str, lines: list[bytes]) -> dict[str, Any]:
        from .wire import form  # brings an HTTP parser with it

        data, kind = form({"purpose": "batch"}, "file", f"limbeck-{tag}.jsonl", b"\n".join([*lines, b""]))
        file = await self._json("POST", "/files", data=data, headers=kind)
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return await self._json("POST", self.path, json={**wanted, "metadata": {"limbeck": tag}})

    def _made(self, batch: Mapping[str, Any]) -> float:
        return float(batch["created_at"])

    def _may_be(self, batch: Mapping[str, Any], tag: str, count: int) -> bool:
        return (batch.get("metadata") or {}).get("limbeck") == tag

    def _state(self, batch: Mapping[str, Any]) -> State:
        counts, status = batch.get("request_counts") or {}, batch["status"]
        failed, full = None, False
        if status == "failed":  # while it was checked: nothing of it was asked
            errors = (batch.get("errors") or {}).get("data") or [{}]
            failed = self.model._short(errors[0].get("message") or errors[0].get("code") or "no reason given")
            full = errors[0].get("code") == "token_limit_exceeded"
        answered = int(counts.get("completed") or 0) + int(counts.get("failed") or 0)
        ended = status in ("completed", "failed", "expired", "cancelled")
        return State(answered, int(counts.get("total") or 0), ended, failed, full)

    async def results(self, remote: str) -> AsyncIterator[tuple[str, Reply | Refused | EndpointFailure]]:
        batch = await self._json("GET", f"{self.path}/{remote}")
        for file in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
            for line in await self._lines(f"/files/{file}/content"):
                yield line["custom_id"], self._outcome(line)

    def _read(self, line: Mapping[str, Any]) -> Reply:
        said, error = line.get("response") or {}, line.get("error") or {}
        status = said.get("status_code")
        if status == 200:
            return self.model._understood(said["body"])
        if status:
            raise self._failure(status, said.get("body"))
        code = str(error.get("code") or "no answer")
        raise self._undone(code.removeprefix("batch_"), self.model._short(error.get("message") or code))


class AnthropicBatches(BatchAPI):
    """Anthropic's: requests in the call, one list of results out.

    A batch carries nothing of ours but its requests' keys, and those are told with the results alone: of batches made
    at the time in question with as many requests, only the end tells which was ours.
    """

    most_requests, most_bytes = 100_000, 256_000_000
    path, cursor = "/v1/messages/batches", "after_id"

    def _line(self, key: str, request: Request) -> dict[str, Any]:
        return {"custom_id": key, "params": self.model._sent(request)}

    async def _submit(self, tag: str, lines: list[bytes]) -> dict[str, Any]:
        body = b'{"requests":[%b]}' % b",".join(lines)
        return await self._json("POST", self.path, data=body, headers={"Content-Type": "application/json"})

    def _made(self, batch: Mapping[str, Any]) -> float:
        return datetime.datetime.fromisoformat(batch["created_at"]).timestamp()

    def _may_be(self, batch: Mapping[str, Any], tag: str, count: int) -> bool:
        return sum(batch["request_counts"].values()) == count

    def _state(self, batch: Mapping[str, Any]) -> State:
        counts = batch["request_counts"]
        total = sum(counts.values())
        return State(total - counts.get("processing", 0), total, batch["processing_status"] == "ended")

    async def results(self, remote: str) -> AsyncIterator[tuple[str, Reply | Refused | EndpointFailure]]:
        for line in await self._lines(f"{self.path}/{remote}/results"):
            yield line["custom_id"], self._outcome(line["result"])

    def _read(self, result: Mapping[str, Any]) -> Reply:
        kind = result["type"]
        if kind == "succeeded":
            return self.model._understood(result["message"])
        if kind == "errored":
            error = result["error"]
            raise self._failure(_STATUS.get((error.get("error") or error).get("type"), 500), error)
        raise self._undone(kind, f"it was {kind}")  # canceled or expired


_APIS: dict[str, type[BatchAPI]] = {"openai": OpenAIBatches, "anthropic": AnthropicBatches}


def batch_api(model: Model) -> BatchAPI:
    """The batch API of a model's provider. Raises LimbeckError for one that has none, naming those that have."""
    known = _APIS.get(getattr(model, "provider", ""))
    if known is None:
        have = " and ".join(f"{name}/…" for name in sorted(_APIS))
        raise LimbeckError(
            f"batch=True wants a model with a batch API ({have}); {model.name!r} has none: leave it out."
        )
    return known(model)  # type: ignore[arg-type]
