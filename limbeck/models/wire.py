"""HTTP/1.1 as thin as it gets: connections of one origin that are kept alive, one request on each at a time.

A general client spends most of a call's processor time on what no model server needs: cookies, redirects, middlewares,
streams. Parsing is httptools' (the parser of Node.js), encryption is Python's `ssl`.
"""

import asyncio
import re
import secrets
import socket
import ssl
import zlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

# A connection that a server keeps for 5 s (uvicorn's default) must not be used again when it is about to be closed.
IDLE = 4.0
# Notices a peer that vanished, and a router that forgot the connection while a model thinks.
_KEEPALIVE = (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
JSON = {"Content-Type": "application/json"}
_TEXT = re.compile(r"[\x20-\x7e\t]*")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class Broken(Exception):
    """Says how an exchange failed: `cause` in a word or two, `words` for people, `final` where trying again is vain."""

    def __init__(self, cause: str, words: str, final: bool = False):
        super().__init__(f"{cause}: {words}")
        self.cause, self.words, self.final = cause, words, final


class Wire:
    """The connections to the origin of `url`; made when they are needed, closed by `close`. Belongs to one event loop.

    `timeout` is for one exchange as a whole, `stall` for the silence within an answer that has begun, in seconds.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, timeout: float = 600.0, stall: float = 60.0):
        parts = urlsplit(url)
        self.host, self.secure = parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self.timeout, self.stall = timeout, stall
        given = {"Host": parts.netloc.rpartition("@")[2], "Accept": "*/*", "Accept-Encoding": "gzip", **headers}
        self._head = _lines(given)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def send(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Makes one exchange. Raises Broken; whether the server has acted on the request is not known then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        connection = self._spare(loop.time()) or await self._connect(loop, deadline)
        length = b"Content-Length: %d\r\n\r\n" % len(body) if body or method != "GET" else b"\r\n"
        extra = _lines(headers) if headers else b""
        head = b"%b %b HTTP/1.1\r\n%b%b%b" % (method.encode(), target.encode(), self._head, extra, length)
        answer = await connection.exchange(head + body, deadline)
        if connection.reusable:
            connection.used = loop.time()
            self._idle.append(connection)
        return answer

    async def close(self) -> None:
        """Closes every connection; a later exchange opens new ones."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    def _spare(self, now: float) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()  # the one used last: it is the least likely to have been dropped
            if connection.reusable and now - connection.used < IDLE:
                return connection
            connection.abort()
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop, deadline: float) -> "_Connection":
        if self.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + 30.0)):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, loop), self.host, self.port, ssl=self._tls,
                    server_hostname=self.host if self.secure else None,
                )  # fmt: skip
        except TimeoutError as error:
            raise Broken("connect", "no connection in time; is the server running?") from error
        except ssl.SSLCertVerificationError as error:
            raise Broken("certificate", error.verify_message or "not trusted", final=True) from error
        except ssl.SSLError as error:
            raise Broken("TLS", f"no encrypted connection ({error.reason or error}); is it http://?") from error
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise Broken("connect", f"no connection ({why}); is the server running?") from error
        self._open.add(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One connection: what is asked on it now, and how far the answer has come."""

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop):
        self.wire, self.loop = wire, loop
        self.used = 0.0
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._timer: asyncio.Handle | None = None

    @property
    def reusable(self) -> bool:
        return self._waiting is None and self._transport is not None and not self._transport.is_closing()

    async def exchange(self, raw: bytes, deadline: float) -> Answer:
        assert self._transport is not None
        if self._transport.is_closing():
            raise Broken("disconnect", "the connection broke before the request")
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._begun = self._to_the_end = False
        self._waiting = waiting = self.loop.create_future()
        self._deadline = deadline
        self._timer = self.loop.call_at(deadline, self._late)
        self._transport.write(raw)
        try:
            return await waiting
        finally:
            self._timer.cancel()
            if self._waiting is not None:  # given up by whoever waited: what is still to come must not be read as ours
                self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.wire._open.discard(self)

    # -- of the transport
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        made = transport.get_extra_info("socket")
        for name, value in _KEEPALIVE:
            if (option := getattr(socket, name, None)) is not None:  # not every system has them all
                made.setsockopt(socket.SOL_SOCKET if name[0] == "S" else socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:  # nobody asked
            self.abort()
            return
        if not self._begun:
            self._begun = True
            self._heard = 0.0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(Broken("no HTTP", "it wants to speak another protocol"))
        except httptools.HttpParserError as error:
            self._fail(Broken("no HTTP", f"it does not speak HTTP ({error})"))
        if self._waiting is not None:  # more is to come
            if not self._heard and self._timer is not None:
                self._timer.cancel()
                self._timer = self.loop.call_later(min(self.wire.stall, self._left()), self._silent)
            self._heard = self.loop.time()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.wire._open.discard(self)
        if self._waiting is None:
            return
        if self._to_the_end and error is None:
            self._done()
        elif self._begun:
            self._fail(Broken("short body", "its answer broke off before its end"))
        else:
            why = f" ({type(error).__name__})" if error else ""
            self._fail(Broken("disconnect", f"the connection broke before an answer{why}"))

    # -- of the parser
    def on_message_begin(self) -> None:
        if self._waiting is None:  # an answer that nobody asked for
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        bounded = "content-length" in self._headers or "transfer-encoding" in self._headers
        self._to_the_end = not bounded and status not in (204, 304) and status >= 200

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._waiting is None:
            return
        if self._parser.get_status_code() >= 200:
            self._done()
        else:  # 100 Continue and its like come before the answer
            self._headers = {}

    # -- how it ends
    def _done(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        coding = self._headers.get("content-encoding", "identity").lower()
        if body and coding in ("gzip", "deflate"):
            try:
                body = zlib.decompress(body, 47 if coding == "gzip" else 15)
            except zlib.error as error:
                self._fail(Broken("broken body", f"its answer cannot be unpacked ({error})"))
                return
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(self._parser.get_status_code(), dict(self._headers), body))
        if self._to_the_end or not self._parser.should_keep_alive():
            self.abort()

    def _fail(self, why: Broken) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(why)
        self.abort()

    def _left(self) -> float:
        return max(0.0, self._deadline - self.loop.time())

    def _late(self) -> None:
        self._fail(Broken("timeout", f"no whole answer within {self.wire.timeout:g} s"))

    def _silent(self) -> None:
        """Looks whether anything came since: an answer that has begun and then stands still is given up."""
        if not self._left():
            self._late()
            return
        silence = self.loop.time() - self._heard
        if silence >= self.wire.stall - 0.01:
            stall = self.wire.stall
            self._fail(Broken("stall", f"its answer began, and then nothing came for {stall:g} s"))
        else:
            self._timer = self.loop.call_later(min(self.wire.stall - silence, self._left()), self._silent)


def _lines(headers: Mapping[str, str]) -> bytes:
    if headers is JSON:
        return b"Content-Type: application/json\r\n"
    for name, value in headers.items():
        if not _TEXT.fullmatch(value):
            raise Broken("header", f"the header {name} holds what no header may; is the key whole?", final=True)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def form(fields: Mapping[str, str], name: str, filename: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    """Writes fields and one file as a form (RFC 7578): the body, and the header that tells what it is."""
    edge = secrets.token_hex(16)
    parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    parts.append(
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = "".join(parts).encode() + content + f"\r\n--{edge}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={edge}"}
