"""The confidence loss by hand: weak labels, own decisions of the same shares, and how their balance moves."""

import pytest
import torch

from limbeck.losses import Batch, Outputs
from limbeck.losses.confidence import hardened, trusts


def batch_of(student_nc, weak_nc, module=None):
    labels_n = torch.zeros(len(student_nc), dtype=torch.long)
    said = {"student": Outputs(student_nc, None, labels_n), "teacher": Outputs(weak_nc, None, labels_n)}
    return Batch(labels_n=labels_n, module=module, **said)


STUDENT = torch.tensor([[0.2, 0.8], [0.4, 0.6], [0.45, 0.55], [0.9, 0.1]]).log()
WEAK = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).log()  # 2 of 4 rows of the second class


def test_by_hand():
    # The student says the second class of three rows, and the weak labels of two: its third row is decided otherwise.
    logs, weak = STUDENT.tolist(), WEAK.exp().tolist()
    own = [[0, 1], [0, 1], [1, 0], [1, 0]]
    for alpha in (0.0, 0.25, 1.0):
        wanted = -sum(
            ((1 - alpha) * w + alpha * o) * log
            for row in zip(weak, own, logs, strict=True)
            for w, o, log in zip(*row, strict=True)
        )
        assert trusts(alpha).fn(batch_of(STUDENT, WEAK)).item() == pytest.approx(wanted, rel=1e-6)


def test_of_two_classes_each_is_decided_as_often_as_the_weak_labels_say():
    torch.manual_seed(0)
    logits, weak = torch.randn(50, 2), torch.randn(50, 2).add(torch.tensor([0.0, 1.5])).softmax(-1)
    decided = hardened(logits + torch.tensor([9.0, 0.0]), weak)
    assert int(decided.sum()) == round(float(weak[:, 1].sum())) > 25
    margin = logits[:, 1] - logits[:, 0]
    assert margin[decided == 1].min() > margin[decided == 0].max()


def test_of_more_classes_the_likeliest_is_decided():
    logits = torch.randn(9, 3)
    assert torch.equal(hardened(logits, logits.softmax(-1)), logits.argmax(-1))


def test_no_gradient_goes_through_the_decision_or_into_the_weak_model():
    student, weak = STUDENT.clone().requires_grad_(), WEAK.clone().requires_grad_()
    trusts(1.0).fn(batch_of(student, weak)).backward()
    own = torch.tensor([[0.0, 1], [0, 1], [1, 0], [1, 0]])
    torch.testing.assert_close(student.grad, STUDENT.exp() - own)
    assert weak.grad is None


def test_alpha_rises_with_the_rows_learned_from_and_never_in_evaluation():
    loss = trusts(0.5, warmup=16)
    begun, seen = loss.modules(None, None), []
    plain = [trusts(alpha).fn(batch_of(STUDENT, WEAK)).item() for alpha in (0.0, 0.125, 0.25, 0.375, 0.5, 0.5)]
    for _ in plain:
        begun.eval()
        loss.fn(batch_of(STUDENT, WEAK, begun))
        begun.train()
        seen.append(loss.fn(batch_of(STUDENT, WEAK, begun)).item())
    assert seen == pytest.approx(plain) and int(begun.rows) == 24


def test_no_rows_give_nothing_and_a_gradient_all_the_same():
    student = torch.zeros(0, 2, requires_grad=True)
    loss = trusts().fn(batch_of(student, torch.zeros(0, 2)))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"alpha": -0.1}, {"warmup": -1}])
def test_shares_that_are_none(wrong):
    with pytest.raises(ValueError, match="trusts wants 0 ≤ alpha ≤ 1 and warmup ≥ 0"):
        trusts(**wrong)
