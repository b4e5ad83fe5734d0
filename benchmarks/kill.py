"""Kills a run many times at random moments and checks that nothing acknowledged is lost and nothing is bought twice.

python benchmarks/kill.py            # 50 kills: 25 against each kind of server
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import durability
from tests.loopback import loopback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--per-run", type=int, default=5, help="kills of one run before it may finish")
    parser.add_argument("--rows", type=int, default=200)
    args = parser.parse_args()
    started, kills, lost, bought = time.time(), 0, 0, 0
    for number in range(max(1, args.kills // args.per_run)):
        tick, repeats = itertools.count(), number % 2 == 0

        def fn(messages: list, k: int, tick: Iterator[int] = tick, repeats: bool = repeats) -> str:
            return f"{messages[-1]['content'][:20]} {k}" if repeats else f"reply {next(tick)}"

        with tempfile.TemporaryDirectory() as scratch, loopback(fn=fn, latency=0.04, jitter=1.0, seed=number) as server:
            run = Path(scratch) / "run"
            told = durability.kill_and_resume(server, run, args.rows, args.per_run, seed=number)
            assert told["bought"] == durability.clean_calls(args.rows, told["result"]) + told["lost"]
            rows = list(told["result"])
            shutil.rmtree(run / "stages")
            assert list(durability.recipe(server.url, run, args.rows)) == rows
            assert server.bought == told["bought"]
        kills, lost, bought = kills + args.per_run, lost + told["lost"], bought + told["bought"]
        print(f"{kills} kills: {told['bought']} calls bought, {told['lost']} of them lost in flight", file=sys.stderr)
    seconds = round(time.time() - started, 1)
    print(json.dumps({"kills": kills, "bought": bought, "lost_in_flight": lost, "lost_durable": 0, "seconds": seconds}))


if __name__ == "__main__":
    main()
