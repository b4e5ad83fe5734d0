"""A thin chat-completions server on 127.0.0.1 for measurements: raw HTTP/1.1, so that it is not the bottleneck.

python benchmarks/server.py --latency 0.05 --sigma 1 --fail 0.05      # prints its port; GET /stats says what it saw

How long an answer takes, and whether a try fails, is a function of the prompt's words (and of which try it is), so all
who ask the same prompts meet the same tail and the same errors. It runs on uvloop where that is installed.
"""

import argparse
import asyncio
import functools
import hashlib
import json
import math
import random
import statistics
from collections import Counter
from importlib.util import find_spec
from typing import Any

WORDS = """answer because between carries change children city could different early example family figure first four
found from ground group however kind large later learned light measure might model most music name nature never number
often order other paper part people perhaps place question reason river rule second several shows simple small something
sometimes stands still story student teacher than that their there thing think though time town travel under value water
what where which while whole with without word work world would writing years"""
_chance = random.Random(0)
SENTENCES = [" ".join(_chance.choices(WORDS.split(), k=16)).capitalize() + "." for _ in range(256)]
NORMAL = statistics.NormalDist()
LIMITS = (  # hosted endpoints send these, and some clients set their pace by them
    b"x-ratelimit-limit-requests: 10000000\r\nx-ratelimit-remaining-requests: 9999999\r\n"
    b"x-ratelimit-limit-tokens: 10000000000\r\nx-ratelimit-remaining-tokens: 9999999999\r\n"
)


def response(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n" % (status, b"OK" if status == 200 else b"Error")
    return head + LIMITS + b"content-length: %d\r\n\r\n" % len(body) + body


@functools.cache
def completion(model: str) -> list[bytes]:
    """An answer of this model as JSON: what comes before its text, and what comes after it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "|"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 200, "total_tokens": 220}
    body = {"id": "c-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}
    return json.dumps(body).encode().split(b"|")


def answer(prompt: bytes) -> bytes:
    """Some 200 tokens of words, other ones for each prompt: they compress about as well as real text."""
    return " ".join(SENTENCES[i] for i in hashlib.blake2b(prompt, digest_size=12).digest()).encode()


class Traffic:
    """What the server does to each prompt, and what it has seen so far."""

    def __init__(self, latency: float, sigma: float, fail: float, code: int):
        self.latency, self.sigma, self.fail, self.code = latency, sigma, fail, code
        self.tries: Counter[bytes] = Counter()  # by prompt: requests that came in
        self.answered: Counter[bytes] = Counter()  # by prompt: answers sent, errors apart
        self.failed = self.repeated = self.in_flight = self.most_in_flight = self.connections = 0

    def arrive(self, raw: bytes) -> tuple[bytes, str, float, bool]:
        """Counts a request. Returns its prompt, its model, the seconds it shall take, and whether it fails."""
        body = json.loads(raw)
        prompt = words(body)
        self.repeated += prompt in self.answered
        attempt = self.tries[prompt]
        self.tries[prompt] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        chances = hashlib.blake2b(b"%s %d" % (prompt, attempt), digest_size=16).digest()
        slow, bad = (int.from_bytes(part, "big") / 2**64 for part in (chances[:8], chances[8:]))
        seconds = self.latency
        if self.sigma:  # log-normal, with the mean where it was
            normal = NORMAL.inv_cdf(min(max(slow, 1e-9), 1 - 1e-9))
            seconds *= math.exp(self.sigma * normal - self.sigma**2 / 2)
        return prompt, body["model"], seconds, bad < self.fail

    def answer(self, prompt: bytes, model: str, fails: bool) -> bytes:
        self.in_flight -= 1
        if fails:
            self.failed += 1
            return response(self.code, b'{"error": {"message": "injected", "type": "server_error", "code": null}}')
        self.answered[prompt] += 1
        before, after = completion(model)
        return response(200, before + answer(prompt) + after)

    def stats(self) -> dict[str, int]:
        asked, answers = self.tries.total(), self.answered.total()
        counts = {"requests": asked, "prompts": len(self.tries), "answers": answers, "answered": len(self.answered)}
        counts |= {"failed": self.failed, "repeated": self.repeated, "connections": self.connections}
        return counts | {"in_flight": self.in_flight, "most_in_flight": self.most_in_flight}


def words(body: dict[str, Any]) -> bytes:
    """The last message's text: the same from all clients, whatever else they send."""
    content = body["messages"][-1]["content"] if body["messages"] else ""  # one client knocks with no message
    return (content if isinstance(content, str) else "".join(part.get("text", "") for part in content)).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, traffic: Traffic):
        self.traffic, self.loop, self.held = traffic, asyncio.get_running_loop(), b""

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self.traffic.connections += 1

    def data_received(self, data: bytes) -> None:
        self.held += data
        while (end := self.held.find(b"\r\n\r\n")) >= 0:
            head = self.held[:end]
            _, found, rest = head.lower().partition(b"content-length:")
            size = int(rest.partition(b"\r\n")[0]) if found else 0
            if len(self.held) < end + 4 + size:
                return
            body, self.held = self.held[end + 4 : end + 4 + size], self.held[end + 4 + size :]
            self.serve(head.split(b" ", 2)[1], body)

    def serve(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/chat/completions"):
            prompt, model, seconds, fails = self.traffic.arrive(body)
            self.loop.call_later(seconds, self.answer, prompt, model, fails)
        elif path == b"/stats":
            self.transport.write(response(200, json.dumps(self.traffic.stats()).encode()))
        else:
            self.transport.write(response(200, b'{"object": "list", "data": [{"id": "teacher", "object": "model"}]}'))

    def answer(self, prompt: bytes, model: str, fails: bool) -> None:
        sent = self.traffic.answer(prompt, model, fails)
        if not self.transport.is_closing():
            self.transport.write(sent)


async def serve(traffic: Traffic) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(traffic), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds, the mean")
    parser.add_argument("--sigma", type=float, default=0.0, help="of the log-normal latency; 0 is constant")
    parser.add_argument("--fail", type=float, default=0.0, help="share of tries that fail")
    parser.add_argument("--code", type=int, default=500, help="the status of a failure")
    traffic = Traffic(**vars(parser.parse_args()))
    if find_spec("uvloop"):
        import uvloop

        uvloop.run(serve(traffic))
    else:
        asyncio.run(serve(traffic))
