"""Runs the quickstart for several seeds; prints accuracies and times; exits 1 where a bound is missed.

    python benchmarks/quickstart.py --seeds 0 1 2 3 4

The bounds, for every seed: SFT on reasoning beats answers only by 0.15, and the best student reaches 0.60. Times are
wall and CPU seconds on this machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile

GAP, BEST = 0.15, 0.60
SCORES = ("untrained", "answers-only", "sft", "kl", "teacher")


def main(seeds: list[int]) -> int:
    print(f"{'seed':>4}", *(f"{name:>12}" for name in (*SCORES, "sft-answers", "wall s", "cpu s")))
    missed = 0
    for seed in seeds:
        with tempfile.TemporaryDirectory() as out:
            command = [
                sys.executable,
                "-m",
                "limbeck",
                "quickstart",
                "--json",
                "--seed",
                str(seed),
                "--out",
                f"{out}/run",
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        score = {name: found["models"][name]["accuracy"] for name in SCORES}
        gap = score["sft"] - score["answers-only"]
        missed += gap < GAP or max(score["sft"], score["kl"]) < BEST
        numbers = [*score.values(), gap, found["seconds"], found["cpu_seconds"]]
        print(f"{seed:>4}", *(f"{number:>12.3f}" for number in numbers), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    sys.exit(main(parser.parse_args().seeds))
