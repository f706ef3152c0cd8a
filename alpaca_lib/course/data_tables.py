"""Prepares what lesson 02 shows: rows, counts, hits of detectors, and the teacher's raw replies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alpaca_lib.course.notebooks import say, show_table, truncate
from alpaca_lib.dataset import DETECTORS, Fault, overview, tokenize
from alpaca_lib.errors import DataError
from alpaca_lib.files import parse_json
from alpaca_lib.records import FIELDS, Example, read_text

_FIRST = "4. Instruction:"  # the prompt ends with it, so a reply begins after it
_HEADING = re.compile(r"^\d+\. (?:Instruction|Input|Output):", re.MULTILINE)
_BETWEEN_TASKS = re.compile(r"^###$", re.MULTILINE)


def format_example(example: Example) -> str:
    """Returns an example as one text: instruction, input if it has one, output."""
    context = f"\n\nINPUT: {example.input}" if example.input else ""
    return f"{example.instruction}{context}\n\nOUTPUT: {example.output}"


def show_rows(sets: Mapping[str, Sequence[Example]], each: int = 2) -> None:
    """Shows the first rows of each set as a table."""
    show_table(
        ["set", "instruction", "input", "output"],
        [
            [name, e.instruction, truncate(e.input, 150), truncate(e.output, 250)]
            for name, examples in sets.items()
            for e in examples[:each]
        ],
    )


def show_counts(sets: Mapping[str, Sequence[Example]]) -> None:
    """Shows rows, inputs, empty outputs and mean lengths of each set as a table."""
    views = {name: overview(examples) for name, examples in sets.items()}
    show_table(
        ["set", "rows", "with input", "empty outputs", *(f"words per {f}" for f in FIELDS)],
        [
            [name, view.rows, view.with_input, view.empty_outputs]
            + [round(view.lengths[field].mean, 1) for field in FIELDS]
            for name, view in views.items()
        ],
    )


def warn_of_lost_scripts(instructions: Sequence[str], mode: str) -> None:
    """Shows how many instructions have no token in a ROUGE mode, if there are any."""
    lost = sum(not tokenize(text, mode) for text in instructions)
    if lost:
        say(
            f"**{lost} of {len(instructions)} instructions have no token in mode `{mode}`**, so "
            "distances and near-duplicates mean nothing: set `rouge_mode` to `auto`."
        )


def show_detectors(
    found: Mapping[str, Sequence[Fault]],
    measured: Mapping[str, Mapping[str, int]],
    lowest: Callable[[int, int], float],
) -> None:
    """Shows each detector's hits in the sets and in Alpaca, the most frequent first.

    measured: {detector: {"rows", "judged", "true"}} of Alpaca. lowest: a function of (faults,
    rows read) that returns the lowest precision. Detectors without any hit are left out.
    """
    rows: list[list[Any]] = []
    severity = {detector.kind: detector.severity for detector in DETECTORS}
    for kind, counts in sorted(measured.items(), key=lambda item: -item[1]["rows"]):
        here = [len({f.row for f in faults if f.kind == kind}) for faults in found.values()]
        if not (counts["rows"] or any(here)):
            continue
        judged, true = counts["judged"], counts["true"]
        least = f"{lowest(true, judged):.0%}" if judged else ""
        row = [kind, severity.get(kind, "review"), *(n or "" for n in here)]
        rows.append([*row, f"{counts['rows']:,}", f"{true} of {judged}", least])
    head = ["detector", "severity", *found, "Alpaca", "faults among hits read"]
    show_table([*head, "precision at least"], rows)


def read_replies(path: str | os.PathLike[str]) -> list[str]:
    """Returns the texts of a file of chat completions, one per line.

    Raises DataError, naming the file and the line, for a missing file and for another content.
    """
    texts = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            texts.append(str(parse_json(line)["choices"][0]["message"]["content"]))
        except (ValueError, KeyError, IndexError, TypeError):
            raise DataError(
                f"{path}, line {number}: is no chat completion; give a file like "
                "data/teacher_replies.jsonl"
            ) from None
    return texts


def split_tasks(reply: str) -> Iterator[Example]:
    """Yields every task of a reply that has its three parts, good or bad."""
    text = _FIRST + reply.removeprefix(_FIRST)
    for block in _BETWEEN_TASKS.split(text):
        parts = [part.strip() for part in _HEADING.split(block)]
        if len(parts) == 4:
            yield Example(parts[1], parts[2].replace("<noinput>", ""), parts[3])
