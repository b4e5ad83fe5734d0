import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.likelihood import reward_conditioned, sequence_logps, sft, unlikelihood, weighted_sft


def uneven(rows):
    """Logits whose first token has the given probability, for a vocabulary of 4."""
    return torch.tensor([[[p] + 3 * [(1 - p) / 3] for p in row] for row in rows], dtype=torch.float64).log()


def drawn(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(value, of):
    return torch.autograd.grad(value, of)[0]


LABELS = torch.tensor([[1, 3, -100], [2, -100, 0]])


def test_gold():
    logits_btv, labels_bt = uneven([[0.5, 0.25]]), torch.tensor([[0, 0]])
    assert float(sft(logits_btv, labels_bt)) == pytest.approx(1.039721, abs=5e-7)
    assert float(sft(logits_btv, labels_bt, "sequence")) == pytest.approx(2.079442, abs=5e-7)


def test_uniform_logits_cost_log_v():
    assert float(sft(torch.zeros(2, 3, 7), torch.ones(2, 3, dtype=torch.long))) == pytest.approx(math.log(7))


def test_mean_over_labels_never_of_row_means():
    logits_btv = uneven([[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]])
    labels_bt = torch.tensor([[0, 0, 0], [0, -100, -100]])
    assert float(sft(logits_btv, labels_bt)) == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert float(sft(logits_btv, labels_bt, "sequence")) == pytest.approx((3 * math.log(2) + math.log(4)) / 2)
    assert float(sft(logits_btv, labels_bt, normalizer=8)) == pytest.approx((3 * math.log(2) + math.log(4)) / 8)


LOSSES = {  # of logits and labels
    "sft": sft,
    "weighted": lambda logits, labels: weighted_sft(logits, labels, torch.tensor([2.0, 0.5])),
    "unlikelihood": unlikelihood,
    "logps": lambda logits, labels: sequence_logps(logits, labels).sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_ignored_positions_reach_neither_value_nor_gradient(loss, bad):
    logits_btv = drawn(2, 3, 4)
    clean = float(loss(logits_btv, LABELS))
    logits_btv[0, 2, 2] = logits_btv[1, 1, 0] = bad
    logits_btv.requires_grad_()
    value = loss(logits_btv, LABELS)
    found = gradient(value, logits_btv)
    assert value.item() == clean
    assert found.isfinite().all() and not found[0, 2].any() and not found[1, 1].any() and found[0, 0].any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_label_is_zero_with_zero_gradient(loss):
    logits_btv = torch.randn(2, 2, 4, requires_grad=True)
    value = loss(logits_btv, torch.full((2, 2), -100))
    value.backward()
    assert value == 0 and not logits_btv.grad.any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_computes_in_fp32(loss):
    logits_btv = drawn(2, 3, 4).bfloat16()
    value = loss(logits_btv, LABELS)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(logits_btv.double(), LABELS)), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-50, 50), pad=st.integers(1, 5))
def test_neither_a_shift_of_the_logits_nor_padding_changes_anything(loss, shift, pad):
    logits_btv = drawn(2, 3, 4)
    longer = torch.cat([logits_btv + shift, drawn(2, pad, 4, seed=1)], 1)
    labels_bt = torch.cat([LABELS, torch.full((2, pad), -100)], 1)
    assert float(loss(longer, labels_bt)) == pytest.approx(float(loss(logits_btv, LABELS)), rel=1e-10)


def test_unknown_reduction():
    with pytest.raises(ValueError, match="no reduction 'mean'"):
        sft(torch.zeros(1, 1, 4), torch.tensor([[0]]), "mean")


def test_weighted_sft_is_a_weighted_mean_of_tokens():
    logits_btv, log_q = drawn(2, 3, 4), drawn(2, 3, 4).log_softmax(-1)
    weights_bt = torch.tensor([[1.0, 0.5, 9.0], [2.0, 9.0, 0.0]])
    hand = -(1.0 * log_q[0, 0, 1] + 0.5 * log_q[0, 1, 3] + 2.0 * log_q[1, 0, 2])
    assert float(weighted_sft(logits_btv, LABELS, weights_bt)) == pytest.approx(float(hand) / 3.5)
    assert float(weighted_sft(logits_btv, LABELS, weights_bt, normalizer=7)) == pytest.approx(float(hand) / 7)


def test_weights_of_one_are_sft_and_a_row_weight_is_that_of_all_its_tokens():
    logits_btv = drawn(2, 3, 4)
    assert float(weighted_sft(logits_btv, LABELS, torch.ones(2))) == pytest.approx(float(sft(logits_btv, LABELS)))
    by_row, by_token = torch.tensor([3.0, 1.0]), torch.tensor([[3.0] * 3, [1.0] * 3])
    assert weighted_sft(logits_btv, LABELS, by_row) == weighted_sft(logits_btv, LABELS, by_token)


def test_a_weight_of_zero_forgives_even_the_impossible():
    logits_btv = uneven([[0.5, 0.5]])
    logits_btv[0, 1, 0] = -math.inf
    logits_btv.requires_grad_()
    value = weighted_sft(logits_btv, torch.tensor([[0, 0]]), torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(math.log(2)) and gradient(value, logits_btv).isfinite().all()


def test_reward_conditioned_weights():
    assert reward_conditioned(torch.tensor([1.0, 0.1]), beta=0.5).tolist() == pytest.approx(
        [math.exp(2), math.exp(0.2)]
    )


def test_unlikelihood_equals_the_definition():
    logits_btv = drawn(2, 3, 5, seed=3).requires_grad_()
    negatives = torch.tensor([[[0, 2], [4, -100], [-100, -100]], [[1, 3], [-100, 0], [2, 4]]])
    q = logits_btv.softmax(-1)
    hand = -sum(
        (1 - q[b, t, c]).log() for b in range(2) for t in range(3) for c in negatives[b, t].tolist() if c != -100
    )
    value = unlikelihood(logits_btv, negatives)
    assert value.item() == pytest.approx(hand.item() / 5, rel=1e-12)
    torch.testing.assert_close(gradient(value, logits_btv), gradient(hand / 5, logits_btv))


def test_unlikelihood_of_a_certain_token_is_large_and_finite():
    """1 − q rounds to 0 in fp32; the loss is the token's lead, and its gradient pushes it down."""
    logits = torch.tensor([[[60.0, 0.0, 0.0]]], requires_grad=True)
    value = unlikelihood(logits, torch.tensor([[0]]))
    assert value.item() == pytest.approx(60 - math.log(2))
    torch.testing.assert_close(gradient(value, logits), torch.tensor([[[1.0, -0.5, -0.5]]]))


def test_sequence_logps_are_sums_or_means_of_each_row():
    logits_btv, log_q = drawn(3, 3, 4), drawn(3, 3, 4).log_softmax(-1)
    labels_bt = torch.cat([LABELS, torch.full((1, 3), -100)])
    sums = [float(log_q[0, 0, 1] + log_q[0, 1, 3]), float(log_q[1, 0, 2] + log_q[1, 2, 0]), 0.0]
    assert sequence_logps(logits_btv, labels_bt).tolist() == pytest.approx(sums)
    assert sequence_logps(logits_btv, labels_bt, average=True).tolist() == pytest.approx([value / 2 for value in sums])
