"""A tour, and the example to read first: a teacher's knowledge goes into three small students, offline, in minutes.

Four steps, each a few lines of what anyone can call: elicit, curate, train, judge. What is special here is only that
the students learn in two worker processes, each with a run directory of its own below the tour's.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from . import checks, models, report, result
from .errors import LimbeckError
from .models.base import Model
from .models.tiny import QUICKSTART, problems
from .run import Run
from .table import Table

STUDENTS = ("kl", "sft", "answers-only")  # the longest training first
NAMES = ("untrained", "answers-only", "sft", "kl", "teacher")
TOLD = {
    "untrained": "untrained student",
    "answers-only": "student, answers only",
    "sft": "student, SFT on reasoning",
    "kl": "student, KL to the teacher",
    "teacher": "teacher",
}
# Two processes on two cores: threads would be in each other's way; and the workers' bars in that of the tour's.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
MOST_TOKENS = 80  # of an answer: an untrained student does not know where to stop
OWN_DATA = (
    "limbeck run label prompts=questions.jsonl teacher=openai/NAME teacher.base_url=http://HOST:PORT/v1 --dry-run"
)


# -- the four steps


def elicit(seed: int) -> Table:
    """Has the teacher solve the problems, each once, as it would if asked in passing: sometimes wrongly."""
    from . import ask

    problems = questions(QUICKSTART["problems"], seed, "train")
    return ask(problems, "tiny/teacher", "{prompt}", temperature=QUICKSTART["temperature"], max_tokens=MOST_TOKENS)


def curate(answers: Table) -> Table:
    """Keeps the solutions that reach the known answer."""
    from . import keep

    return keep(answers, checks.correct())


def teach(name: str, lessons: Table, seed: int) -> Model:
    """Trains a fresh student; all of them for equally many steps."""
    from . import SFT, Objective, fields, forward_kl, train

    student = models.get("tiny/student", seed=seed)
    settings = {
        "max_steps": QUICKSTART["steps"],
        "per_device_train_batch_size": QUICKSTART["batch"],
        "learning_rate": QUICKSTART["lr"],
        "warmup_steps": QUICKSTART["warmup"],
        "lr_scheduler_type": QUICKSTART["schedule"],
        "seed": seed,
    }
    if name == "answers-only":
        return train(student, fields(lessons, response="#### {answer}"), SFT, **settings)
    if name == "sft":
        return train(student, lessons, SFT, **settings)
    return train(student, lessons, Objective(forward_kl(), teacher=models.get("tiny/teacher")), **settings)


def judge(model: Model, seed: int) -> Any:
    """Grades a model's answers to problems that no student has seen."""
    from . import Task, evaluate

    exam = questions(QUICKSTART["eval_problems"], seed, "test")
    return evaluate(model, Task(exam, name="held-out problems"), max_tokens=MOST_TOKENS)


def questions(n: int, seed: int, split: str) -> Table:
    """Word problems and their answers, without the solutions."""
    rows = ({k: p[k] for k in ("prompt", "answer", "kind")} for p in problems(n, seed=seed, split=split))
    return Table.from_rows(rows, name="problems" if split == "train" else "exam")


# -- the tour


def main(out: Path, seed: int = 0, as_json: bool = False) -> None:
    """Takes the tour in `out` and prints its table, or one JSON object. Run again, it reuses what is there."""
    started = time.monotonic()
    if not QUICKSTART or not models.tiny.TEACHER.is_dir():
        raise LimbeckError(
            "the quickstart wants the shipped teacher, and this installation has none; reinstall limbeck."
        )
    if not 0 <= seed < 2**32:
        raise LimbeckError(f"the quickstart wants seed as a whole number from 0 to {2**32 - 1}; it got {seed}.")
    _check(out)
    os.environ.update(ONE_THREAD)
    watch = _Watch(out, shown=not as_json)
    with Run(out, progress=not as_json and sys.stderr.isatty()) as run:
        _record(run.dir, seed)
        with _workers() as pool:
            jobs: dict[str, Future] = {n: pool.submit(work, n, str(out), None, seed) for n in ("teacher", "untrained")}
            watch.say("elicit: the teacher solves the problems")
            answers = elicit(seed)
            lessons = curate(answers)
            watch.say(f"curate: {len(lessons):,} of {len(answers):,} solutions reach the known answer")
            path = str(lessons.to_parquet(out / "lessons.parquet"))
            jobs |= {name: pool.submit(work, name, str(out), path, seed) for name in STUDENTS}
            watch.say("train and judge: two workers")
            watch.until_done(jobs)
        learned = {name: job.result() for name, job in jobs.items()}
        run.reuse = [out / name for name in NAMES]  # the workers' replies: nothing is asked again here
        taught = {name: _model(name, learned[name], seed) for name in NAMES}
        reports = {name: judge(taught[name], seed) for name in NAMES}
        best = max(STUDENTS, key=lambda name: reports[name].accuracy)
        result.write(run, (lessons, taught[best], *reports.values()))
        rejects = result.rejects(out)
        rows = {"elicited": QUICKSTART["problems"], "kept": len(lessons)}
    report.write(out)
    found = {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(_cpu_seconds(), 1),
        "rows": rows,
        "rejects": rejects,
        "models": {
            name: {"accuracy": r.accuracy, "low": r.low, "high": r.high, "n": r.n,
                   "train_seconds": learned[name]["train_seconds"]}
            for name, r in reports.items()
        },
    }  # fmt: skip
    print(json.dumps(found) if as_json else "\n".join(_told(found, out)))


def work(name: str, out: str, lessons: str | None, seed: int) -> dict[str, Any]:
    """What a worker does: trains the student `name` on the lessons, and judges it, in a run directory of its own."""
    with Run(Path(out) / name, progress=False):
        if lessons is None:
            model, seconds = _base(name, seed), 0.0
        else:
            model = teach(name, Table.from_parquet(lessons), seed)
            seconds = json.loads((Path(out) / name / "models" / model.digest[:16] / "meta.json").read_text())[
                "train_seconds"
            ]
        judge(model, seed)
    return {"path": str(getattr(model, "path", "")), "digest": model.digest, "train_seconds": round(seconds, 1)}


def _base(name: str, seed: int) -> Model:
    model = models.get("tiny/teacher") if name == "teacher" else models.get("tiny/student", seed=seed)
    model.name = name
    return model


def _model(name: str, learned: dict[str, Any], seed: int) -> Model:
    if name in STUDENTS:
        return models.trained(learned["path"], name=name, digest=learned["digest"])
    return _base(name, seed)


def _check(out: Path) -> None:
    held = result.read(out / "run.json").get("recipe", "quickstart")
    if held != "quickstart":
        raise LimbeckError(
            f"{out} holds a run of {held!r}; give the quickstart its own directory, --out {out}-quickstart."
        )


def _record(out: Path, seed: int) -> None:
    card = {"name": "quickstart", "title": "A teacher's reasoning, distilled into a much smaller student"}
    record = {"version": 1, "recipe": "quickstart", "arguments": {"seed": seed}, "options": {}, "card": card}
    record |= {"settings": QUICKSTART, "names": TOLD}  # what the page calls the models
    (out / "run.json").write_text(json.dumps(record, indent=1) + "\n")


# -- two workers, and what the user sees meanwhile


class _workers:
    """Two processes of one thread each; what goes wrong, or Ctrl-C, ends them."""

    def __enter__(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(2, spawn, initializer=_alone, initargs=(dict(QUICKSTART),))
        return self.pool

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            for child in multiprocessing.active_children():
                child.terminate()
        self.pool.shutdown(cancel_futures=True)


def _alone(settings: dict[str, Any]) -> None:
    """Prepares a worker: its parent's settings, one thread, and Ctrl-C is the parent's affair."""
    QUICKSTART.update(settings)
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class _Watch:
    """Shows the students' progress on standard error, read from their logs; lines where it is no terminal."""

    def __init__(self, out: Path, *, shown: bool):
        self.out, self.shown, self.since = out, shown, time.time()

    def say(self, line: str) -> None:
        if self.shown:
            print(line, file=sys.stderr, flush=True)

    def until_done(self, jobs: dict[str, Future]) -> None:
        """Waits for all jobs; raises what one of them raised."""
        if not (self.shown and sys.stderr.isatty()):
            for name, job in jobs.items():
                job.result()
                self.say(f"  {TOLD[name]}: judged")
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("  {task.description:<26}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as shown:
            steps = QUICKSTART["steps"]
            bars = {
                name: shown.add_task(TOLD[name], total=steps if name in STUDENTS else 1, note="waits") for name in jobs
            }
            while not all(job.done() for job in jobs.values()):
                for name, job in jobs.items():
                    if job.done():
                        job.result()
                    shown.update(bars[name], **self._state(name, job))
                time.sleep(0.3)
            for name, job in jobs.items():
                job.result()
                shown.update(bars[name], completed=steps if name in STUDENTS else 1, note="judged")

    def _state(self, name: str, job: Future) -> dict[str, Any]:
        if job.done():
            return {"completed": QUICKSTART["steps"] if name in STUDENTS else 1, "note": "judged"}
        if name not in STUDENTS:
            return {"note": "is judged" if job.running() else "waits"}
        written = {log: log.stat().st_mtime for log in self.out.glob(f"{name}/models/*/log.jsonl")}
        log = max(written, key=lambda path: written[path], default=None)
        lines = log.read_text().splitlines() if log and written[log] >= self.since else []  # else an earlier tour's
        last = next((p for line in reversed(lines) if (p := _parsed(line))), None)
        if last is None:
            return {"note": "starts" if job.running() else "waits"}
        over = last["step"] >= QUICKSTART["steps"]
        return {"completed": last["step"], "note": "is judged" if over else f"loss {last.get('loss', 0):.3f}"}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # it is being written
        return None


def _told(found: dict[str, Any], out: Path) -> Iterator[str]:
    """The table, what happened, and what to do next."""
    rows, scores = found["rows"], found["models"]
    yield f"\n{'':<28}{'accuracy':>9}  {'95 % interval':<16}{'trained':>8}"
    for name in NAMES:
        m = scores[name]
        interval = f"{m['low']:.1%} - {m['high']:.1%}"
        trained = f"{m['train_seconds']:.0f} s" if m["train_seconds"] else ""
        yield f"{TOLD[name]:<28}{m['accuracy']:>9.1%}  {interval:<16}{trained:>8}"
    lost = ", ".join(f"{n} {reason}" for reason, n in found["rejects"].items()) or "none"
    yield f"\n{rows['elicited']:,} solutions elicited, {rows['kept']:,} kept; left out: {lost}."
    sampled = f"sampled at temperature {QUICKSTART['temperature']}, where the teacher errs now and then"
    yield f"The lessons were {sampled}; the exam above is answered greedily."
    answers, reasoning, kl = (f"{scores[name]['accuracy']:.0%}" for name in ("answers-only", "sft", "kl"))
    yield f"Graded on {scores['teacher']['n']} unseen problems; {found['seconds']:.0f} s in all. In equally many steps,"
    yield f"answers alone brought the student to {answers}, the teacher's reasoning to {reasoning},"
    yield f"and its whole distribution over each next word to {kl}."
    yield f"The best student: {out / 'model'} (transformers loads it). The page: {out / 'report.html'}"
    yield f"Your own questions, any OpenAI-compatible server:\n  {OWN_DATA}"
