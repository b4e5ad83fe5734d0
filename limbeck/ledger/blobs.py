"""ledger/blobs/: images, one file each, and packs of the large parts of a group's replies. And their checksums."""

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import orjson

from ..disk import sync
from ..errors import LimbeckError
from ..fingerprint import digest

_COMPRESSED, _SLOW = 1, 2  # marks of a frame: deflate; JSON that only Python's own reader reads back whole
_SMALL = 2048  # bytes; below it, deflate takes longer than all the rest of a write and saves a kilobyte


class Damaged(LimbeckError):
    """Says that stored bytes are not those that were written."""


def frame(data: bytes, name: str, mark: int = 0) -> bytes:
    """Compresses, and puts a checksum before it that also covers the name under which it is kept."""
    if len(data) >= _SMALL:
        small = zlib.compress(data, 1)
        if len(small) < len(data):
            data, mark = small, mark | _COMPRESSED
    return bytes((mark,)) + zlib.crc32(data, zlib.crc32(name.encode(), mark)).to_bytes(4, "little") + data


def unframe(blob: bytes, name: str) -> tuple[bytes, int]:
    """The bytes and the mark that `frame` was given. Raises Damaged where the checksum does not fit."""
    if len(blob) < 5 or zlib.crc32(blob[5:], zlib.crc32(name.encode(), blob[0])) != int.from_bytes(blob[1:5], "little"):
        raise Damaged(f"{name} does not have the checksum that it was written with")
    mark = blob[0]
    return (zlib.decompress(blob[5:]) if mark & _COMPRESSED else blob[5:]), mark


def frame_json(value: Any, name: str) -> bytes:
    try:
        return frame(orjson.dumps(value), name)
    except (TypeError, orjson.JSONEncodeError):  # integers over 64 bits, lone surrogates
        return frame(json.dumps(value).encode(), name, _SLOW)


def unframe_json(stored: bytes | str, name: str) -> Any:
    """Reads a frame of JSON, or the plain text that earlier versions stored."""
    try:
        if isinstance(stored, str):
            return json.loads(stored)
        data, mark = unframe(stored, name)
        return json.loads(data) if mark & _SLOW else orjson.loads(data)
    except ValueError as error:
        raise Damaged(f"{name} is no JSON any more: {error}") from None


def is_whole(stored: bytes | str | None, name: str) -> bool:
    """Whether a stored piece of JSON (None: there is none) can be read as it was written."""
    try:
        if stored is not None:
            unframe_json(stored, name)
    except Damaged:
        return False
    return True


class Blobs:
    """The files beside a ledger. A file gets its name when its bytes are on the disk: a name never means half of it."""

    def __init__(self, directory: Path):
        self.directory = directory

    def write(self, images: dict[str, bytes], entries: list[bytes]) -> str | None:
        """Makes new images and one pack of `entries` durable; returns the pack's name, None for no entries."""
        new = {d: data for d, data in images.items() if not (self.directory / d).exists()}
        pack = b"".join(entries)
        name = f"{digest(pack)}.pack" if entries else None
        if name:
            new[name] = pack
        if not new:
            return None
        if not self.directory.exists():
            self.directory.mkdir()
            sync(self.directory.parent)
        scratch = self.directory / ".writing"
        for to, data in new.items():
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.rename(self.directory / to)
        sync(self.directory)
        return name

    def entry(self, pack: str, at: int, size: int) -> bytes:
        """One entry of a pack. Raises Damaged where it is not there."""
        found = b""
        with contextlib.suppress(OSError, ValueError), (self.directory / pack).open("rb") as file:
            found = os.pread(file.fileno(), size, at)
        if len(found) < size:
            raise Damaged(f"{self.directory / pack} ends before byte {at + size}")
        return found

    def image(self, name: str) -> bytes:
        """An image by its digest. Raises Damaged where it is gone or changed."""
        try:
            data = (self.directory / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{self.directory / name} cannot be read: {error.strerror}") from None
        if digest(data) != name:
            raise Damaged(f"{self.directory / name} is not the image that it was")
        return data
