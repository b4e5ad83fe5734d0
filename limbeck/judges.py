"""Judge: a model and the prompt with which it judges."""

import dataclasses
from typing import Any

from . import prompt as prompts
from .errors import LimbeckError


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judges (a model, or several: a panel), with which prompt, and how often each judgement is drawn.

    Without `together` the prompt sees one row and its reply parses to a number. With `together="prompt"` all rows that
    share that column are judged in one reply: the prompt gets them numbered in its slot `{responses}`, and its reply
    parses to a list of as many numbers, in that order (UltraFeedback, Cui et al. 2023, rates four answers so).
    """

    who: Any
    prompt: "str | prompts.Prompt"
    votes: int = 1
    together: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise LimbeckError(f"a judge wants votes of at least 1; it got {self.votes}.")
