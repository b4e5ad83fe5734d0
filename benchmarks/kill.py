"""Kills real runs of `limbeck run` at random times, goes on until they are done, and checks what was paid for.

    python benchmarks/kill.py --kills 200 --json

Each run is a recipe on the real command line against a real server process that fails now and then and writes down
every answer before it sends it. A run is killed (SIGKILL, SIGINT, SIGTERM, or Ctrl-C twice) at a random time, from
Python's first import to the report but mostly between two answers, and started again, until it ends by itself. Exits
with 1 unless

- no answer that was durable before a kill is ever bought again, changed or gone;
- SIGKILL loses only what was in flight and what the ledger's open group held; one Ctrl-C or SIGTERM loses nothing;
- the rows, and the keys of all calls, are those of a run that nobody killed; nothing more is bought when its stages
  are deleted and it runs again;
- exit codes are 0 done, 130 interrupted, -9 killed, and nobody sees a traceback once the run is open.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))

import limbeck as lb
from limbeck.ledger import GROUP_SECONDS, Ledger
from tests import durability

ROOT = Path(__file__).parents[1]
CONCURRENCY = 8
WRITTEN_WITHIN = GROUP_SECONDS + 0.5  # seconds from an answer to its place on the disk, on a busy machine
FAULTS = "500=0.01,503=0.01,reset=0.005,reset body=0.005"
HOW = (("SIGKILL", signal.SIGKILL), ("SIGINT", signal.SIGINT), ("SIGTERM", signal.SIGTERM), ("SIGINT twice", None))
RECIPES = {
    "label": ("label", "prompts=many.jsonl", "n=2", "temperature=0.7"),
    "evol-instruct": ("evol-instruct", "prompts=few.jsonl", "rounds=3"),
    "self-instruct": ("self-instruct", "seeds=few.jsonl", "target=60", "batch=5"),
    "judged": ("judged.py:judged", "prompts=some.jsonl"),
}
JUDGED = '''
from limbeck import Judge, Model, Table, ask, keep, score


def judged(prompts: Table, teacher: Model, n: int = 3):
    """Answers with notes from a judge who votes twice; the good ones."""
    tries = ask(prompts, teacher, "{prompt}", n=n, into="response")
    return keep(score(tries, Judge(teacher, "rate", votes=2)), lambda row: row["score"] > 3 or "a low score")
'''
RATE = "---\ninputs: [prompt, response]\nparser: number\n---\nRate this answer to {prompt!r} from 1 to 10: {response}\n"


def answer(messages: list[dict], k: int) -> str:
    """What the server says: a function of the words alone, so that an unkilled run says what the rows must be."""
    from tests.test_recipes import answer as brain

    words = messages[-1]["content"]
    chance = random.Random(words)
    return str(chance.randint(1, 10)) if words.startswith("Rate this answer") else brain(words, chance)


class Served:
    """The server process and its log: which words it answered, and when."""

    def __init__(self, folder: Path, seed: int):
        self.log = folder / "served.jsonl"
        self.log.touch()
        command = [sys.executable, "-m", "tests.loopback", "--log", self.log, "--latency", "0.03", "--jitter", "1"]
        command += ["--faults", FAULTS, "--seed", str(seed), "--fn", "benchmarks.kill:answer"]
        self.process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self._read = 0

    def stats(self) -> dict[str, int]:
        return json.load(urlopen(self.url.removesuffix("/v1") + "/stats"))

    def answered(self) -> list[tuple[str, float]]:
        """(words, when) of the whole answers since the last call, once those on the wire are through."""
        while self.stats()["in_flight"]:
            time.sleep(0.01)
        with self.log.open() as file:
            file.seek(self._read)
            lines = [json.loads(line) for line in file]
            self._read = file.tell() if lines else self._read
        return [(line["words"], line["at"]) for line in lines if line["whole"]]


@dataclasses.dataclass
class Found:
    """What the kills came to."""

    kills: Counter = dataclasses.field(default_factory=Counter)  # by signal
    exits: Counter = dataclasses.field(default_factory=Counter)  # "signal: code"
    runs: int = 0
    bought: int = 0
    lost: Counter = dataclasses.field(default_factory=Counter)  # answers that no ledger holds, by signal
    most_lost: int = 0  # by one kill
    oldest_lost: float = 0.0  # seconds from such an answer to the kill
    bought_twice: int = 0  # though the ledger held them
    breaches: list[str] = dataclasses.field(default_factory=list)


class Scene:
    """One recipe's run directory, killed until it is done."""

    def __init__(self, name: str, folder: Path, served: Served):
        self.name, self.served, self.folder, self.out = name, served, folder, folder / "out"
        self.command = [sys.executable, "-m", "limbeck", "run", *RECIPES[name], f"teacher.base_url={served.url}"]
        self.command += ["teacher=openai/m", f"teacher.max_concurrency={CONCURRENCY}", "--out", "out"]
        self.held: dict[str, object] = {}
        self.words: dict[str, str] = {}  # of each key
        folder.mkdir()
        for file, n in (("few", 12), ("some", 40), ("many", 120)):
            asked = ({"prompt": f"What is known about matter {i}?", "output": "Much."} for i in range(n))
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        (folder / "judged.py").write_text(JUDGED)
        (folder / "rate.md").write_text(RATE.replace("!r", ""))

    def start(self) -> subprocess.Popen:
        self.errors = self.folder / "stderr"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.errors.open("w") as file:
            return subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=file
            )

    def events(self, kind: str) -> int:
        """How often the run directory was opened, or closed, so far."""
        events = self.out / "events.jsonl"
        return events.read_bytes().count(f'"event": "{kind}"'.encode()) if events.exists() else 0

    def settle(self) -> tuple[list[tuple[str, float]], Counter, Counter]:
        """What was answered since the last time, and the words that the ledger held before and has gained."""
        answered, before, now = self.served.answered(), self.held, durability.durable(self.out)
        if any(now.get(key) != reply for key, reply in before.items()):
            raise AssertionError(f"{self.name}: a reply that was durable is gone or has changed")
        with (
            contextlib.closing(Ledger(self.out / "ledger", readonly=True)) if now else contextlib.nullcontext() as held
        ):
            for key in now.keys() - self.words.keys():
                self.words[key] = durability.words_of("m", held.call(key)["request"]["messages"])
        self.held = now
        return answered, Counter(self.words[k] for k in before), Counter(self.words[k] for k in now.keys() - before)

    def rows(self) -> list[dict]:
        return list(lb.Table.from_parquet(self.out / "rows.parquet"))

    def finish(self) -> int:
        return self.start().wait(timeout=120)


def wait(scene: Scene, child: subprocess.Popen, chance: random.Random, longest: float, calls: int) -> None:
    """Waits for a random time of the whole, or, more often, for a random moment between two answers."""
    if chance.random() < 0.3:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=chance.uniform(0.0, longest))
        return
    until = scene.served.stats()["bought"] + chance.randint(1, calls // 4)
    while child.poll() is None and scene.served.stats()["bought"] < until:
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.05))


def kill(scene: Scene, needed: Counter, chance: random.Random, longest: float, found: Found) -> bool:
    """Starts the run and kills it at a random time; tells whether it was done before that."""
    name, number = chance.choice(HOW)
    opened, closed, started = scene.events("open"), scene.events("close"), time.time()
    child = scene.start()
    wait(scene, child, chance, longest, needed.total())
    done, at = child.poll() is not None, time.time()
    if not done:
        child.send_signal(number or signal.SIGINT)
        if number is None:
            time.sleep(chance.uniform(0.0, 0.1))
            child.send_signal(signal.SIGINT)
    try:
        code = child.wait(timeout=60)
    except subprocess.TimeoutExpired:
        child.kill()
        found.breaches.append(f"{scene.name}: {name} after {at - started:.2f} s did not end it within 60 s")
        return False
    begun, ended = scene.events("open") > opened, scene.events("close") > closed
    errors = scene.errors.read_text()
    answered, before, gained = scene.settle()
    times: dict[str, list[float]] = defaultdict(list)
    for words, when in answered:
        times[words].append(when)
    count = Counter({words: len(whens) for words, whens in times.items()})
    found.bought += len(answered)
    found.bought_twice += sum(((count + before) - needed).values())
    lost = [when for words, n in (count - gained).items() for when in times[words][-n:]]  # of equals, the last ones
    label = f"{scene.name}: {name if not done else 'no kill'} after {at - started:.2f} s"
    if not done:
        found.kills[name] += 1
        found.exits[f"{name}: {code}"] += 1
        found.lost[name] += len(lost)
        found.most_lost = max(found.most_lost, len(lost))
    age = at - min(lost, default=at)
    found.oldest_lost = max(found.oldest_lost, age)
    if lost and (done or number in (signal.SIGINT, signal.SIGTERM)):
        found.breaches.append(f"{label}: {len(lost)} answers were lost, and nothing needed to be")
    elif age > WRITTEN_WITHIN:
        found.breaches.append(f"{label}: an answer that had come {age:.2f} s before was lost")
    right = {0} if done else {-signal.SIGKILL} if number == signal.SIGKILL else {0, 130}
    if ended:  # all is on the disk, and Python, on its way out, has given up its signal handlers
        right |= {-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL}
    if begun and code not in right:
        found.breaches.append(f"{label}: exit code {code}: {errors.strip()[-300:]}")
    if begun and "Traceback" in errors:
        found.breaches.append(f"{label}: a traceback: {errors.strip()[-300:]}")
    return code == 0


def run_killed(scene: Scene, clean: Scene, chance: random.Random, longest: float, kills: int, found: Found) -> None:
    needed = Counter(clean.words[key] for key in clean.held)
    until = sum(found.kills.values()) + kills
    while not (done := kill(scene, needed, chance, longest, found)) and sum(found.kills.values()) < until:
        pass
    if not done and (code := scene.finish()):
        found.breaches.append(f"{scene.name}: the last run ended with {code}: {scene.errors.read_text()[-300:]}")
        return
    answered, before, _ = scene.settle()
    found.runs, found.bought = found.runs + 1, found.bought + len(answered)
    found.bought_twice += sum(((Counter(words for words, _ in answered) + before) - needed).values())
    if scene.held.keys() != clean.held.keys():
        found.breaches.append(f"{scene.name}: the calls are not those of a run that nobody killed")
    rows = scene.rows()
    if rows != clean.rows():
        found.breaches.append(f"{scene.name}: the rows are not those of a run that nobody killed")
    shutil.rmtree(scene.out / "stages")
    code, again = scene.finish(), scene.served.answered()
    if code or again or scene.rows() != rows:
        found.breaches.append(f"{scene.name}: run again without stages: exit {code}, {len(again)} calls bought")


@contextlib.contextmanager
def serving(folder: Path, seed: int) -> Iterator[Served]:
    served = Served(folder, seed)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=6, help="kills of one run before it may finish")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a benchmark in the background hands on no deaf ear
    chance, found, started = random.Random(args.seed), Found(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch), args.seed) as served:
        clean, longest = {}, {}
        for name in RECIPES:
            clean[name] = Scene(name, Path(scratch) / f"clean-{name}", served)
            at = time.monotonic()
            if code := clean[name].finish():
                sys.exit(f"{name}, unkilled, ended with {code}: {clean[name].errors.read_text()}")
            longest[name] = time.monotonic() - at
            clean[name].settle()
        seconds = {name: round(wall, 1) for name, wall in longest.items()}
        while (left := args.kills - sum(found.kills.values())) > 0 and not found.breaches:
            name = list(RECIPES)[found.runs % len(RECIPES)]
            scene = Scene(name, Path(scratch) / f"run-{found.runs}", served)
            run_killed(scene, clean[name], chance, longest[name], min(left, args.per_run), found)
            shutil.rmtree(scene.folder)
            if not args.json:
                kills, lost = sum(found.kills.values()), sum(found.lost.values())
                print(f"{kills} kills, {found.runs} runs: {found.bought} bought, {lost} lost in flight", flush=True)
    if found.bought_twice:
        found.breaches.append(f"{found.bought_twice} calls were bought again though the ledger held them")
    told = {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(found).items()}
    told |= {"killed": sum(found.kills.values()), "oldest_lost": round(found.oldest_lost, 3)}
    told |= {
        "calls": {n: len(s.held) for n, s in clean.items()},
        "clean": seconds,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(told, indent=None if args.json else 1))
    return 1 if found.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
