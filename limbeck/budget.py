"""A cap over all that a run directory ever buys: in money, calls or tokens."""

import re
from typing import Any

from .errors import BudgetError, LimbeckError


class Budget:
    """A cap in money, calls or tokens over all that a directory ever buys. A call reserves its worst price first."""

    def __init__(self, caps: dict[str, float], spent: dict[str, float]):
        self.caps, self.spent = caps, dict(spent)
        self.reserved = dict.fromkeys(("money", "calls", "tokens"), 0.0)

    @staticmethod
    def parse(text: str | float | None) -> dict[str, float]:
        """Reads "$5", "5 usd", "100 calls", "1.5M tokens", or several with commas; a bare number is dollars."""
        caps: dict[str, float] = {}
        for part in str(text).split(",") if text is not None else ():
            m = re.fullmatch(r"\s*(\$)?\s*([\d.]+)\s*([kKmM])?\s*(usd|dollars?|calls?|tokens?)?\s*", part)
            number = float(m[2]) if m and m[2].count(".") < 2 and m[2] != "." else None
            if m is None or number is None or (m[1] and m[4] not in (None, "usd")):
                raise LimbeckError(
                    f"the budget {part.strip()!r} is not understood; write '$5' (the shell wants the single quotes), "
                    "'100 calls' or '1M tokens'."
                )
            number *= {"k": 1e3, "m": 1e6}.get((m[3] or "").lower(), 1)
            unit = (m[4] or "usd").rstrip("s")
            caps["calls" if unit == "call" else "tokens" if unit == "token" else "money"] = number
        return caps

    def worst(self, model: Any, request: Any) -> dict[str, float]:
        """The most that one call can take. Raises LimbeckError where a cap is set on what has no bound."""
        need = {"calls": 1.0, "tokens": 0.0, "money": 0.0}
        if not self.caps.keys() & {"tokens", "money"}:
            return need
        prompt = model.prompt_tokens_at_most(request)
        written = model.written_at_most(request)
        if ("tokens" in self.caps or ("money" in self.caps and not model.free)) and written is None:
            raise LimbeckError(
                f"a budget wants to know the most that {model.name!r} may write, and no max_tokens is set; "
                f"give max_tokens, or the option max_output, or cap the calls."
            )
        need["tokens"] = prompt + (written or 0)
        if "money" in self.caps and not model.free:
            if model.price is None:
                raise LimbeckError(
                    f"a budget in money wants a price, and none is known for {model.name!r}; "
                    f'give one (price="0.15/0.60", dollars per million tokens in/out), or cap calls or tokens.'
                )
            need["money"] = model.price.of(prompt, written)
        return need

    def reserve(self, need: dict[str, float]) -> bool:
        for unit, cap in self.caps.items():
            if self.spent[unit] + self.reserved[unit] + need[unit] > cap * (1 + 1e-9):
                return False
        for unit, amount in need.items():
            self.reserved[unit] += amount
        return True

    def settle(self, need: dict[str, float], real: dict[str, float] | None) -> None:
        """Gives a reservation back and books what the call really took (None: nothing was bought)."""
        for unit, amount in need.items():
            self.reserved[unit] -= amount
            self.spent[unit] += (real or {}).get(unit, 0.0)

    def exhausted(self) -> BudgetError:
        words = {"money": "${:.4f} of ${:g}", "calls": "{:.0f} of {:g} calls", "tokens": "{:.0f} of {:g} tokens"}
        had = ", ".join(words[u].format(self.spent[u], cap) for u, cap in self.caps.items())
        return BudgetError(
            f"the budget is used up: {had}, and the next call may pass it; all replies are kept: "
            f"run again with a higher --budget to go on, or `limbeck export DIR --partial` for the finished rows."
        )
