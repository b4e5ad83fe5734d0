"""A model that is a Python function: for tests, for trying a method out, for anything that answers by rule."""

import inspect
from collections.abc import Awaitable, Callable, Iterable

from ..errors import LimbeckError
from ..fingerprint import fingerprint
from .base import Message, Model, Price, Reply, Request

Answer = str | Reply


class Fake(Model):
    """Answers every request with `fn(request)`: a text or a Reply, plain or async.

    The function may raise Refused or EndpointFailure, as a real model would. A text is counted as one token per word,
    prompt and answer. The digest is that of the name and `revision`, never of the function: a test that changes the
    function but not the name gets what it got before from the ledger. `calls` counts the tries.
    """

    def __init__(
        self,
        fn: Callable[[Request], Answer | Awaitable[Answer]],
        name: str = "fake",
        *,
        can: Iterable[str] = ("chat",),
        price: Price | None = None,
        revision: str | None = None,
        max_concurrency: int = 64,
        retries: int = 6,
        max_output: int | None = None,
    ):
        self.fn, self.name, self.can, self.price = fn, name, frozenset(can), price
        self.max_concurrency, self.retries, self.max_output = max_concurrency, retries, max_output
        self.digest = fingerprint(["fake", name, revision])
        self.endpoint = f"fake:{name}"
        self.calls = 0

    async def reply(self, request: Request, key: str) -> Reply:
        """Calls the function once."""
        self.calls += 1
        answer = self.fn(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, str):
            asked = " ".join(map(text_of, request.messages)).split()
            answer = Reply(answer, prompt_tokens=len(asked), completion_tokens=len(answer.split()))
        if answer.cost is None and self.price:
            answer.cost = self.price.of(answer.prompt_tokens, answer.completion_tokens)
        return answer


def text_of(message: Message) -> str:
    """The words of a message, whether its content is a text or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if "text" in p)


def named(name: str, *, revision: str | None = None) -> Fake:
    """Makes `fake/echo`, which answers with the last user turn and costs nothing."""
    if name != "echo":
        raise LimbeckError(f"fake/{name} is not there: by name there is fake/echo alone; else make a Fake(fn).")
    return Fake(_echo, "fake/echo", price=Price(0.0, 0.0), revision=revision)


def _echo(request: Request) -> str:
    return next((text_of(m) for m in reversed(request.messages) if m.get("role") == "user"), "")
