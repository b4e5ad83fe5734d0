import math

import pytest
import torch

from limbeck.losses.likelihood import sft


def uneven(rows):
    """Logits whose first token has the given probability, for a vocabulary of 4."""
    return torch.tensor([[[p] + 3 * [(1 - p) / 3] for p in row] for row in rows], dtype=torch.float64).log()


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


def test_ignored_positions_reach_neither_value_nor_gradient():
    logits_btv = uneven([[0.5, 0.25]])
    logits_btv[0, 1, 2] = math.nan
    logits_btv.requires_grad_()
    value = sft(logits_btv, torch.tensor([[0, -100]]))
    value.backward()
    assert float(value) == pytest.approx(math.log(2))
    assert logits_btv.grad.isfinite().all() and not logits_btv.grad[0, 1].any()


def test_no_label_is_zero_with_zero_gradient():
    logits_btv = torch.randn(1, 2, 4, requires_grad=True)
    value = sft(logits_btv, torch.full((1, 2), -100))
    value.backward()
    assert value == 0 and not logits_btv.grad.any()


def test_half_precision_computes_in_fp32():
    assert sft(torch.zeros(1, 1, 4, dtype=torch.bfloat16), torch.tensor([[0]])).dtype == torch.float32


def test_unknown_reduction():
    with pytest.raises(ValueError, match="no reduction 'mean'"):
        sft(torch.zeros(1, 1, 4), torch.tensor([[0]]), "mean")
