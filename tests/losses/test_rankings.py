import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses.rankings import pro, rank_logits, rrhf, uld


def of(*values):
    return torch.tensor([values], dtype=torch.float64)


def drawn(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rrhf_gold():
    assert float(rrhf(of(-1.0, -1.5, -0.8), of(1, 3, 2))) == pytest.approx(1.2)


def test_pro_gold():
    assert float(pro(of(-1.5, -0.8, -1.0))) == pytest.approx(2.137685, abs=5e-7)
    assert float(pro(of(-1.5))) == 0
    assert float(pro(of(-1.5, -0.8))) == pytest.approx(math.log1p(math.exp(0.7)))


def naive_rrhf(logps, rewards):
    total = 0
    for i in range(len(logps)):
        for j in range(len(logps)):
            if rewards[i] < rewards[j]:
                total = total + (logps[i] - logps[j]).clamp_min(0)
    return total


def naive_pro(logps, rewards=None):
    total = 0
    for k in range(len(logps) - 1):
        worse = [1.0 if rewards is None else float(rewards[k] - rewards[i]) for i in range(k + 1, len(logps))]
        own = max(worse)
        rest = sum((logps[k + 1 + i] * scale).exp() for i, scale in enumerate(worse))
        total = total - (logps[k] * own) + ((logps[k] * own).exp() + rest).log()
    return total


REWARDS = torch.tensor([[4.0, 2.5, 2.0, -1.0], [0.9, 0.5, 0.4, 0.1]], dtype=torch.float64)
LISTS = {
    "rrhf": (lambda logps: rrhf(logps, REWARDS), naive_rrhf),
    "pro": (pro, lambda logps, rewards: naive_pro(logps)),
    "pro with rewards": (lambda logps: pro(logps, REWARDS), naive_pro),
}


@pytest.mark.parametrize(("loss", "naive"), LISTS.values(), ids=LISTS)
def test_lists_equal_a_loop_averaged_over_the_batch(loss, naive):
    logps_bk = drawn(2, 4).requires_grad_()
    value = loss(logps_bk)
    hand = sum(naive(logps, rewards) for logps, rewards in zip(logps_bk, REWARDS, strict=True)) / 2
    assert value.item() == pytest.approx(hand.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, logps_bk)[0], torch.autograd.grad(hand, logps_bk)[0])


@pytest.mark.parametrize(("loss", "naive"), LISTS.values(), ids=LISTS)
def test_lists_of_half_precision_compute_in_fp32(loss, naive):
    value = loss(drawn(2, 4).bfloat16())
    assert torch.finfo(value.dtype).bits >= 32  # fp64 where the rewards are
    assert float(value) == pytest.approx(float(loss(drawn(2, 4).bfloat16().double())), rel=1e-5)


def test_lists_take_the_callers_normalizer():
    logps_bk = drawn(2, 4)
    assert float(rrhf(logps_bk, REWARDS, normalizer=8)) == pytest.approx(float(rrhf(logps_bk, REWARDS)) / 4)
    assert float(pro(logps_bk, normalizer=8)) == pytest.approx(float(pro(logps_bk)) / 4)
    assert float(pro(logps_bk, REWARDS, normalizer=8)) == pytest.approx(float(pro(logps_bk, REWARDS)) / 4)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(4)), by=st.floats(-100, 100))
def test_the_order_in_which_rewarded_answers_come_does_not_matter(order, by):
    logps, rewards = drawn(1, 4), REWARDS[:1]
    assert float(rrhf(logps[:, order], rewards[:, order])) == pytest.approx(float(rrhf(logps, rewards)))
    assert float(pro(logps[:, order], rewards[:, order])) == pytest.approx(float(pro(logps, rewards)))
    assert float(rrhf(logps + by, rewards)) == pytest.approx(float(rrhf(logps, rewards)))
    assert float(pro(logps + by)) == pytest.approx(float(pro(logps)))


@settings(max_examples=50, deadline=None)
@given(
    logps=st.lists(st.integers(-9, 0), min_size=4, max_size=4),
    rewards=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_rrhf_is_zero_exactly_where_likelihood_follows_reward(logps, rewards):
    agree = not any(rewards[i] < rewards[j] and logps[i] > logps[j] for i in range(4) for j in range(4))
    value = float(rrhf(of(*logps), of(*rewards)))
    assert value >= 0 and (value == 0) == agree


def test_pro_is_least_in_the_right_order_and_a_near_tie_is_hardly_pushed():
    assert pro(of(-1.0, -2.0, -3.0)) < pro(of(-2.0, -1.0, -3.0)) < pro(of(-3.0, -2.0, -1.0))
    logps = of(-1.0, -1.0, -1.0).requires_grad_()
    pro(logps, of(2.0, 1.9, 0.0)).backward()
    assert 0 < logps.grad[0, 1] + 1 < logps.grad[0, 2] + 1 and logps.grad[0, 0] < 0


def test_pro_of_ties_and_of_one_answer_is_without_gradient():
    for logps, rewards in ((of(-1.0, -2.0), of(1.0, 1.0)), (of(-1.0), of(1.0))):
        logps.requires_grad_()
        pro(logps, rewards).backward()
        assert not logps.grad.any()


def naive_rank(kind, teacher, student, margin=None):
    p, q = teacher.softmax(-1), student.softmax(-1)
    terms = []
    for i in range(len(p)):
        for j in range(len(p)):
            if p[i] > p[j] > 0:
                wanted = p[i] - p[j] if margin is None else margin
                logistic = (1 + (student[j] - student[i]).exp()).log()
                terms.append(logistic if kind == "logistic" else (wanted - q[i] + q[j]).clamp_min(0))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("kind", "margin"), [("logistic", None), ("hinge", None), ("hinge", 0.3)])
def test_rank_logits_equals_a_loop_over_pairs(kind, margin):
    teacher, student = drawn(2, 3, 5), drawn(2, 3, 5, seed=1).requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    value = rank_logits(kind, teacher, student, mask, margin=margin)
    rows = [(0, 0), (0, 1), (1, 0)]
    hand = sum(naive_rank(kind, teacher[row], student[row], margin) for row in rows) / 3
    assert value.item() == pytest.approx(hand.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], torch.autograd.grad(hand, student)[0])


def test_rank_logits_looks_at_the_teachers_top_only():
    teacher, student = torch.tensor([[5.0, 4.0, 3.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.5, 9.0]])
    assert float(rank_logits("logistic", teacher, student, top=2)) == pytest.approx(math.log1p(math.exp(1)))
    assert float(rank_logits("logistic", teacher, student, top=3)) == pytest.approx(
        (math.log1p(math.exp(1)) + math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1.5))) / 3
    )


def test_tokens_that_the_teacher_never_says_are_not_ranked():
    teacher = torch.tensor([[1.0, 0.0, -math.inf]])
    student = torch.tensor([[1.0, 0.0, 5.0]])
    assert float(rank_logits("logistic", teacher, student)) == pytest.approx(math.log1p(math.exp(-1)))


def test_hinge_is_zero_where_the_student_is_the_teacher():
    teacher = drawn(3, 5)
    assert rank_logits("hinge", teacher, teacher + 2.0).item() == pytest.approx(0, abs=1e-12)


def test_uld_gold():
    p, q = of(0.5, 0.3, 0.2).log(), of(0.4, 0.4, 0.2).log()
    assert float(uld(p, q)) == pytest.approx(0.2)


def test_uld_pads_the_smaller_vocabulary_and_passes_gradients():
    teacher, student = of(0.5, 0.3, 0.1, 0.1).log(), of(0.2, 0.8).log().requires_grad_()
    assert torch.autograd.gradcheck(lambda student: uld(teacher, student), student)
    assert uld(teacher, student).item() == pytest.approx(0.3 + 0.1 + 0.1 + 0.1)
    assert uld(student, teacher).item() == pytest.approx(0.6)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(5)), shift=st.floats(-30, 30))
def test_uld_knows_neither_ids_nor_level_and_is_at_most_2(order, shift):
    teacher, student = drawn(2, 5), drawn(2, 5, seed=1)
    value = float(uld(teacher, student))
    assert 0 < value <= 2
    assert float(uld(teacher, student[:, order] + shift)) == pytest.approx(value)
    assert float(uld(teacher, teacher[:, order])) == pytest.approx(0, abs=1e-12)


LOGITS = {
    "uld": uld,
    "logistic": lambda *given, **more: rank_logits("logistic", *given, **more),
    "hinge": lambda *given, **more: rank_logits("hinge", *given, **more),
}


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
def test_masked_positions_reach_neither_value_nor_gradient(loss):
    teacher, student = drawn(2, 3, 5), drawn(2, 3, 5, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    clean = float(loss(teacher[mask.bool()], student[mask.bool()]))
    teacher[0, 2, 0], student[1, 1] = math.nan, math.inf
    student.requires_grad_()
    value = loss(teacher.requires_grad_(), student, mask)
    value.backward()
    assert value.item() == pytest.approx(clean) and teacher.grad is None
    assert student.grad.isfinite().all() and not student.grad[~mask.bool()].any()
    assert loss(teacher, student, mask, normalizer=6).item() == pytest.approx(clean / 2)


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
def test_an_empty_mask_is_zero_with_zero_gradient(loss):
    student = drawn(2, 5).requires_grad_()
    value = loss(drawn(2, 5), student, torch.zeros(2))
    value.backward()
    assert value == 0 and not student.grad.any()


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
def test_half_precision_logits_compute_in_fp32(loss):
    teacher, student = drawn(2, 5).half(), drawn(2, 5, seed=1).half()
    value = loss(teacher, student)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(teacher.double(), student.double())), rel=1e-5)


def test_unknown_kind():
    with pytest.raises(ValueError, match="rank_logits has no kind 'rrhf'; it has hinge, logistic"):
        rank_logits("rrhf", drawn(1, 5), drawn(1, 5))
