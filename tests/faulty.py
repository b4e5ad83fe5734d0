"""How a server misbehaves on the wire: what it does to a connection instead of sending a whole, sound answer.

A misbehaviour gets the request and the bytes of the answer that it spoils. Those in `AFTER_ANSWERING` spoil an answer
that was made and would be billed; the others happen before there is one.
"""

import asyncio
import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

_ERROR_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1><hr>nginx</body></html>"
_OVERLOADED = {"error": {"message": "the model is overloaded", "code": 503}}


def _transport(request: web.Request) -> asyncio.Transport:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    return transport  # type: ignore[return-value]


def _reset(request: web.Request) -> None:
    """Drops the connection so that the other side reads "connection reset by peer", not an end."""
    linger = struct.pack("ii", 1, 0)
    transport = _transport(request)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


def _head(length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length


async def _half(request: web.Request, answer: bytes) -> None:
    """Promises the whole answer and sends half of it."""
    _transport(request).write(_head(len(answer)) + answer[: len(answer) // 2])
    await asyncio.sleep(0.005)  # into a packet of its own, that the other side has read before what follows


async def _wait(request: web.Request, seconds: float) -> None:
    """Waits that long, or until the client has left."""
    until = time.monotonic() + seconds
    while request.transport is not None and not request.transport.is_closing() and time.monotonic() < until:
        await asyncio.sleep(min(0.05, seconds))


async def disconnect(request: web.Request, answer: bytes, pause: float) -> None:
    _transport(request).abort()


async def reset(request: web.Request, answer: bytes, pause: float) -> None:
    _reset(request)


async def reset_body(request: web.Request, answer: bytes, pause: float) -> None:
    await _half(request, answer)
    _reset(request)


async def cut(request: web.Request, answer: bytes, pause: float) -> None:
    """A body shorter than its Content-Length."""
    await _half(request, answer)
    _transport(request).close()


async def drip(request: web.Request, answer: bytes, pause: float) -> None:
    """The slow loris: sound, but a byte at a time."""
    _transport(request).write(_head(len(answer)))
    for byte in answer:
        await asyncio.sleep(pause)
        if request.transport is None or request.transport.is_closing():
            return
        request.transport.write(bytes([byte]))


async def stall(request: web.Request, answer: bytes, pause: float) -> None:
    await _wait(request, pause)
    with contextlib.suppress(ConnectionResetError):
        _reset(request)


async def stall_body(request: web.Request, answer: bytes, pause: float) -> None:
    await _half(request, answer)
    await stall(request, answer, pause)


async def garbage(request: web.Request, answer: bytes, pause: float) -> None:
    """Bytes that are not HTTP."""
    transport = _transport(request)
    transport.write(b"\x15\x03\x01\x00\x02\x02\x16 not for you\r\n\r\n")
    transport.close()


async def broken(request: web.Request, answer: bytes, pause: float) -> web.Response:
    """JSON that ends early in a body of the promised length."""
    return web.Response(body=answer[: len(answer) // 2], content_type="application/json")


async def empty(request: web.Request, answer: bytes, pause: float) -> web.Response:
    return web.json_response({"choices": []})


async def page(request: web.Request, answer: bytes, pause: float) -> web.Response:
    """What a proxy in front of the model says when the model is away."""
    return web.Response(status=502, text=_ERROR_PAGE, content_type="text/html")


async def page_200(request: web.Request, answer: bytes, pause: float) -> web.Response:
    """What a portal says that wants a login first."""
    return web.Response(text="<html><body>Please sign in.</body></html>", content_type="text/html")


async def redirect(request: web.Request, answer: bytes, pause: float) -> web.Response:
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/elsewhere"})


async def error_200(request: web.Request, answer: bytes, pause: float) -> web.Response:
    """What routers say whose model failed: status 200, and the error in the body."""
    return web.json_response(_OVERLOADED)


Misbehaviour = Callable[[web.Request, bytes, float], Awaitable[Any]]
MISBEHAVIOURS: dict[str, Misbehaviour] = {
    "disconnect": disconnect, "reset": reset, "reset body": reset_body, "cut": cut, "drip": drip, "stall": stall,
    "stall body": stall_body, "garbage": garbage, "broken": broken, "empty": empty, "page": page,
    "page 200": page_200, "redirect": redirect, "error 200": error_200,
}  # fmt: skip
AFTER_ANSWERING = {"reset body", "cut", "drip", "stall body", "broken"}


def certificate(directory: Path) -> tuple[Path, Path]:
    """Makes a certificate for 127.0.0.1 that nobody vouches for, and its key, with the openssl program."""
    made, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key
