"""Proofs: a few lines of Python an answer, which compute it again and compare.

A row with arithmetic, dates, units, a puzzle, JSON or code can be wrong in a way that a
reader overlooks and a program does not.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.records import Example


def prove(example: Example, proof: str) -> str | None:
    """What is wrong with an answer according to its proof, or None.

    A proof is Python with assert statements; it sees ``instruction``, ``input``,
    ``output`` and the helpers below. It is run here: use your own proofs only.
    """
    if not example.output.strip():
        return "the output is empty"
    names = {
        "instruction": example.instruction, "input": example.input, "output": example.output,
        **HELPERS,
    }  # fmt: skip
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(proof, "<proof>", "exec"), names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return None


def numbers(text: str) -> list[float]:
    """All numbers in a text, in order; 1,000 is one thousand."""
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def block(text: str, language: str = "") -> str:
    """The first fenced block of that language."""
    found = re.search(rf"```{language}\w*\n(.*?)```", text, re.DOTALL)
    if not found:
        raise ValueError(f"no fenced block of {language or 'code'}")
    return found[1]


def code(text: str, language: str = "python") -> dict[str, Any]:
    """The names that the fenced blocks of Python define when they are run."""
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    if not blocks:
        raise ValueError(f"no fenced block of {language}")
    names: dict[str, Any] = {"__name__": "answer"}
    for source in blocks:
        exec(source, names)
    return names


HELPERS: dict[str, Callable] = {"numbers": numbers, "block": block, "code": code}


def load_proofs(path: Path) -> dict[str, str]:
    """{instruction: proof} of a .jsonl file with those two keys."""
    out = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            out[row["instruction"]] = row["proof"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}, line {number}: {error!r}; a line is {{"instruction", "proof"}}'
            ) from None
    return out
