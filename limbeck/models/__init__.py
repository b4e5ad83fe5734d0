"""Makes models out of their names: `get("provider/name", **options)`.

The provider is the text before the first slash: `openai/NAME` (any OpenAI-compatible server, by `base_url`),
`anthropic/NAME`, `gemini/NAME`, `litellm/NAME`, `hf/org/name` or `hf/./dir`, `tiny/teacher`, `tiny/student`,
`fake/echo`. Other packages add providers through the entry-point group `limbeck.models`: a callable
(name, **options) -> Model, whose keywords are its options.
"""

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LimbeckError
from .base import Model, Price, Reply, Request
from .terms import note

if TYPE_CHECKING:
    from .hf import HF

__all__ = ["Model", "Price", "Reply", "Request", "get", "is_model", "providers", "trained"]

# Where each provider lives; imported when it is asked for, so that a list of names costs no torch and no aiohttp.
_BUILT_IN = {
    "anthropic": "anthropic:Anthropic",
    "fake": "fake:named",
    "gemini": "gemini:Gemini",
    "hf": "hf:HF",
    "litellm": "litellm:LiteLLM",
    "openai": "openai:OpenAI",
    "tiny": "shipped:named",
    "vllm": "vllm:VLLM",
}
# What `get` sets on every model; none of it changes what a model answers, so none of it is in the digest.
_COUNTS = {"max_output": 1, "max_concurrency": 1, "retries": 0}  # and the least that makes sense
_RATES = ("requests_per_second", "requests_per_minute", "tokens_per_minute")
_COMMON = ("price", "terms", *_COUNTS, *_RATES)
_TOLD = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def get(name: str, **options: Any) -> Model:
    """Makes the model that `name` ("provider/name") says; loads no weights and sends nothing yet.

    Every provider takes `price` (dollars per million tokens, "0.15/0.6" or a pair), `max_output` (tokens, where a
    request names no max_tokens), `max_concurrency` (calls in flight; by default as many as the endpoint takes),
    `requests_per_second`, `requests_per_minute`, `tokens_per_minute` (each for one endpoint), `retries`, `terms` (a
    note of your own on what its outputs may be used for; "" for none) and `revision`; the others are the provider's
    own. Raises LimbeckError for an unknown provider or option, with the nearest one that exists.
    """
    provider, _, rest = name.partition("/")
    if provider not in providers() or not rest:
        raise LimbeckError(_no_provider(name, provider, rest))
    make = _provider(provider)
    parameters = inspect.signature(make).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("name", "digest")}
    for option in options:
        if option not in known and option not in _COMMON:
            raise LimbeckError(f"{name} has no option {option!r};{_nearest(option, [*known, *_COMMON])}")
    own = {k: _settled(name, known[k], v) for k, v in options.items() if k not in _COMMON}
    model = make(rest, **own)
    if options.get("price") is not None:
        model.price = as_price(options["price"])
    model.terms = note(provider, rest) if options.get("terms") is None else str(options["terms"]) or None
    for option, least in _COUNTS.items():
        if (value := options.get(option)) is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LimbeckError(f"{name} wants {option} as a whole number of at least {least}; it got {value!r}.")
            setattr(model, option, value)
            if option == "max_output":
                model.limit = value  # a bound on the price is none unless it is sent
    for option in _RATES:
        if (value := options.get(option)) is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise LimbeckError(f"{name} wants {option} as a number of more than 0; it got {value!r}.")
            setattr(model, option, float(value))
    return model


def _settled(name: str, option: inspect.Parameter, value: Any) -> Any:
    """An option's value as its provider declares it; a number where text is wanted (a revision of digits) is text."""
    kinds = tuple(k for k in typing.get_args(option.annotation) or (option.annotation,) if isinstance(k, type))
    plain = [k for k in kinds if k in _TOLD]
    fits = bool in plain if isinstance(value, bool) else isinstance(value, kinds)
    if value is None or not plain or fits:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and (float in plain or str in plain):
        return float(value) if float in plain else str(value)
    raise LimbeckError(f"{name} wants {option.name} as {_TOLD[plain[0]]}; it got {value!r}.")


def is_model(text: str) -> bool:
    """Says whether `text` starts with a known provider and a slash, as a model's name does."""
    provider, slash, rest = text.partition("/")
    return bool(slash and rest) and provider in providers()


def trained(path: str | Path, *, name: str, digest: str) -> "HF":
    """Wraps a finished training directory as a model; `digest` is its training key, so no file is read for it."""
    from .hf import HF

    return HF(path, name=name, digest=digest)


@functools.cache
def providers() -> Mapping[str, str]:
    """Lists the providers there are, as name -> "module:attribute"."""
    found = {p.name: p.value for p in importlib.metadata.entry_points(group="limbeck.models")}
    return dict(sorted({**found, **_BUILT_IN}.items()))


def as_price(value: Any) -> Price:
    """Reads a price in dollars per million tokens: "in/out", a pair, one number for both, or a Price."""
    if isinstance(value, Price):
        return value
    parts = value.split("/") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        numbers = [float(part) for part in parts]
        if not all(0 <= n < float("inf") for n in numbers):
            raise ValueError
        into, out = numbers * 2 if len(numbers) == 1 else numbers
        return Price(into, out)
    except (TypeError, ValueError):
        raise LimbeckError(
            f'price wants dollars per million tokens as "in/out", like "0.15/0.6"; it got {value!r}.'
        ) from None


def _provider(name: str) -> Callable[..., Model]:
    place = _BUILT_IN.get(name)
    if place is None:
        return next(p for p in importlib.metadata.entry_points(group="limbeck.models") if p.name == name).load()
    module, attribute = place.split(":")
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def _no_provider(name: str, provider: str, rest: str) -> str:
    known = ", ".join(providers())
    if not rest:
        wanted = provider if provider in providers() else None
        way = f'write "{wanted}/…"' if wanted else f'did you mean "openai/{name}" or "hf/{name}"?'
        return f"a model is named provider/name (providers: {known}); {name!r} is not: {way}"
    near = difflib.get_close_matches(provider, providers(), n=1, cutoff=0.5)
    way = f'did you mean "{near[0]}/{rest}"?' if near else f'for a model of the hub write "hf/{name}".'
    return f"no provider is named {provider!r} (there are {known}); {way}"


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" did you mean {near[0]!r}?" if near else f" it has {', '.join(names)}."
