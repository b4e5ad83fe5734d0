"""A progress bar with rate, spend and time left, on standard error; nothing where nobody looks."""

import sys
from typing import Any


class Progress:
    """Shows one piece of long work: `with Progress("ask", 100) as bar: bar.advance()`. `shown=False` draws nothing."""

    def __init__(self, label: str, total: int | None, *, shown: bool, note: str = ""):
        self.label, self.total, self.shown, self.note = label, total, shown, note
        self.money, self.retries = 0.0, 0
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self.shown and self.total != 0:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = ("[progress.description]{task.description}", BarColumn(24), MofNCompleteColumn())
            console = Console(file=sys.stderr)
            self._bar = Bar(
                *(TextColumn(c) if isinstance(c, str) else c for c in columns),
                TextColumn("{task.fields[rate]}"),
                TextColumn("[dim]{task.fields[note]}"),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=not console.is_terminal,
            )
            self._task = self._bar.add_task(self.label, total=self.total, note=self.note, rate="")
            self._bar.start()
        return self

    def advance(self, steps: float = 1, *, money: float = 0.0, retries: int = 0, note: str | None = None) -> None:
        """Counts finished steps, what they cost and what was tried again."""
        self.money += money
        self.retries += retries
        if self._bar is None:
            return
        task = self._bar.tasks[0]
        parts = [note if note is not None else self.note]
        parts += [f"${self.money:.4f}"] if self.money else []
        parts += [f"{self.retries} retried"] if self.retries else []
        rate = f"{task.speed:.1f}/s" if task.speed else ""
        self._bar.update(self._task, advance=steps, note="  ".join(filter(None, parts)), rate=rate)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
