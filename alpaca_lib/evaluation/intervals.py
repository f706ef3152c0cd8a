"""Confidence intervals, tests and sample sizes for models on the same tasks.

The tasks are a sample of all possible ones. The bootstrap (Efron 1979) resamples the tasks with
replacement; its studentised form, used here, gives wider intervals for small samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from alpaca_lib.errors import DataError, SettingsError

DRAWS = 4000  # bootstrap samples


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; ``number in interval`` tests a hypothesis."""

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
    """Returns the Interval of sum(values) / sum(weights) over tasks; without weights, of the mean.

    There is one value per task: in a paired comparison, the difference of two models. Values in
    nats and weights in tokens give nats per token. Values that are all -1, 0 or 1 have a
    closed formula instead of the bootstrap. Raises DataError for fewer than 2 values.
    """
    x = np.asarray(values, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if len(x) != len(w) or len(x) < 2:
        raise DataError(f"{len(x)} values and {len(w)} weights: as many of each, at least 2")
    if weights is None and np.isin(x, (-1, 0, 1)).all():
        return Interval(float(x.mean()), *_sign_interval(x, level))
    (value,), (error,) = _ratio(x[None], w[None])
    if error == 0:
        return Interval(float(value), float(value), float(value))
    drawn = np.random.default_rng(seed).integers(len(x), size=(DRAWS, len(x)))
    means, errors = _ratio(x[drawn], w[drawn])
    spread = errors > 0  # t is undefined for a sample of equal values
    t = (means[spread] - value) / errors[spread]
    high, low = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    # Where few values differ, the extreme samples are those without spread: at least +-z.
    z = NormalDist().inv_cdf((1 + level) / 2)
    low, high = max(low, z), min(high, -z)
    return Interval(float(value), float(value - low * error), float(value - high * error))


def _sign_interval(x: np.ndarray, level: float) -> tuple[float, float]:
    """Returns (low, high) for the mean of numbers from -1 to 1, most of them -1, 0 or 1.

    Bonett and Price's adjusted Wald interval for paired proportions (2012): one +1 and one -1
    are added to the sample, so that a sign that was not observed keeps a probability.
    """
    n = len(x) + 2
    center, square = float(x.sum()) / n, (float((x**2).sum()) + 2) / n
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((square - center**2) / n)
    return max(center - reach, -1.0), min(center + reach, 1.0)


def _ratio(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (sum x / sum w, its standard error) per row."""
    value = x.sum(1) / w.sum(1)
    residual = x - value[:, None] * w
    n = x.shape[1]
    return value, np.sqrt(n / (n - 1) * (residual**2).sum(1)) / w.sum(1)


def win_rate(outcomes: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the Interval of a win rate; outcomes are 1 (win), 0 (loss) or 0.5 (tie) per task.

    Raises DataError for fewer than 2 outcomes.
    """
    x = np.asarray(outcomes, dtype=float)
    if len(x) < 2 or not ((x >= 0) & (x <= 1)).all():
        raise DataError("a win rate needs at least 2 outcomes, each from 0 to 1")
    low, high = _sign_interval(2 * x - 1, level)
    return Interval(float(x.mean()), (1 + low) / 2, (1 + high) / 2)


def sign_test(wins: int, losses: int) -> float:
    """Returns the exact two-sided p-value of wins : losses under a fair coin, without ties."""
    n, most = wins + losses, max(wins, losses)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * tail / 2**n)


def tasks_needed(rate: float, level: float = 0.95, power: float = 0.8) -> int:
    """Returns the number of decided tasks that show, with that power, a win rate other than 0.5.

    The normal approximation of the two-sided test of one proportion.
    """
    if not 0 <= rate <= 1 or rate == 0.5:
        raise SettingsError(f"win rate {rate}: from 0 to 1, and not one half")
    normal = NormalDist()
    z, beta = normal.inv_cdf((1 + level) / 2), normal.inv_cdf(power)
    return math.ceil(((z * 0.5 + beta * math.sqrt(rate * (1 - rate))) / abs(rate - 0.5)) ** 2)
