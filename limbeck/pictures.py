"""Images in chat messages: read from files, sent as data, known by the digest of their bytes."""

import base64
import binascii
import functools
import mimetypes
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .errors import LimbeckError
from .fingerprint import digest

_KINDS = ("image/png", "image/jpeg", "image/webp", "image/gif")


def parts(values: Iterable[Any]) -> list[dict[str, Any]]:
    """Makes message parts of images: paths of files, data: URIs, or http(s) addresses that the provider fetches."""
    return [{"type": "image_url", "image_url": {"url": _address(v)}} for v in values]


def _address(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise LimbeckError(f"an image is a file's path, a data: URI or an http(s) address; a row has {value!r:.60}.")
    if value.startswith(("data:", "http://", "https://")):
        return value
    try:
        state = os.stat(value)
    except OSError as error:
        raise LimbeckError(f"the image {value!r} cannot be read: {error.strerror}; give a path that exists.") from None
    return _read(value, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=16)
def _read(path: str, mtime_ns: int, size: int) -> str:
    kind = mimetypes.guess_type(path)[0]
    if kind not in _KINDS:
        raise LimbeckError(f"the image {path!r} looks like {kind or 'nothing known'}; models read {', '.join(_KINDS)}.")
    with open(path, "rb") as file:
        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"


def by_digest(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The messages with each image's bytes replaced by their digest, as a call's key and the ledger hold them."""
    told: list[Any] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and any(map(_data, content)):
            content = [
                {"type": "image", "kind": _data(p)[0], "digest": digest(_data(p)[1])} if _data(p) else p
                for p in content
            ]
            message = {**message, "content": content}
        told.append(message)
    return told


def held_in(messages: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Digest -> bytes of every image in the messages; none for those that are only an address."""
    return {digest(data): data for _, data in _all(messages)}


def _all(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    for message in messages:
        if isinstance(content := message.get("content"), list):
            yield from filter(None, map(_data, content))


def _data(part: Any) -> Any:
    """(media type, bytes) of a part that holds an image's data; None of any other."""
    url = part.get("image_url") if isinstance(part, Mapping) else None
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str) or not url.startswith("data:"):
        return None
    head, _, body = url[5:].partition(",")
    try:
        return head.partition(";")[0] or "image/png", base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise LimbeckError(f"a message holds a data: URI that is not base64 ({url[:40]}…); encode it again.") from None
