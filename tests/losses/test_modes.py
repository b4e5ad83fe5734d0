"""The survey's Figure 6: one bell fitted to a target with two, by the one direction of the divergence or the other."""

import pytest
import torch

from limbeck.losses.divergences import divergence

GRID = torch.linspace(-12, 12, 200, dtype=torch.float64)
SMALL, BIG = -2.5, 2.0  # where the two modes of the target are


def bell(mean, log_scale):
    """Logits of one Gaussian on the grid."""
    return -((GRID - mean) ** 2) / (2 * (2 * log_scale).exp())


def target():
    modes = [(0.35, SMALL), (0.65, BIG)]
    return sum(share * torch.exp(-((GRID - at) ** 2) / (2 * 0.6**2)) for share, at in modes).log()


def fitted(kind):
    mean, log_scale = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in (0.5, 0.5))
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        divergence(kind, target()[None], bell(mean, log_scale)[None]).backward()
        optimizer.step()
    return mean.item(), log_scale.exp().item()


def test_forward_kl_covers_both_modes_from_between_them():
    p = target().softmax(-1)
    mean = (p * GRID).sum()
    spread = (p * (GRID - mean) ** 2).sum().sqrt()
    assert fitted("forward-kl") == pytest.approx((float(mean), float(spread)), rel=0.02)
    assert SMALL + 1 < fitted("forward-kl")[0] < BIG - 1


def test_reverse_kl_seeks_the_dominant_mode():
    assert fitted("reverse-kl") == pytest.approx((BIG, 0.6), rel=0.02)
