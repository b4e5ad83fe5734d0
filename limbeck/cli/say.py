"""What the command line says when it is done: plain lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..plan import DryRun


def money(dollars: float | None) -> str:
    """Dollars in words: two digits, four for what is under a cent."""
    if dollars is None:
        return "price unknown"
    return f"${dollars:,.2f}" if dollars >= 0.01 or dollars == 0 else f"${dollars:.4f}"


def dry_run(plan: DryRun, broke: str | None) -> Iterator[str]:
    """What a run would ask and the worst it can cost."""
    for cost in plan.costs:
        bound = "at most " if cost.guessed else ""
        held = f", {cost.held:,} more are in the ledger already" if cost.held else ""
        tokens = f"at most {cost.prompt_tokens:,} tokens in, {cost.completion_tokens:,} out"
        yield f"{cost.site}: {bound}{cost.calls:,} calls, {tokens}, {money(cost.money)}{held}"
        if cost.unbounded:
            yield f"  nothing bounds what {cost.unbounded} may write; give max_tokens, or the option max_output"
    if plan.sample:
        yield "first request:"
        for message in plan.sample:
            yield f"  {message['role']}: {str(message.get('content'))[:400]}"
    calls = sum(c.calls for c in plan.costs)
    prices = [c.money for c in plan.costs]
    total = None if None in prices else sum(p for p in prices if p is not None)
    if not calls:
        yield "nothing to buy: every reply is in the ledger"
    else:
        yield f"in all: at most {calls:,} calls, {money(total)}. Nothing was bought; --pilot 20 measures the real price."
    if broke:
        yield f"the plan ends here, what follows depends on the replies ({broke})"
    elif plan.trains:
        yield "then it trains"


def pilot(now: dict[str, float], before: dict[str, float], rows: int, all_rows: int) -> Iterator[str]:
    """What a pilot on `rows` rows cost, and what all rows will at that rate. The pilot's replies are reused."""
    spent = {k: now[k] - before[k] for k in now}
    yield f"pilot: {rows:,} of {all_rows:,} rows, {spent['calls']:,.0f} calls, {spent['tokens']:,.0f} tokens, {money(spent['money'])}"
    if not spent["calls"]:
        yield "every reply was in the ledger already, so there is no rate to measure; take a larger --pilot"
        return
    scale = all_rows / rows
    yield (
        f"all {all_rows:,} rows at this rate: about {spent['calls'] * scale:,.0f} calls, {spent['tokens'] * scale:,.0f} tokens, "
        f"{money(spent['money'] * scale)}; what the pilot bought is not bought again"
    )


def summary(
    name: str, out: Path, saved: dict[str, Any], spent: dict[str, float], rejects: dict[str, int], seconds: float
) -> Iterator[str]:
    """What a run made, where it lies, what it cost and what was left out."""
    yield f"{name}: done in {seconds:.0f} s, {spent['calls']:,.0f} calls bought, {spent['tokens']:,.0f} tokens, {money(spent['money'])}"
    for part in saved["parts"]:
        if part["kind"] == "table":
            yield f"  {part['rows']:,} rows   {out / part['path']}"
        elif part["kind"] == "model":
            yield f"  model   {out / part['path'] if 'path' in part else part['name']}"
        elif part["kind"] == "report":
            yield f"  {part['text']}"
    if rejects:
        told = ", ".join(f"{n:,} {reason}" for reason, n in sorted(rejects.items(), key=lambda r: -r[1])[:5])
        yield f"  left out: {told}"
    yield f"  report  {out / 'report.html'}"
