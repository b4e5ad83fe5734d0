"""What every model is: a name, a digest, what it can do, and one way to answer a request."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .. import pictures

Message = Mapping[str, Any]  # {"role": ..., "content": str | parts}, as the chat APIs name it


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One chat request. A field that is None is not sent and is not part of the call's key."""

    messages: Sequence[Message]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: Sequence[str] | None = None
    logprobs: int | None = None  # how many alternatives per token; 0 means the chosen token's alone
    schema: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    extra: Mapping[str, Any] | None = None  # goes into the body as it is
    embed: str | None = None  # a text to embed; such a request has no messages

    def canonical(self) -> dict[str, Any]:
        """What was set, and nothing else: the part of a call's key that the request makes."""
        told = {name: v for name in self.__slots__ if (v := getattr(self, name)) is not None}
        if any(type(m.get("content")) is list for m in self.messages):
            told["messages"] = pictures.by_digest(self.messages)
        return told


@dataclasses.dataclass(slots=True)
class Reply:
    """One answer as the model gave it, with what the provider said about it."""

    text: str
    reasoning: str | None = None  # thinking that came apart from the answer
    finish: str = "stop"  # stop | length | content_filter | tool_calls
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None  # dollars; None where no price is known
    served_model: str | None = None
    token_ids: list[int] | None = None
    # One entry per token: {"token": str, "logprob": float, "id": int?, "bytes": [int]?, "top": [same, …]?}
    logprobs: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    vector: list[float] | None = None  # of a text that was embedded

    def to_json(self) -> dict[str, Any]:
        return {name: v for name in self.__slots__ if (v := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Reply":
        return cls(**{name: data[name] for name in cls.__slots__ if name in data})


def in_words(request: Request) -> Request:
    """Says the request's schema at the end of its last user turn: for models that take no schema any other way."""
    if request.schema is None:
        return request
    schema = json.dumps(request.schema, ensure_ascii=False, default=plain)
    words = f"Answer with one JSON value and no other text. It must be valid under this JSON Schema:\n{schema}"
    turns = list(request.messages)
    at = next((i for i in range(len(turns) - 1, -1, -1) if turns[i].get("role") == "user"), None)
    if at is None:
        turns.append({"role": "user", "content": words})
    else:
        said = turns[at].get("content") or ""
        more = f"{said}\n\n{words}" if isinstance(said, str) else [*said, {"type": "text", "text": words}]
        turns[at] = {**turns[at], "content": more}
    return dataclasses.replace(request, messages=turns, schema=None)


def plain(value: Any) -> Any:
    """What JSON has a form for instead of a read-only mapping, a tuple or a set. Raises TypeError for all else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set):
        return list(value)
    raise TypeError(f"a request holds a {type(value).__name__}, which JSON has no form for")


@dataclasses.dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens; `batch` is the share of it that a provider's batch API takes."""

    input: float
    output: float
    batch: float = 0.5

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclasses.dataclass(slots=True)
class Room:
    """What an endpoint last said it has left: requests and tokens, and the seconds until each is whole again."""

    requests: int | None = None
    requests_reset: float | None = None
    tokens: int | None = None
    tokens_reset: float | None = None


class Model:
    """A thing that answers requests. Subclasses set the fields and write `reply`.

    `digest` names what the answers depend on (provider, name, revision, weights) and nothing else: no URL, key,
    timeout or concurrency. `endpoint` is whoever answers: models that share it share its concurrency.
    """

    name: str
    digest: str
    endpoint: str
    can: frozenset[str] = frozenset({"chat"})  # of: chat logprobs logits hidden embed weights vision tools batch
    max_concurrency: int | None = None  # calls in flight at most; None: as many as the endpoint turns out to take
    requests_per_second: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    room: Room | None = None  # set with each answer, where the endpoint tells
    terms: str | None = None  # a note on whether its terms allow training on its outputs
    retries: int = 6  # tries after the first one
    price: Price | None = None  # None: unknown
    max_output: int | None = None  # the most tokens it may write when a request names no max_tokens
    limit: int | None = None  # what it caps such a request at by itself: part of the call's key, for it changes replies
    free: ClassVar[bool] = False  # runs here and costs nothing

    @property
    def replicas(self) -> "tuple[Model, ...]":
        """The endpoints that serve this model, one Model each, all of one digest: calls go to whichever has room."""
        return (self,)

    async def reply(self, request: Request, key: str) -> Reply:
        """Answers `request` once. `key` (hex) seeds local sampling, so a reply does not depend on its batch.

        Raises Refused for a request that will never be answered, EndpointFailure for one that may be later.
        """
        raise TypeError(
            f"{type(self).__name__} does not say how it answers: write `async def reply(self, request, key)`."
        )

    def prompt_tokens_at_most(self, request: Request) -> int:
        """An upper bound of the prompt's tokens: a token is at least one byte of what is sent.

        Beyond it, 64 for what a chat template adds by itself (a default system text) and 16 for each message.
        """
        extras = [m for m in request.messages if set(m) - {"role", "content"}]
        total = 64 + sum(len(json.dumps(e, default=str)) for e in (*extras, request.tools or [], request.schema or {}))
        for message in request.messages:
            content = message.get("content") or ""
            parts = content if isinstance(content, list | tuple) else [content]
            texts = (str(p.get("text", "") if isinstance(p, Mapping) else p) for p in parts)
            total += 16 + sum(len(text.encode("utf-8", "replace")) for text in texts)
        if request.schema is not None:
            total += 128  # the words that `in_words` puts before it
        return total + len((request.embed or "").encode("utf-8", "replace"))

    def written_at_most(self, request: Request) -> int | None:
        """The most tokens that it may write in answer; None where nothing bounds it."""
        if request.embed is not None:
            return 0
        return request.max_tokens if request.max_tokens is not None else self.max_output

    async def close(self) -> None:
        """Gives back connections or memory. Called once, when the run closes."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
