"""Numbers as people read them."""

import json
from typing import Any


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def money(dollars: float | None) -> str:
    """Dollars in words: two digits, four for what is under a cent."""
    if dollars is None:
        return "price unknown"
    return f"${dollars:,.2f}" if dollars >= 0.01 or dollars == 0 else f"${dollars:.4f}"


def paid(spent: dict[str, float], record: dict[str, Any]) -> str:
    """What was spent, unless a model of the run has no known price; `record` is run.json's content."""
    unknown = '"priced": false' in json.dumps(record.get("bound", {}))
    return money(None if unknown and spent.get("calls") and not spent.get("money") else spent.get("money", 0.0))


def short(number: float) -> str:
    """A count in three digits."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{number:,.0f}"
