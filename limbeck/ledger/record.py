"""What the ledger holds of one call."""

import dataclasses
from typing import Any


@dataclasses.dataclass(slots=True)
class Record:
    """One bought call: its key, what was asked, what came back, and what it cost."""

    key: str
    words: str  # digest of model and canonical request
    model: str
    body: str  # the canonical request as JSON, stored once per words
    occurrence: int
    draw: int
    salt: str
    reply: dict[str, Any] | None
    refused: str | None
    served: str | None
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float
    site: str
    row: str
    kind: str = "chat"  # chat | embed | tool; tools are free and no calls of a model
    recipe: str | None = None
    blobs: dict[str, bytes] = dataclasses.field(default_factory=dict)  # images, by the digest that the body names
