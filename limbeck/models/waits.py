"""How long a provider asks us to wait, in the many ways that providers say so."""

import datetime
import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any

from .base import Room

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SPANS = re.compile(rf"(?:{_SPAN.pattern})+")
_UNIT = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_AGAIN = re.compile(r"(?:try again|retry) in (?:about )?((?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+)(?![a-z])", re.I)


def seconds(text: str | None) -> float | None:
    """Reads a wait as seconds from now: "7", "1m2.5s", an HTTP date, an RFC 3339 time, Unix seconds or milliseconds."""
    if not text:
        return None
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not number < 1e15:  # also what is no number
            return None
        return max(0.0, number if number < 1e9 else (number if number < 1e11 else number / 1e3) - time.time())
    if _SPANS.fullmatch(text):
        return sum(float(n) * _UNIT[unit] for n, unit in _SPAN.findall(text))
    for read in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        try:
            at = read(text)
        except ValueError:
            continue
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp() - time.time())
    return None


def asked_to_wait(status: int, headers: Mapping[str, str], room: Room | None, error: Any, message: str) -> float | None:
    """The wait that a failure asks for: its Retry-After, else its error's words, else when a used-up limit is back."""
    if (asked := headers.get("retry-after-ms")) and (wait := seconds(asked)) is not None:
        return wait / 1e3
    if asked := headers.get("retry-after"):
        return seconds(asked)
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():  # Google's RetryInfo
        if isinstance(detail, dict) and isinstance(delay := detail.get("retryDelay"), str):
            return seconds(delay)
    if said := _AGAIN.search(message):
        return seconds(said[1])
    if status != 429 or room is None:
        return None
    limits = ((room.requests, room.requests_reset), (room.tokens, room.tokens_reset))
    return max((reset for left, reset in limits if not left and reset is not None), default=None)
