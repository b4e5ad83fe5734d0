"""What the kill tests and `benchmarks/kill.py` share: a torch-free child with two asks and a filter, and its killer.

As a process: python -m tests.durability URL DIRECTORY ROWS
"""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import limbeck as lb

CONCURRENCY = 8
# Lost with a kill at most: what was on the wire, and the replies of one group, some 50 ms and its writing.
IN_FLIGHT = 6 * CONCURRENCY


def recipe(url: str, directory: Path, rows: int, **options) -> lb.Table:
    """Two asks, the second about the first's replies, and a filter; every third row repeats the words of another."""
    with lb.Run(directory, progress=False, **options):
        model = lb.models.get("openai/loopback", base_url=url, max_concurrency=CONCURRENCY)
        seeds = lb.Table.from_rows({"prompt": f"question {i % (rows * 2 // 3)}", "id": i} for i in range(rows))
        first = lb.ask(seeds, model, "{prompt}", n=2)
        kept = lb.keep(first, _even)
        return lb.ask(kept, model, "Is this right? {response}", into="verdict")


def _even(row: lb.table.Row) -> "bool | str":
    return sum(row["response"].encode()) % 4 != 0 or "a quarter is dropped"


def clean_calls(rows: int, table: lb.Table) -> int:
    return 2 * rows + len(table)


def start(url: str, directory: Path, rows: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.durability", url, str(directory), str(rows)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def durable(directory: Path) -> dict[str, str]:
    """The replies that the ledger holds on disk, by key: what the run has acknowledged."""
    path = directory / "ledger" / "calls.sqlite"
    if not path.exists():
        return {}
    db = sqlite3.connect(path)
    try:
        return dict(db.execute("select key, reply from call"))
    except sqlite3.OperationalError:  # killed before the tables were there
        return {}
    finally:
        db.close()


def words_of(model: str, messages: list[dict]) -> str:
    """The name that the server's log has for a question."""
    return hashlib.sha256(json.dumps([model, messages], sort_keys=True).encode()).hexdigest()


def kill_once(server, directory: Path, rows: int, after: int) -> tuple[int, dict[str, str]]:
    """Starts a child, kills it when the server has answered `after` calls, and returns (served, what is durable)."""
    before = server.bought
    child = start(server.url, directory, rows)
    while server.bought - before < after and child.poll() is None:
        time.sleep(0.002)
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    error = child.communicate()[1]
    if child.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child failed by itself: {error}")
    while server.in_flight:  # what was on the wire is still answered, into nothing
        time.sleep(0.01)
    return server.bought - before, durable(directory)


def kill_and_resume(server, directory: Path, rows: int, kills: int, seed: int) -> dict:
    """Kills `kills` times at random moments, lets the last run finish, and tells what was bought and what was lost."""
    chance = random.Random(seed)
    lost, held = 0, {}
    for _ in range(kills):
        served, now = kill_once(server, directory, rows, after=chance.randint(1, rows))
        missing = served - (len(now) - len(held))
        if any(now.get(key) != reply for key, reply in held.items()):
            raise AssertionError("a reply that was durable before a kill is gone or has changed")
        if missing > IN_FLIGHT:
            raise AssertionError(f"a kill lost {missing} replies; only {IN_FLIGHT} can have been in flight")
        lost, held = lost + missing, now
    before = server.bought
    result = recipe(server.url, directory, rows)
    after = durable(directory)
    if any(after.get(key) != reply for key, reply in held.items()):
        raise AssertionError("a reply that was acknowledged before a kill is not in the result")
    return {"bought": server.bought, "resumed": server.bought - before, "lost": lost, "result": result}


if __name__ == "__main__":
    recipe(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    if "torch" in sys.modules:
        sys.exit("the data half imported torch")
