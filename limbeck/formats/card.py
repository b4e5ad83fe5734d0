"""The dataset card: one page beside exported rows that says how they were made, as the Hugging Face hub reads it."""

import contextlib
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .. import result, store
from ..errors import LimbeckError
from ..fingerprint import digest
from ..ledger import Ledger
from ..table import Table
from ..words import paid

NAME = "README.md"  # what the hub shows of a repository
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_MARK = re.compile(r"\n<!-- written by limbeck export for (\w+), as (\w+) -->\n$")
_STEPS, _REASONS = 12, 5  # most lines of steps, and most reasons of one
_SERVED = "select distinct model, served from ({calls}) where served is not null"


def write(directory: Path, data: Path, rows: Table, partial: bool = False) -> Path | None:
    """Writes the card of `rows`, exported from a run directory to `data`, beside it. Returns its path.

    A README.md that is another's, or that someone has edited, is left as it is: the card is then named after the data.
    None where that one is not the card's own either.
    """
    text, run = _text(directory, data, rows, partial), digest(str(directory.resolve()))[:16]
    for path in (data.with_name(NAME), data.with_name(f"{data.name}.md")):
        if not path.exists() or _own(path, run):
            scratch = path.with_name(f".{path.name}.tmp")
            mark = f"\n<!-- written by limbeck export for {run}, as {digest(text)[:16]} -->\n"
            scratch.write_text(text + mark, encoding="utf-8")
            return scratch.rename(path)
    return None


def _own(path: Path, run: str) -> bool:
    """Whether this is a card of the same run that nobody has touched."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _MARK.search(text)
    return bool(found and found[1] == run and found[2] == digest(text[: found.start()])[:16])


def _text(directory: Path, data: Path, rows: Table, partial: bool) -> str:
    record, saved = result.read(directory / "run.json"), result.read(directory / "result.json")
    events, count = list(result.events(directory)), len(rows)
    card, stages = record.get("card", {}), list(_stages(directory, {} if partial else saved))
    name = str(card.get("name") or directory.resolve().name)
    when = time.strftime("%Y-%m-%d", time.gmtime(events[-1]["at"])) if events else "an unknown day"
    made = f"limbeck {record.get('versions', {}).get('limbeck') or _version()}, {when}"
    whole = "; the run was not done, and these are its finished rows" if partial else ""
    models = list(_models(directory, events, stages))
    lines = [_front(name, card, data, count), f"# {name}", ""]
    lines += [str(card["title"]), ""] if card.get("title", name) != name else []
    lines += [f"{count:,} rows with the columns {', '.join(f'`{c}`' for c in rows.columns)}{whole}.", ""]
    lines += ["At least a part of the text was written by language models. It may be wrong.", ""] if models else []
    lines += ["## How it was made", ""]
    lines += [f"- recipe: `{name}`" + (f", a variant of `{card['of']}`" if card.get("of") else "")]
    lines += [f"- paper: {_link(str(card['paper']))}"] if card.get("paper") else []
    lines += [f"- where it leaves the paper: {line}" for line in card.get("departs", ())]
    prompts = result.prompts_used(directory)
    lines += [f"- prompts: {', '.join(f'`{p}` ({d[:12]})' for p, d in prompts.items())}"] if prompts else []
    if given := [f"{k}={str(v)[:80]}" for k, v in record.get("bound", {}).items() if not isinstance(v, dict | list)]:
        lines += [f"- arguments: {', '.join(f'`{g}`' for g in given)}"]
    lines += [f"- {_bought(directory, events)}", f"- made with {made}", ""]
    if models:
        lines += ["## Models and the terms of their outputs", "", *models, ""]
    lines += ["## Steps", "", "| step | rows in | rows out | left out |", "|---|---:|---:|---|", *_steps(stages), ""]
    return "\n".join(lines)


def _front(name: str, card: dict[str, Any], data: Path, count: int) -> str:
    tags = ["synthetic", "limbeck", *(re.sub(r"\W+", "-", t).strip("-").lower() for t in _about(card))]
    size = next((s for i, s in enumerate(_SIZES) if count < 1000 * 10**i), "n>1T")
    head: dict[str, Any] = {"pretty_name": name, "tags": tags, "size_categories": [size]}
    head["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": data.name}]}]
    told = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n# license: yours to choose, once you have read the terms of the models below\n{told}---\n"


def _about(card: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(filter(None, [card.get("skill"), *card.get("elicits", ())])))


def _link(paper: str) -> str:
    return f"https://arxiv.org/abs/{paper}" if re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", paper) else paper


def _bought(directory: Path, events: list[dict[str, Any]]) -> str:
    spent: dict[str, Any] = next((e["spent"] for e in reversed(events) if "spent" in e), {"calls": 0, "tokens": 0})
    cost = paid(spent.get("money", 0.0), sum(result.unpriced(directory).values()))
    return f"bought by all runs in its directory: {spent['calls']:,} calls, {spent['tokens']:,} tokens, {cost}"


def _stages(directory: Path, saved: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The stages behind the result, sources first; without a result, those of the last opening."""
    held = {s["name"]: s for s in result.stages(directory)}
    behind: dict[str, None] = {}
    if table := result.table_of(saved):
        result.ancestors(directory, table["stage"], behind)
    for name in behind or held:
        yield held.get(name) or {"name": name, **store.meta(directory / "stages" / name)}


def _steps(stages: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each step that works on rows; many steps are put together by their operation."""
    steps = [(s["op"], s["counts"]) for s in stages if s.get("scope") != "source"]
    several = len(steps) > _STEPS
    for op in dict.fromkeys(op for op, _ in steps) if several else range(len(steps)):
        told = [s for s in steps if s[0] == op] if several else [steps[op]]
        left: Counter[str] = Counter()
        for _, counts in told:
            left.update(counts.get("rejected") or {})
        reasons = [f"{n:,} {_plain(reason)}" for reason, n in left.most_common(_REASONS)]
        reasons += [f"{len(left) - _REASONS:,} more reasons"] if len(left) > _REASONS else []
        into, out = (sum(counts.get(way) or 0 for _, counts in told) for way in ("in", "out"))
        name = told[0][0] + (f" ({len(told):,} times)" if len(told) > 1 else "")
        yield f"| {name} | {into:,} | {out:,} | {', '.join(reasons)} |"


def _plain(reason: str) -> str:
    """A reason in a cell of a table, whatever is in it."""
    return re.sub(r"[\s|<>]+", " ", reason)[:80]


def _models(directory: Path, events: list[dict[str, Any]], stages: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each model asked for these rows: what its endpoint served, and the note on its terms."""
    noted = {e["digest"]: e for e in events if e["event"] == "terms"}
    asked = "\n".join(str(s.get("parameters")) for s in stages)
    behind = {d: e for d, e in noted.items() if e["model"] in asked} or noted
    served = _served(directory)
    for key, event in behind.items():
        others = [s for model, s in served if model == key and s != event["model"].partition("/")[2]]
        as_what = f", served as {', '.join(f'`{s}`' for s in others)}" if others else ""
        yield f"- `{event['model']}`{as_what}: {event['terms'] or 'no note on its terms is kept; read them'}"


def _served(directory: Path) -> list[tuple]:
    """(model's digest, what its endpoint said it served), as far as the ledger can be read."""
    with contextlib.suppress(LimbeckError, sqlite3.Error):
        held = Ledger(directory / "ledger", readonly=True)
        try:
            return held.select(_SERVED)
        finally:
            held.close()
    return []


def _version() -> str:
    from importlib.metadata import version

    return version("limbeck")
