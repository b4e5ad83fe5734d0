"""Rows in flat arrays come out as they went in, and a row that is not ended leaves nothing behind."""

import torch

from limbeck.train.examples import Examples, blank


def held(row):
    return [(one.ids.tolist(), one.learn.int().tolist(), one.prompt) for one in row.sequences]


def test_rows_of_several_sequences_come_back_as_they_were():
    made = Examples(["scores"])
    made.add([1, 2, 3], [False, True, True], 1)
    made.end_row({"scores": [0.5]})
    made.add([4, 5], [False, True], 1)
    made.add([6], [False], 0)
    made.end_row({"scores": [1.0, 2.0]}, teacher_prompt=[7, 8, 9])
    assert [held(row) for row in made] == [
        [([1, 2, 3], [0, 1, 1], 1)],
        [([4, 5], [0, 1], 1), ([6], [0], 0)],
    ]
    assert [row.columns for row in made] == [{"scores": [0.5]}, {"scores": [1.0, 2.0]}]
    assert made[0].teacher_prompt is None and made[1].teacher_prompt.tolist() == [7, 8, 9]
    assert made[0].sequences[0].ids.dtype == torch.int32


def test_what_is_undone_leaves_nothing_behind():
    made = Examples()
    made.add([1, 2], [False, True], 1)
    made.end_row({})
    made.add([3, 4, 5], [False, True, True], 1)
    made.undo()
    made.add([6, 7], [False, True], 1)
    made.end_row({})
    assert [held(row) for row in made] == [[([1, 2], [0, 1], 1)], [([6, 7], [0, 1], 1)]]


def test_a_blank_row_has_the_form_asked_for_and_nothing_to_learn():
    row = blank(2, ["scores"])
    assert held(row) == [([0, 0], [0, 0], 0)] * 2 and row.columns == {"scores": [0.0, 0.0]}
