"""Runs the quickstart for several seeds and prints, for each, the accuracies, the gap and the time.

    python benchmarks/quickstart.py --seeds 0 1 2 3 4

`gap` is the best student's accuracy less that of the one that saw answers only. The time is wall time on this machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile

STUDENTS = ("answers-only", "sft", "kl")


def main(seeds: list[int]) -> None:
    print(
        f"{'seed':>4} {'untrained':>9} {'answers':>8} {'sft':>7} {'kl':>7} {'teacher':>8} {'gap':>6} "
        f"{'longest':>8} {'wall':>6} {'cpu':>6}"
    )
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
        models = found["models"]
        score = {name: model["accuracy"] for name, model in models.items()}
        longest = max(models[name]["train_seconds"] for name in STUDENTS)
        gap = max(score["sft"], score["kl"]) - score["answers-only"]
        shown = " ".join(
            f"{score[n]:>{w}.3f}"
            for n, w in (("untrained", 9), ("answers-only", 8), ("sft", 7), ("kl", 7), ("teacher", 8))
        )
        print(
            f"{seed:>4} {shown} {gap:>6.3f} {longest:>7.1f}s {found['seconds']:>5.0f}s {found['cpu_seconds']:>5.0f}s",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    main(parser.parse_args().seeds)
