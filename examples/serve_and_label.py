"""Starts a real OpenAI-compatible server on this machine with the shipped teacher, and distils from it over HTTP.

    python examples/serve_and_label.py [--rows 40] [--out runs/serve-and-label]

Two methods run against it: `label` (one greedy answer a question) through the command line, and `rft` (several sampled
solutions, of which those that reach the known answer stay) in Python. For a server of your own only the URL changes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import limbeck as lb
from limbeck.models.tiny import problems
from limbeck.recipes.selftaught import rft


@contextmanager
def served(model: str) -> Iterator[str]:
    """Serves a model in a process of its own on a free port, and gives the URL."""
    command = [sys.executable, "-m", "limbeck", "serve", model, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()  # "tiny/teacher at http://127.0.0.1:PORT/v1", once it answers
        if not line:
            raise SystemExit("the server did not start")
        yield line.split()[-1]
    finally:
        server.terminate()
        server.wait()


def label_over_http(url: str, questions: Path, out: Path) -> None:
    """The command line: one answer to each question."""
    arguments = [f"prompts={questions}", "teacher=openai/tiny/teacher", f"teacher.base_url={url}", "max_tokens=80"]
    subprocess.run([sys.executable, "-m", "limbeck", "run", "label", *arguments, "--out", str(out)], check=True)


def sample_over_http(url: str, questions: Path, out: Path) -> lb.Table:
    """Python: four sampled solutions to each question, the right ones kept, equal ways of solving it once."""
    with lb.Run(out):
        teacher = lb.models.get("openai/tiny/teacher", base_url=url, max_output=80)
        return rft(lb.Table.from_jsonl(questions), teacher, k=4, temperature=1.0)


def main(rows: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    questions = out / "questions.jsonl"
    with questions.open("w") as file:
        for problem in problems(rows, seed=1):
            file.write(json.dumps({k: problem[k] for k in ("prompt", "answer")}) + "\n")
    with served("tiny/teacher") as url:
        label_over_http(url, questions, out / "label")
        lessons = sample_over_http(url, questions, out / "rft")
        print(f"rft: {len(lessons)} distinct right solutions of {rows} questions, 4 tries each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/serve-and-label"))
    chosen = parser.parse_args()
    main(chosen.rows, chosen.out)
