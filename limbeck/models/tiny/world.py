"""A small world of word problems with answers that can be checked: what the shipped teacher knows.

Eight kinds of problem, two or three steps each, in several wordings. A solution states every step as an equation and
closes with `#### answer`, as GSM8K does. Every number, the intermediate ones too, lies in 0-99, so each is one token.
Problems are drawn, not stored: the family has some millions of questions, and a hash of the question decides
whether it belongs to the training or to the held-out split.
"""

import hashlib
import random
from collections.abc import Callable

SHE = ("Mia", "Emma", "Ana", "Lily", "Zoe", "Nora", "Ruth", "Ivy", "Eva", "Clara")
HE = ("Tom", "Ben", "Leo", "Max", "Sam", "Omar", "Jack", "Paul", "Hugo", "Ravi")
THINGS = (
    "marbles", "apples", "stickers", "pencils", "books", "coins", "shells", "cookies",
    "cards", "stamps", "beads", "buttons", "crayons", "pears", "plums", "stones",
)  # fmt: skip
HOLDERS = ("bags", "boxes", "baskets", "jars")
GOODS = ("pens", "cakes", "toys", "balls", "cups", "hats")
SPLITS = ("train", "test")
HELD_OUT = 8  # one question in this many is held out

Draw = random.Random
Text = tuple[str, list[str], int]  # question, the steps of one way to solve it, answer


def _people(rng: Draw) -> tuple[str, str, str, str]:
    """Two different names, and the first one's pronoun with and without a capital."""
    name, friend = rng.sample(SHE + HE, 2)
    return name, friend, *(("She", "she") if name in SHE else ("He", "he"))


def trade(rng: Draw) -> Text:
    name, friend, They, they = _people(rng)
    thing, a, b, c = rng.choice(THINGS), rng.randint(4, 15), rng.randint(2, 9), rng.randint(2, 9)
    c = min(c, a - 1)
    r = a + b - c
    question = rng.choice((
        f"{name} has {a} {thing}. {They} buys {b} more and then gives {c} to {friend}. "
        f"How many {thing} does {name} have now?",
        f"{name} had {a} {thing}. After {they} found {b} more {thing}, {they} gave {c} of them to {friend}. "
        f"How many {thing} are left?",
        f"There are {a} {thing} on the table. {name} adds {b} {thing} and {friend} takes {c} away. "
        f"How many {thing} are on the table now?",
    ))  # fmt: skip
    steps = rng.choice((
        [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {r}"],
        [f"{a} - {c} = {a - c}", f"{a - c} + {b} = {r}"],
    ))  # fmt: skip
    return question, steps, r


def packs(rng: Draw) -> Text:
    name, friend, They, they = _people(rng)
    thing, holder = rng.choice(THINGS), rng.choice(HOLDERS)
    k, n, c = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 9)
    p = k * n
    if rng.random() < 0.5 and p > c:
        question = rng.choice((
            f"{name} has {k} {holder} with {n} {thing} in each. {They} loses {c} {thing}. "
            f"How many {thing} does {name} still have?",
            f"There are {k} {holder} and each one holds {n} {thing}. {name} takes {c} of the {thing}. "
            f"How many {thing} are left?",
        ))  # fmt: skip
        last, r = f"{p} - {c} = {p - c}", p - c
    else:
        question = rng.choice((
            f"{name} has {k} {holder} with {n} {thing} in each and {c} more {thing}. "
            f"How many {thing} does {name} have in all?",
            f"{name} fills {k} {holder} with {n} {thing} each. {friend} brings {c} more {thing}. "
            f"How many {thing} are there in all?",
        ))  # fmt: skip
        last, r = f"{p} + {c} = {p + c}", p + c
    return question, [rng.choice((f"{k} * {n} = {p}", f"{n} * {k} = {p}")), last], r


def shop(rng: Draw) -> Text:
    name, _, They, they = _people(rng)
    first, second = rng.sample(GOODS, 2)
    k, m, p, q = rng.randint(2, 4), rng.randint(2, 4), rng.randint(2, 5), rng.randint(2, 5)
    r = k * p + m * q
    question = rng.choice((
        f"{name} buys {k} {first} for {p} dollars each and {m} {second} for {q} dollars each. "
        f"How many dollars does {they} pay?",
        f"In a shop {name} pays {p} dollars each for {k} {first} and {q} dollars each for {m} {second}. "
        f"How many dollars is that in all?",
    ))  # fmt: skip
    a, b = k * p, m * q
    steps = [f"{k} * {p} = {a}", f"{m} * {q} = {b}", rng.choice((f"{a} + {b} = {r}", f"{b} + {a} = {r}"))]
    return question, steps, r


def change(rng: Draw) -> Text:
    name, _, They, they = _people(rng)
    goods, m, k, p = rng.choice(GOODS), rng.choice((20, 30, 40, 50)), rng.randint(2, 6), rng.randint(2, 6)
    m = max(m, 40) if k * p >= 20 else m
    spent = k * p
    question = rng.choice((
        f"{name} has {m} dollars. {They} buys {k} {goods} for {p} dollars each. "
        f"How many dollars does {they} have left?",
        f"{name} pays for {k} {goods} with {m} dollars. They cost {p} dollars each. "
        f"How many dollars does {they} get back?",
    ))  # fmt: skip
    first = rng.choice((f"{k} * {p} = {spent}", f"{p} * {k} = {spent}"))
    return question, [first, f"{m} - {spent} = {m - spent}"], m - spent


def compare(rng: Draw) -> Text:
    name, friend, They, they = _people(rng)
    thing, a, b = rng.choice(THINGS), rng.randint(3, 12), rng.randint(2, 9)
    word = rng.choice(("more", "fewer")) if a > b else "more"
    other, sign = (a + b, "+") if word == "more" else (a - b, "-")
    question = rng.choice((
        f"{friend} has {a} {thing}. {name} has {b} {word} {thing} than {friend}. "
        f"How many {thing} do they have together?",
        f"{name} has {b} {word} {thing} than {friend}, who has {a}. How many {thing} do the two have in all?",
    ))  # fmt: skip
    last = rng.choice((f"{a} + {other} = {a + other}", f"{other} + {a} = {a + other}"))
    return question, [f"{a} {sign} {b} = {other}", last], a + other


def share(rng: Draw) -> Text:
    name, friend, They, they = _people(rng)
    thing, k, each = rng.choice(THINGS), rng.randint(2, 6), rng.randint(2, 6)
    c = rng.randint(2, 9)
    total = k * each
    if rng.random() < 0.5 or each < 3:
        question = rng.choice((
            f"{name} shares {total} {thing} equally among {k} friends. Each friend already had {c} {thing}. "
            f"How many {thing} does each friend have now?",
            f"{k} friends share {total} {thing} equally. {friend} is one of them and had {c} {thing} before. "
            f"How many {thing} does {friend} have now?",
        ))  # fmt: skip
        last = rng.choice((f"{each} + {c} = {each + c}", f"{c} + {each} = {each + c}"))
        return question, [f"{total} / {k} = {each}", last], each + c
    c = rng.randint(2, each - 1)
    question = rng.choice((
        f"{name} shares {total} {thing} equally among {k} friends. {friend} is one of them and loses "
        f"{c} of the {thing}. How many {thing} does {friend} keep?",
        f"{k} friends share {total} {thing} equally. Then {friend}, one of them, gives {c} {thing} to {name}. "
        f"How many {thing} does {friend} have left?",
    ))  # fmt: skip
    return question, [f"{total} / {k} = {each}", f"{each} - {c} = {each - c}"], each - c


def age(rng: Draw) -> Text:
    name, friend, They, they = _people(rng)
    a, b, c = rng.randint(5, 15), rng.randint(2, 9), rng.randint(2, 9)
    word = rng.choice(("older", "younger")) if a > b else "older"
    sign = "+" if word == "older" else "-"
    other = a + b if word == "older" else a - b
    r = other + c
    question = rng.choice((
        f"{name} is {a} years old. {friend} is {b} years {word} than {name}. How old will {friend} be in {c} years?",
        f"{friend} is {b} years {word} than {name}, who is {a} years old now. "
        f"How old will {friend} be {c} years from now?",
    ))  # fmt: skip
    steps = rng.choice((
        [f"{a} {sign} {b} = {other}", f"{other} + {c} = {r}"],
        [f"{a} + {c} = {a + c}", f"{a + c} {sign} {b} = {r}"],
    ))  # fmt: skip
    return question, steps, r


def savings(rng: Draw) -> Text:
    name, friend, They, they = _people(rng)
    k, n, c, d = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 9), rng.randint(2, 9)
    p = k * n
    c = min(c, p - 1)
    r = p - c + d
    question = rng.choice((
        f"{name} saves {n} dollars a day for {k} days. Then {they} spends {c} dollars and gets "
        f"{d} dollars from {friend}. How many dollars does {name} have now?",
        f"For {k} days {name} earns {n} dollars each day. {They} pays {c} dollars for lunch and finds {d} dollars. "
        f"How many dollars does {they} have in the end?",
    ))  # fmt: skip
    steps = rng.choice((
        [f"{p} - {c} = {p - c}", f"{p - c} + {d} = {r}"],
        [f"{p} + {d} = {p + d}", f"{p + d} - {c} = {r}"],
    ))  # fmt: skip
    return question, [rng.choice((f"{k} * {n} = {p}", f"{n} * {k} = {p}")), *steps], r


KINDS: dict[str, Callable[[Draw], Text]] = {
    kind.__name__: kind for kind in (trade, packs, shop, change, compare, share, age, savings)
}
STYLES = (("First,", "Then", "So"), ("Start with", "Next,", "Finally,"))


def _tell(steps: list[str], answer: int, rng: Draw) -> str:
    """The steps as a short text; the wording is drawn, the numbers are not."""
    first, then, last = rng.choice(STYLES)
    words = [first, *[then] * (len(steps) - 2), last]
    return " ".join([*(f"{word} {step}." for word, step in zip(words, steps, strict=True)), f"#### {answer}"])


def split_of(question: str) -> str:
    """`test` for one question in eight, else `train`: a function of the words alone, so the two never overlap."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % HELD_OUT == 0 else "train"


def problems(n: int, seed: int = 0, split: str = "train") -> list[dict[str, str]]:
    """Draw `n` different problems: rows with `prompt` (the question), `response` (a right solution), `answer`, `kind`.

    The same arguments give the same rows on every machine; kinds take turns. Raises ValueError for another split than
    `train` and `test`.
    """
    if split not in SPLITS:
        raise ValueError(f"problems() wants split to be one of {', '.join(SPLITS)}; it got {split!r}")
    rng = random.Random(f"{split}:{seed}")
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    kinds = list(KINDS)
    while len(rows) < n:
        kind = kinds[len(rows) % len(kinds)]
        question, steps, answer = KINDS[kind](rng)
        response = _tell(steps, answer, rng)
        if question in seen or split_of(question) != split:
            continue
        seen.add(question)
        rows.append({"prompt": question, "response": response, "answer": str(answer), "kind": kind})
    return rows
