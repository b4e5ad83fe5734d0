import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.preferences import DPO, aft, dpo, kto, orpo, simpo, slic, spin

GOLD = [torch.tensor([value], dtype=torch.float64) for value in (-10, -9, -11, -8.5)]


def drawn(*shape, seed=0):
    return -0.1 - 5 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def four(n=6):
    return [drawn(n, seed=seed) for seed in range(4)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("kind", "gold"),
    [("sigmoid", 0.620957), ("hinge", 0.85), ("ipo", 12.25), ("conservative", 0.6359570), ("robust", 0.6022071)],
)
def test_dpo_gold(kind, gold):
    assert float(dpo(*GOLD, kind=kind)) == pytest.approx(gold, abs=5e-7)


def test_dpo_exo_and_nca_by_hand():
    right = sigmoid(0.15)
    exo = right * math.log(right / 0.9) + (1 - right) * math.log((1 - right) / 0.1)
    assert float(dpo(*GOLD, kind="exo")) == pytest.approx(exo, rel=1e-9)
    nca = -math.log(sigmoid(0.1)) - math.log(sigmoid(-0.1)) / 2 - math.log(sigmoid(0.05)) / 2
    assert float(dpo(*GOLD, kind="nca")) == pytest.approx(nca, rel=1e-9)


def test_dpo_is_log_2_where_the_student_is_its_reference():
    chosen, rejected, *_ = four()
    assert float(dpo(chosen, rejected, chosen, rejected)) == pytest.approx(math.log(2), abs=1e-15)


REFERENCED = {
    **{kind: lambda *four, kind=kind, **args: dpo(*four, kind=kind, **args) for kind in DPO},
    "spin": spin,
    "kto": lambda *four, **args: kto(*four, kl=0.3, **args),
}
FREE = {"orpo": orpo, "simpo": simpo, "slic": slic}
ALL = {**REFERENCED, **{name: lambda c, r, *_, loss=loss, **args: loss(c, r, **args) for name, loss in FREE.items()}}


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_gradients_equal_finite_differences(loss):
    chosen, rejected, *refs = four()
    chosen, rejected = chosen.requires_grad_(), rejected.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, r: loss(c, r, *refs), (chosen, rejected))


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_a_step_down_parts_the_chosen_from_the_rejected(loss):
    given = [values.requires_grad_() for values in four(1)]
    loss(*given).backward()
    assert given[0].grad - given[1].grad < 0
    assert given[2].grad is None and given[3].grad is None


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_a_mean_over_the_batch_unless_a_normalizer_is_given(loss):
    rows = [values.split(1) for values in four(3)]
    apart = [float(loss(*row)) for row in zip(*rows, strict=True)]
    assert float(loss(*four(3))) == pytest.approx(sum(apart) / 3)
    units = 2 if loss is REFERENCED["kto"] else 1  # kto counts sequences
    assert float(loss(*four(3), normalizer=10 * units)) == pytest.approx(sum(apart) / 10)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_no_pair_is_zero_with_zero_gradient(loss):
    empty = torch.zeros(0, requires_grad=True)
    value = loss(empty, empty, empty, empty)
    value.backward()
    assert value == 0


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_fp32(loss, dtype):
    given = [values.to(dtype) for values in four()]
    value = loss(*given)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(*[values.double() for values in given])), rel=1e-5)


@pytest.mark.parametrize("loss", REFERENCED.values(), ids=REFERENCED)
@settings(max_examples=20, deadline=None)
@given(by=st.floats(-5, 5))
def test_only_the_ratio_to_the_reference_counts(loss, by):
    given = four()
    assert float(loss(*[values + by for values in given])) == pytest.approx(float(loss(*given)), rel=1e-9)


numbers = st.floats(-20, 20)


@settings(max_examples=50, deadline=None)
@given(c=numbers, r=numbers)
def test_swapping_a_pair_swaps_its_odds(c, r):
    """σ(x) + σ(−x) = 1: what DPO gives to the one order it takes from the other."""
    c, r, zero = (torch.tensor([value], dtype=torch.float64) for value in (c, r, 0))
    there, back = float(dpo(c, r, zero, zero)), float(dpo(r, c, zero, zero))
    assert math.exp(-there) + math.exp(-back) == pytest.approx(1)
    assert there - back == pytest.approx(0.1 * float(r - c), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(four=st.tuples(numbers, numbers, numbers, numbers))
@pytest.mark.parametrize("kind", [kind for kind in DPO if kind != "robust"])  # robust is unbiased, not positive
def test_at_least_zero(kind, four):
    four = [torch.tensor([value], dtype=torch.float64) for value in four]
    assert float(dpo(*four, kind=kind)) >= -1e-12


def test_spin_is_the_logistic_loss_of_the_gap():
    assert float(spin(*GOLD, beta=2.0)) == pytest.approx(math.log1p(math.exp(-3)))


def test_kto_by_hand_on_sets_that_are_no_pairs():
    chosen, rejected, ref_chosen, ref_rejected = (
        torch.tensor(values, dtype=torch.float64) for values in ([-3, -4], [-2], [-5, -3], [-2.5])
    )
    value = kto(chosen, rejected, ref_chosen, ref_rejected, kl=0.5, beta=0.2, chosen_weight=1.5, rejected_weight=2)
    hand = 1.5 * (1 - sigmoid(0.2 * 1.5)) + 1.5 * (1 - sigmoid(0.2 * -1.5)) + 2 * (1 - sigmoid(0.2 * (0.5 - 0.5)))
    assert float(value) == pytest.approx(hand / 3)


def test_kto_holds_its_baseline_fixed_and_at_least_zero():
    kl = torch.tensor(-1.0, requires_grad=True)
    assert float(kto(*GOLD, kl)) == float(kto(*GOLD, 0.0))
    chosen, rejected, *refs = four()
    kto(chosen.requires_grad_(), rejected, *refs, kl.abs()).backward()
    assert kl.grad is None


def test_kto_of_one_side_only():
    chosen, _, ref_chosen, _ = four(2)
    none = chosen[:0]
    expected = sum(1 - sigmoid(0.1 * float(gap)) for gap in chosen - ref_chosen) / 2
    assert float(kto(chosen, none, ref_chosen, none, 0.0)) == pytest.approx(expected)


def test_orpo_by_hand():
    p, q = 0.6, 0.3
    value = orpo(torch.tensor([math.log(p)]), torch.tensor([math.log(q)]))
    assert float(value) == pytest.approx(-math.log(sigmoid(math.log(p / (1 - p)) - math.log(q / (1 - q)))), rel=1e-5)


def test_orpo_is_finite_where_a_probability_rounds_to_one():
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    value = orpo(chosen, rejected)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


def test_simpo_and_slic_by_hand():
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    hand = (-math.log(sigmoid(2 * 0.5 - 0.6)) - math.log(sigmoid(2 * -1 - 0.6))) / 2
    assert float(simpo(chosen, rejected, beta=2.0, gamma=0.6)) == pytest.approx(hand)
    assert float(slic(chosen, rejected, delta=0.7)) == pytest.approx((0.2 + 1.7) / 2)


SCORES, GOOD = torch.tensor([[-0.4, -1.0, -0.7, -0.2]], dtype=torch.float64), torch.tensor([[1, 0, 1, 0]])


def test_aft_by_hand():
    pairs = [(g, b) for g in (-0.4, -0.7) for b in (-1.0, -0.2)]
    plain = sum(math.exp(b - g) for g, b in pairs)
    boundary = sum(math.exp(2 * (-0.7 - 0.15) - g - b) for g, b in pairs)
    assert float(aft(SCORES, GOOD, "none")) == pytest.approx(math.log1p(plain))
    assert float(aft(SCORES, GOOD, "detached")) == pytest.approx(math.log1p(plain))
    assert float(aft(SCORES, GOOD, "boundary", beta=0.15)) == pytest.approx(math.log1p(plain + boundary))


def test_aft_detached_leaves_the_bad_alone_and_raises_the_good():
    scores = SCORES.clone().requires_grad_()
    aft(scores, GOOD).backward()
    assert (scores.grad[0, [0, 2]] < 0).all() and not scores.grad[0, [1, 3]].any()


@pytest.mark.parametrize(("bad", "sign"), [(-0.8, 1), (-0.9, 0), (-1.2, -1)])
def test_aft_boundary_pushes_the_bad_down_only_to_beta_below_the_worst_good(bad, sign):
    scores = torch.tensor([[-0.3, bad, -0.7]], dtype=torch.float64, requires_grad=True)
    aft(scores, torch.tensor([[True, False, True]]), "boundary", beta=0.2).backward()
    assert abs(float(scores.grad[0, 1])) < 1e-12 if sign == 0 else math.copysign(1, scores.grad[0, 1]) == sign
    # The boundary itself is held fixed: the good ones are raised by their own pairs alone.
    pairs = [math.exp(bad - good) for good in (-0.3, -0.7)]
    total = 1 + sum(pairs) + sum(math.exp(2 * (-0.7 - 0.2) - good - bad) for good in (-0.3, -0.7))
    assert scores.grad[0, [0, 2]].tolist() == pytest.approx([-pair / total for pair in pairs])


@pytest.mark.parametrize("kind", ["none", "detached", "boundary"])
@pytest.mark.parametrize("good", [True, False])
def test_aft_of_a_question_without_pairs_is_zero_with_zero_gradient(kind, good):
    scores = SCORES.clone().requires_grad_()
    value = aft(scores, torch.full((1, 4), good), kind)
    value.backward()
    assert value == 0 and not scores.grad.any()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(4)), by=st.floats(-5, 5))
@pytest.mark.parametrize("kind", ["none", "boundary"])
def test_aft_knows_neither_order_nor_level(kind, order, by):
    moved = aft(SCORES[:, order] + by, GOOD[:, order], kind)
    assert float(moved) == pytest.approx(float(aft(SCORES, GOOD, kind)))


def test_aft_of_half_precision():
    value = aft(SCORES.bfloat16(), GOOD)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(aft(SCORES.bfloat16().double(), GOOD)), rel=1e-6)


def test_unknown_kinds_and_useless_smoothing():
    with pytest.raises(ValueError, match="dpo has no kind 'simpo'; it has sigmoid"):
        dpo(*GOLD, kind="simpo")
    with pytest.raises(ValueError, match="'exo' wants 0 < label_smoothing"):
        dpo(*GOLD, kind="exo", label_smoothing=0.0)
    with pytest.raises(ValueError, match="aft has no kind 'soft'"):
        aft(SCORES, GOOD, "soft")
