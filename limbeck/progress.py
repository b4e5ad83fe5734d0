"""How long work goes: a line on standard error that is drawn a few times a second, and events for machines.

The work only counts. Whoever draws or tells looks at the counts, so a step costs the same whether it is shown or not.
"""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .words import duration, money, paid, short

DRAWN = 8  # times a second
TOLD_EVERY = 5.0  # seconds
_CAUSES = 5  # named at most
WINDOW = 30  # seconds over which the rate is taken


class Progress:
    """Shows one piece of long work: `with Progress("ask", 100, shown=True) as bar: bar.advance()`.

    `state` says what the work knows beyond the steps that are done: {in_flight, width, retries, failed, tokens}, as far
    as it has them. `tell` gets how it goes every few seconds. A bar that is followed by other words leaves no trace.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        shown: bool,
        note: str = "",
        tell: Callable[..., None] | None = None,
        stays: bool = True,
    ):
        self.label, self.total, self.shown, self.note, self.tell, self.stays = label, total, shown, note, tell, stays
        self.done, self.money = 0.0, 0.0
        self.state: Callable[[], dict[str, Any]] = dict
        self._since = deque([(time.monotonic(), 0.0, 0.0)], WINDOW)  # when, steps and tokens of then; one a second
        self._over = threading.Event()
        self._drawn: Any = None
        self._plain = False  # whether the terminal knows letters of ASCII alone

    def advance(self, steps: float = 1, *, money: float = 0.0, note: str | None = None) -> None:
        """Counts finished steps and what they cost."""
        self.done += steps
        self.money += money
        if note is not None:
            self.note = note

    def __enter__(self) -> "Progress":
        if self.total == 0:
            return self
        if self.shown:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stderr)
            self._plain = not console.encoding.startswith("utf")  # of the terminal itself: while drawing it is wrapped
            if console.is_terminal:
                self._drawn = Live(
                    console=console,
                    refresh_per_second=DRAWN,
                    transient=not self.stays,
                    redirect_stdout=sys.stdout.isatty(),  # what goes to a file or a pipe still goes there
                    get_renderable=lambda: self._line(console.width - 1),
                )
                self._drawn.start()
        if self.tell is not None:
            threading.Thread(target=self._telling, name="limbeck-progress", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._drawn is not None:
            self._drawn.stop()

    def look(self) -> dict[str, Any]:
        """How it goes now: {done, total, rate, seconds_left, tokens_per_second, money, projected} and the state.

        What is not known is None. The rate is that of the last half minute.
        """
        now, state = time.monotonic(), self.state()
        tokens = sum(state.get("tokens", ()))
        then, done, had = self._since[0]
        if now - self._since[-1][0] >= 1:
            self._since.append((now, self.done, tokens))
        passed = max(now - then, 1e-9)
        rate, left = (self.done - done) / passed, None if self.total is None else self.total - self.done
        return {
            "done": int(self.done),
            "total": self.total,
            "rate": round(rate, 3),
            "seconds_left": round(left / rate, 1) if rate and left is not None else None,
            "tokens_per_second": round((tokens - had) / passed, 1),
            "money": self.money,
            "projected": self.money / self.done * self.total if self.done and self.total else None,
            **state,
        }

    def _telling(self) -> None:
        assert self.tell is not None
        while not self._over.wait(TOLD_EVERY):
            with contextlib.suppress(OSError, ValueError):  # a full disk, or a file closed meanwhile: not its to say
                self.tell(**self.look())

    def _line(self, width: int) -> Any:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ellipsis")
        parts = fitted(self.label, self.note, self.look(), width, self._plain)
        for i, (name, words) in enumerate(parts.items()):
            line.append("  " * (i > 0)).append(words, _STYLES.get(name, ""))
        return line


_STYLES = {"bar": "cyan", "money": "green", "failed": "red", "retries": "yellow", "tokens": "dim", "note": "dim"}
# What gives way first where the line is too long; a part that is named again gets shorter again.
_GIVE_WAY = ("tokens", "bar", "note", "retries", "money", "in_flight", "bar", "rate", "retries", "money", "failed",
             "label", "left", "label")  # fmt: skip


def fitted(label: str, note: str, look: Mapping[str, Any], width: int, plain: bool = False) -> dict[str, str]:
    """The parts of a bar's line by name, in order, as many and as long as `width` columns take."""
    done, total, left, rate = look["done"], look["total"], look["seconds_left"], look["rate"]
    retries, failed, cost = look.get("retries") or {}, sum((look.get("failed") or {}).values()), look["money"]
    spent, projected = money(cost) if cost else "", look["projected"]
    retried = f"{sum(retries.values()):,} retried" if retries else ""
    forms = {
        "label": [label, _cut(label, 20), _cut(label, 8)],
        "bar": [_bar(done, total, 24, plain), _bar(done, total, 12, plain), ""] if total else [""],
        "done": [f"{done:,}/{total:,}" if total is not None else f"{done:,}"],
        "rate": [f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s", ""] if rate else [""],
        "left": ["stopping" if look.get("stopping") else f"{_clock(left)} left" if left is not None else "", ""],
        "money": [f"{spent} of about {money(projected)}" if spent and projected else spent, spent, ""],
        "in_flight": [f"{look['in_flight']}/{look['width']} in flight", ""] if "in_flight" in look else [""],
        "failed": [f"{failed:,} unanswered" if failed else "", ""],
        "retries": [f"{retried}: {causes(retries)}" if retries else "", retried, ""],
        "tokens": [f"{short(look['tokens_per_second'])} tokens/s", ""] if look["tokens_per_second"] else [""],
        "note": [note, ""],
    }
    for name in _GIVE_WAY:
        if sum(len(f[0]) + 2 for f in forms.values() if f[0]) - 2 <= width:
            break
        forms[name] = forms[name][1:] or [""]
    return {name: f[0] for name, f in forms.items() if f[0]}


def causes(counts: Mapping[str, int]) -> str:
    """Counts by cause in words, the largest first; of a lone cause its name, for its count is the total."""
    largest = sorted(counts.items(), key=lambda c: -c[1])
    if len(largest) == 1:
        return largest[0][0]
    told = [f"{n:,} {cause}" for cause, n in largest[:_CAUSES]]
    return ", ".join(told + ["…"] * (len(largest) > _CAUSES))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _bar(done: float, total: int, width: int, plain: bool) -> str:
    full = int(width * min(1.0, done / total))
    return ("#" if plain else "━") * full + ("-" if plain else "─") * (width - full)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(
    label: str, looks: list[dict[str, Any]], replayed: int, counts: Mapping[str, Any] | None, seconds: float
) -> str:
    """What an ask came to, in a line: its rows (`counts`, None where it stopped), calls, money, retries, rejects."""

    def total(name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for look in looks:
            for cause, n in (look.get(name) or {}).items():
                found[cause] = found.get(cause, 0) + n
        return found

    bought, tokens = (sum(look["bought"] for look in looks), sum(sum(look["tokens"]) for look in looks))
    calls = ", ".join([f"{bought:,} calls bought"] * bool(bought) + [f"{replayed:,} replayed"] * bool(replayed))
    cost = paid(sum(look["money"] for look in looks), sum(look["unpriced"] for look in looks))
    parts = ["stopped" if counts is None else f"{counts['out']:,} rows"]
    parts += [f"{calls or 'no calls'} in {duration(seconds)}" + (f", {short(tokens)} tokens, {cost}" if bought else "")]
    parts += [f"{sum(r.values()):,} retried ({causes(r)})" for r in [total("retries")] if r]
    parts += [f"{sum(f.values()):,} unanswered ({causes(f)})" for f in [total("failed")] if f]
    parts += [f"{sum(r.values()):,} left out ({causes(r)})" for r in [counts and counts["rejected"]] if r]
    return f"{label}: {'; '.join(parts)}"
