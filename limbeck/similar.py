"""How alike two texts are: ROUGE-L, exact and fast enough to ask of every new instruction against all earlier ones."""

import re
from collections.abc import Iterator

from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from limbeck.errors import LimbeckError

# A word is a run of letters and digits; scripts written without spaces have one word per character.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def words(text: str, ascii: bool = False) -> list[str]:
    """Splits a text for ROUGE. `ascii` splits as the rouge_score package does, which drops every non-ASCII letter."""
    return _ASCII_WORD.findall(text.lower()) if ascii else _WORD.findall(text.casefold())


def f_measure(common: int, a: int, b: int) -> float:
    """ROUGE-L F of two texts of `a` and `b` words with a longest common subsequence of `common` words.

    The very expression of rouge_score, rounding included: a score that is 0.7 on paper may come out above it.
    """
    if not common:
        return 0.0
    precision, recall = common / b, common / a
    return 2 * precision * recall / (precision + recall)


class RougeL:
    """A growing set of texts that says which of them is nearest to a new one, if any comes to `threshold`.

    Each word becomes one character, so that the longest common subsequence is rapidfuzz's on strings. Texts are kept
    by length: a length can hold no match if even the whole shorter text would not reach the threshold.
    Source: Lin 2004 (ROUGE-L); the novelty filter of Self-Instruct (2212.10560) is `nearest` at 0.7.
    """

    def __init__(self, threshold: float = 0.7, ascii: bool = False):
        if not 0 < threshold <= 1:
            raise LimbeckError(f"ROUGE-L wants a threshold above 0 and up to 1; it got {threshold}.")
        self.threshold, self.ascii = threshold, ascii
        self._char: dict[str, str] = {}
        self._by_length: dict[int, list[str]] = {}  # words as characters
        self._numbers: dict[int, list[int]] = {}  # which text each of them is
        self._texts: list[str] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Puts a text into the set."""
        coded = self._coded(text)
        self._by_length.setdefault(len(coded), []).append(coded)
        self._numbers.setdefault(len(coded), []).append(len(self._texts))
        self._texts.append(text)

    def nearest(self, text: str) -> tuple[float, str] | None:
        """The highest ROUGE-L F and the text that has it (the earliest of equals), or None below the threshold."""
        coded = self._coded(text)
        best, number = 0.0, len(self._texts)
        for length in self._lengths(len(coded)):
            least = self._least(len(coded), length, max(best, self.threshold))
            found = process.extractOne(
                coded, self._by_length[length], scorer=LCSseq.similarity, processor=None, score_cutoff=least
            )
            if found is None:
                continue
            score, which = f_measure(int(found[1]), len(coded), length), self._numbers[length][found[2]]
            if score >= self.threshold and (score, -which) > (best, -number):
                best, number = score, which
        return (best, self._texts[number]) if best else None

    def _lengths(self, length: int) -> Iterator[int]:
        """The lengths that could match, nearest first: the best match is likely there, and it cuts the rest short."""
        near = (n for n in self._by_length if f_measure(min(n, length), n, length) >= self.threshold)
        yield from sorted(near, key=lambda n: (abs(n - length), n))

    @staticmethod
    def _least(a: int, b: int, score: float) -> int:
        """The fewest common words whose F comes to `score`: near the real-number bound, settled by the expression."""
        common = max(1, int(score * (a + b) / 2) - 1)
        while f_measure(common, a, b) < score and common < min(a, b):
            common += 1
        return common

    def _coded(self, text: str) -> str:
        char = self._char
        for word in (found := words(text, self.ascii)):
            if word not in char:
                code = len(char) + 1
                code += 0x800 if code >= 0xD800 else 0  # no surrogates
                if code > 0x10FFFF:
                    raise LimbeckError("ROUGE-L holds 1.1 million different words, all it can; dedup in parts (by=…).")
                char[word] = chr(code)
        return "".join([char[word] for word in found])
