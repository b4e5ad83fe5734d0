"""The large parts of a reply (log-probabilities, token ids, vectors) as arrays, and back, to the last bit."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

LARGE = ("logprobs", "token_ids", "vector")  # what a reader of rows never asks for, and a trainer does
_NO, _SAME, _OWN = 0, 1, 2  # an entry's bytes: none, those of its token, others
_WHOLE = 2**53  # integers below it are floats too


def encode(parts: dict[str, Any]) -> bytes:
    """Writes the large parts of one reply: a line of JSON that names the arrays, then the arrays.

    What has not the form that `Reply` documents goes in as JSON, so that anything comes back as it was.
    """
    arrays: list[tuple[str, np.ndarray]] = []
    for name, value in parts.items():
        columns = _logprobs(value) if name == "logprobs" else _numbers(name, value)
        arrays += columns or [(f"{name} json", _bytes(json.dumps(value).encode()))]
    head = [(name, array.dtype.str, len(array)) for name, array in arrays]
    return b"\n".join((json.dumps(head).encode(), b"".join(array.tobytes() for _, array in arrays)))


def decode(data: bytes) -> dict[str, Any]:
    """Reads what `encode` wrote."""
    line, _, rest = data.partition(b"\n")
    arrays, at = {}, 0
    for name, kind, size in json.loads(line):
        arrays[name] = np.frombuffer(rest, kind, size, at)
        at += arrays[name].nbytes
    parts: dict[str, Any] = {}
    for name in LARGE:
        if f"{name} json" in arrays:
            parts[name] = json.loads(arrays[f"{name} json"].tobytes())
        elif name in arrays:
            parts[name] = arrays[name].tolist()
    if "tops" in arrays:
        parts["logprobs"] = _entries(arrays)
    return parts


def _numbers(name: str, value: Any) -> list[tuple[str, np.ndarray]] | None:
    if not isinstance(value, list):
        return None
    if name == "token_ids":
        return [(name, np.array(value, np.int32))] if all(type(v) is int and _fits(v) for v in value) else None
    return [(name, _floats(value))] if all(map(_is_float, value)) else None


def _logprobs(value: Any) -> list[tuple[str, np.ndarray]] | None:
    """Entries and their alternatives, one after the other, as columns; None where the form is another."""
    if not isinstance(value, list) or not all(_is_entry(e, alternatives=True) for e in value):
        return None
    entries = [one for e in value for one in (e, *(e.get("top") or ()))]
    texts = [e["token"].encode("utf-8", "surrogatepass") for e in entries]
    spelled = [e.get("bytes") for e in entries]
    marks = [_NO if b is None else _SAME if b == list(t) else _OWN for b, t in zip(spelled, texts, strict=True)]
    own = [bytes(b) for b, mark in zip(spelled, marks, strict=True) if mark == _OWN and b is not None]
    return [
        ("tops", np.array([len(e["top"]) if "top" in e else -1 for e in value], np.int32)),
        ("logprob", _floats([e["logprob"] for e in entries])),
        ("named", np.array(["id" in e for e in entries], np.bool_)),
        ("id", np.array([e["id"] for e in entries if "id" in e], np.int32)),
        ("text sizes", np.array([len(t) for t in texts], np.int32)),
        ("text", _bytes(b"".join(texts))),
        ("marks", np.array(marks, np.uint8)),
        ("own sizes", np.array([len(b) for b in own], np.int32)),
        ("own", _bytes(b"".join(own))),
    ]


def _entries(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    texts, own = _cut(arrays, "text"), _cut(arrays, "own")
    ids = iter(arrays["id"].tolist())
    rows = zip(arrays["logprob"].tolist(), arrays["named"].tolist(), arrays["marks"].tolist(), strict=True)

    def one() -> dict[str, Any]:
        (logprob, named, mark), text = next(rows), next(texts)
        entry: dict[str, Any] = {"token": text.decode("utf-8", "surrogatepass"), "logprob": logprob}
        if named:
            entry["id"] = next(ids)
        if mark != _NO:
            entry["bytes"] = list(text if mark == _SAME else next(own))
        return entry

    found = []
    for size in arrays["tops"].tolist():
        found.append(one())
        if size >= 0:
            found[-1]["top"] = [one() for _ in range(size)]
    return found


def _cut(arrays: dict[str, np.ndarray], name: str) -> Iterator[bytes]:
    data, at = arrays[name].tobytes(), 0
    for size in arrays[f"{name} sizes"].tolist():
        yield data[at : at + size]
        at += size


def _is_entry(entry: Any, alternatives: bool) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str) or not _is_float(entry.get("logprob")):
        return False
    known = {"token", "logprob", "id", "bytes", "top"} if alternatives else {"token", "logprob", "id", "bytes"}
    top, ident, spelled = entry.get("top", []), entry.get("id", 0), entry.get("bytes", [])
    return (
        entry.keys() <= known
        and type(ident) is int
        and _fits(ident)
        and isinstance(spelled, list)
        and all(type(b) is int and 0 <= b < 256 for b in spelled)
        and isinstance(top, list)
        and all(_is_entry(e, alternatives=False) for e in top)
    )


def _is_float(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _WHOLE)


def _fits(value: int) -> bool:
    return -(2**31) <= value < 2**31


def _floats(values: list) -> np.ndarray:
    """float32 where that loses nothing (what a local model gives), else float64."""
    wide = np.array(values, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), wide) else wide


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
