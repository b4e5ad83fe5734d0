"""`limbeck price`: what a run would cost, before it; or what models cost."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import models, plan
from ..bind import pairs
from ..errors import LimbeckError
from ..models import prices
from ..run import Run
from ..words import money, short
from . import say
from .run import beside, check_directory, chosen, opened, piloted


def price(
    target: str | None,
    words: list[str],
    *,
    out: Path | None,
    budget: str | None,
    pilot: int | None,
    limit: int | None,
    rename: list[str],
    accept_changes: bool,
    reuse: list[Path],
    seed: int | None,
    as_json: bool,
) -> None:
    """Prints the most that a run can cost, and with `pilot` what it will about cost. Without a recipe, the prices."""
    if target is None or models.is_model(target):
        _prices(target, words, as_json)
        return
    method, name, _, bound = chosen(target, words, seed)
    place, columns = out or Path("runs") / method.name.replace(":", "-"), pairs(rename)
    check_directory(place, method.name)
    options: dict[str, Any] = {"budget": budget, "reuse": reuse, "accept_changes": accept_changes}
    dry, estimate = plan.DryRun(), None
    with _somewhere(place) as directory, Run(directory, progress=False, reuse=reuse) as run:
        run.search = beside(method, name)
        arguments, _ = opened(bound, limit, columns)
        dry.walk(run, lambda: method.fn(**arguments))
    if pilot:
        with Run(place, **options) as run:
            run.search = beside(method, name)
            arguments, rows = opened(bound, limit, columns, pilot)
            estimate = piloted(run, lambda: method.fn(**arguments), rows, pilot)
    if as_json:
        print(json.dumps(_finite(_told(method.name, dry, estimate)), indent=1, ensure_ascii=False))
        return
    print("\n".join(_lines(dry, estimate)))


@contextlib.contextmanager
def _somewhere(place: Path) -> Iterator[Path]:
    """The run's directory where there is one, whose replies count; else one that is gone afterwards."""
    if (place / "ledger").exists():
        yield place
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def _told(recipe: str, dry: plan.DryRun, estimate: dict[str, Any] | None) -> dict[str, Any]:
    """All that is known of the price, as JSON data; without a bound it is infinite."""
    asks = [
        {"site": a["site"], "prompt": a["prompt"], "model": name, **each, "batch": _batch(dry.models[name], each["money"])}
        for a in dry.asks
        for name, each in a["each"].items()
    ]
    total: dict[str, Any] = {unit: sum(a[unit] for a in asks) for unit in (*plan.EACH, "batch")}
    noted = {name: m.terms for name, m in dry.models.items()}
    costs = {name: m.price and {"input": m.price.input, "output": m.price.output} for name, m in dry.models.items()}
    return {"recipe": recipe, "at_most": asks, "total": total, "unbounded": dry.unbounded, "estimate": estimate,
            "prices": costs, "terms": noted}  # fmt: skip


def _batch(model: Any, dollars: float) -> float:
    """What the same calls cost through the provider's batch API, where it has one."""
    return dollars * model.price.batch if model.price and "batch" in model.can else dollars


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _lines(dry: plan.DryRun, estimate: dict[str, Any] | None) -> Iterator[str]:
    told = _told("", dry, estimate)
    table = [["ask", "model", "$/M in/out", "calls", "held", "tokens in", "tokens out", "at most", "in batches"]]
    for a in told["at_most"]:
        model, ask = dry.models[a["model"]], f"{a['site'].partition(':')[0]} {a['prompt']}"[:40]
        table.append([ask, a["model"], _rate(model), *_cells(a)])
    if len(table) > 2:
        table.append(["total", "", "", *_cells(told["total"])])
    yield from _columns(table, left=2)
    if dry.unbounded:
        yield f"beyond these asks there is no bound: {dry.unbounded}; cap the run with --budget"
    for why in dict.fromkeys(w for a in dry.asks for w in a["why"]):
        yield f"no bound on the money: {why}"
    if estimate:
        yield from list(say.pilot(**estimate))[:-1]
        yield "what the pilot bought is kept: `limbeck run` with the same arguments buys only the rest"
    elif told["total"]["calls"]:
        yield "at most: each byte of a prompt counts as a token, each reply as long as it may be; --pilot 20 buys 20 rows and estimates"
    for name, terms in told["terms"].items():
        if terms:
            yield f"terms of {name}: {terms}"


def _rate(model: Any) -> str:
    if model.free:
        return "free"
    return f"{model.price.input:g}/{model.price.output:g}" if model.price else "unknown"


def _cells(a: dict[str, Any]) -> list[str]:
    tokens = ["unbounded" if math.isinf(a[way]) else short(a[way]) for way in ("tokens_in", "tokens_out")]
    return [f"{a['calls']:,}", f"{a['replayed']:,}", *tokens, _dollars(a["money"]), _dollars(a["batch"])]


def _dollars(amount: float) -> str:
    return "unbounded" if math.isinf(amount) else money(amount)


def _columns(table: list[list[str]], left: int) -> Iterator[str]:
    """Cells in columns, the first `left` of them flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        yield "  ".join(cells).rstrip()


def _prices(name: str | None, words: list[str], as_json: bool) -> None:
    """Prints the price of one model, or the table of list prices."""
    found: dict[str, dict[str, Any]] = {}
    if name is None:
        for one, (cost, most) in prices.listed().items():
            found[one] = {"input": cost.input, "output": cost.output, "max_output": most or None}
    else:
        model = models.get(name, **pairs(words))
        if model.price is None and not model.free:
            raise LimbeckError(
                f'no price is known for {name!r}; give one (price="0.15/0.60", dollars per million tokens in/out).'
            )
        into, out = (model.price.input, model.price.output) if model.price else (0.0, 0.0)
        found[name] = {"input": into, "output": out, "max_output": model.max_output, "terms": model.terms}
        if model.price and "batch" in model.can:
            found[name] |= {"batch_input": into * model.price.batch, "batch_output": out * model.price.batch}
    if as_json:
        print(json.dumps({"as_of": prices.AS_OF, "models": found}, indent=1, ensure_ascii=False))
        return
    table = [["model", "$/M in", "$/M out", "most tokens out"]]
    for one, known in found.items():
        most = known["max_output"]
        table.append([one, f"{known['input']:g}", f"{known['output']:g}", f"{most:,}" if most else "-"])
    print("\n".join(_columns(table, left=1)))
    if name is None:
        print(f"list prices of {prices.AS_OF}; OpenAI and Anthropic take half of it in batches; price= on a model overrides")
    elif "batch_input" in found[name]:
        print(f"in batches: {found[name]['batch_input']:g} and {found[name]['batch_output']:g}")
    if name is not None and found[name]["terms"]:
        print(f"terms: {found[name]['terms']}")
