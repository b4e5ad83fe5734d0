"""Runs of another kind: a dry run's upper bound, a pilot's estimate from real rows, a salvage of what is finished.

While `run.plan` is set, `ask` and `converse` go through it, and steps that would look into rows that are not there
pass them on.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from . import parse, store, table
from .errors import LimbeckError
from .run import Run
from .table import Row, Table, View


class Stopped(LimbeckError):
    """Ends a plan where it can see no further, or has seen enough."""


class Plan:
    """What the three kinds share: nothing stands in for rows, and training ends the walk."""

    def walk(self, run: Run, recipe: Callable[[], Any]) -> Any:
        """Runs `recipe` under this plan and returns what it made, None where the plan stopped it."""
        run.plan = self
        with contextlib.suppress(Stopped):
            return recipe()

    def ask(self, purchase: Any) -> Table:
        return purchase.stage()

    def converse(self, talks: Any) -> Table:
        return self.ask(talks)

    def holds(self, rows: Table) -> bool:
        """Whether `rows` are, or come from, stand-ins for what was not bought."""
        return False

    def as_is(self, rows: Table, decides: str | None = None, **columns: Any) -> Table:
        """What a step that cannot run on stand-ins gives instead: all its rows, with the columns that it would add."""
        return rows

    def train(self, student: Any, rows: Table) -> Any:
        """What train gives back under this plan."""
        raise Stopped("a plan ends where training begins.")


EACH = ("calls", "replayed", "tokens_in", "tokens_out", "money")  # what a dry run counts for each model of an ask


_WRONG = 512  # tokens at most of the words that say what is wrong with a reply


class StandIn(View):
    """Rows as they might come back from an ask: every call answered, with text of the greatest length."""

    several = False  # whether one reply may become several rows, so that there may be more than these


def _several(asking: Any) -> bool:
    """Whether a reply may become several rows, as far as the parser tells: one of a user's own may always."""
    named = asking.prompt.parser if asking.parser is None and hasattr(asking.prompt, "parser") else asking.parser
    if named is None:
        return False
    return not isinstance(named, parse.Parser) or named.name == "lines" or bool(named.args.get("many"))


class DryRun(Plan):
    """Buys nothing: asks give stand-ins, filters keep every row, so each count is an upper bound.

    Where a recipe's own code looks into rows that are not there, data decides, and the plan is unbounded from the next
    ask on. `asks` lists {site, prompt, models, calls, replayed, money, tokens, why, each} (`each` is by model);
    `unbounded` says why, or is None.
    """

    def __init__(self) -> None:
        self.asks: list[dict[str, Any]] = []
        self.models: dict[str, Any] = {}  # that are asked, by name
        self.unbounded: str | None = None

    def walk(self, run: Run, recipe: Callable[[], Any]) -> Any:
        """Runs `recipe` as a plan. Errors of the user (a missing column, an unknown model) are raised as ever."""
        table.looked.append(self._looked)
        try:
            return super().walk(run, recipe)
        except LimbeckError:
            if not self.unbounded:
                raise
        except Exception as error:  # the recipe's own code met a stand-in where it needs a real row
            if not self.asks:
                raise
            self.unbounded = self.unbounded or f"a step needs real replies ({type(error).__name__}: {error})"
        finally:
            table.looked.remove(self._looked)

    def holds(self, rows: Table) -> bool:
        return isinstance(rows, StandIn) or any(self.holds(p) for p in rows.parents)

    def as_is(self, rows: Table, decides: str | None = None, **columns: Any) -> Table:
        if decides:
            self.unbounded = self.unbounded or f"the step {decides!r} decides by the replies"
        if not columns:
            return rows
        named = list(dict.fromkeys([*rows.columns, *columns]))
        return StandIn("stand-in", (rows,), lambda: (row | columns for row in rows.tracked()), named)

    def train(self, student: Any, rows: Table) -> Any:
        return student

    def _looked(self, rows: Table) -> None:
        if self.holds(rows):
            self.unbounded = self.unbounded or "the recipe looks at replies to decide how often it asks"

    def ask(self, purchase: Any) -> Table:
        """Counts what this ask may take and returns its stand-in rows."""
        asking, run, site = purchase.asking, purchase.run, purchase.site
        if self._many(asking.rows):
            self.unbounded = self.unbounded or "a reply may become several rows"
        if self.unbounded:
            raise Stopped(self.unbounded)
        real = not self.holds(asking.rows)
        first = next((row for _, row, _ in purchase.rows()), None)
        for model, request, *_ in asking.said(first) if first is not None else ():
            run.budget.worst(model, request)  # a cap on what has no bound is as wrong here as in the run
        if real:
            purchase.look_up()
        limit = asking.sampling.get("max_tokens")
        found: dict[str, Any] = {"site": site, "prompt": asking.label, "models": [m.name for m in asking.models]}
        each: dict[str, dict[str, Any]] = {m.name: dict.fromkeys(EACH, 0) for m in asking.models}
        self.models |= {m.name: m for m in asking.models}
        tries = asking.again + 1 if not real or any(purchase.lacks) else 1  # where all is held, all was asked again too
        for model, request, calls in purchase.requests():
            mine, need = each[model.name], sum(purchase.lacks[calls.start : calls.stop]) if real else asking.n
            mine["replayed"] += asking.n - need
            prompt = model.prompt_tokens_at_most(request)
            written = model.written_at_most(request)
            for again in range(tries):
                if again:  # either with twice the room, or with the last reply and what is wrong with it
                    need, prompt = asking.n, prompt + (written or 0) + _WRONG
                    written = 2 * written if request.max_tokens is not None and written else written
                if not need:
                    continue
                mine["calls"] += need
                mine["tokens_in"] += need * prompt
                mine["tokens_out"] += math.inf if written is None else need * written
                if not model.free:
                    known = model.price is not None and written is not None
                    share = model.price.batch if known and asking.batch else 1.0
                    mine["money"] += need * share * model.price.of(prompt, written) if known else math.inf
        found |= {unit: sum(mine[unit] for mine in each.values()) for unit in ("calls", "replayed", "money")}
        found["tokens"] = sum(mine["tokens_in"] + mine["tokens_out"] for mine in each.values())
        found["each"] = each
        found["why"] = [
            f"no price is known for {m.name!r}" if m.price is None else f"no max_tokens for {m.name!r}"
            for m in asking.models
            if not m.free and (m.price is None or (limit is None and m.max_output is None))
        ]
        self.asks.append(found)
        longest = limit if isinstance(limit, int) else max((m.max_output or 512) for m in asking.models)
        text = "x" * min(4 * longest, 400_000)
        outputs = asking.outputs or [asking.into]

        def rows() -> Iterator[Row]:
            for row in asking.rows.tracked():
                for model in asking.models:
                    for _ in range(asking.n):
                        writer = {"writer": model.name} if len(asking.models) > 1 else {}
                        yield {**row, **dict.fromkeys(outputs, text), **writer}

        columns = list(dict.fromkeys([*asking.rows.columns, *outputs]))
        made = StandIn("stand-in", (asking.rows,), rows, columns)
        made.several = _several(asking)
        return made

    def converse(self, talks: Any) -> Table:
        """Has the talks whose replies are all held; where there are others, nothing bounds what is asked from here."""
        if self.unbounded or self._many(talks.rows):
            self.unbounded = self.unbounded or "a reply may become several rows"
            raise Stopped(self.unbounded)
        least = talks.rows.size if self.holds(talks.rows) else talks.look_up()
        if not least:
            return talks.stage()
        why = f"the talk {talks.label!r} decides by the replies how often it asks"
        self.asks.append(
            {"site": talks.site, "prompt": talks.label, "models": [m.name for m in talks.models.values()],
             "least": least, "calls": math.inf, "replayed": 0, "money": math.inf, "tokens": math.inf, "why": [why]}
        )  # fmt: skip
        self.unbounded = f"{why}, at least once for each of {least:,} rows"
        return StandIn("stand-in", (talks.rows,), talks.rows.tracked)

    def _many(self, rows: Table) -> bool:
        return getattr(rows, "several", False) or any(self._many(p) for p in rows.parents)

    def totals(self, whole: bool = True) -> dict[str, float]:
        """{calls, replayed, money, tokens} at most; infinite where there is no bound; or of what is before a talk."""
        counted = [a for a in self.asks if whole or "least" not in a]
        return {unit: sum(a[unit] for a in counted) for unit in ("calls", "replayed", "money", "tokens")}

    def __str__(self) -> str:
        """The plan, a line for each ask, and its upper bound."""
        lines = [f"{'ask':<40} {'who':<28} {'calls':>9} {'at most':>12}"]
        for a in self.asks:
            money = "unbounded" if math.isinf(a["money"]) else f"${a['money']:.4f}"
            what = f"{a['site'].partition(':')[0]} {a['prompt']}"[:40]
            calls = f"{a['least']:,}+" if "least" in a else f"{a['calls']:,}"
            lines.append(f"{what:<40} {', '.join(a['models'])[:28]:<28} {calls:>9} {money:>12}")
        total = self.totals(self.unbounded is None)
        end = f"at most {total['calls']:,.0f} calls"
        end += f" ({total['replayed']:,.0f} more are held already)" if total["replayed"] else ""
        if math.isinf(total["money"]):
            end += "; money is unbounded: " + "; ".join(dict.fromkeys(w for a in self.asks for w in a["why"]))
        else:
            end += f", ${total['money']:.4f}"
        if self.unbounded:
            end = f"unbounded: {self.unbounded}; up to there {end}. Cap it with --budget."
        return "\n".join([*lines, end])


class Pilot(Plan):
    """Buys the calls of the first rows for good, and says from them what all rows will take.

    It ends where training begins, and at the next ask after a recipe's own code has looked at replies: what is asked
    then depends on more than the number of rows. `ends` says why, or is None where it saw the whole recipe.
    """

    def __init__(self) -> None:
        self.keys: dict[str, list[str]] = {}  # per ask, in order
        self.made: set[str] = set()  # the stages of asks
        self.looks = False
        self.ends: str | None = None

    def walk(self, run: Run, recipe: Callable[[], Any]) -> Any:
        table.looked.append(self._looked)
        try:
            return super().walk(run, recipe)
        finally:
            table.looked.remove(self._looked)

    def _looked(self, rows: Table) -> None:
        self.looks = self.looks or self._asked(rows)

    def _asked(self, rows: Table) -> bool:
        return rows.name in self.made or any(map(self._asked, rows.parents))

    def train(self, student: Any, rows: Table) -> Any:
        self.ends = "up to the first training; what is asked after it is not in this"
        raise Stopped(self.ends)

    def ask(self, purchase: Any) -> Table:
        if self.looks:
            self.ends = "up to where the recipe looks at replies to decide how often it asks; cap the run with --budget"
            raise Stopped(self.ends)
        made: Any = purchase.stage()
        self.made.add(made.name)
        calls: dict[str, None] = {}
        for name in ("rows.parquet", "rejects.parquet"):
            for row in store.read(made.path / name, ["_call"]):
                calls.update(dict.fromkeys(row.get("_call") or ()))
        self.keys[purchase.site] = list(calls)
        return made

    def estimate(self, ledger: Any, rows: int, of: int) -> dict[str, Any]:
        """What `of` rows will take if they are like the first `rows`: {calls, tokens, money: (mean, low, high)}.

        The 95 % interval is over the rows of each ask, whose draws belong together; how many rows an ask gets counts as
        Poisson unless it is a whole multiple of `rows`: rather too wide than too narrow. Money is None without a price.
        """
        scale = of / max(rows, 1)
        totals = {unit: [0.0, 0.0] for unit in ("calls", "tokens", "money")}
        priced = True
        for keys in self.keys.values():
            by_row: dict[str, list[float]] = {}
            for call in filter(None, map(ledger.call, keys)):
                if call["kind"] == "tool":
                    continue
                priced = priced and call["cost"] is not None
                sizes = (1.0, call["prompt_tokens"] + call["completion_tokens"], call["cost"] or 0.0)
                sums = by_row.setdefault(call["row"], [0.0, 0.0, 0.0])
                by_row[call["row"]] = [a + b for a, b in zip(sums, sizes, strict=True)]
            for at, unit in enumerate(totals):
                drawn = [sums[at] for sums in by_row.values()]
                centre = sum(drawn) / len(drawn) if drawn and len(drawn) % max(rows, 1) == 0 else 0.0
                totals[unit][0] += sum(drawn)
                totals[unit][1] += sum((x - centre) ** 2 for x in drawn)
        found: dict[str, Any] = {}
        for unit, (total, variance) in totals.items():
            half = 1.96 * math.sqrt(variance)
            found[unit] = (scale * total, max(0.0, scale * (total - half)), scale * (total + half))
        return found if priced else found | {"money": None}


class Salvage(Plan):
    """Buys nothing and takes what the ledger holds: each ask answers the rows whose replies are there, the others wait.

    The steps between run on those rows as ever, so what comes out is checked. `partial` names the asks that were not
    whole; `rows` are the rows that a training would have begun with, or the last ones asked about.
    """

    def __init__(self) -> None:
        self.rows: Table | None = None
        self.partial: list[str] = []

    def ask(self, purchase: Any) -> Table:
        if not purchase.look_up():
            made = purchase.stage()
        else:
            self.partial.append(f"{purchase.site} ({purchase.label})")
            finished = ({k: v for k, v in r.items() if k != "_row"} for r in purchase.finished())
            made = Table.from_rows(finished, name="finished")
            if not made.size:
                raise Stopped(f"nothing is finished of {purchase.site}.")
        self.rows = made
        return made

    def train(self, student: Any, rows: Table) -> Any:
        self.rows = rows
        raise Stopped("these rows are what is finished.")
