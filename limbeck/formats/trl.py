"""TRL's records: conversational prompt-completion, preference (chosen and rejected), or whole conversations."""

from collections.abc import Callable, Sequence

from ..errors import LimbeckError
from ..table import Row


def record_of(columns: Sequence[str]) -> Callable[[Row], Row]:
    """Picks the record that these columns make. Raises LimbeckError where they make none."""
    have = set(columns)
    if {"chosen", "rejected"} <= have and have & {"prompt", "messages"}:
        return _preference
    if "messages" in have:
        return lambda row: {"messages": row["messages"]}
    if {"prompt", "response"} <= have:
        return _completion
    raise LimbeckError(
        f"trl wants prompt and response, messages, or prompt, chosen and rejected; the rows have {list(columns)}."
    )


def _asked(row: Row) -> list[Row]:
    return row["messages"] if row.get("messages") else [_turn("user", row["prompt"])]


def _turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def _completion(row: Row) -> Row:
    return {"prompt": _asked(row), "completion": [_turn("assistant", row["response"])]}


def _preference(row: Row) -> Row:
    answers = {k: [_turn("assistant", row[k])] for k in ("chosen", "rejected")}
    return {"prompt": _asked(row), **answers}
