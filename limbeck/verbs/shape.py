"""Verbs that give rows another shape: fields assign draw cross concat minus where shots."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .. import prompt as prompts
from ..errors import LimbeckError
from ..fingerprint import canonical, data_half, digest
from ..op import Made, row_stage, whole_stage
from ..run import current_or_none
from ..table import Concat, Row, Table, View, row_digest


def dry_plan(rows: Table) -> Any:
    """The plan of a dry run, where `rows` stand in for what was not bought; None where rows are real."""
    run = current_or_none()
    return run.plan if run and run.plan is not None and run.plan.holds(rows) else None


@dataclasses.dataclass(frozen=True)
class Column:
    """Stands for the value that a row has in the column `name`, where a verb takes one value for all rows."""

    name: str


def fields(rows: Table, **columns: "str | Column | Callable[[Row], Any] | None") -> Table:
    """Sets columns from a template with `{slots}`, a Column, or a function of the row; None drops the column. A view.

    All are computed from the row as it was, so two columns can change places.
    """
    makers: dict[str, Callable[[Row], Any] | None] = {}
    for name, how in columns.items():
        if isinstance(how, str):
            template = prompts.inline(how)
            check_slots(template, rows)
            makers[name] = template.render
        elif isinstance(how, Column):
            rows.need("fields", how.name)
            makers[name] = _getter(how.name)
        else:
            makers[name] = how

    def made() -> Iterator[Row]:
        for row in rows.tracked():
            new = {c: None if make is None else make(row) for c, make in makers.items()}
            yield {k: v for k, v in (row | new).items() if v is not None}

    kept = [c for c in rows.columns if makers.get(c, True) is not None]
    added = [c for c, make in makers.items() if make is not None and c not in kept]
    return View("fields", (rows,), made, kept + added)


def check_slots(prompt: prompts.Prompt, rows: Table) -> None:
    """Raises where a prompt takes a column that the rows lack; a table without rows has no columns to lack."""
    if not set(prompt.inputs) <= set(rows.columns) and rows.size:
        prompt.check(rows.columns)


def _getter(name: str) -> Callable[[Row], Any]:
    return lambda row: row.get(name)


def chances(seed: int, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row, random.Random]]:
    """Gives each row its own random numbers: a function of (seed, row content, occurrence), never of its position.

    Dropping a row upstream changes nothing for the others, unless it was equal to them.
    """
    seen: Counter[bytes] = Counter()
    for index, row in rows:
        content = row_digest(row)
        yield index, row, random.Random(digest(str(seed), content, str(seen[content])))
        seen[content] += 1


def assign(rows: Table, column: str, choices: Sequence[Any], seed: int = 0) -> Table:
    """Draws one of `choices` for each row into `column`."""
    return draw(rows, column, choices, k=1, seed=seed)


def draw(rows: Table, column: str, choices: Sequence[Any], k: int = 1, seed: int = 0) -> Table:
    """Draws `k` different ones of `choices` for each row: k rows for one."""
    choices = list(choices)
    if not 1 <= k <= len(choices):
        raise LimbeckError(f"draw wants k between 1 and the {len(choices)} choices for {column!r}; it got {k}.")

    def made(it: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        for index, row, chance in chances(seed, it):
            for choice in chance.sample(choices, k):
                yield Made(index, {**row, column: choice})

    return row_stage("draw", rows, [column, choices, k, seed], made, code=data_half())


def cross(rows: Table, column: str, values: Sequence[Any]) -> Table:
    """Repeats each row once for each of `values`, put into `column`. A view."""
    values = list(values)

    def made() -> Iterator[Row]:
        for row in rows.tracked():
            for value in values:
                yield {**row, column: value}

    return View("cross", (rows,), made, list(dict.fromkeys([*rows.columns, column])))


def concat(*tables: Table) -> Table:
    """Puts tables one after the other. A view."""
    if not tables:
        raise LimbeckError("concat wants at least one table; it got none.")
    return tables[0] if len(tables) == 1 else Concat(tables)


def minus(rows: Table, gone: Table, on: str | Sequence[str] = "prompt") -> Table:
    """Leaves out the rows whose `on` columns stand in `gone`. A view."""
    columns = [on] if isinstance(on, str) else list(on)
    rows.need("minus", *columns)
    gone.need("minus", *columns)
    if (plan := dry_plan(gone)) is not None:
        return plan.as_is(rows)

    def made() -> Iterator[Row]:
        there = {_key(row, columns) for row in gone.tracked()}
        return (row for row in rows.tracked() if _key(row, columns) not in there)

    return View("minus", (rows, gone), made, rows.columns)


def _key(row: Row, columns: Sequence[str]) -> bytes:
    return bytes.fromhex(digest(canonical([row.get(c) for c in columns])))


def where(rows: Table, rule: Callable[[Row], bool] | None = None, **equal: Any) -> Table:
    """Keeps the rows for which `rule` is true and whose columns equal the values given, in silence. A view.

    To drop rows with a reason that is counted and kept, use `keep`.
    """
    rows.need("where", *equal)
    if (plan := dry_plan(rows)) is not None:
        return plan.as_is(rows)

    def made() -> Iterator[Row]:
        for row in rows.tracked():
            if all(row.get(c) == v for c, v in equal.items()) and (rule is None or rule(row)):
                yield row

    return View("where", (rows,), made)


def shots(pool: Table, k: int, n: int, seed: int = 0, on: str = "prompt", into: str = "shots") -> Table:
    """Makes `n` rows that each show `k` different rows of the pool (all, if it has fewer) as one numbered text."""
    pool.need("shots", on)
    if k < 1 or n < 1:
        raise LimbeckError(f"shots wants k and n of at least 1; it got k={k}, n={n}.")

    def made() -> Iterator[Row]:
        size = pool.size
        if not size:
            raise LimbeckError("shots wants demonstrations to show, and the pool is empty; give it seed rows.")
        chance = random.Random(digest("shots", str(seed), pool.digest))
        drawn = [chance.sample(range(size), min(k, size)) for _ in range(n)]
        wanted = {i for shown in drawn for i in shown}
        text = {i: (row.get(on), row["_row"]) for i, row in enumerate(pool.tracked()) if i in wanted}
        for number, shown in enumerate(drawn):
            lines = "\n".join(f"{place}. {text[i][0]}" for place, i in enumerate(shown, 1))
            yield {into: lines, "draw": number, "_from": [text[i][1] for i in shown]}

    return whole_stage("shots", "table", (pool,), [k, n, seed, on, into], made, code=data_half())
