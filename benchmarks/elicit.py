"""Measures how limbeck asks, beside a bare aiohttp loop and other libraries, against one loopback server in one run.

    python benchmarks/elicit.py                                    # limbeck and the aiohttp loop; exit 1 on a MISS
    python benchmarks/elicit.py --peers curator,distilabel,datadesigner --json > elicit.json
    python benchmarks/elicit.py --only c512,again --rows 2000 --repeats 1      # a quick look

Each contestant is a fresh process from an environment of its own, made on first use under --envs. Contestants take
turns; a number is the median of --repeats, with its lowest and highest. docs/benchmarks.md says what each part means.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = {  # who: what its environment holds, the script that runs there
    "aiohttp": ([f"aiohttp=={importlib.metadata.version('aiohttp')}", "uvloop"], "aiohttp_loop.py"),
    "curator": (["bespokelabs-curator"], "curator_llm.py"),
    "distilabel": (["distilabel[openai]", "requests"], "distilabel_pipeline.py"),  # it does not name requests itself
    "datadesigner": (["data-designer"], "datadesigner_column.py"),
}
FLOOR = "aiohttp"
LATENCY = 0.05  # seconds, the mean
LOADS = {  # part: calls in flight, sigma of the log-normal latency, share of tries that end in HTTP 500
    "c64": (64, 0.0, 0.0),
    "c512": (512, 0.0, 0.0),
    "tail64": (64, 1.0, 0.0),
    "tail512": (512, 1.0, 0.0),
    "errors": (64, 0.0, 0.05),
}
PARTS = (*LOADS, "again", "kill", "memory")
GROUP_SECONDS, GROUP_CALLS = 0.05, 500  # what the ledger may hold back from the disk
HANGS = 60.0  # seconds after which a resumed run counts as hanging


@dataclasses.dataclass
class Outcome:
    """One process of one contestant: what it took, and what the server saw of it."""

    wall: float  # seconds from start to exit
    cpu: float  # user and system seconds, of all its processes
    memory: float  # MB, the highest private memory of all its processes together, what forks share counted once
    ended: str  # ok, killed, hangs or failed
    seconds: float | None = None  # of the work alone, as the contestant tells
    rows: int | None = None  # with an answer
    seen: dict[str, int] = dataclasses.field(default_factory=dict)  # by the server, in this process's time


class Bench:
    """The environments, the scratch directory, and who is measured with how many rows."""

    def __init__(self, args: argparse.Namespace, scratch: Path):
        self.args, self.scratch, self.made = args, scratch, 0
        self.pythons = {"limbeck": sys.executable}
        self.pythons |= {who: environment(args.envs, who) for who in dict.fromkeys([FLOOR, *args.peers])}

    def contestants(self) -> list[tuple[str, int]]:
        """Who runs with how many rows. Slow peers run with fewer, and limbeck beside them with as few."""
        main, few = [(FLOOR, self.args.rows), ("limbeck", self.args.rows)], min(self.args.rows, self.args.peer_rows)
        slow = [(who, few) for who in self.args.peers if who != FLOOR]
        beside = [(FLOOR, few), ("limbeck", few)] if slow and few != self.args.rows else []
        return [*main, *beside, *slow]

    def directory(self) -> Path:
        self.made += 1
        return self.scratch / str(self.made)

    @contextlib.contextmanager
    def serving(self, sigma: float = 0.0, fail: float = 0.0, latency: float = LATENCY) -> Iterator[str]:
        """Starts a server and gives its address."""
        command = [self.pythons[FLOOR], str(HERE / "server.py"), f"--latency={latency}", f"--sigma={sigma}"]
        with subprocess.Popen([*command, f"--fail={fail}"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                yield f"http://127.0.0.1:{int(server.stdout.readline())}"
            finally:
                server.terminate()

    def run(
        self,
        who: str,
        url: str,
        rows: int,
        concurrency: int,
        work: Path,
        *,
        limit: float = 1800.0,
        kill_at: int | None = None,
    ) -> Outcome:
        """Runs one contestant to its end, to `limit` seconds, or to a SIGKILL at so many answers."""
        script = PEERS[who][1] if who in PEERS else "limbeck_ask.py"
        command = [self.pythons[who], str(HERE / "peers" / script), f"{url}/v1", str(rows), str(concurrency), str(work)]
        before, out, started = stats(url), self.scratch / "out", time.perf_counter()
        with out.open("wb") as told, (self.scratch / "err").open("wb") as err:
            process = subprocess.Popen(command, stdout=told, stderr=err, start_new_session=True)
        memory, why, over = 0.0, "", threading.Event()

        def watch() -> None:
            nonlocal memory, why
            while not over.wait(0.05 if kill_at else 0.25):
                memory = max(memory, private(process.pid))
                late = time.perf_counter() - started > limit
                if late or (kill_at and stats(url)["answers"] >= kill_at):
                    why = "hangs" if late else "killed"
                    os.killpg(process.pid, signal.SIGKILL)
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            wall = time.perf_counter() - started
            over.set()
            watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        after = stats(url)
        seen = {name: count - before.get(name, 0) for name, count in after.items()} | {"in_flight": after["in_flight"]}
        last = next((line for line in reversed(out.read_text(errors="replace").splitlines()) if line[:1] == "{"), "{}")
        ended = why or ("ok" if process.returncode == 0 else "failed")
        if ended == "failed":
            say(f"{who} failed: {(self.scratch / 'err').read_text(errors='replace')[-2000:]}")
        return Outcome(wall, usage.ru_utime + usage.ru_stime, memory, ended, seen=seen, **json.loads(last))

    # -- the parts
    def load(self, part: str) -> dict[str, Any]:
        """All contestants under one load, in turns, each time in a new directory."""
        concurrency, sigma, fail = LOADS[part]
        found: dict[tuple[str, int], list[Outcome]] = {}
        for turn in range(self.args.repeats):
            for who, rows in self.contestants():
                with self.serving(sigma, fail) as url:
                    work = self.directory()
                    one = self.run(who, url, rows, concurrency, work)
                    shutil.rmtree(work, ignore_errors=True)
                found.setdefault((who, rows), []).append(one)
                told = f"{one.seconds or one.wall:.2f} s, {one.cpu:.2f} CPU s, {one.memory:.0f} MB, {one.ended}"
                say(f"{part} {turn + 1}/{self.args.repeats} {who} {rows:,} rows: {told}")
        return {f"{who} {rows}": summary(outcomes, rows) for (who, rows), outcomes in found.items()}

    def again(self) -> dict[str, Any]:
        """A second process on a finished directory; for limbeck also without its stages, and an empty run."""
        found: dict[str, list[Outcome]] = {}
        for who, rows in self.contestants():
            if who == FLOOR or (who == "limbeck" and rows != self.args.rows):
                continue
            with self.serving(latency=0.0) as url:
                work = self.directory()
                self.run(who, url, rows, 64, work)
                for _ in range(self.args.repeats):
                    found.setdefault(f"{who} {rows}", []).append(self.run(who, url, rows, 64, work))
                    if who == "limbeck":
                        shutil.rmtree(work / "stages")
                        found.setdefault("limbeck without stages", []).append(self.run(who, url, rows, 64, work))
                        found.setdefault("limbeck empty", []).append(self.run(who, url, 0, 64, self.directory()))
            say(f"again {who} {rows:,} rows: " + ", ".join(f"{o.wall:.2f} s" for o in found[f"{who} {rows}"]))
        return {name: summary(outcomes, None) for name, outcomes in found.items()}

    def kill(self) -> dict[str, Any]:
        """SIGKILL at 60 % of the answers, then a second process: what it asks for again of what was asked before."""
        found: dict[str, list[Outcome]] = {}
        few = min(self.args.rows, self.args.peer_rows)
        peers = [(who, 64, few) for who in self.args.peers if who != FLOOR]
        for who, concurrency, rows in [("limbeck", 64, few), ("limbeck", 512, self.args.rows), *peers]:
            for _ in range(self.args.repeats):
                with self.serving() as url:
                    work = self.directory()
                    self.run(who, url, rows, concurrency, work, kill_at=rows * 6 // 10)
                    time.sleep(2 * LATENCY)  # the server answers what was in flight to nobody
                    first = stats(url)
                    second = self.run(who, url, rows, concurrency, work, limit=HANGS)
                    if second.ended == "ok":
                        second.seen["twice"] = first["requests"] + second.seen["requests"] - rows
                    found.setdefault(f"{who} c{concurrency} {rows}", []).append(second)
                asked = f"{first['requests']:,} asked before the kill, {second.seen['requests']:,} after it"
                say(f"kill {who} c{concurrency} {rows:,} rows: {asked}; {second.ended}")
        return {name: summary(outcomes, None) for name, outcomes in found.items()}

    def memory(self) -> dict[str, Any]:
        """limbeck's private memory with a hundred times the rows."""
        found: dict[str, Any] = {}
        for rows in (2000, 200_000 if self.args.rows >= 20_000 else 10 * self.args.rows):
            with self.serving(latency=0.0) as url:
                work = self.directory()
                found[f"limbeck {rows}"] = summary([self.run("limbeck", url, rows, 64, work)], rows)
                shutil.rmtree(work)
            say(f"memory limbeck {rows:,} rows: {found[f'limbeck {rows}']['memory'][0]:.0f} MB")
        return found


def environment(envs: Path, who: str) -> str:
    """Makes a peer's virtual environment, once. Returns its Python."""
    home = envs.expanduser() / who
    ready, python = home / "ready", str(home / "bin" / "python")
    if not ready.exists():
        say(f"making the environment of {who} in {home}")
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[who][0]], check=True, stdout=sys.stderr)
        ready.touch()
    return python


def versions(pythons: dict[str, str]) -> dict[str, str]:
    """What each contestant is, by its environment: the version of the first thing that was installed there."""
    found = {"limbeck": importlib.metadata.version("limbeck")}
    for who in pythons.keys() - found.keys():
        name = PEERS[who][0][0].partition("=")[0].partition("[")[0]
        ask = f"import importlib.metadata as m; print(m.version({name!r}))"
        found[who] = subprocess.run(
            [pythons[who], "-c", ask], check=True, capture_output=True, text=True
        ).stdout.strip()
    return found


def stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/stats", timeout=30) as answer:
        return json.load(answer)


def private(pid: int) -> float:
    """The private memory of a process and all below it, in MB: what they wrote; pages of libraries are not in it."""
    total = 0.0
    with contextlib.suppress(OSError):  # it may end at any moment
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total = sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(private(int(child)) for child in (task / "children").read_text().split())
    return total


def summary(outcomes: list[Outcome], rows: int | None) -> dict[str, Any]:
    """Median, lowest and highest of each number. With `rows`, says who did not answer all of them once."""
    ended = sorted({o.ended if rows is None or o.ended != "ok" or o.rows == rows else "rows lost" for o in outcomes})
    found: dict[str, Any] = {"ended": ", ".join(ended)}
    for name in ("wall", "cpu", "memory", "seconds"):
        values = [v for o in outcomes if (v := getattr(o, name)) is not None]
        found[name] = [statistics.median(values), min(values), max(values)] if values else None
    for name in ("requests", "repeated", "failed", "twice", "most_in_flight"):
        if values := [o.seen[name] for o in outcomes if name in o.seen]:
            found[name] = [statistics.median(values), min(values), max(values)]
    return found


def bounds(found: dict[str, Any], rows: int, few: int) -> Iterator[tuple[str, float, str, float]]:
    """What limbeck promises, for the parts that were measured: (words, value, "<=" or ">=", limit)."""

    def middle(part: str, who: str, name: str) -> float:
        values = found.get(part, {}).get(who, {}).get(name)
        return values[0] if values else float("nan")

    def against(part: str, name: str, size: int = rows) -> float:
        return middle(part, f"limbeck {size}", name) / middle(part, f"{FLOOR} {size}", name)

    yield "c64: wall against the aiohttp loop", against("c64", "seconds"), "<=", 1.15
    yield "c64: CPU against the aiohttp loop", against("c64", "cpu"), "<=", 3.0
    yield "c512: rows per second against the aiohttp loop", 1 / against("c512", "seconds"), ">=", 0.65
    yield "c512: CPU against the aiohttp loop", against("c512", "cpu"), "<=", 2.5
    yield "tail64: wall against the aiohttp loop", against("tail64", "seconds"), "<=", 1.15
    clean = middle("c64", f"limbeck {rows}", "seconds")
    troubled = middle("errors", f"limbeck {rows}", "seconds")
    yield "errors: wall against limbeck's own c64", troubled / clean, "<=", 1.25
    empty = middle("again", "limbeck empty", "wall")
    present = middle("again", f"limbeck {rows}", "wall") - empty
    yield "again: seconds, stages present, net of an empty run", present, "<=", 1.5
    replayed = middle("again", "limbeck without stages", "wall") - empty
    yield "again: seconds, stages deleted, net of an empty run", replayed, "<=", 4.0
    asked = middle("again", f"limbeck {rows}", "requests") + middle("again", "limbeck without stages", "requests")
    yield "again: calls bought by either", asked, "<=", 0
    for name, entry in found.get("kill", {}).items():
        if name.startswith("limbeck"):
            concurrency = int(name.split()[1][1:])
            most = concurrency + min(GROUP_CALLS, GROUP_SECONDS * concurrency / LATENCY)
            twice = max(entry.get("twice", [float("inf")]))
            yield f"kill: calls bought twice at {concurrency} in flight, those and one group", twice, "<=", most
    sizes = [entry["memory"][0] for entry in found.get("memory", {}).values()] or [float("nan")]
    yield "memory: MB more for a hundred times the rows", sizes[-1] - sizes[0], "<", 50
    for who, limit in (("distilabel", 8.0), ("curator", 3.0)):
        faster = middle("c64", f"{who} {few}", "wall") / middle("c64", f"limbeck {few}", "wall")
        yield f"c64: rows per second against {who}, whole processes", faster, ">=", limit


def holds(value: float, sign: str, limit: float) -> bool:
    return value <= limit if sign == "<=" else value < limit if sign == "<" else value >= limit


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(part: str, entries: dict[str, Any]) -> str:
    lines = [f"\n{part:<28} {'seconds':>22} {'rows/s':>8} {'process':>8} {'CPU s':>8} {'MB':>6} {'requests':>9}  ended"]
    for name, entry in entries.items():
        middle, low, high = entry["seconds"] or entry["wall"]
        rows = name.split()[-1]
        rate = f"{int(rows) / middle:.0f}" if rows.isdigit() else ""
        told = f"{middle:8.2f} ({low:.2f}-{high:.2f})"
        lines.append(
            f"{name:<28} {told:>22} {rate:>8} {entry['wall'][0]:>8.2f} {entry['cpu'][0]:>8.2f} "
            f"{entry['memory'][0]:>6.0f} {entry['requests'][0]:>9.0f}  {entry['ended']}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in info if line.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser.add_argument("--peers", type=names, default=[FLOOR], help=f"of {', '.join(PEERS)}; the first always runs")
    parser.add_argument("--only", type=names, default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--peer-rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/limbeck/bench"))
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON on standard output")
    args = parser.parse_args()
    if unknown := {*args.peers} - {*PEERS} | {*args.only} - {*PARTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    told, load = machine(), [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        told |= versions(bench.pythons)
        say(", ".join(f"{name} {value}" for name, value in told.items()) + f"; load {load[0]:.1f}")
        for part in (p for p in PARTS if p in args.only):
            found[part] = bench.load(part) if part in LOADS else getattr(bench, part)()
            load.append(os.getloadavg()[0])
            say(table(part, found[part]) + f"\n(load {load[-1]:.1f})")
    few = min(args.rows, args.peer_rows)
    checked = [b for b in bounds(found, args.rows, few) if b[1] == b[1]]  # a part that was not measured is nan
    say("")
    for words, value, sign, limit in checked:
        say(f"{'PASS' if holds(value, sign, limit) else 'MISS'}  {words}: {value:.2f} (bound {sign} {limit:g})")
    if args.json:
        kept = [{"bound": w, "value": v, "limit": f"{s} {x:g}", "pass": holds(v, s, x)} for w, v, s, x in checked]
        told |= {"load": load, "rows": args.rows, "peer_rows": few, "repeats": args.repeats}
        print(json.dumps({"machine": told, "parts": found, "bounds": kept}, indent=1))
    ours = [entry for part in found.values() for name, entry in part.items() if name.startswith("limbeck")]
    return int(any(e["ended"] != "ok" for e in ours) or not all(holds(*bound[1:]) for bound in checked))


if __name__ == "__main__":
    sys.exit(main())
