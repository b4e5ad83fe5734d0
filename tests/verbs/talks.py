"""What the tests of talks share, and a run of talks that they start, kill and start again.

As a process: python tests/verbs/talks.py URL DIRECTORY ROWS
"""

import asyncio
import random
import sys
from pathlib import Path

import limbeck as lb


def rows(n=4):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


class Brain:
    """Answers with a number that goes up: what is bought twice shows."""

    def __init__(self, fn=None):
        self.calls, self.seen, self.fn = 0, [], fn or (lambda request: f"reply {self.calls}")

    def __call__(self, request):
        self.calls += 1
        self.seen.append(request)
        return self.fn(request)


async def once(row, call):
    return {**row, "response": (await call("model", "{prompt}")).text}


async def thrice(row, call):
    """The same words three times."""
    return {**row, "replies": [(await call("model", "{prompt}")).text for _ in range(3)]}


async def debate(row, call):
    """Two drafts at once, three rounds about the better one, a coin for the verdict."""
    one, two = await asyncio.gather(
        *(call("pro", "Draft: {prompt}", branch=name, temperature=1.0) for name in ("one", "two"))
    )
    said = min(one, two, key=lambda reply: reply.text)
    for _ in range(3):
        said = await call("con", [*said.messages, {"role": "user", "content": "What is wrong with it?"}])
        said = await call("pro", [*said.messages, {"role": "user", "content": "Again, better."}])
    coin = await call.tool(random.random)
    return {**row, "drafts": [one.text, two.text], "response": said.text, "coin": coin}


def recipe(url: str, directory: Path, rows: int, talk=debate, **options) -> lb.Table:
    with lb.Run(directory, progress=False, **options):
        pro, con = (lb.models.get(f"openai/{name}", base_url=url, max_concurrency=8) for name in ("pro", "con"))
        table = lb.Table.from_rows({"prompt": f"question {i % (rows * 2 // 3)}"} for i in range(rows))
        return lb.converse(table, talk, pro=pro, con=con)


if __name__ == "__main__":
    recipe(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
