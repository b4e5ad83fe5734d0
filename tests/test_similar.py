"""ROUGE-L: equal to the plain algorithm on everything, rounding included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.similar import RougeL, f_measure, words


def common(a: list[str], b: list[str]) -> int:
    """The length of a longest common subsequence, by the textbook table."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            row[j], diagonal = (diagonal + 1 if x == y else max(row[j], row[j - 1])), row[j]
    return row[-1]


def nearest(texts: list[str], text: str, threshold: float, ascii: bool) -> tuple[float, str] | None:
    """What `RougeL.nearest` promises, by trying every text."""
    best = None
    for other in texts:
        a, b = words(text, ascii), words(other, ascii)
        score = f_measure(common(a, b), len(a), len(b))
        if score >= threshold and (best is None or score > best[0]):
            best = score, other
    return best


TEXT = st.lists(st.sampled_from(["a", "b", "c", "d", "é", "ж", "水", "火", "7"]), max_size=12).map(" ".join)


@given(st.lists(TEXT, max_size=15), TEXT, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]), st.booleans())
def test_nearest_is_what_trying_all_gives(texts, text, threshold, ascii):
    index = RougeL(threshold, ascii)
    for other in texts:
        index.add(other)
    assert index.nearest(text) == nearest(texts, text, threshold, ascii)
    assert len(index) == len(texts)


def test_ties_at_the_threshold_follow_the_double_expression():
    """On paper each of these scores exactly 0.7; rouge_score's expression puts some above it and some below."""
    sides = set()
    for total in range(10, 121, 10):
        for a in range(max(1, total * 7 // 20), total // 2 + 1):
            lcs, b = total * 7 // 20, total - a
            if 20 * lcs != 7 * total or lcs > min(a, b):
                continue
            score = f_measure(lcs, a, b)
            sides.add((score > 0.7) - (score < 0.7))
            index = RougeL(0.7)
            index.add(" ".join([f"w{i}" for i in range(lcs)] + [f"x{i}" for i in range(b - lcs)]))
            found = index.nearest(" ".join([f"w{i}" for i in range(lcs)] + [f"y{i}" for i in range(a - lcs)]))
            assert (found is not None) == (score >= 0.7)
    assert sides >= {0, 1}


def test_words():
    assert words("The Straße, naïve 3.5x!") == ["the", "strasse", "naïve", "3", "5x"]
    assert words("The naïve 3.5x!", ascii=True) == ["the", "na", "ve", "3", "5x"]
    assert words("請 寫一 poem") == ["請", "寫", "一", "poem"]


def test_texts_in_other_scripts_are_told_apart():
    index = RougeL(0.7)
    index.add("Напиши стихотворение о море")
    assert index.nearest("Сложи два числа быстро") is None
    assert index.nearest("Напиши стихотворение о горе") == (0.75, "Напиши стихотворение о море")


def test_an_empty_text_is_like_nothing():
    index = RougeL(0.7)
    index.add("")
    assert index.nearest("") is None and index.nearest("a") is None


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_a_threshold_out_of_range_is_an_error(threshold):
    with pytest.raises(LimbeckError, match="threshold above 0"):
        RougeL(threshold)


def test_many_words_pass_the_surrogates():
    index = RougeL(1.0)
    for start in range(0, 60_000, 5_000):
        index.add(" ".join(f"w{i}" for i in range(start, start + 5_000)))
    assert index.nearest(" ".join(f"w{i}" for i in range(55_000, 60_000)))[0] == 1.0
