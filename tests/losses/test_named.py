"""Each loss that a training takes, through the whole of `train`, against its formula on full logits.

Five tokens, one step of plain gradient descent at a learning rate of 1: the weights change by the gradient. Every
micro-batch is one row, and one of them is a row without labels.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from limbeck.losses import named
from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.train import Objective, train

from ..train.conftest import checkpoint, weights_of

STEP = {"num_train_epochs": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0, "use_cpu": True}
STEP |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
PAIRS = [
    {"prompt": "ab", "chosen": "cd", "rejected": "dab"},
    {"prompt": "cba", "chosen": "abcd", "rejected": "c"},
    {"prompt": "d", "chosen": "a", "rejected": "bb"},
]
LISTS = [
    {"prompt": "ab", "responses": ["cd", "dab", "a"], "scores": [0.0, 2.0, 1.5]},
    {"prompt": "cba", "responses": ["abcd", "c"], "scores": [1.0, 0.0]},
    {"prompt": "d", "responses": ["a", "bb", "cbc"], "scores": [3.0, 0.0, 3.0]},
]
LABELLED = [
    {"prompt": "ab", "responses": ["cd", "abcd"], "label": 1},
    {"prompt": "cba", "responses": ["abcd", "a"], "label": 0},
    {"prompt": "d", "responses": ["a", "cd"], "label": 1},
]
ROWS = [
    {"prompt": "ab", "response": "cd", "score": 0.5},
    {"prompt": "cba", "response": "abcd", "score": 2.0},
    {"prompt": "d", "response": "a", "score": 0.0},
]


def letters():
    """A tokenizer with five ids: the end, and four letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[HF, HF]:
    """A student, and another model as its reference."""
    folder = tmp_path_factory.mktemp("five")
    made = [checkpoint(folder / name, seed, letters(), hidden=16) for seed, name in enumerate(("student", "other"))]
    return tuple(HF(path, device="cpu") for path in made)


class Words:
    """A model's log-probabilities of answers, from its full logits alone."""

    def __init__(self, model):
        self.model = model

    def each(self, prompt: str, answer: str) -> torch.Tensor:
        ids = [" abcd".index(letter) for letter in prompt + answer] + [0]
        logits_tv = self.model(torch.tensor([ids])).logits[0].double()
        odds_tv = logits_tv.exp() / logits_tv.exp().sum(-1, keepdim=True)
        return torch.stack([odds_tv[t, ids[t + 1]] for t in range(len(prompt) - 1, len(ids) - 1)]).log()

    def sum(self, prompt: str, answer: str) -> torch.Tensor:
        return self.each(prompt, answer).sum()

    def mean(self, prompt: str, answer: str) -> torch.Tensor:
        return self.each(prompt, answer).mean()


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def of_pairs(formula, sft=0.0):
    """The mean over pairs of formula(βr_w, βr_l), β = 0.1, and of the weighted nll of the chosen."""

    def value(student, other):
        found = 0.0
        for row in PAIRS:
            win, lose = (
                0.1 * (student.sum(row["prompt"], row[side]) - other.sum(row["prompt"], row[side]).detach())
                for side in ("chosen", "rejected")
            )
            found = found + formula(win, lose) - sft * student.mean(row["prompt"], row["chosen"])
        return found / len(PAIRS)

    return value


def of_means(formula, sft=0.0, how=Words.mean):
    """The mean over pairs of formula(chosen, rejected), of log-probabilities without a reference."""

    def value(student, _):
        sides = [[how(student, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in PAIRS]
        nll = [-student.mean(row["prompt"], row["chosen"]) for row in PAIRS]
        return sum(formula(*pair) + sft * one for pair, one in zip(sides, nll, strict=True)) / len(PAIRS)

    return value


def of_lists(formula, sft=1.0, best=Words.mean):
    """The mean over lists of formula([mean log-prob], [score]), and of the weighted nll of the best answer."""

    def value(student, _):
        found = 0.0
        for row in LISTS:
            means = [student.mean(row["prompt"], answer) for answer in row["responses"]]
            first = row["responses"][row["scores"].index(max(row["scores"]))]
            found = found + formula(means, row["scores"]) - sft * best(student, row["prompt"], first)
        return found / len(LISTS)

    return value


def rrhf(means, scores):
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if scores[i] < scores[j]]
    return sum(torch.relu(means[i] - means[j]) for i, j in pairs)


def pro(means, scores):
    ranked = sorted(zip(scores, means, strict=True), key=lambda one: -one[0])
    found = 0.0
    for k, (score, own) in enumerate(ranked[:-1]):
        gaps = [score - other for other, _ in ranked[k + 1 :]]
        won = torch.exp(own * max(gaps))
        lost = sum(torch.exp(p * gap) for gap, (_, p) in zip(gaps, ranked[k + 1 :], strict=True))
        found = found - torch.log(won / (won + lost))
    return found


def aft(means, scores):
    good, bad = ([m for m, s in zip(means, scores, strict=True) if (s > 0) is right] for right in (True, False))
    return torch.log(1 + sum(torch.exp(b.detach() - g) for g in good for b in bad))


def aft_boundary(means, scores):
    good, bad = ([m for m, s in zip(means, scores, strict=True) if (s > 0) is right] for right in (True, False))
    worst = min(g.item() for g in good)
    pairs = [(g, b) for g in good for b in bad]
    return torch.log(1 + sum(torch.exp(b - g) + torch.exp(2 * worst - 0.4 - g.detach() - b) for g, b in pairs))


def kto(student, other):
    gains = [
        [student.sum(row["prompt"], r) - other.sum(row["prompt"], r).detach() for r in row["responses"]]
        for row in LABELLED
    ]
    z = max(0.0, sum(gain[1].item() for gain in gains) / len(gains))
    good = [(1 - sigmoid(0.5 * (gain[0] - z))) for gain, row in zip(gains, LABELLED, strict=True) if row["label"]]
    bad = [(1 - sigmoid(0.5 * (z - gain[0]))) for gain, row in zip(gains, LABELLED, strict=True) if not row["label"]]
    return (sum(good) + 1.5 * sum(bad)) / len(gains)


def weighted(weight):
    def value(student, _):
        each = [(weight(row["score"]), student.each(row["prompt"], row["response"])) for row in ROWS]
        return -sum(w * logps.sum() for w, logps in each) / sum(w * len(logps) for w, logps in each)

    return value


def unlikelihood(student, _):
    each = torch.cat([student.each(row["prompt"], row["response"]) for row in ROWS])
    return -torch.log(1 - torch.exp(each)).mean()


def odds(mean):
    return torch.exp(mean) / (1 - torch.exp(mean))


LOSSES = {  # name: (the loss, rows, the formula)
    "sigmoid": (named.prefers(), PAIRS, of_pairs(lambda w, r: -torch.log(sigmoid(w - r)))),
    "sigmoid and sft": (named.prefers(sft=0.7), PAIRS, of_pairs(lambda w, r: -torch.log(sigmoid(w - r)), sft=0.7)),
    "hinge": (named.prefers("hinge"), PAIRS, of_pairs(lambda w, r: torch.relu(1 - (w - r)))),
    "ipo": (named.prefers("ipo"), PAIRS, of_pairs(lambda w, r: ((w - r) / 0.1 - 5) ** 2)),
    "conservative": (
        named.prefers("conservative", label_smoothing=0.2),
        PAIRS,
        of_pairs(lambda w, r: -0.8 * torch.log(sigmoid(w - r)) - 0.2 * torch.log(sigmoid(r - w))),
    ),
    "robust": (
        named.prefers("robust"),
        PAIRS,
        of_pairs(lambda w, r: (-0.9 * torch.log(sigmoid(w - r)) + 0.1 * torch.log(sigmoid(r - w))) / 0.8),
    ),
    "exo": (
        named.prefers("exo"),
        PAIRS,
        of_pairs(
            lambda w, r: (
                sigmoid(w - r) * torch.log(sigmoid(w - r) / 0.9) + sigmoid(r - w) * torch.log(sigmoid(r - w) / 0.1)
            )
        ),
    ),
    "nca": (
        named.prefers("nca"),
        PAIRS,
        of_pairs(lambda w, r: -torch.log(sigmoid(w)) - torch.log(sigmoid(-w)) / 2 - torch.log(sigmoid(-r)) / 2),
    ),
    "spin": (named.prefers("spin"), PAIRS, of_pairs(lambda w, r: torch.log(1 + torch.exp(r - w)))),
    "orpo": (
        named.prefers("orpo", sft=2.0),
        PAIRS,
        of_means(lambda w, r: -torch.log(sigmoid(torch.log(odds(w) / odds(r)))), sft=2.0),
    ),
    "simpo": (
        named.prefers("simpo", beta=1.5, gamma=0.3),
        PAIRS,
        of_means(lambda w, r: -torch.log(sigmoid(1.5 * (w - r) - 0.3))),
    ),
    "slic": (
        named.prefers("slic", sft=0.5, delta=2.0),
        PAIRS,
        of_means(lambda w, r: torch.relu(2 - w + r), sft=0.5, how=Words.sum),
    ),
    "rrhf": (named.ranks("rrhf"), LISTS, of_lists(rrhf)),
    "pro": (named.ranks("pro", sft=0.05), LISTS, of_lists(pro, sft=0.05, best=Words.sum)),
    "aft": (named.ranks("aft"), LISTS, of_lists(aft)),
    "aft-boundary": (named.ranks("aft-boundary", sft=0.0, beta=0.2), LISTS, of_lists(aft_boundary, sft=0.0)),
    "kto": (named.kto(beta=0.5, rejected_weight=1.5), LABELLED, kto),
    "weighted-sft": (named.weighted_sft("score"), ROWS, weighted(lambda score: score)),
    "reward-conditioned": (named.reward_conditioned("score", 0.5), ROWS, weighted(lambda r: math.exp(r / 0.5))),
    "unlikelihood": (named.unlikelihood(), ROWS, unlikelihood),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_through_training_are_its_formulas(name, models, tmp_path):
    loss, rows, formula = LOSSES[name]
    student, other = models
    compares = any(need.startswith("reference.") for need in loss.needs)
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1} if name == "kto" else {}
    with Run(tmp_path, progress=False):
        made = train(student, rows, Objective(loss, reference=other if compares else None), **STEP | split)
    start = student.weights(trainable=True)
    value = formula(Words(start), Words(other.weights()))
    value.backward()
    (line,) = map(json.loads, (Path(made.path) / "log.jsonl").read_text().splitlines())
    assert line["loss"] == pytest.approx(value.item(), rel=1e-4)
    after = weights_of(made)
    for where, weight in start.named_parameters():
        torch.testing.assert_close(weight.data - after[where], weight.grad, rtol=2e-3, atol=2e-6)
    assert max(float(weight.grad.abs().max()) for weight in start.parameters()) > 1e-3


def test_a_constructor_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no preference loss 'ppo'; there are sigmoid, hinge"):
        named.prefers("ppo")
    with pytest.raises(ValueError, match="loss 'simpo' has no tau; it has beta, gamma"):
        named.prefers("simpo", tau=1.0)
    with pytest.raises(ValueError, match="no ranking loss 'dpo'; there are rrhf, pro, aft"):
        named.ranks("dpo")


def test_equal_losses_are_equal_and_others_are_not():
    for make in (named.weighted_sft, named.reward_conditioned):
        assert make("a") == make("a") != make("b") and hash(make("a")) == hash(make("a"))
    assert named.weighted_sft("a") != named.reward_conditioned("a") != named.reward_conditioned("a", 2.0)
    assert named.kto() == named.kto() != named.kto(0.2)
