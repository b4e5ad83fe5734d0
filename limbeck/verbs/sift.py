"""Verbs that leave rows out, with a reason for each: keep dedup pick mix."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import LimbeckError
from ..fingerprint import canonical, data_half, fingerprint
from ..op import Made, row_stage
from ..parse import Reject
from ..similar import RougeL
from ..table import Concat, Row, Table, View, own
from .shape import _key, chances, dry_plan


def keep(rows: Table, *rules: Callable[[Row], Any]) -> Table:
    """Keeps the rows that pass every rule; the others become rejects with the first failing rule's reason.

    A rule is `row -> True | "reason"`; False gives the rule's name as the reason.
    """
    if not rules:
        raise LimbeckError("keep wants at least one rule, a function `row -> True | 'reason'`; it got none.")
    if (plan := dry_plan(rows)) is not None:
        return plan.as_is(rows)

    def made(it: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        for index, row in it:
            verdict = _judged(own(row), rules, rows)  # a rule judges: what it does to its copy changes nothing
            yield Made(index, row if verdict is None else verdict)

    return row_stage("keep", rows, rules, made, code=data_half())


def _judged(row: Row, rules: Sequence[Callable[[Row], Any]], rows: Table) -> Reject | None:
    for rule in rules:
        try:
            verdict = rule(row)
        except KeyError as missing:
            if missing.args and missing.args[0] not in rows.columns:
                rows.need(f"the rule {_name(rule)}", str(missing.args[0]))
            return Reject(f"no {missing.args[0]}")  # the column is there, this row has nothing in it
        if verdict is not True:
            if isinstance(verdict, Reject):
                return verdict
            return Reject(verdict if isinstance(verdict, str) else _name(rule))
    return None


def _name(rule: Callable) -> str:
    return getattr(rule, "__name__", type(rule).__name__).strip("_").replace("_", " ")


def dedup(
    rows: Table,
    on: str | Sequence[str] = "prompt",
    like: float | None = None,
    against: Table | Sequence[Table] = (),
    by: str | None = None,
) -> Table:
    """Keeps the first of rows that are equal in `on`, or whose ROUGE-L F to an earlier one is at least `like`.

    `against` are tables whose rows count as earlier ones; `by` compares within groups of that column only. With `like`,
    `on` is one text column (Self-Instruct, Wang et al. 2023, uses 0.7).
    """
    columns = [on] if isinstance(on, str) else list(on)
    grouped = [by] if by else []
    against = [against] if isinstance(against, Table) else list(against)
    for table in (rows, *against):
        table.need("dedup", *columns, *grouped)
    if like is not None and (len(columns) > 1 or not 0 < like <= 1):
        raise LimbeckError(f"dedup with like= compares one text column with 0 < like <= 1; it got {columns}, {like}.")
    if (plan := dry_plan(rows)) is not None:
        return plan.as_is(rows)

    def made(it: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        known: set[bytes] = set()
        nearby: dict[bytes, RougeL] = {}

        def seen(row: Row) -> str | None:
            if like is None:
                key = _key(row, [*grouped, *columns])
                if key in known:
                    return "duplicate"
                known.add(key)
                return None
            index = nearby.setdefault(_key(row, grouped), RougeL(like))
            text = str(row.get(columns[0]) or "")
            if index.nearest(text) is not None:
                return f"too similar (ROUGE-L >= {like:g})"
            index.add(text)
            return None

        for table in against:
            for row in table.tracked():
                if like is None:
                    known.add(_key(row, [*grouped, *columns]))
                else:
                    nearby.setdefault(_key(row, grouped), RougeL(like)).add(str(row.get(columns[0]) or ""))
        for index, row in it:
            reason = seen(row)
            yield Made(index, Reject(reason) if reason else row)

    return row_stage("dedup", rows, [columns, like, against, by], made, code=data_half())


def pick(
    rows: Table,
    k: int | None = None,
    *,
    by: str | Sequence[str] | None = None,
    on: str | Callable[[Row], float] | None = None,
    vote: str | None = None,
    seed: int = 0,
) -> Table:
    """Keeps `k` rows of each group (of the whole table without `by`): the highest in `on`, or drawn by `seed`.

    With `vote`, keeps the rows whose value in that column is the group's most frequent one (the first, in a tie): all
    of them unless `k` says how many (self-consistency, Wang et al. 2023). `k` is 1 otherwise.
    """
    groups = [by] if isinstance(by, str) else list(by or ())
    rows.need("pick", *groups, *([on] if isinstance(on, str) else []), *([vote] if vote else []))
    if on is not None and vote is not None:
        raise LimbeckError("pick goes by the score `on` or by the `vote`, not by both; call it twice.")
    if (plan := dry_plan(rows)) is not None:
        return plan.as_is(rows)
    most = k if k is not None or vote else 1

    def chosen() -> dict[int, None]:
        if vote:
            tally: dict[bytes, Counter[bytes]] = {}
            for row in rows.tracked():
                if row.get(vote) is not None:
                    tally.setdefault(_key(row, groups), Counter())[canonical(row[vote])] += 1
            winners = {group: votes.most_common(1)[0][0] for group, votes in tally.items()}
        best: dict[bytes, list[tuple[Any, int]]] = {}
        for index, row, chance in chances(seed, enumerate(rows.tracked())):
            group = _key(row, groups)
            if vote:
                if row.get(vote) is None or canonical(row[vote]) != winners[group]:
                    continue
                worth: Any = 0
            else:
                worth = chance.random() if on is None else row.get(on) if isinstance(on, str) else on(row)
            if worth is None:
                continue  # no score, nothing to rank it by
            heap = best.setdefault(group, [])
            heapq.heappush(heap, (worth, -index))
            if most is not None and len(heap) > most:
                heapq.heappop(heap)
        return {-negative: None for heap in best.values() for _, negative in heap}

    def made(it: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        wanted = chosen()
        reason = "outvoted" if vote else "not picked"
        for index, row in it:
            yield Made(index, row if index in wanted else Reject(reason))

    parameters = [most, groups, on if isinstance(on, str | None) else fingerprint(on, "pick.on"), vote, seed]
    return row_stage("pick", rows, parameters, made, code=data_half())


def mix(tables: Sequence[Table], shares: Sequence[float], n: int | None = None, seed: int = 0) -> Table:
    """Draws rows from several tables in the given shares: `n` in all, or as many as the shares allow. A view."""
    if len(tables) != len(shares) or not tables or min(shares) <= 0:
        raise LimbeckError(
            f"mix wants one positive share for each table; it got {len(tables)} tables, shares {shares}."
        )
    parts = [share / sum(shares) for share in shares]
    most = min(int(t.size / part + 1e-9) for t, part in zip(tables, parts, strict=True))
    total = most if n is None else n
    if total > most:
        raise LimbeckError(
            f"mix of {total} rows in the shares {list(shares)} wants more than there is; at most n={most}."
        )
    counts = [int(total * part + 1e-9) for part in parts]
    by_rest = sorted(range(len(parts)), key=lambda i: counts[i] - total * parts[i])
    for i in by_rest[: total - sum(counts)]:
        counts[i] += 1
    return Concat(_drawn(t, count, seed) for t, count in zip(tables, counts, strict=True))


def _drawn(rows: Table, count: int, seed: int) -> Table:
    def made() -> Iterator[Row]:
        ranked = ((chance.random(), i) for i, _, chance in chances(seed, enumerate(rows.tracked())))
        wanted = {i for _, i in heapq.nsmallest(count, ranked)}
        return (row for i, row in enumerate(rows.tracked()) if i in wanted)

    return View("drawn", (rows,), made)
