"""embed: rows -> vectors, bought and kept as replies are."""

from collections.abc import Iterator
from typing import Any

from .. import prompt as prompts
from ..errors import LimbeckError
from ..models.base import Model, Reply, Request
from ..parse import Reject
from ..run import Run, current
from ..table import Row, Table
from .ask import settled
from .asking import Asking
from .shape import Column


def embed(
    rows: Table, who: "Model | str", text: "str | prompts.Prompt" = "{prompt}", *, into: str = "embedding"
) -> Table:
    """Has a model turn a text of each row into a vector (a list of floats) and adds it as `into`.

    `text` is a template with `{slots}`. A text is a call in the ledger: the same text is paid for once, whatever the
    batches in which it is sent. Raises LimbeckError where the model makes no vectors; else as `ask` does.
    """
    return settled(Embedding(rows, who, text, into), current("embed"), "embed")


class Embedding(Asking):
    """One embed: an ask whose request is a text alone and whose reply is a vector."""

    kind, whole = "embed", True

    def __init__(self, rows: Table, who: Any, text: Any, into: str):
        text = f"{{{text.name}}}" if isinstance(text, Column) else text
        super().__init__(rows, who, text, into=into)
        self.sampling = {}

    def check(self, run: Run) -> None:
        for model in self.models:
            if isinstance(model, Model) and "embed" not in model.can:
                raise LimbeckError(f"embed wants a model that makes vectors; {model.name!r} can {sorted(model.can)}.")
        super().check(run)

    def needs(self) -> set[str]:
        return {"embed"}

    def request(self, row: Row) -> Request:
        assert isinstance(self.prompt, prompts.Prompt)
        return Request(messages=[], embed=str(self.prompt.render(row)))

    def columns(self, row: Row, model: Model, reply: Reply) -> Iterator[Row | Reject]:
        yield {**row, self.into: reply.vector} if reply.vector else Reject("no vector")
