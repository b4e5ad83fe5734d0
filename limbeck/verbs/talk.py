"""What a talk sees: `call`, which asks models and runs tools for one row, and what it gets back."""

import asyncio
import dataclasses
import functools
import inspect
import json
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import parse as parsers
from ..engine import Job
from ..errors import LimbeckError, Refused
from ..fingerprint import canonical, digest, fingerprint
from ..ledger import KEY_SCHEMA, Record
from ..ledger.tokens import LARGE, decode, encode
from ..models.base import Message, Model, Reply, Request
from ..parse import Reject
from ..pictures import held_in
from ..prompt import Prompt
from ..schema import fitting
from ..table import Row

if TYPE_CHECKING:
    from .converse import Conversation

Held = tuple[dict[str, Any] | None, str | None]  # a reply as the ledger has it, or None and why there is none


@dataclasses.dataclass(slots=True)
class Said(Reply):
    """A Reply with its `value` (what it says once it is parsed) and `messages`, the chat so far with it at the end."""

    value: Any = None
    messages: list[Message] = dataclasses.field(default_factory=list)


class Unanswered(BaseException):
    """Ends a talk whose call got no answer. No Exception: a talk's own `except` must not make a row of it."""


class Rejected(Exception):
    """Ends a talk with a Reject."""

    def __init__(self, reject: Reject):
        super().__init__(reject.reason)
        self.reject = reject


@dataclasses.dataclass(slots=True)
class Talk:
    """One row's talk as it goes: what its keys are made of, and what it has asked so far."""

    row: Row
    about: str  # the digest of the columns that the talk is about
    occurrence: int  # how many earlier rows are the same there
    whole: str  # the digest of the row
    keys: list[str] = dataclasses.field(default_factory=list)  # of its calls, in order of issue
    said: dict[tuple, tuple[int, Any]] = dataclasses.field(default_factory=dict)  # how often, and by which task
    last: str | None = None  # what a model wrote last
    unanswered: BaseException | None = None
    over: bool = False

    def give_up(self, why: BaseException) -> Unanswered:
        self.unanswered = self.unanswered or why
        return Unanswered(str(why))


class Call:
    """How one row's talk asks: `await call(who, prompt)`, `await call.tool(fn, …)`; `call.branch(name)` for a branch.

    Each call has a key: the row, how often this branch of its talk said the same words, and the words. So a talk that
    is run again gets the replies that it got before, in whatever order they arrived.
    """

    def __init__(self, conversation: "Conversation", talk: Talk, branch: tuple[str | int, ...] = ()):
        self._conversation, self._talk, self._branch = conversation, talk, branch

    def branch(self, name: str | int) -> "Call":
        """The same call for one of several branches that go on at once: what it says is counted apart."""
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise LimbeckError(f"a branch is named by a text or a whole number; it got {name!r}.")
        return Call(self._conversation, self._talk, (*self._branch, name))

    async def __call__(
        self,
        who: str | Model,
        prompt: str | Prompt | Sequence[Message],
        *,
        values: Mapping[str, Any] | None = None,
        branch: str | int | None = None,
        parse: Callable[[str], Any] | str | None = None,
        schema: Any = None,
        system: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        logprobs: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Said:
        """Asks one of the models that converse was given, by its keyword, or a Model, and returns its Reply.

        `prompt` is a prompt's name, a template or a Prompt, filled from the row and `values`, or a list of chat
        messages. The reply's `value` is what `parse`, else `schema`, else the prompt's own parser makes of it, else
        its text; it may be a Reject. The settings are those of ask. Raises Refused where the model will never answer
        this; a talk that does not catch it becomes a reject.
        """
        conversation, talk = self._conversation, self._talk
        here = self if branch is None else self.branch(branch)
        model = conversation.model(who)
        messages, parser = self._messages(prompt, values, system)
        request = Request(
            messages=messages,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens if max_tokens is not None else model.limit,
            stop=stop,
            logprobs=logprobs,
            schema=schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema,
            tools=tools,
            extra=extra,
        )
        if logprobs is not None and "logprobs" not in model.can:
            raise LimbeckError(f"the talk {conversation.label!r} wants logprobs; {model.name!r} gives none.")
        if parse is not None or schema is not None:
            parser = fitting(schema) if parse is None else parsers.get(parse) if isinstance(parse, str) else parse
        body = canonical(request.canonical()).decode()
        words = digest(model.digest, body)
        key, count = here._next(words, f"{who if isinstance(who, str) else who.name} was told {_last(messages)!r}")
        held = await conversation.held(talk, key, logprobs is not None)
        conversation.replayed += held is not None
        if held is None:
            job = Job(
                model=model, request=request, key=key, words=words, body=body, occurrence=talk.occurrence, draw=count,
                salt=str(conversation.salt), site=conversation.site, row=talk.whole, blobs=held_in(messages),
            )  # fmt: skip
            held = await conversation.buy(talk, job)
        data, refused = held
        if data is None:
            raise Refused(refused or "")
        said = Said(**{name: data[name] for name in Reply.__slots__ if name in data})
        talk.last = said.text
        said.value = said.text if parser is None else parser(said.text)
        turn: dict[str, Any] = {"role": "assistant", "content": said.text}
        said.messages = [*messages, turn | ({"tool_calls": said.tool_calls} if said.tool_calls else {})]
        return said

    async def tool(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Runs `fn` once and keeps what it gives (JSON data, or a Reject) as a reply is kept; run again, it is read.

        Whatever may come out otherwise next time goes through here: search, the clock, chance. A plain function runs
        in a thread. What it raises is raised in the talk, and nothing is kept.
        """
        conversation, talk, name = self._conversation, self._talk, _name(fn)
        try:
            body = canonical({"tool": name, "args": args, "kwargs": kwargs}).decode()
        except LimbeckError:
            raise LimbeckError(
                f"the tool {name} takes JSON data alone; it was given {args!r:.80} {kwargs!r:.80}."
            ) from None
        code = _code(fn)
        words = digest(code, body)
        key, count = self._next(words, f"the tool {name} was called with {body!r:.80}")
        held = await conversation.held(talk, key)
        if held is None:
            conversation.may_go_on(talk)
            started = time.monotonic()
            made = await conversation.worked(fn, args, kwargs)
            refused = made.reason if isinstance(made, Reject) else None
            try:
                data = None if isinstance(made, Reject) else {"text": json.dumps(made, ensure_ascii=False)}
            except (TypeError, ValueError) as error:
                raise LimbeckError(
                    f"the tool {name} gave what JSON cannot hold ({error}); return plain data."
                ) from None
            held = (data, refused)
            conversation.run.ledger.put(
                Record(
                    key=key, words=words, model=code, body=body, occurrence=talk.occurrence, draw=count,
                    salt=str(conversation.salt), reply=data, refused=refused, served=None, prompt_tokens=0,
                    completion_tokens=0, cost=0.0, seconds=time.monotonic() - started, site=conversation.site,
                    row=talk.whole, kind="tool",
                )
            )  # fmt: skip
        data, refused = held
        return Reject(refused or "") if data is None else json.loads(data["text"])

    async def with_tools(
        self,
        who: str | Model,
        prompt: str | Prompt | Sequence[Message],
        tools: Sequence["Callable[..., Any] | tuple[Mapping[str, Any], Callable[..., Any]]"],
        *,
        max_turns: int = 8,
        branch: str | int | None = None,
        **settings: Any,
    ) -> Said:
        """Lets a model use Python functions, through `tool`, until it answers; returns its last reply.

        A function is told by its name, docstring and annotations; to tell it otherwise, give (JSON, function) in the
        form of the chat APIs. A model that names no such tool, or calls it wrongly, is told so. After `max_turns` the
        reply is returned as it is, with the `tool_calls` that nobody ran. `messages` of the reply is the whole chat.
        """
        if branch is not None:
            return await self.branch(branch).with_tools(who, prompt, tools, max_turns=max_turns, **settings)
        listed = [tool if isinstance(tool, tuple) else (described(tool), tool) for tool in tools]
        named = {told["function"]["name"]: fn for told, fn in listed}
        settings["tools"] = [told for told, _ in listed]
        said = await self(who, prompt, **settings)
        settings = {k: v for k, v in settings.items() if k not in ("values", "system")}  # they are in the chat by now
        for _ in range(max_turns - 1):
            if not said.tool_calls:
                break
            results = [
                {"role": "tool", "tool_call_id": asked.get("id"), "content": await self._use(named, asked["function"])}
                for asked in said.tool_calls
            ]
            said = await self(who, [*said.messages, *results], **settings)
        return said

    async def _use(self, named: Mapping[str, Callable[..., Any]], asked: Mapping[str, Any]) -> str:
        """What a model is told of the tool that it called."""
        try:
            fn = named[asked["name"]]
            given = asked.get("arguments") or "{}"
            arguments = json.loads(given) if isinstance(given, str) else dict(given)
            inspect.signature(fn).bind(**arguments)
        except KeyError:
            return f"error: there is no tool {asked.get('name')!r}; there are {', '.join(named)}"
        except (ValueError, TypeError) as error:
            return f"error: {error}"
        made = await self.tool(fn, **arguments)
        if isinstance(made, Reject):
            return f"error: {made.reason}"
        return made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)

    # -- what a call is made of
    def _messages(
        self, prompt: str | Prompt | Sequence[Message], values: Mapping[str, Any] | None, system: str | None
    ) -> tuple[list[Message], Callable[[str], Any] | None]:
        """The chat that is sent, and the parser that the prompt brings."""
        parser = None
        if isinstance(prompt, str | Prompt):
            found, source = self._conversation.prompt(prompt), {**self._talk.row, **(values or {})}
            lacking = next((c for c in found.inputs if source.get(c) is None), None)
            if lacking in self._conversation.rows.columns:  # else it is no column of any row: a mistake, and said so
                raise Rejected(Reject(f"no {lacking}"))
            rendered, parser = found.render(source), found.parser
            prompt = [{"role": "user", "content": rendered}] if isinstance(rendered, str) else rendered
        if not prompt or not all(isinstance(m, Mapping) for m in prompt):
            raise LimbeckError(
                f"the talk {self._conversation.label!r} asks {prompt!r:.60}; a prompt is a name, a template or a list "
                "of messages."
            )
        messages = [dict(m) for m in prompt]
        if system is not None:
            messages = [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]
        return list(messages), parser

    def _next(self, words: str, told: str) -> tuple[str, int]:
        """The key of these words here, and how often this branch said them before."""
        talk, salt = self._talk, self._conversation.salt
        if talk.over:
            raise LimbeckError(f"{told} after its talk had returned: await every branch before the return.")
        place, task = (self._branch, words), asyncio.current_task()
        count, first = talk.said.get(place, (0, task))
        if first is not task:
            raise LimbeckError(
                f"{told} in two tasks of one talk at once: whose reply is whose would be left to chance. "
                "Pass branch= (a text or a number) in each, or use call.branch(…)."
            )
        talk.said[place] = (count + 1, task)
        key = digest(
            f"talk {KEY_SCHEMA}", words, talk.about, str(talk.occurrence), f"{type(salt).__name__} {salt}",
            canonical(self._branch), str(count),
        )  # fmt: skip
        talk.keys.append(key)
        return key, count


def as_held(reply: Reply, whole: bool) -> dict[str, Any]:
    """A reply that has just come, as it will be read from the ledger: a talk must not see the difference."""
    data = reply.to_json()
    large = {name: data.pop(name) for name in LARGE if name in data}
    return json.loads(json.dumps(data)) | (decode(encode(large)) if whole and large else {})


def _last(messages: Sequence[Message]) -> str:
    text = str(messages[-1].get("content"))
    return text if len(text) <= 60 else text[:59] + "…"


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__)


@functools.lru_cache(maxsize=1024)
def _code(fn: Callable[..., Any]) -> str:
    """The fingerprint of a tool; of Python's own, its name alone."""
    home = getattr(fn, "__module__", None) or type(getattr(fn, "__self__", fn)).__module__
    plain = types.FunctionType | types.BuiltinFunctionType | types.MethodType
    if isinstance(fn, plain) and home.partition(".")[0] in sys.stdlib_module_names:
        return digest("tool", home, _name(fn))
    return fingerprint(fn, f"the tool {_name(fn)}")


# -- functions as the chat APIs describe them
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def described(fn: Callable[..., Any]) -> dict[str, Any]:
    """What a model is told of a function: its name, its docstring, its parameters with their types."""
    parameters = inspect.signature(fn, eval_str=True).parameters
    told = {
        "type": "object",
        "properties": {name: _typed(p.annotation) for name, p in parameters.items()},
        "required": [name for name, p in parameters.items() if p.default is p.empty],
    }
    return {
        "type": "function",
        "function": {"name": fn.__name__, "description": inspect.getdoc(fn) or "", "parameters": told},
    }


def _typed(annotation: Any) -> dict[str, Any]:
    """A Python type as a JSON schema; what has no short form there is left open."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        some = [_typed(t) for t in inner if t is not type(None)]
        return some[0] if len(some) == 1 else {"anyOf": some}
    kind = _KINDS.get(origin or annotation)
    told = {"type": kind} if kind else {}
    return told | ({"items": _typed(inner[0])} if kind == "array" and inner else {})
