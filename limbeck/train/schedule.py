"""Which row is read when: a function of the seed and the step alone.

The whole training is one long list of rows, `global_batch` to a step, however a step is split into processes and
micro-batches; so the split changes nothing, and a training that continues reads on where it stopped.
"""

from collections.abc import Sequence

import torch

from ..fingerprint import digest
from .examples import Row, blank


class Schedule(torch.utils.data.Dataset):
    """Place i of the training -> (i, one Row of each stream); a stream read through is shuffled anew.

    `rows_seen` rows are read in all; what the last step lacks to a whole batch is filled with rows without labels.
    """

    def __init__(self, streams: Sequence[Sequence[Row]], rows_seen: int, steps: int, global_batch: int, seed: int):
        self.streams, self.rows_seen, self.seed = streams, rows_seen, seed
        self.length, self.global_batch = steps * global_batch, global_batch
        self._orders: dict[tuple[int, int], torch.Tensor] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> tuple[int, list[Row]]:
        rows = [stream[self._row(i, place)] for i, stream in enumerate(self.streams)]
        if place >= self.rows_seen:
            rows = [blank(len(row.sequences), tuple(row.columns)) for row in rows]
        return place, rows

    def _row(self, stream: int, place: int) -> int:
        epoch, at = divmod(place, len(self.streams[stream]))
        if (order := self._orders.get((stream, epoch))) is None:
            generator = torch.Generator().manual_seed(chance(self.seed, epoch))
            order = torch.randperm(len(self.streams[stream]), generator=generator)
            self._orders = {k: v for k, v in self._orders.items() if k[0] != stream} | {(stream, epoch): order}
        return int(order[at])


def chance(*parts: int) -> int:
    """A seed (60 bits) out of whole numbers: the same everywhere, and unrelated for neighbours."""
    return int(digest(*map(str, parts))[:15], 16)
