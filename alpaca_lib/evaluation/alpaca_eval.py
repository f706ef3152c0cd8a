"""AlpacaEval's file of outputs: what it scores, and what it publishes of others' models.

A list of {"instruction", "output", "generator"}, with an "input" where there is one. Written
here, such a file can be scored there (`alpaca_eval --model_outputs FILE`); published ones can
be compared here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.inference.decoding import Answer
from alpaca_lib.records import Example


def save_outputs(
    file: Path, examples: Sequence[Example], answers: Sequence[Answer], generator: str
) -> Path:
    """Writes one model's answers in AlpacaEval's format; returns the file."""
    rows = []
    for example, answer in zip(examples, answers, strict=True):
        row = {"instruction": example.instruction, "output": answer.text, "generator": generator}
        if example.input:
            # AlpacaEval's judge sees the instruction alone.
            row["instruction"] += f"\n\n{example.input}"
        rows.append(row)
    return write_text(file, dump_json(rows, indent=2) + "\n")


def load_outputs(file: Path) -> tuple[str, list[Example]]:
    """(the generator's name, an Example for each output). Raises DataError, naming the row."""
    try:
        rows: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no JSON that can be read ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list of outputs is needed, and at least one")
    examples, generators = [], set()
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("instruction", "output", "generator")
        ):
            raise DataError(
                f'{file}: row {place} needs "instruction", "output" and "generator", all texts'
            )
        generators.add(row["generator"])
        examples.append(Example(row["instruction"], str(row.get("input") or ""), row["output"]))
    if len(generators) > 1:
        raise DataError(f"{file}: outputs of several models: {', '.join(sorted(generators)[:5])}")
    return generators.pop(), examples


def paired(first: Sequence[Example], second: Sequence[Example]) -> list[tuple[Example, Example]]:
    """The outputs of two models to the same instructions, in the first one's order."""
    known = {(one.instruction, one.input): one for one in second}
    return [
        (one, known[one.instruction, one.input])
        for one in first
        if (one.instruction, one.input) in known
    ]
