"""The world of problems, and the tokenizer that spells it."""

import operator
import re
import subprocess
import sys

import pytest

from limbeck.models.tiny import answer_of, problems
from limbeck.models.tiny.tokenizer import tokenizer, words
from limbeck.models.tiny.world import KINDS, split_of

DO = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@pytest.fixture(scope="module")
def reader():
    return tokenizer()


@pytest.fixture(scope="module")
def rows():
    return problems(2400, seed=3) + problems(800, seed=3, split="test")


def test_same_arguments_give_the_same_rows_and_another_seed_gives_others():
    assert problems(50, seed=7) == problems(50, seed=7)
    assert problems(20, seed=7) == problems(50, seed=7)[:20]
    assert problems(50, seed=7) != problems(50, seed=8)
    first = problems(1)[0]  # golden: the draw must not depend on the machine or the Python version
    assert first["prompt"] == (
        "Lily had 13 stones. After she found 2 more stones, she gave 8 of them to Ivy. How many stones are left?"
    )
    assert first["response"] == "First, 13 + 2 = 15. So 15 - 8 = 7. #### 7"


def test_splits_never_overlap_and_no_call_repeats_a_question():
    train = {row["prompt"] for seed in range(3) for row in problems(2000, seed)}
    test = {row["prompt"] for seed in range(3) for row in problems(1000, seed, "test")}
    assert train and test and not train & test
    rows = problems(3000)
    assert len({row["prompt"] for row in rows}) == 3000
    assert all(split_of(question) == "test" for question in test)


def test_one_question_in_eight_is_held_out():
    held = [split_of(f"question {i}") == "test" for i in range(4000)]
    assert 0.10 < sum(held) / 4000 < 0.15


def test_another_split_is_an_error():
    with pytest.raises(ValueError, match="train, test"):
        problems(1, split="dev")


def test_every_equation_holds_and_the_last_one_is_the_answer(rows):
    for row in rows:
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", row["response"])
        assert 2 <= len(equations) <= 3
        for a, sign, b, c in equations:
            assert sign != "/" or int(a) % int(b) == 0
            assert DO[sign](int(a), int(b)) == int(c), row
        assert equations[-1][-1] == row["answer"] == answer_of(row["response"])


def test_each_step_uses_what_the_question_or_an_earlier_step_gave(rows):
    for row in rows:
        known = re.findall(r"\d+", row["prompt"])
        for a, _, b, c in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", row["response"]):
            assert a in known and b in known, row
            known.append(c)


def test_all_kinds_occur_equally_and_all_numbers_are_below_a_hundred(rows):
    counts = [sum(row["kind"] == kind for row in rows) for kind in KINDS]
    assert counts == [len(rows) // len(KINDS)] * len(KINDS)
    numbers = [int(n) for row in rows for n in re.findall(r"\d+", row["prompt"] + row["response"])]
    assert min(numbers) >= 0 and max(numbers) <= 99


def test_a_question_has_several_right_solutions():
    ways = {re.sub(r"#.*", "", row["response"]).split()[0] for row in problems(200)}
    assert len(ways) >= 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4 + 4 = 8. #### 8", "8"), ("####8", "8"), ("#### 1,200.0 dollars", "1200"), ("#### -3.50.", "-3.50"),
    ("#### 4 no, #### 5\nthanks", "5"), ("#### Monday.", "Monday"), ("8 ####\n", None), ("eight", None),
    ],
)  # fmt: skip
def test_the_answer_is_what_follows_the_last_mark(text, answer):
    assert answer_of(text) == answer


def test_the_world_survives_the_tokenizer(reader, rows):
    for row in rows:
        for text in (row["prompt"], row["response"]):
            ids = reader(text)["input_ids"]
            assert reader.unk_token_id not in ids, text
            assert reader.decode(ids, skip_special_tokens=True) == text


def test_every_number_is_one_token_and_no_word_is_there_twice(reader):
    for number in range(100):
        assert reader.tokenize(f"x {number}.")[1:] == [str(number), "."]
    assert len(set(words())) == len(words()) == len(reader)


def test_any_text_can_be_read(reader):
    odd = ("", "Δx = \\frac{1}{2}", "def f(x):\n    return x ** 2\n", "👩‍🚀 naïve 日本語", "1234567 <b>", "\x00\t\r\n")
    for text in odd:
        ids = reader(text)["input_ids"]
        assert all(0 <= i < len(reader) for i in ids)
        reader.decode(ids)
    prompt = "Solve:\n\nShow your work (2 + 3)."
    assert reader.decode(reader(prompt)["input_ids"]) == prompt


def test_importing_the_package_loads_no_torch():
    code = "import sys, limbeck.models.tiny; print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
