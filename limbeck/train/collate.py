"""Examples become a Batch: padded on the right, labels on prediction positions."""

from collections.abc import Sequence

import torch

from ..losses import IGNORED, Batch
from .encode import Example


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """B examples -> a Batch of B sequences, as long as the longest needs. Position t reads token t and predicts t+1."""
    width = max(len(example.ids) for example in examples) - 1
    input_ids_bt = torch.full((len(examples), width), pad)
    labels_bt = torch.full((len(examples), width), IGNORED)
    attention_mask_bt = torch.zeros((len(examples), width), dtype=torch.long)
    for b, example in enumerate(examples):
        ids, n = example.ids, len(example.ids) - 1
        input_ids_bt[b, :n] = ids[:-1]
        labels_bt[b, :n] = torch.where(example.learn[1:], ids[1:], IGNORED)
        attention_mask_bt[b, :n] = 1
    return Batch(
        input_ids_bt=input_ids_bt,
        attention_mask_bt=attention_mask_bt,
        labels_bt=labels_bt,
        mask_bt=labels_bt != IGNORED,
    )
