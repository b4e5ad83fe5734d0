"""Rules: what they keep, the reason they give, and the answers they hold equal."""

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import checks
from limbeck.fingerprint import fingerprint

GSM8K = Path(__file__).parents[2] / "shared" / "golden" / "gsm8k" / "test.jsonl.gz"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("8", "8.0"),
        ("1,000", "$1000"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.50"),
        ("paris", "Paris."),
        ("(B)", "B"),
        (8, "8"),
    ],
)
def test_same_answer(a, b):
    assert checks.same_answer(a, b) and checks.same_answer(b, a)
    assert checks.same_answer(8, "8")


@pytest.mark.parametrize(
    ("a", "b"), [("8", "80"), ("0.333", "1/3"), ("", ""), ("1/0", "1"), ("8 or 9", "8"), ("B", "(C)")]
)
def test_different_answers(a, b):
    assert not checks.same_answer(a, b) and not checks.same_answer(b, a)


@given(st.fractions(max_denominator=50).filter(lambda f: abs(f) < 1000), st.fractions(max_denominator=50))
def test_numbers_are_compared_exactly(a, b):
    def spelt(f: Fraction) -> str:
        return f"{f.numerator}/{f.denominator}"

    assert checks.same_answer(spelt(a), spelt(b)) == (a == b)


def test_expressions_are_compared_where_it_is_asked_for():
    pytest.importorskip("math_verify")
    assert not checks.same_answer(r"2\sqrt{2}", r"\sqrt{8}")
    assert checks.same_answer(r"2\sqrt{2}", r"\sqrt{8}", symbolic=True)
    assert not checks.same_answer(r"2\sqrt{2}", r"\sqrt{7}", symbolic=True)


def test_correct():
    rule = checks.correct()
    assert rule({"answer": "8", "response": "4 + 4 = 8\n#### 8"}) is True
    assert rule({"answer": "Start: 4 + 4 = 8 #### 8", "response": "The answer is 8."}) is True
    assert rule({"answer": "8", "response": "#### 9"}) == "wrong answer"
    assert rule({"answer": "8", "response": "It is 8"}) == "no final answer"
    assert rule({"answer": "8", "response": None}) == "no final answer"
    assert checks.correct(answer="gold", response="reply")({"gold": 8, "reply": "#### 8"}) is True
    with pytest.raises(KeyError, match="answer"):  # `keep` makes a reject of it, or an error that names the columns
        rule({"gold": "8", "response": "#### 8", "_row": "x"})


def test_length():
    rule = checks.length(2, 3)
    assert [rule({"response": text}) for text in ("a", "a b", "a b c", "a b c d")] == [
        "response too short",
        True,
        True,
        "response too long",
    ]
    assert checks.length(on="prompt")({"prompt": "  "}) == "prompt too short"
    assert checks.length()({"response": None}) == "response too short"


def test_words_refusals_and_equals():
    assert checks.without(["image", "a graph"])({"response": "Imagery"}) is True
    assert checks.without(["image"], reason="asks for a picture")({"response": "An IMAGE."}) == "asks for a picture"
    assert checks.without(["a.b"])({"response": "axb"}) is True
    assert checks.not_refusal()({"response": "Sorry, I cannot."}) == "an apology"
    assert checks.not_refusal(words=3)({"response": "Sorry, I cannot."}) is True
    assert checks.not_refusal()({"response": "A sorryish tale"}) is True
    assert checks.equals("verdict", "no", "no gain")({"verdict": "no"}) is True
    assert checks.equals("verdict", "no", "no gain")({"verdict": "yes"}) == "no gain"
    assert checks.differs("a", "b")({"a": "X  y", "b": "x y"}) == "a equals b"
    assert checks.differs("a", "b")({"a": "x", "b": None}) is True


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mia has 4 . 4 + 7 = 11 . 11 - 3 = 8 .", ["4+7=11", "11-3=8"]),
        ("3 x (2+1) = 9 apples", ["3*(2+1)=9"]),
        ("$1,000 - $250 = $750.", ["1000-250=750"]),
        ("<<48/2=24>>24 and 1 + 1 = 2", ["48/2=24"]),
        ("2x + 3 = 7, x + 3 + 4 = 9", []),
        ("40% of 60, 100% - 40% = 60%", []),
        ("60 students x 2/3 = 40 students", []),
        ("3 + 4 = 7 + 2 = 9", ["7+2=9"]),
    ],
)
def test_equations(text, found):
    assert checks.equations(text) == found


def test_right_sums():
    rule = checks.right_sums()
    assert rule({"response": "10 / 3 = 3.33 and 2 * (3 + 1) = 8"}) is True
    assert rule({"response": "2 + 2 = 5"}) == "wrong arithmetic"
    assert rule({"response": "1 / 0 = 7"}) is True
    assert rule({"response": "no sums"}) is True


@given(st.text(alphabet=st.sampled_from("0123456789+-*/()=. x"), max_size=80))
def test_no_text_makes_the_sums_fail(text):
    assert checks.right_sums()({"response": text}) in (True, "wrong arithmetic")


def test_rules_have_fingerprints_by_their_arguments():
    rules = [checks.length(1), checks.length(2), checks.without(["a"]), checks.without(["b"]), checks.correct()]
    assert len({fingerprint(rule) for rule in rules}) == 5
    assert fingerprint(checks.length(1)) == fingerprint(checks.length(1))


@pytest.mark.skipif(not GSM8K.exists(), reason="the published GSM8K files are not here")
def test_every_gold_solution_of_gsm8k_is_correct_and_its_sums_are_right():
    rows = [json.loads(line) for line in gzip.decompress(GSM8K.read_bytes()).splitlines()]
    kept = [checks.correct()({"answer": row["answer"], "response": row["answer"]}) for row in rows]
    assert kept.count(True) == len(rows) == 1319
    sums = [checks.right_sums()({"response": row["answer"]}) for row in rows]
    assert sums.count(True) >= 1317
