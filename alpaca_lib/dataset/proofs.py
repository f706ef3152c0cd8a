"""Proofs: a few lines of Python per answer that recompute it and compare.

A reader overlooks a wrong answer with arithmetic, dates, units, a puzzle, JSON or code; a program
does not.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.files import parse_json
from alpaca_lib.records import Example, read_text


def prove(example: Example, proof: str) -> str | None:
    """Runs the proof of an answer and returns what is wrong with the answer, or None.

    A proof is Python with assert statements; it sees ``instruction``, ``input``, ``output`` and
    the functions ``numbers``, ``block`` and ``code``. It runs without a sandbox: use your own
    proofs only.

    >>> prove(Example("Add 7 and 5.", "", "It is 13."), "assert numbers(output) == [7 + 5]")
    'AssertionError: '
    """
    if not example.output.strip():
        return "the output is empty"
    names = {
        "instruction": example.instruction,
        "input": example.input,
        "output": example.output,
        "numbers": numbers,
        "block": block,
        "code": code,
    }
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(proof, "<proof>", "exec"), names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return None


def numbers(text: str) -> list[float]:
    """Returns all numbers of a text, in order; "1,000" is one thousand."""
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def block(text: str, language: str = "") -> str:
    """Returns the first fenced block of a language. Raises ValueError if there is none."""
    found = re.search(rf"```{language}\w*\n(.*?)```", text, re.DOTALL)
    if not found:
        raise ValueError(f"no fenced block of {language or 'code'}")
    return found[1]


def code(text: str, language: str = "python") -> dict[str, Any]:
    """Runs the fenced Python blocks of a text and returns the names that they define."""
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    if not blocks:
        raise ValueError(f"no fenced block of {language}")
    names: dict[str, Any] = {"__name__": "answer"}
    for source in blocks:
        exec(source, names)
    return names


def load_proofs(path: Path) -> dict[str, str]:
    """Returns {instruction: proof} of a .jsonl file. Raises DataError, naming file and line."""
    proofs = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = parse_json(line)
            proofs[row["instruction"]] = row["proof"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: {error!r}; a line is {{"instruction", "proof"}}'
            ) from None
    return proofs
