"""What a difference between two models on the same tasks is worth: intervals and sample sizes.

The tasks are a sample of those one might have asked. The bootstrap asks it again, from the
sample itself, a few thousand times; what comes out 95 times of 100 is the interval
(Efron 1979; here the studentised one, which is wider for small samples).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds the truth 95 times of 100."""

    value: float
    low: float
    high: float

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The Interval of sum(values) / sum(weights) over tasks; without weights, of the mean.

    Give one value a task: for a paired comparison, the difference of two models on it. With
    values in nats and weights in tokens it is the difference in nats a token. Differences of
    yes and no (1, 0 and -1), of which few may be other than 0, have a formula of their own.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if len(x) != len(w) or len(x) < 2:
        raise ValueError(f"{len(x)} values and {len(w)} weights: as many of each, at least 2")
    if weights is None and np.isin(x, (-1, 0, 1)).all():
        return Interval(float(x.mean()), *_of_signs(x, level))
    value, error = _ratio(x[None], w[None])
    if error[0] == 0:
        return Interval(float(value[0]), float(value[0]), float(value[0]))
    drawn = np.random.default_rng(seed).integers(len(x), size=(DRAWS, len(x)))
    values_, errors = _ratio(x[drawn], w[drawn])
    # A draw without any spread says nothing of how far off it is.
    t = ((values_ - value) / np.where(errors > 0, errors, np.inf))[errors > 0]
    high, low = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    # Where few values differ, the draws that would reach far are those without spread.
    z = NormalDist().inv_cdf((1 + level) / 2)
    low, high = max(low, z), min(high, -z)
    return Interval(
        float(value[0]), float(value[0] - low * error[0]), float(value[0] - high * error[0])
    )


def _of_signs(x: np.ndarray, level: float) -> tuple[float, float]:
    """(low, high) for the mean of numbers from -1 to 1, most of them -1, 0 or 1.

    Bonett and Price's adjusted Wald interval for paired proportions (2012): one more of each
    sign is counted than was seen, so that what was never seen is not taken for impossible.
    """
    n = len(x) + 2
    middle, square = float(x.sum()) / n, (float((x**2).sum()) + 2) / n
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((square - middle**2) / n)
    return max(middle - reach, -1.0), min(middle + reach, 1.0)


def _ratio(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sum x / sum w, its standard error) of each row."""
    value = x.sum(1) / w.sum(1)
    left = x - value[:, None] * w
    n = x.shape[1]
    return value, np.sqrt(n / (n - 1) * (left**2).sum(1)) / w.sum(1)


def win_rate(outcomes: Sequence[float], level: float = 0.95) -> Interval:
    """The Interval of a win rate: 1 a win, 0 a loss, 0.5 a tie, one a task; within 0 and 1."""
    x = np.asarray(outcomes, dtype=float)
    if len(x) < 2 or not ((x >= 0) & (x <= 1)).all():
        raise ValueError("a win rate needs at least 2 outcomes, each from 0 to 1")
    low, high = _of_signs(2 * x - 1, level)
    return Interval(float(x.mean()), (1 + low) / 2, (1 + high) / 2)


def sign_test(wins: int, losses: int) -> float:
    """How often a coin would be at least as uneven (two-sided, exact); ties are left out."""
    n, most = wins + losses, max(wins, losses)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * tail / 2**n)


def tasks_needed(rate: float, level: float = 0.95, power: float = 0.8) -> int:
    """How many tasks show that a true win rate is not one half, with that power.

    For decided tasks; the normal approximation of the two-sided test of one proportion.
    """
    if not 0 <= rate <= 1 or rate == 0.5:
        raise ValueError(f"win rate {rate}: from 0 to 1, and not one half")
    normal = NormalDist()
    z, beta = normal.inv_cdf((1 + level) / 2), normal.inv_cdf(power)
    return math.ceil(((z * 0.5 + beta * math.sqrt(rate * (1 - rate))) / abs(rate - 0.5)) ** 2)
