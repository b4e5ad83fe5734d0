"""The floor: what a careful user writes by hand with aiohttp. No ledger, no file; the answers stay in memory."""

import asyncio
import time

import aiohttp
from task import MODEL, arguments, prompt, tell


async def main(url: str, rows: int, concurrency: int) -> None:
    answers: list[str | None] = [None] * rows
    left = iter(range(rows))

    async def worker(session: aiohttp.ClientSession) -> None:
        for i in left:
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt(i)}]}
            while answers[i] is None:
                async with session.post(f"{url}/chat/completions", json=body) as reply:
                    if reply.status == 200:
                        answers[i] = (await reply.json())["choices"][0]["message"]["content"]
                        break
                await asyncio.sleep(0.5)

    since = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
    tell(since, sum(a is not None for a in answers))


args = arguments()
asyncio.run(main(args.url, args.rows, args.concurrency))
