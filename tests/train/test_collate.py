import torch

from limbeck.train.collate import collate
from limbeck.train.encode import Example
from limbeck.train.schedule import BLANK


def example(ids, learn):
    return Example(torch.tensor(ids, dtype=torch.int32), torch.tensor(learn, dtype=torch.bool), 1)


def test_shapes_labels_and_masks():
    batch = collate([example([5, 6, 7, 8], [0, 0, 1, 1]), example([9, 4], [0, 1])], pad=0)
    assert batch.input_ids_bt.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.attention_mask_bt.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels_bt.tolist() == [[-100, 7, 8], [4, -100, -100]]
    assert batch.mask_bt.tolist() == [[False, True, True], [True, False, False]]
    assert batch.input_ids_bt.dtype == batch.labels_bt.dtype == torch.long


def test_a_blank_row_has_one_position_and_no_label():
    batch = collate([BLANK], pad=0)
    assert batch.attention_mask_bt.tolist() == [[1]] and not batch.mask_bt.any()
