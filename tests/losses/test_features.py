"""Similarity of layers, filters and token-adaptive teaching, against forms written out by hand in fp64."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from limbeck.losses import Batch, Outputs
from limbeck.losses.features import KINDS, Maps, adapts, filters, matched, resembles
from limbeck.losses.heads import Head, total

LENGTHS = (4, 2, 1)  # the last row only fills up the step
WIDTH, DEPTH, OURS, THEIRS = 4, 2, 3, 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def config(hidden, layers, **more):
    found = SimpleNamespace(hidden_size=hidden, num_hidden_layers=layers, **more)
    found.get_text_config = lambda decoder: found
    return found


def batch(loss, ours=OURS, theirs=THEIRS, teacher_depth=2 * DEPTH):
    """Three rows, padded to WIDTH; the learned positions are the last one of row 0 and both of row 1."""
    tokens_bt = torch.tensor([[t < n for t in range(WIDTH)] for n in LENGTHS])
    labels_n = torch.tensor([1, 6, 2])

    def said(hidden, depth, seed):
        layers = tuple(drawn(3, WIDTH, hidden, seed=seed + k).requires_grad_() for k in range(depth + 1))
        maps = tuple(drawn(3, 2, WIDTH, WIDTH, seed=seed + 50 + k).tril().softmax(-1) for k in range(depth))
        head = Head(drawn(7, hidden, seed=seed + 90))
        return Outputs(drawn(3, hidden, seed=seed + 80).requires_grad_(), head, labels_n, layers, maps)

    torch.manual_seed(0)
    made = loss.modules(config(ours, DEPTH), config(theirs, teacher_depth)) if loss.modules else None
    return Batch(
        inputs={}, tokens_bt=tokens_bt, at_n=torch.tensor([3, 4, 5]), labels_n=labels_n,
        sequence_n=torch.tensor([0, 1, 1]), group_s=torch.arange(3), real_g=torch.tensor([True, True, False]),
        columns={}, student=said(ours, DEPTH, 1), teacher=said(theirs, teacher_depth, 2),
        module=None if made is None else made.double(),
    )  # fmt: skip


BY_HAND = {
    "l2": lambda a, b: (a - b).square().sum().sqrt(),
    "l1": lambda a, b: (a - b).abs().sum(),
    "mse": lambda a, b: (a - b).square().sum() / len(a),
    "cosine": lambda a, b: 1 - (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_the_sum_over_real_tokens_of_the_mean_over_layers(kind):
    loss = resembles(kind)
    b = batch(loss)
    weights = [module.weight for module in b.module["student"]]
    learnt = [*b.student.layers_btd[1:], *weights]
    found = loss.fn(b)
    slopes = torch.autograd.grad(found, learnt)
    expected = 0
    for k, (s, t) in enumerate([(1, 2), (2, 4)]):
        for row, length in enumerate(LENGTHS[:2]):
            for at in range(length):
                ours = b.student.layers_btd[s][row, at] @ weights[k].T
                expected = expected + BY_HAND[kind](b.teacher.layers_btd[t][row, at].detach(), ours) / 2
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected, learnt))
    assert loss.count(b) == 6


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("attention")])
def test_padding_and_rows_that_fill_up_change_nothing(kind):
    loss = resembles(kind)
    b = batch(loss)
    value = float(loss.fn(b).detach())
    outside_bt = ~b.tokens_bt
    outside_bt[2] = True
    for layer in (*b.student.layers_btd, *b.teacher.layers_btd):
        layer.data[outside_bt] = torch.nan
    again = loss.fn(b)
    assert float(again.detach()) == pytest.approx(value) and value > 0
    again.backward()
    assert all(b.student.layers_btd[s].grad[~outside_bt].isfinite().all() for s in (1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_equal_models_are_no_distance(kind):
    loss = resembles(kind)
    b = batch(loss, OURS, OURS, DEPTH)
    b["teacher"] = b.student
    assert float(loss.fn(b)) == pytest.approx(0, abs=1e-9)


def test_mmd_is_of_each_sequence_by_itself():
    loss = resembles("mmd", layers=[(-1, -1)], kernel="linear")
    b = batch(loss)
    a, c = b.teacher.layers_btd[-1], b.module["student"][0](b.student.layers_btd[-1])
    gaps = [(a[row, :n].mean(0) - c[row, :n].mean(0)).square().sum() for row, n in enumerate(LENGTHS[:2])]
    torch.testing.assert_close(loss.fn(b), sum(gaps))
    assert loss.count(b) == 2


def test_relations_are_between_the_positions_of_a_sequence():
    loss = resembles("relations", layers=[(1, 3)])
    b = batch(loss)
    expected = 0
    for row, n in enumerate(LENGTHS[:2]):
        a, c = b.teacher.layers_btd[3][row, :n], b.student.layers_btd[1][row, :n]
        log_p, log_q = ((x @ x.T / x.shape[1] ** 0.5).log_softmax(-1) for x in (a, c))
        expected = expected + (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(loss.fn(b), expected)
    assert loss.count(b) == 6 and loss.modules is None


@pytest.mark.parametrize("kind", ["attention", "attention-kl"])
def test_attention_maps_are_those_of_the_matched_layers(kind):
    loss = resembles(kind)
    b = batch(loss)
    expected = 0
    for s, t in ((0, 1), (1, 3)):
        for row, n in enumerate(LENGTHS[:2]):
            a, c = b.teacher.attentions_bhtt[t][row, :, :n, :n], b.student.attentions_bhtt[s][row, :, :n, :n]
            if kind == "attention":
                expected += (a - c).square().mean((0, 2)).sum() / 2
            else:
                expected += (
                    torch.where(a > 0, a * (a.clamp_min(1e-99) / c.clamp_min(1e-99)).log(), 0).sum(-1).mean(0).sum() / 2
                )
    torch.testing.assert_close(loss.fn(b), expected)
    assert loss.needs == ("student.attentions", "teacher.attentions")
    b["student"].attentions_bhtt = ()
    with pytest.raises(ValueError, match="only eager attention gives"):
        loss.fn(b)


def test_layers_are_matched_evenly_by_the_end_or_as_told():
    assert matched("every", 2, 6) == [(1, 3), (2, 6)]
    assert matched("last", 2, 6) == [(1, 5), (2, 6)]
    assert matched(((0, 0), (-1, -1), (1, 4)), 2, 6) == [(0, 0), (2, 6), (1, 4)]
    with pytest.raises(ValueError, match="no pair of layers \\(3, 6\\): the student has 2, the teacher 6"):
        matched(((3, 6),), 2, 6)


def test_a_projection_is_learnt_where_widths_differ_or_where_it_is_asked_for():
    def learnt(loss, ours, theirs):
        return [tuple(p.shape) for p in loss.modules(config(ours, 2), config(theirs, 4)).parameters()]

    assert learnt(resembles(), 3, 3) == []
    assert learnt(resembles(), 3, 5) == [(5, 3), (5, 3)]
    assert learnt(resembles(project=True, layers="last"), 3, 3) == [(3, 3), (3, 3)]
    seq2seq = config(3, 6, num_decoder_layers=1), config(5, 6, num_decoder_layers=2)
    assert len(list(resembles().modules(*seq2seq).parameters())) == 1


def test_what_a_similarity_cannot_do_is_said():
    for wrong, say in (
        (lambda: resembles("euclid"), "no similarity loss 'euclid'; there are l2, l1"),
        (lambda: resembles("mse", kernel="rbf"), "'mse' has no kernel"),
        (lambda: resembles("mmd", kernel=lambda a, b: a @ b.T), "kernel has a name"),
        (lambda: resembles("relations", project=True), "leave project, filters out"),
        (lambda: adapts(1.0), "0 < share < 1"),
    ):
        with pytest.raises(ValueError, match=say):
            wrong()
    for loss in (resembles(), filters()):
        b = batch(loss)
        b["teacher_view"] = b
        with pytest.raises(ValueError, match="read"):
            loss.fn(b)


def test_losses_are_values_and_load_no_torch():
    assert resembles(layers=[(1, 2)]) == resembles(layers=((1, 2),)) != resembles(layers=[(1, 1)])
    hash(resembles(layers=[(1, 2)]))
    model = SimpleNamespace(digest="d1", name="m")
    assert "d1" in repr(resembles(filters=model).fn)  # so it is in the training's key
    code = "import sys; from limbeck.losses.features import *; resembles(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_filters_learn_the_text_through_the_teachers_head_and_nothing_else_learns():
    loss = filters()
    b = batch(loss)
    found = loss.fn(b)
    found.backward()
    slopes = {name: p.grad.clone() for name, p in b.module.named_parameters()}
    b.module.zero_grad()
    expected, n = 0, len(b.labels_n)
    for who, layers in (("student", (1, 2)), ("teacher", (2, 4))):
        for k, layer in enumerate(layers):
            hidden = getattr(b, who).layers_btd[layer].reshape(-1, {"student": OURS, "teacher": THEIRS}[who])[b.at_n]
            logits = b.module[who][k](hidden) @ b.teacher.head.weight_vd.T
            expected = expected + F.cross_entropy(logits, b.labels_n, reduction="sum") / 2
    torch.testing.assert_close(found, expected)
    expected.backward()
    assert len(slopes) == 8
    for name, p in b.module.named_parameters():
        torch.testing.assert_close(slopes[name], p.grad)
    b = batch(loss)
    loss.fn(b).backward()
    assert all(layer.grad is None for who in (b.student, b.teacher) for layer in who.layers_btd)
    assert loss.count(b) == n


def tokens_of(b):
    """p and q of the gold token, and KL of the others among themselves, by hand."""
    log_p, log_q = ((one.hidden_nd @ one.head.weight_vd.T).log_softmax(-1) for one in (b.teacher, b.student))
    gold = F.one_hot(b.labels_n, 7).bool()
    p, q = log_p[gold].exp().detach(), log_q[gold].exp()
    binary = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    rest_p, rest_q = (x[~gold].view(-1, 6).log_softmax(-1) for x in (log_p.detach(), log_q))
    return p, binary, (rest_p.exp() * (rest_p - rest_q)).sum(-1), (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(("share", "hard"), [(0.5, 2), (0.3, 1), (0.9, 3)])
def test_hard_tokens_learn_both_parts_and_easy_ones_the_rest_alone(share, hard):
    loss = adapts(share, 0.2)
    b = batch(loss)
    p, binary, rest, whole = tokens_of(b)
    torch.testing.assert_close(binary + (1 - p) * rest, whole)  # they are the parts of one KL
    order = p.argsort()
    expected = 0.8 * (binary + rest)[order[:hard]].mean()
    if hard < 3:
        expected = expected + 0.2 * rest[order[hard:]].mean()
    found, _ = total(b.student.hidden_nd, b.student.head, loss.fn(b))
    torch.testing.assert_close(found / loss.count(b), expected)
    slope = torch.autograd.grad(found, b.student.hidden_nd)[0]
    torch.testing.assert_close(slope / 3, torch.autograd.grad(expected, b.student.hidden_nd)[0])
    assert loss.count(b) == 3


def test_filters_of_another_training_are_refused(tmp_path):
    torch.save({"0.student.0.weight": torch.zeros(1)}, tmp_path / "losses.pt")
    for folder in (tmp_path, tmp_path / "none"):
        maps = Maps("every", filters=SimpleNamespace(path=folder, name="other", digest="d"))
        with pytest.raises(ValueError, match="wants what train.* gave for these layers; not 'other'"):
            maps(config(OURS, 2), config(THEIRS, 4))
