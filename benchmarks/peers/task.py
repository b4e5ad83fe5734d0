"""What every contestant is asked to do: the same prompts, the same arguments, one line of JSON at the end.

python CONTESTANT URL ROWS CONCURRENCY DIRECTORY
"""

import argparse
import json
import time
from pathlib import Path

MODEL = "teacher"


def prompt(i: int) -> str:
    return f"Question {i}: what should a curious reader know about the number {i}, and why does it matter?"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("rows", type=int)
    parser.add_argument("concurrency", type=int)
    parser.add_argument("dir", type=Path)
    return parser.parse_args()


def tell(since: float, rows: int) -> None:
    """Prints what the harness reads: the seconds from `since` (of perf_counter) to now, and the rows with an answer."""
    print(json.dumps({"seconds": time.perf_counter() - since, "rows": rows}), flush=True)
