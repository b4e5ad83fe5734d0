"""List prices of well-known hosted models, as they stood in November 2026.

Prices change, and batch, cached or regional ones differ: `price="in/out"` on a model overrides this table, and a model
that is missing here has no known price until it is given one. A few models cost more for prompts of over 200,000
tokens, which this table leaves out. `max_output` is the most tokens the model can write.
"""

import re

from .base import Price

AS_OF = "November 2026"
# name: dollars per million tokens in, out, most tokens out
_KNOWN: dict[str, tuple[float, float, int]] = {
    "gpt-5.6-sol": (4.0, 20.0, 128_000),
    "gpt-5.6-terra": (2.0, 12.0, 128_000),
    "gpt-5.6-luna": (0.2, 1.2, 128_000),
    "gpt-5.5": (5.0, 30.0, 128_000),
    "gpt-5.4": (2.5, 15.0, 128_000),
    "gpt-5.4-mini": (0.75, 4.5, 128_000),
    "gpt-5.4-nano": (0.2, 1.25, 128_000),
    "gpt-5.2": (1.75, 14.0, 128_000),
    "gpt-5.1": (1.25, 10.0, 128_000),
    "gpt-5": (1.25, 10.0, 128_000),
    "gpt-5-mini": (0.25, 2.0, 128_000),
    "gpt-5-nano": (0.05, 0.4, 128_000),
    "gpt-4.1": (2.0, 8.0, 32_768),
    "gpt-4.1-mini": (0.4, 1.6, 32_768),
    "gpt-4.1-nano": (0.1, 0.4, 32_768),
    "gpt-4o": (2.5, 10.0, 16_384),
    "gpt-4o-2024-05-13": (5.0, 15.0, 4_096),
    "gpt-4o-mini": (0.15, 0.6, 16_384),
    "gpt-4-turbo": (10.0, 30.0, 4_096),
    "gpt-3.5-turbo": (0.5, 1.5, 4_096),
    "o3": (2.0, 8.0, 100_000),
    "o3-mini": (1.1, 4.4, 100_000),
    "o4-mini": (1.1, 4.4, 100_000),
    "text-embedding-3-small": (0.02, 0.0, 0),
    "text-embedding-3-large": (0.13, 0.0, 0),
    "text-embedding-ada-002": (0.1, 0.0, 0),
    "claude-fable-5": (10.0, 50.0, 128_000),
    "claude-opus-5": (5.0, 25.0, 128_000),
    "claude-opus-4-8": (5.0, 25.0, 128_000),
    "claude-opus-4-7": (5.0, 25.0, 128_000),
    "claude-opus-4-6": (5.0, 25.0, 128_000),
    "claude-opus-4-5": (5.0, 25.0, 64_000),
    "claude-opus-4-1": (15.0, 75.0, 32_000),
    "claude-opus-4": (15.0, 75.0, 32_000),
    "claude-sonnet-5": (2.0, 10.0, 128_000),
    "claude-sonnet-4-6": (3.0, 15.0, 128_000),
    "claude-sonnet-4-5": (3.0, 15.0, 64_000),
    "claude-sonnet-4": (3.0, 15.0, 64_000),
    "claude-haiku-4-5": (1.0, 5.0, 64_000),
    "claude-3-5-haiku": (0.8, 4.0, 8_192),
    "gemini-3.8-flash": (0.75, 3.75, 65_536),
    "gemini-3.6-flash": (0.75, 3.75, 65_536),
    "gemini-3.5-flash": (1.5, 9.0, 65_536),
    "gemini-3.5-flash-lite": (0.3, 2.5, 65_536),
    "gemini-3.1-pro-preview": (2.0, 12.0, 65_536),
    "gemini-3.1-flash-lite": (0.25, 1.5, 65_536),
    "gemini-3-flash-preview": (0.5, 3.0, 65_536),
    "gemini-2.5-pro": (1.25, 10.0, 65_536),
    "gemini-2.5-flash": (0.3, 2.5, 65_536),
    "gemini-2.5-flash-lite": (0.1, 0.4, 65_536),
    "gemini-embedding-001": (0.15, 0.0, 0),
}
_SNAPSHOT = re.compile(r"-(\d{4}-\d\d-\d\d|\d{8}|latest)$")


def listed() -> dict[str, tuple[Price, int]]:
    """The whole table: what a model costs and the most tokens it can write, by its name."""
    return {name: (Price(into, out), most) for name, (into, out, most) in _KNOWN.items()}


def price_of(name: str) -> tuple[Price | None, int | None]:
    """Looks up a model's list price and the most tokens it can write; (None, None) where it is not known.

    A dated snapshot ("gpt-4o-2024-08-06") costs what its family does, unless the table names it. A vendor's prefix
    ("openai/gpt-4o", as routers write it) does not count.
    """
    short = name.rpartition("/")[2]
    known = _KNOWN.get(short) or _KNOWN.get(_SNAPSHOT.sub("", short))
    return (Price(known[0], known[1]), known[2]) if known else (None, None)
