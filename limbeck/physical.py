"""The physical types of columns: settled at commit over all rows, never by pyarrow (which drops keys silently).

null, bool, int64, float64, string, lists of those, `messages` (chat turns) and `json` (marked text) for all else.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .errors import LimbeckError

_MARK = b"limbeck"
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SCALARS = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(), "null": pa.null()}


def kind(value: Any) -> str:
    """Names what one value is: null bool int float str list:… messages json. `bigint` is an int no float64 can hold."""
    if value is None:
        return "null"
    t = type(value)
    if t is str:
        return "str" if value.isascii() or _encodes(value) else "json"
    if t is bool:
        return "bool"
    if t is int:
        return "int" if -(2**53) <= value <= 2**53 else "bigint" if -(2**63) <= value < 2**63 else "json"
    if t is float:
        return "float"
    if t is list and value and all(type(m) is dict and _is_turn(m) for m in value):
        return "messages"
    if t is list:
        inner = join({kind(v) for v in value} or {"null"})
        return f"list:{inner}" if inner in ("bool", "int", "bigint", "float", "str", "null") else "json"
    return "json"


def _encodes(text: str) -> bool:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:  # a lone surrogate: JSON can carry it, Arrow cannot
        return False


def _is_turn(m: dict) -> bool:
    return (
        len(m) == 2
        and type(m.get("role")) is str
        and type(m.get("content")) is str
        and _encodes(m["role"])
        and _encodes(m["content"])
    )


def join(kinds: Iterable[str]) -> str:
    """The one kind that holds all of `kinds`: int and float make float, null joins anything, the rest is json."""
    rest = set(kinds) - {"null"}
    if not rest:
        return "null"
    if len(rest) == 1:
        return rest.pop()
    if rest == {"int", "float"}:
        return "float"
    if rest == {"int", "bigint"}:
        return "bigint"
    if all(k.startswith("list:") for k in rest):
        inner = join(k[5:] for k in rest)
        return "json" if inner == "json" else f"list:{inner}"
    if rest <= {"messages", "list:null"}:
        return "messages"  # an empty conversation beside full ones
    return "json"


def field(name: str, kind_: str) -> pa.Field:
    """The Arrow field of a settled kind; `json` and `messages` carry a mark in the field's metadata."""
    if kind_ == "json":
        return pa.field(name, pa.string(), metadata={_MARK: b"json"})
    if kind_ == "messages":
        return pa.field(name, MESSAGES, metadata={_MARK: b"messages"})
    if kind_.startswith("list:"):
        return pa.field(name, pa.list_(_scalar(kind_[5:])))
    return pa.field(name, _scalar(kind_))


def _scalar(kind_: str) -> pa.DataType:
    return _SCALARS["int" if kind_ == "bigint" else kind_]


def is_json(f: pa.Field) -> bool:
    return bool(f.metadata) and f.metadata.get(_MARK) == b"json"


def to_array(values: Sequence[Any], f: pa.Field) -> pa.Array:
    """Encodes Python values as one Arrow array of the field's type."""
    if is_json(f):
        values = [None if v is None else _dumps(v) for v in values]
    return _built(values, f.type)


def _built(values: Sequence[Any], kind_: pa.DataType) -> pa.Array:
    """Lays an Arrow array out by hand: `pa.array` imports pandas where it is installed, a quarter of a second."""
    count, there = len(values), [v is not None for v in values]
    nulls, children = count - sum(there), []
    if pa.types.is_null(kind_):
        return pa.nulls(count)
    buffers = [None if not nulls else pa.py_buffer(np.packbits(there, bitorder="little"))]
    if pa.types.is_list(kind_):
        buffers.append(_offsets([0 if v is None else len(v) for v in values]))
        children = [_built([item for v in values if v is not None for item in v], kind_.value_type)]
    elif pa.types.is_struct(kind_):
        children = [_built([None if v is None else v.get(f.name) for v in values], f.type) for f in kind_]
    elif pa.types.is_string(kind_):
        texts = [b"" if v is None else v.encode() for v in values]
        buffers += [_offsets([len(text) for text in texts]), pa.py_buffer(b"".join(texts))]
    elif pa.types.is_fixed_size_binary(kind_):
        buffers.append(pa.py_buffer(b"".join(bytes(kind_.byte_width) if v is None else v for v in values)))
    elif pa.types.is_boolean(kind_):
        buffers.append(pa.py_buffer(np.packbits([bool(v) for v in values], bitorder="little")))
    else:
        dtype = np.float64 if pa.types.is_floating(kind_) else np.int64
        buffers.append(pa.py_buffer(np.array([0 if v is None else v for v in values], dtype=dtype)))
    return pa.Array.from_buffers(kind_, count, buffers, null_count=nulls, children=children)


def _offsets(lengths: Sequence[int]) -> pa.Buffer:
    """Where each of a row of values of these lengths begins, and where the last one ends."""
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    if ends[-1] >= 2**31:
        raise LimbeckError(f"{len(lengths)} rows hold {ends[-1]:,} bytes in one column; split their texts.")
    return pa.py_buffer(ends.astype(np.int32))


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if _encodes(text) else json.dumps(value)


def from_array(array: pa.Array, f: pa.Field) -> list[Any]:
    """Decodes an Arrow array to the Python values that were stored."""
    values = array.to_pylist()
    return [None if v is None else json.loads(v) for v in values] if is_json(f) else values
