"""Intervals against simulated models whose truth is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from alpaca_lib.evaluation.intervals import Interval, interval, sign_test, tasks_needed, win_rate


def covered(draw, truth, of, times=1000, seed=0):
    """How often the interval of a drawn sample holds the truth."""
    random_ = np.random.default_rng(seed)
    return sum(truth in of(draw(random_)) for _ in range(times)) / times


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_win_rate_covers(rate, ties):
    """95 % intervals of a known win rate hold it 93 to 97 times of 100 (1,000 simulations)."""
    if rate == 0.9 and ties:
        pytest.skip("a win rate of 0.9 leaves no room for 30 % ties")
    win = rate - ties / 2

    def draw(random_):
        return random_.choice([1.0, 0.5, 0.0], size=200, p=[win, ties, 1 - win - ties])

    assert 0.93 <= covered(draw, rate, win_rate) <= 0.97


def test_paired_loss_covers():
    """The same for a difference in nats a token of two models on 60 tasks of unlike lengths."""

    def draw(random_):
        tokens = random_.integers(5, 120, size=60)
        per_token = random_.normal(-0.1, 0.4, size=60) + random_.exponential(0.2, size=60) - 0.2
        return per_token * tokens, tokens

    found = covered(draw, -0.1, lambda drawn: interval(*drawn, seed=1), times=1000)
    assert 0.93 <= found <= 0.97


@pytest.mark.parametrize("better, worse", [(0.03, 0.0), (0.05, 0.05), (0.2, 0.1)])
def test_rare_differences_are_covered(better, worse):
    """Yes or no on 60 tasks, few of which tell the models apart: no interval is too narrow."""

    def draw(random_):
        return random_.choice([1.0, -1.0, 0.0], size=60, p=[better, worse, 1 - better - worse])

    assert covered(draw, better - worse, interval) >= 0.93


def test_edges():
    """No spread, two tasks, nothing but wins: an interval all the same, within its bounds."""
    assert interval([0.25] * 9) == Interval(0.25, 0.25, 0.25)
    assert -0.3 < interval([0.0] * 9).low < 0 < interval([0.0] * 9).high < 0.3
    assert interval([0.1, 0.4]).low < 0.1
    found = win_rate([1.0] * 20)
    assert found.value == found.high == 1.0 and 0.8 < found.low < 0.9
    assert win_rate([0.0, 0.0]).low >= 0 and win_rate([0.5, 0.5]).value == 0.5
    assert win_rate([0.5] * 12).low < 0.45
    with pytest.raises(ValueError, match="1 values"):
        interval([1.0])
    with pytest.raises(ValueError, match="each from 0 to 1"):
        win_rate([0.2, 1.3])


def test_sign_test_is_the_coin():
    """Against the definition, summed with fractions; and 90 : 89 says nothing."""
    for wins in range(8):
        losses = 7 - wins
        as_uneven = sum(math.comb(7, k) for k in range(8) if abs(k - 3.5) >= abs(wins - 3.5))
        assert sign_test(wins, losses) == pytest.approx(as_uneven / 2**7)
    assert sign_test(90, 89) == 1.0
    assert sign_test(0, 0) == 1.0


def test_tasks_needed_by_simulation():
    """With as many tasks, a coin of that rate is told from a fair one 8 times of 10."""
    needed = tasks_needed(0.6)
    draw = random.Random(0)
    found = 0
    for _ in range(2000):
        wins = sum(draw.random() < 0.6 for _ in range(needed))
        found += abs(wins - needed / 2) / (needed / 4) ** 0.5 > 1.96
    assert 0.76 <= found / 2000 <= 0.84
    assert tasks_needed(90 / 179) > 100_000
