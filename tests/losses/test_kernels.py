"""The Triton kernels against the torch path: in Triton's interpreter, or on the GPU where there is one."""

import importlib.util

import pytest
import torch

from limbeck.losses import targets
from limbeck.losses.divergences import DIVERGENCES, diverge, rule
from limbeck.losses.heads import Dense, Head, Term, Tokens, TopK, each, total

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of −∞ − −∞, which a `where` then leaves out
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

N, V = 3, 150

ARGS = [(kind, {}) for kind in DIVERGENCES if kind != "f-divergence"] + [
    ("alpha-beta", {"a": 0, "b": 0.5}),
    ("alpha-beta", {"a": 0.5, "b": 0}),
    ("alpha-beta", {"a": 0.5, "b": -0.5}),
    ("alpha-beta", {"a": 0, "b": 0}),
]


@pytest.fixture
def kernels(monkeypatch):
    from limbeck.losses import kernels

    monkeypatch.setattr(kernels, "BLOCK", 64)  # a row of three blocks, the last not full
    return kernels


def drawn(*shape, seed=0, scale=3.0):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE)


def close(got, wanted, tolerance=1e-5):
    assert float((got.double() - wanted.double()).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize(("kind", "args"), ARGS)
def test_every_divergence_equals_the_torch_path(kernels, kind, args):
    z, t, weights = drawn(N, V), drawn(N, V, seed=1), drawn(N, 1, seed=2)
    bound, out = rule(kind, args), torch.empty(N, V, device=DEVICE)
    assert kernels.can(bound)
    values = kernels.diverge(z, t, bound, 2.0, weights, out)
    expected, gradient = diverge((z / 2).double(), (t / 2).double().log_softmax(-1), bound, weights.double())
    close(values, expected)
    close(out, gradient)
    torch.testing.assert_close(kernels.diverge(z, t, bound, 2.0, None, None), values)
    assert kernels.diverge(z, t, bound, 2.0, weights, z) is not None
    torch.testing.assert_close(z, out)  # in place of the logits


@pytest.mark.parametrize(("kind", "args"), ARGS)
def test_tokens_ruled_out_by_both_change_nothing(kernels, kind, args):
    z, t, weights = drawn(N, V), drawn(N, V, seed=1), torch.ones(N, 1, device=DEVICE)
    gone = torch.full((N, 70), -torch.inf, device=DEVICE)
    wide_z, wide_t = torch.cat([gone, z], 1), torch.cat([gone, t], 1)  # a first block without anything
    narrow, wide = torch.empty_like(z), torch.empty_like(wide_z)
    values = [
        kernels.diverge(z, t, rule(kind, args), 1.0, weights, narrow),
        kernels.diverge(wide_z, wide_t, rule(kind, args), 1.0, weights, wide),
    ]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(wide[:, 70:], narrow)
    assert not wide[:, :70].any()


def test_only_those_of_pointwise_are_compiled(kernels):
    assert not kernels.can(rule("f-divergence", {"f": torch.log}))
    assert not kernels.can(rule(lambda log_p, log_q: log_q.sum(-1), {}))


def target_of(name):
    if name == "tokens":
        return Tokens(torch.tensor([3, 149, -100], device=DEVICE))
    if name == "dense":
        return Dense(drawn(N, 4, seed=1), Head(drawn(V, 4, seed=2), softcap=5.0))
    if name == "narrow":
        return Dense(drawn(N, 100, seed=1))
    ids = torch.tensor([[0, 64, 149], [5, 6, -1], [128, 1, 2]], device=DEVICE)
    return TopK(ids, drawn(N, V, seed=4).log_softmax(-1)[:, :3], name)


@pytest.mark.parametrize("name", ["tokens", "dense", "narrow", "bucket", "renormalise", "missing"])
@pytest.mark.parametrize("form", ["plain", "bent", "several", "without"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_learns_the_same_with_and_without(kernels, monkeypatch, name, form, dtype):
    hidden = drawn(N, 4, seed=5, scale=1).to(dtype).requires_grad_()
    bent = {"scale": 0.5, "softcap": 3.0} if form == "bent" else {}
    head = Head(drawn(V, 4, seed=6, scale=1).to(dtype).requires_grad_(), **bent)
    terms = [Term(target_of(name), "skew-kl", temperature=1.5, weight_n=torch.tensor([1.0, 0.5, 2.0], device=DEVICE))]
    if form == "several":
        terms += [Term(target_of("dense")), Term(target_of("tokens")), Term(target_of("bucket"), "tvd")]
    if form == "without":
        terms[0].without_n = torch.tensor([7, 8, 9], device=DEVICE)

    def learned():
        value, sums = total(hidden, head, terms)
        values = each(hidden, head, terms[0])
        return value, sums, values, *torch.autograd.grad(value + values.sum(), [hidden, head.weight_vd])

    monkeypatch.setattr(targets, "kernels_for", lambda logits_nv: None)
    plain = learned()
    monkeypatch.setattr(targets, "kernels_for", lambda logits_nv: kernels)
    for got, wanted in zip(learned(), plain, strict=True):
        close(got, wanted, 1e-5 if dtype == torch.float32 else 1e-2)


def test_callers_logits_are_left_alone(kernels, monkeypatch):
    monkeypatch.setattr(targets, "kernels_for", lambda logits_nv: kernels)
    logits, teacher = drawn(N, V).requires_grad_(), drawn(N, V, seed=1)
    before = logits.detach().clone(), teacher.clone()
    for target in (Dense(teacher), target_of("tokens"), target_of("bucket")):
        total(logits, None, [Term(target)])[0].backward()
        each(logits, None, Term(target)).sum().backward()
    assert torch.equal(logits, before[0]) and torch.equal(teacher, before[1])
