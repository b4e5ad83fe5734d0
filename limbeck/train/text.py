"""Who writes what the loss looks at: the rows, or during training the student or the teacher."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import torch

from ..models.generate import Sampling, generate
from .examples import Example, Row
from .objective import Text
from .schedule import chance


@dataclasses.dataclass(slots=True)
class Draft:
    """A micro-batch whose text is not settled yet: the rows' places in the training, and the rows."""

    places: list[int]
    rows: list[Row]


def writer(text: Text, seed: int, step: int) -> str:
    """Who writes this step: "data", "student" or "teacher". One coin per step, the same for every process and split."""
    coin = chance(seed, step, 1) / 2**60
    return "data" if coin < text.data else "student" if coin < text.data + text.student else "teacher"


def write(
    model: Any, drafts: Sequence[Draft], text: Text, seed: int, ends: Collection[int], max_length: int
) -> list[list[Row]]:
    """Samples an answer to every row's prompt, all drafts in one go, and learns all that was written.

    Each row draws from its own seed (by its place), so the split into drafts and processes changes nothing. Nothing is
    taken from the checkpoint's generation settings. An end token is learned too; a row cut at the limit has none.
    """
    rows = [(place, row) for draft in drafts for place, row in zip(draft.places, draft.rows, strict=True)]
    asked = [(place, row) for place, row in rows if row.sequences[0].prompt]
    answers: dict[int, Row] = {}
    was_training = model.training
    model.eval()
    if asked:
        prompts = [row.sequences[0].ids[: row.sequences[0].prompt].tolist() for _, row in asked]
        how = Sampling(max_tokens=text.max_tokens, temperature=text.temperature)
        seeds = [chance(seed, place, 2) for place, _ in asked]
        for i, written in generate(model, prompts, seeds, how, ends):
            ids = torch.tensor((prompts[i] + written.ids)[:max_length], dtype=torch.int32)
            learn = torch.arange(len(ids)) >= len(prompts[i])
            place, row = asked[i]
            answers[place] = dataclasses.replace(row, sequences=[Example(ids, learn, len(prompts[i]))])
    model.train(was_training)
    return [[answers.get(p, row) for p, row in zip(d.places, d.rows, strict=True)] for d in drafts]
