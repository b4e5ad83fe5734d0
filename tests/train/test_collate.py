"""A batch is flat: the learned positions of all sequences in their order, wherever these lie in what a model reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.train.collate import Layout, pack
from limbeck.train.examples import Example, Row, blank


def example(ids, learn, prompt=1):
    return Example(torch.tensor(ids, dtype=torch.int32), torch.tensor(learn, dtype=torch.bool), prompt)


def row(*sequences, **columns):
    return Row([example(*one) for one in sequences], columns)


FIRST, SECOND = ([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 4], [0, 1])


def test_padded_on_the_right_with_labels_one_token_ahead():
    batch = Layout(pad=0)([row(FIRST), row(SECOND)])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.tokens_bt.tolist() == [[True, True, True], [True, False, False]]
    assert (batch.labels_n.tolist(), batch.at_n.tolist(), batch.sequence_n.tolist()) == (
        [7, 8, 4],
        [1, 2, 3],
        [0, 0, 1],
    )
    assert batch.inputs["input_ids"].flatten()[batch.at_n].tolist() == [6, 7, 9]
    assert batch.inputs["input_ids"].dtype == batch.labels_n.dtype == torch.long
    assert (batch.group_s.tolist(), batch.real_g.tolist()) == ([0, 1], [True, True])


def test_packed_into_rows_with_positions_and_without_a_mask():
    rows = [row(FIRST), row(SECOND), row(([1, 2, 3], [0, 1, 1]))]
    batch = Layout(pad=0, pack=4)(rows)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 9], [1, 2, 0, 0]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert set(batch.inputs) == {"input_ids", "position_ids"}
    assert (batch.labels_n.tolist(), batch.at_n.tolist()) == ([7, 8, 4, 2, 3], [1, 2, 3, 4, 5])
    assert batch.tokens_bt.tolist() == [[True] * 4, [True, True, False, False]]


def test_a_pair_is_two_sequences_of_one_row_and_numbers_come_one_a_sequence():
    batch = Layout()([row(FIRST, SECOND, scores=[1.0, 0.5]), row(SECOND, FIRST, scores=[2.0, 3.0])])
    assert (batch.group_s.tolist(), batch.real_g.tolist()) == ([0, 0, 1, 1], [True, True])
    assert batch.columns["scores"].tolist() == [1.0, 0.5, 2.0, 3.0]
    assert batch.lengths_s.tolist() == [2, 1, 1, 2]


def test_a_pair_with_nothing_to_learn_on_one_side_does_not_count():
    batch = Layout()([row(FIRST, ([9, 4], [1, 0])), row(FIRST, SECOND)])
    assert batch.real_g.tolist() == [False, True]


@pytest.mark.parametrize("most", [None, 8])
def test_a_blank_row_has_one_position_and_no_label(most):
    batch = Layout(pack=most)([blank()])
    assert batch.inputs["input_ids"].tolist() == [[0]] and not len(batch.labels_n)
    assert batch.real_g.tolist() == [False] and batch.sequences == 1


@pytest.mark.parametrize("most", [None, 16])
def test_the_teachers_view_has_its_own_prompt_and_the_same_labels_in_order(most):
    one = Row([example([5, 6, 7, 8], [0, 0, 1, 1], prompt=2)], teacher_prompt=torch.tensor([1, 2, 3, 6]))
    batch = Layout(pack=most)([one, row(SECOND)])
    view = batch.teacher_view
    assert view.labels_n.tolist() == batch.labels_n.tolist() == [7, 8, 4]
    assert view.inputs["input_ids"].flatten()[view.at_n].tolist() == [6, 7, 9]
    assert view.inputs["input_ids"].flatten()[:5].tolist() == [1, 2, 3, 6, 7]


def test_earlier_turns_are_not_learned_where_the_teacher_has_a_prompt_of_its_own():
    """The teacher never reads them there: a label of the student's would stand against none of its."""
    talk = Row([example([5, 6, 7, 8], [0, 1, 0, 1], prompt=3)], teacher_prompt=torch.tensor([1, 2]))
    cut = Row([example([5, 6, 7, 8], [0, 1, 1, 0], prompt=0)], teacher_prompt=torch.tensor([1, 2]))
    batch = Layout()([talk, cut])
    assert batch.teacher_view.labels_n.tolist() == batch.labels_n.tolist() == [8]
    assert batch.real_g.tolist() == [True, False]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 40))
def test_packed_sequences_never_overlap_nor_leave_their_row(sizes, most):
    starts, width, height = pack(sizes, most)
    places = [set(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    assert width <= most and sum(map(len, places)) == len(set().union(*places)) == sum(sizes)
    assert all(
        start // width == (start + size - 1) // width < height for start, size in zip(starts, sizes, strict=True)
    )
