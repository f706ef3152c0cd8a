"""Plain calculations in a text, with exact values: does an answer contain the right one?

>>> contains_value("About 3.33.", find_sum("What is 10 / 3?"))
True
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST_NUMBER = 200  # characters: a longer one is no answer to a sum
_OPERATORS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", "–": "-"})
_ARITHMETIC: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_SUM = re.compile(
    r"(?<![\w.$€£:/=^-])[(\d](?:[\d\s.()+*/×÷−^-]|(?<=\s)x(?=\s)){0,100}[\d)](?![\w%/:=^-])"
)
# 7/3/21 is a date, 3x3 a size, 1/4 an amount and 10-12 a range: none is a calculation.
_OPERATOR = re.compile(r"\d\)?\s*[+*×÷−^]\s*\(?\d|\d\)?\s+[-/x]\s+\(?\d|\)\s*/|/\s*\(")
# "1 - 5 points", "2010 - 2014": the first number is the smaller one.
_RANGE = re.compile(r"(\d{1,2}|\d{4})\s*-\s*(\d{1,2}|\d{4})")
_UNKNOWN = re.compile(r"(?<![a-z])[a-z](?=\s*[-+=^²)])|\d[xyz]\b|=\s*0")


def find_sum(text: str) -> Fraction | None:
    """Returns the exact value of the only plain calculation in a task.

    None if there is none, or several, or an equation with an unknown.
    """
    text = text.replace(",", "")
    if not _OPERATOR.search(text) or _UNKNOWN.search(text) or "..." in text:
        return None
    sums = [found[0].strip() for found in _SUM.finditer(text) if _OPERATOR.search(found[0])]
    if len(sums) != 1:
        return None
    span = _RANGE.fullmatch(sums[0])
    return None if span and int(span[1]) < int(span[2]) else evaluate(sums[0])


def contains_value(answer: str, value: Fraction) -> bool:
    """Returns whether a number in the answer is the value, exactly or rounded as written."""
    numbers = re.findall(r"-?\d+(?:\.\d+(?:e[+-]?\d{1,3}\b)?|/\d+)?", answer.replace(",", ""))
    return any(_equals(number, value) for number in numbers)


def evaluate(expression: str) -> Fraction | None:
    """Returns the exact value of a calculation such as "3 x (4 + 5)", or None for other text."""
    plain = expression.translate(_OPERATORS)
    plain = re.sub(r"(?<=[\d)\s])[xX](?=[\d(\s])", "*", plain).replace("^", "**")
    try:
        return _value(ast.parse(plain.strip(" .?="), mode="eval").body)
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError):
        return None  # also nesting that Python's parser refuses


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > 10**6):
            raise ValueError("too large")
        return Fraction(_ARITHMETIC[type(node.op)](left, right))
    raise ValueError("not a sum")


def _equals(written: str, value: Fraction) -> bool:
    """Returns whether a number equals the value, rounded to the decimal places written."""
    if len(written) > LONGEST_NUMBER:
        return False
    try:
        number = Fraction(written)
    except ZeroDivisionError:
        return False
    places = len(written.partition(".")[2]) if "/" not in written else 9
    rounded = math.floor(abs(value) * 10**places + Fraction(1, 2))
    return abs(number) == value or abs(number) * 10**places == rounded
