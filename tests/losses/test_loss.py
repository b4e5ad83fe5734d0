import subprocess
import sys

import pytest
import torch

from limbeck.losses import SFT, Batch, Loss, Outputs, diverges, forward_kl, jsd, reverse_kl
from limbeck.losses.divergence import DIVERGENCES, divergence
from limbeck.losses.likelihood import sft


def batch():
    g = torch.Generator().manual_seed(0)
    labels_bt = torch.tensor([[1, 2, -100], [3, -100, -100], [-100, -100, -100]])
    student, teacher = (Outputs(torch.randn(3, 3, 5, generator=g)) for _ in range(2))
    return Batch(labels_bt=labels_bt, mask_bt=labels_bt != -100, student=student, teacher=teacher)


def test_a_loss_gives_the_sum_over_its_units():
    b = batch()
    logits, teacher = b.student.logits_btv, b.teacher.logits_btv
    assert SFT.count(b) == 3
    assert SFT.fn(b) / 3 == pytest.approx(float(sft(logits, b.labels_bt)))
    for loss, kind, args in (
        (forward_kl(2.0), "forward-kl", {"temperature": 2.0}),
        (reverse_kl(), "reverse-kl", {}),
        (jsd(0.3), "generalized-jsd", {"beta": 0.3}),
        *((diverges(kind), kind, {}) for kind in DIVERGENCES),
    ):
        assert loss.count(b) == 3 and loss.needs == ("student.logits", "teacher.logits")
        assert loss.fn(b) / 3 == pytest.approx(float(divergence(kind, teacher, logits, b.mask_bt, **args)))


def test_units():
    b = batch()
    assert Loss(lambda b: b, unit="sequence").count(b) == 2
    assert Loss(lambda b: b, unit="list", counts=lambda b: torch.tensor(7)).count(b) == 7
    with pytest.raises(ValueError, match="loss '<lambda>' counts 'list'"):
        Loss(lambda b: b, unit="list")


def test_a_batch_says_what_it_lacks():
    with pytest.raises(AttributeError, match="a loss wants 'reference'; the batch has labels_bt"):
        batch().reference  # noqa: B018


def test_equal_losses_are_equal():
    assert jsd(0.3) == jsd(0.3) != jsd(0.4)


def test_importing_the_losses_loads_no_torch():
    code = "import sys, limbeck.losses, limbeck.train; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
