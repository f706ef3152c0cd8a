"""Sums in a text against Python's own arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from alpaca_lib.dataset.arithmetic import contains_value, evaluate, find_sum


def test_evaluate_as_python():
    """Random sums have the value that Python's exact fractions give them."""
    draw = random.Random(0)
    for _ in range(300):
        a, b, c, d = (draw.randint(1, 99) for _ in range(4))
        text = f"({a} + {b}) * {c} - {d} / {a}"
        assert evaluate(text) == (a + b) * c - Fraction(d, a), text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 × 4 ÷ 6", 2),
        ("7 x 8", 56),
        ("2^5", 32),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("5 / 0", None),
        ("9 ** 9 ** 9", None),
        ("__import__('os')", None),
        ("2 +", None),
    ],
)
def test_evaluate_signs_and_refusals(text, value):
    """Signs of schoolbooks; None for what is no sum, too large, or code."""
    assert evaluate(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Work out 1,200 + 34.", 1234),
        ("Add 1/4 cup of oil to 3 eggs.", None),
        ("Meet on 7/3/21 in room 3x3.", None),
        ("Solve x^2 + 3 = 12.", None),
        ("First 2 + 3, then 4 + 5.", None),
        ("Pages 10-12 are missing.", None),
    ],
)
def test_find_sum(text, value):
    """One plain sum in words is found; dates, sizes, ranges and equations are not sums."""
    assert find_sum(text) == value


@pytest.mark.parametrize(
    ("answer", "value", "holds"),
    [
        ("It is 1,234.", Fraction(1234), True),
        ("About 3.33", Fraction(10, 3), True),
        ("About 3.34", Fraction(10, 3), False),
        ("17/8, that is two and an eighth", Fraction(17, 8), True),
        ("three", Fraction(3), False),
    ],
)
def test_contains_value(answer, value, holds):
    """Exactly, as a fraction, or rounded to the places written."""
    assert contains_value(answer, value) is holds
