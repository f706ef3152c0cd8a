"""Runs a check, prints what it found, and keeps it."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NOT_THE_READERS = re.escape(str(Path(__file__).resolve().parents[2])) + "|site-packages"
GRADES = "ALPACA_GRADES"  # names a file that gets one JSON line per verdict

verdicts: dict[str, bool] = {}  # {exercise: whether its newest answer was right}


class Hint(Exception):
    """Reports a wrong answer; the text says where to look, and not what is right."""


def exercise(check: Callable[..., str]) -> Callable[..., None]:
    """Makes a check of a function that returns praise of the right answer or raises Hint.

    The check prints "Right: ..." or "Not yet: ...", and never raises: a notebook with open
    exercises runs to its end.
    """
    name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"

    @functools.wraps(check)
    def run(*answers: Any) -> None:
        right = False
        try:
            text = f"Right: {check(*answers)}"
            right = True
        except Hint as hint:
            text = f"Not yet: {hint}"
        except Exception as error:  # of the reader's function
            line = _line_of(error)
            text = f"Not yet: your answer raised {type(error).__name__}: {error}{line}"
        verdicts[name] = right
        if file := os.environ.get(GRADES):
            with open(file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"exercise": name, "right": right}) + "\n")
        print(text)

    return run


def _line_of(error: BaseException) -> str:
    """Returns where an error arose: the innermost line that is no file of the library."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "alpaca_lib" not in f.filename
    ]
    inside = [f for f in frames if f.line and "site-packages" not in f.filename]
    return f" (line {inside[-1].lineno}: {inside[-1].line})" if inside else ""


def need(condition: object, hint: str) -> None:
    """Raises Hint unless a condition holds."""
    if not condition:
        raise Hint(hint)


def need_answer(answer: object, kind: type | tuple[type, ...] = object) -> None:
    """Raises Hint for an answer that is still missing (None, ...), or is of another type."""
    need(answer is not None and answer is not ..., "there is no answer yet: replace the dots")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(k.__name__ for k in kinds)
    need(isinstance(answer, kinds), f"that is {type(answer).__name__}; {names} is wanted")


def need_number(answer: object, right: float, hint: str, tolerance: float = 0.0) -> None:
    """Raises Hint unless a number is right; ``tolerance``: the relative difference allowed."""
    need_answer(answer, (int, float))
    close = math.isclose(float(answer), right, rel_tol=tolerance, abs_tol=0)  # type: ignore[arg-type]
    need(float(answer) == right or close, hint)  # type: ignore[arg-type]


def need_same(
    answer: Callable[..., Any],
    oracle: Callable[..., Any],
    inputs: Iterable[tuple[Any, ...]],
    hint: str,
    same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b),
) -> None:
    """Raises Hint at the first input where a function differs from an oracle.

    ``hint`` may hold {arguments} and {got}: what was given, and what came.
    """
    need_answer(answer)
    need(callable(answer), f"that is {type(answer).__name__}; a function is wanted")
    for arguments in inputs:
        got = answer(*arguments)
        need(got is not None, "your function returns None: write it, and end with `return`")
        if not same(got, oracle(*arguments)):
            shown = ", ".join(_short(a) for a in arguments)
            raise Hint(hint.format(arguments=shown, got=_short(got)))


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
