"""A server on 127.0.0.1 that says exactly what a test tells it to, byte for byte if need be."""

import asyncio
import contextlib
import dataclasses
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass
class Seen:
    """One request as it came in; `headers` have lower-case names."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


# Bytes to write, seconds to wait (less than 0: close the connection), None to break it off.
Step = bytes | float | None


def http(body: Any = b"", status: int = 200, **headers: str) -> list[Step]:
    """A whole answer; what is not bytes goes out as JSON. `retry_after` is the header Retry-After."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = "".join(f"{k}: {v}\r\n" for k, v in {"Content-Length": str(len(raw)), **told}.items())
    return [f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + raw]


class Scripted:
    """Answers the n-th request with `answer(seen, n)`; `seen` keeps them all."""

    def __init__(self, answer: Callable[[Seen, int], list[Step]], tls: ssl.SSLContext | None):
        self.answer, self.tls = answer, tls
        self.seen: list[Seen] = []
        self.port = self.connections = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path, _ = head[0].split()
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                seen = Seen(method, path, headers, body)
                self.seen.append(seen)
                for step in self.answer(seen, len(self.seen) - 1):
                    if step is None:
                        writer.transport.abort()
                        return
                    if not isinstance(step, bytes) and step < 0:
                        writer.close()
                        return
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    else:
                        await asyncio.sleep(step)


@contextlib.contextmanager
def scripted(
    answer: Callable[[Seen, int], list[Step]] | list[Step], tls: ssl.SSLContext | None = None
) -> Iterator[Scripted]:
    """Runs such a server in a thread while the block runs."""
    made = Scripted(answer if callable(answer) else lambda seen, n: answer, tls)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted", daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(made.start(), loop).result(timeout=10)
    try:
        yield made
    finally:

        async def stop() -> None:
            made._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def ask(model: Any, *requests: Any) -> list[Any]:
    """Sends the requests together and closes the model; gives the replies or errors in order."""

    async def go() -> list[Any]:
        try:
            return await asyncio.gather(*(model.reply(r, "00") for r in requests), return_exceptions=True)
        finally:
            await model.close()

    return asyncio.run(go())
