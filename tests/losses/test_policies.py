import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.policies import policy_gradient, ppo, rl_objective

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_rl_objective_gold():
    """Outcomes drawn as often as the policy draws them: 5, 3 and 2 times of 10."""
    drawn = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    logp = P.log()[drawn].requires_grad_()
    value = rl_objective(torch.full((10,), 0.8), logp, Q.log()[drawn], beta=0.1)
    assert float(value) == pytest.approx(0.797473, abs=5e-7) and not value.requires_grad
    assert float(rl_objective(torch.full((10,), 0.8), logp, logp, beta=0.1)) == pytest.approx(0.8)


def test_policy_gradient_is_that_of_the_expected_reward():
    """Exactly, over all three outcomes: ∇ Σ π r = Σ π r ∇ log π."""
    logits, rewards = of(0.2, -0.5, 1.0).requires_grad_(), of(1.0, 0.0, 3.0)
    pi = logits.softmax(-1)
    loss = policy_gradient(logits.log_softmax(-1), pi.detach() * rewards, normalizer=1)
    expected = (pi * rewards).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], -torch.autograd.grad(expected, logits)[0])


def test_ppo_equals_its_definition():
    logp, old, advantage = of(-1.0, -2.0, -0.5, -3.0), of(-1.4, -1.9, -0.2, -2.0), of(2.0, -1.0, 0.5, -3.0)
    terms = []
    for new, before, gain in zip(logp.tolist(), old.tolist(), advantage.tolist(), strict=True):
        ratio = math.exp(new - before)
        terms.append(-min(ratio * gain, min(max(ratio, 0.7), 1.3) * gain))
    assert float(ppo(logp, old, advantage, clip=0.3)) == pytest.approx(sum(terms) / 4)


@pytest.mark.parametrize(
    ("gap", "advantage", "moves"),
    [
        (0.5, 1.0, False),
        (0.5, -1.0, True),
        (-0.5, 1.0, True),
        (-0.5, -1.0, False),
        (0.1, 1.0, True),
        (-0.1, -1.0, True),
    ],
)
def test_ppo_stops_only_what_went_too_far_already(gap, advantage, moves):
    logp = of(-1.0 + gap).requires_grad_()
    ppo(logp, of(-1.0), of(advantage)).backward()
    assert float(logp.grad) == pytest.approx(-advantage * math.exp(gap) if moves else 0.0)


def test_ppo_of_the_policy_that_drew_is_the_policy_gradient():
    logp, advantage = of([-1.0, -2.0], [-0.5, -3.0]).requires_grad_(), of([1.0], [-2.0])
    there = torch.autograd.grad(ppo(logp, logp, advantage), logp)[0]
    torch.testing.assert_close(there, torch.autograd.grad(policy_gradient(logp, advantage), logp)[0])
    torch.testing.assert_close(there, of([-0.25, -0.25], [0.5, 0.5]))


LOSSES = {
    "policy gradient": policy_gradient,
    "ppo": lambda logp, advantage, mask=None, **more: ppo(logp, -torch.ones_like(logp), advantage, mask=mask, **more),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_advantage_is_held_fixed(loss):
    logp, advantage = of(-1.1).requires_grad_(), of(1.0).requires_grad_()
    loss(logp, advantage).backward()
    assert advantage.grad is None and logp.grad < 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@settings(max_examples=20, deadline=None)
@given(pad=st.integers(1, 5), bad=st.sampled_from([math.nan, math.inf, 1e4]))
def test_masked_tokens_reach_neither_value_nor_gradient(loss, pad, bad):
    logp, advantage = of([-1.1, -0.9], [-1.0, -1.2]), of([1.0], [-2.0])
    mask = torch.tensor([[1, 1] + [0] * pad, [1, 0] + [0] * pad])
    clean = float(loss(logp.flatten()[:3], of(1.0, 1.0, -2.0)))
    longer = torch.cat([logp, torch.full((2, pad), bad, dtype=logp.dtype)], 1).requires_grad_()
    value = loss(longer, advantage, mask)
    value.backward()
    assert value.item() == pytest.approx(clean)
    assert longer.grad.isfinite().all() and not longer.grad[~mask.bool()].any() and longer.grad[0, 0] < 0
    assert loss(longer, advantage, mask, normalizer=6).item() == pytest.approx(clean / 2)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_empty_mask_is_zero_with_zero_gradient(loss):
    logp = of([-1.0, -2.0]).requires_grad_()
    value = loss(logp, of([1.0, 1.0]), torch.zeros(1, 2))
    value.backward()
    assert value == 0 and not logp.grad.any()


@pytest.mark.parametrize("loss", [*LOSSES.values(), lambda a, b: rl_objective(b, a, -torch.ones_like(a), 0.1)])
def test_half_precision_computes_in_fp32(loss):
    logp, advantage = of(-1.2, -0.7).bfloat16(), of(1.3, -0.4).bfloat16()
    assert loss(logp, advantage).dtype == torch.float32
    assert float(loss(logp, advantage)) == pytest.approx(float(loss(logp.double(), advantage.double())), rel=1e-5)
