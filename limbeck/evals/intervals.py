"""How sure a number is: Wilson's interval for shares, the bootstrap for means and for paired differences."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..errors import LimbeckError


class Estimate(NamedTuple):
    """A mean with its interval, and how readily chance alone would give one this far from 0 (two-sided, 0 to 1)."""

    value: float
    low: float
    high: float
    p: float


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share of `k` in `n`; never leaves 0 to 1 and holds at 0 and at n, where the textbook's fails.

    Wilson 1927, without continuity correction. No items say nothing: 0 to 1.
    """
    if not 0 <= k <= n:
        raise LimbeckError(f"wilson wants 0 <= k <= n; it got k={k}, n={n}.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre, scale = (k + z * z / 2) / (n + z * z), z / (n + z * z)
    half = scale * math.sqrt(k * (n - k) / n + z * z / 4)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def bootstrap(values: Sequence[float], draws: int = 10_000, seed: int = 0, level: float = 0.95) -> Estimate:
    """The mean of `values` with its percentile interval over `draws` seeded resamples of the same size."""
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 1.0)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    chance, n = np.random.default_rng(seed), len(values)
    # Resampling n items is drawing how often each distinct value comes up: for right and wrong, two numbers and not n.
    step = max(1, 4_000_000 // len(distinct))
    sizes = [min(step, draws - done) for done in range(0, draws, step)]
    means = np.concatenate([chance.multinomial(n, counts / n, size) @ distinct / n for size in sizes])
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    beyond = min(np.mean(means <= 0), np.mean(means >= 0))
    return Estimate(float(distinct @ counts / n), float(low), float(high), min(1.0, max(2 * float(beyond), 1 / draws)))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """The mean of `a - b` with its interval, where both hold scores of the same items in the same order."""
    if len(a) != len(b):
        raise LimbeckError(f"paired_bootstrap wants two scores for each item; it got {len(a)} and {len(b)}.")
    return bootstrap(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), draws, seed, level)  # type: ignore[arg-type]
