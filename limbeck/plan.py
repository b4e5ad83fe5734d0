"""What a run will cost, before it is spent: a dry run's upper bound, and a pilot's estimate from real rows."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import store, table
from .errors import LimbeckError
from .run import Run
from .table import Row, Table, View


class Ends(LimbeckError):
    """Stops a plan where it can see no further."""


class StandIn(View):
    """Rows as they might come back from an ask: every call answered, with text of the greatest length."""


class Plan:
    """Walks a recipe without buying: asks give stand-ins, filters keep every row, so each count is an upper bound.

    Where a recipe's own code looks into rows that are not there yet, data decides, and the plan is unbounded from the
    next ask on.
    """

    def __init__(self) -> None:
        self.asks: list[dict[str, Any]] = []
        self.unbounded: str | None = None

    def walk(self, run: Run, recipe: Callable[[], Any]) -> None:
        """Runs `recipe` as a plan. Errors of the user (a missing column, an unknown model) are raised as ever."""
        run.plan = self
        table.looked.append(self._looked)
        try:
            recipe()
        except Ends:
            pass
        except LimbeckError:
            if not self.unbounded:
                raise
        except Exception as error:  # the recipe's own code met a stand-in where it needs a real row
            self.unbounded = self.unbounded or f"a step needs real replies ({type(error).__name__}: {error})"
        finally:
            table.looked.remove(self._looked)

    def holds(self, rows: Table) -> bool:
        return isinstance(rows, StandIn) or any(self.holds(p) for p in rows.parents)

    def as_is(self, rows: Table, decides: str | None = None) -> Table:
        if decides:
            self.unbounded = self.unbounded or f"the step {decides!r} decides by the replies"
        return rows

    def _looked(self, rows: Table) -> None:
        if self.holds(rows):
            self.unbounded = self.unbounded or "the recipe looks at replies to decide how often it asks"

    def ask(self, asking: Any, site: str) -> Table:
        """Counts what this ask may take and returns its stand-in rows."""
        if self.unbounded:
            raise Ends(self.unbounded)
        run_real = not self.holds(asking.rows)
        calls, money, tokens, replayed = 0, 0.0, 0.0, 0
        for _, _, model, request, _, words, occurrence in asking.requests():
            need = asking.n
            if run_real:
                held = _current_ledger().have(asking.keys(words, occurrence))
                replayed += len(held)
                need -= len(held)
            calls += need
            prompt = model.prompt_tokens_at_most(request)
            written = request.max_tokens if request.max_tokens is not None else model.max_output
            tokens += need * (prompt + written) if written is not None else math.inf if need else 0
            if model.free or not need:
                continue
            known = model.price is not None and written is not None
            money += need * model.price.of(prompt, written) if known else math.inf
        why = [
            f"{m.name} has no known price" if m.price is None else f"no max_tokens for {m.name}"
            for m in asking.models
            if not m.free and (m.price is None or (asking.sampling["max_tokens"] is None and m.max_output is None))
        ]
        self.asks.append(
            {"site": site, "models": [m.name for m in asking.models], "calls": calls, "replayed": replayed,
             "money": money, "tokens": tokens, "why": why}
        )  # fmt: skip
        limit = asking.sampling["max_tokens"]
        longest = limit if isinstance(limit, int) else max((m.max_output or 0) for m in asking.models) or 512
        text = "x" * min(4 * longest, 20_000)
        outputs = asking.outputs or [asking.into]

        def rows() -> Iterator[Row]:
            for row in asking.rows.tracked():
                for model in asking.models:
                    for _ in range(asking.n):
                        writer = {"writer": model.name} if len(asking.models) > 1 else {}
                        yield {**row, **dict.fromkeys(outputs, text), **writer}

        columns = list(dict.fromkeys([*asking.rows.columns, *outputs]))
        return StandIn("stand-in", (asking.rows,), rows, columns)

    def totals(self) -> dict[str, float]:
        return {unit: sum(a[unit] for a in self.asks) for unit in ("calls", "replayed", "money", "tokens")}

    def __str__(self) -> str:
        """The plan, a line for each ask, and its upper bound."""
        lines = [f"{'ask':<44} {'who':<28} {'calls':>9} {'at most':>12}"]
        for a in self.asks:
            money = "unbounded" if math.isinf(a["money"]) else f"${a['money']:.4f}"
            lines.append(f"{a['site'][:44]:<44} {', '.join(a['models'])[:28]:<28} {a['calls']:>9,} {money:>12}")
        total = self.totals()
        end = f"at most {total['calls']:,.0f} calls"
        end += f" ({total['replayed']:,.0f} more are held already)" if total["replayed"] else ""
        if math.isinf(total["money"]):
            end += "; money: unbounded: " + "; ".join(dict.fromkeys(w for a in self.asks for w in a["why"]))
        else:
            end += f", ${total['money']:.4f}"
        if self.unbounded:
            end = f"unbounded: {self.unbounded}; up to there {end}. Cap it with --budget."
        return "\n".join([*lines, end])


def _current_ledger() -> Any:
    from .run import current

    return current("the plan").ledger


class Pilot:
    """Tallies the calls behind the first rows of a run, to say what all rows will take."""

    def __init__(self) -> None:
        self.keys: dict[str, list[str]] = {}  # per ask, in order

    def note(self, site: str, asked: Table) -> None:
        """Takes down which calls stand behind an ask's rows and rejects, bought now or earlier."""
        path: Path = asked.path  # type: ignore[attr-defined]
        calls: dict[str, None] = {}
        for name in ("rows.parquet", "rejects.parquet"):
            for row in store.read(path / name, ["_call"]):
                calls.update(dict.fromkeys(row.get("_call") or ()))
        self.keys[site] = list(calls)

    def estimate(self, ledger: Any, rows: int, of: int) -> dict[str, Any]:
        """What `of` rows will take if they are like the first `rows`: {calls, tokens, money: (mean, low, high)}.

        The 95 % interval counts each ask's number of calls as Poisson unless it is a whole multiple of the rows, and
        each call's size as drawn; so it is rather too wide than too narrow. Money is None where no price is known.
        """
        scale, found = of / max(rows, 1), {}
        sizes: dict[str, list[list[float]]] = {"calls": [], "tokens": [], "money": []}
        priced = True
        for keys in self.keys.values():
            calls = [c for k in keys if (c := ledger.call(k)) is not None]
            sizes["calls"].append([1.0] * len(calls))
            sizes["tokens"].append([float(c["prompt_tokens"] + c["completion_tokens"]) for c in calls])
            sizes["money"].append([c["cost"] or 0.0 for c in calls])
            priced = priced and all(c["cost"] is not None for c in calls)
        for unit, per_ask in sizes.items():
            total, variance = 0.0, 0.0
            for drawn in per_ask:
                total += sum(drawn)
                centre = sum(drawn) / len(drawn) if drawn and len(drawn) % rows == 0 else 0.0
                variance += sum((x - centre) ** 2 for x in drawn)
            half = 1.96 * math.sqrt(variance)
            found[unit] = (scale * total, max(0.0, scale * (total - half)), scale * (total + half))
        return found | ({} if priced else {"money": None})
