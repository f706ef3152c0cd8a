"""AlpacaEval's files of outputs: a list of {"instruction", "output", "generator"}.

AlpacaEval scores such a file (`alpaca_eval --model_outputs FILE`), and publishes those of many
models, which can be compared here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.files import dump_json, parse_json, read_bytes, write_text
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
    """Returns (generator's name, one Example per output). Raises DataError, naming the row."""
    try:
        rows: Any = parse_json(read_bytes(file).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no JSON that can be read ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list of outputs is needed, and at least one")
    examples, generators = [], set()
    for place, row in enumerate(rows, start=1):
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


def load_pairs(one: Path, two: Path) -> tuple[str, str, list[tuple[Example, Example]]]:
    """Returns (a model's name, another's, their outputs to the tasks that both files have).

    Raises DataError, also if there are fewer than 2 such tasks.
    """
    (name, first), (other, second) = load_outputs(one), load_outputs(two)
    pairs = pair_outputs(first, second)
    if len(pairs) < 2:
        raise DataError(f"{one} and {two} share {len(pairs)} tasks; 2 are needed")
    return name, other, pairs


def pair_outputs(
    first: Sequence[Example], second: Sequence[Example]
) -> list[tuple[Example, Example]]:
    """Returns the outputs of two models to the same tasks, in the first one's order."""
    known = {(output.instruction, output.input): output for output in second}
    return [
        (output, known[output.instruction, output.input])
        for output in first
        if (output.instruction, output.input) in known
    ]
