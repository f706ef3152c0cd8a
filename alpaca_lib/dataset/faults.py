"""The faults that instruction data is known for: where each occurs, and a suggested cure.

The list is what AlpacaDataCleaned's volunteers found by hand in Alpaca, and what the
generation's own stop sequences did to it. A detector reports; it changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alpaca_lib.dataset.detectors import DETECTORS, Detector, Hit, Span
from alpaca_lib.dataset.rouge import rouge_l
from alpaca_lib.records import Example

# (kind, field, longer than so many characters): the same text in several rows.
REPEATED = (("repeated input", "input", 25), ("repeated output", "output", 40))
ALIKE = 0.39  # ROUGE-L of two instructions that ask for the same
KINDS = (*(detector.kind for detector in DETECTORS), *(kind for kind, _, _ in REPEATED))


@dataclass(frozen=True)
class Fault:
    """One hit of one detector: ``text`` is what stands at ``span`` of the row's ``field``."""

    row: int
    kind: str
    field: str
    span: Span
    text: str
    severity: str
    fix: str


def find_faults(examples: Sequence[Example]) -> list[Fault]:
    """Every hit of every detector, in order of rows; rows count from 0."""
    faults = [
        _fault(row, example, detector, hit)
        for row, example in enumerate(examples)
        for detector in DETECTORS
        for hit in detector.find(example)
    ]
    for kind, name, longer_than in REPEATED:
        rows_with: defaultdict[str, list[int]] = defaultdict(list)
        for row, example in enumerate(examples):
            rows_with[getattr(example, name)].append(row)
        for text, rows in rows_with.items():
            if len(text) > longer_than:
                faults += _same_tasks(examples, rows, kind, name)
    return sorted(faults, key=lambda fault: fault.row)


def _same_tasks(
    examples: Sequence[Example], rows: list[int], kind: str, name: str
) -> Iterator[Fault]:
    """Of rows with one input or output, those whose task an earlier one words alike.

    Different tasks on one text are no fault, nor is one right answer to several.
    """
    for place, row in enumerate(rows):
        mine = examples[row]
        for earlier in rows[:place]:
            task = examples[earlier]
            if name == "output" and mine.input != task.input:
                continue
            if rouge_l(mine.instruction, task.instruction, "unicode") > ALIKE:
                text = getattr(mine, name)
                fix = f"keep one of rows {earlier} and {row}"
                yield Fault(row, kind, name, (0, len(text)), text, "review", fix)
                break


def count_faults(faults: Sequence[Fault]) -> Counter[str]:
    """How many rows each kind of fault has, every kind named, also those with none."""
    rows = {(fault.kind, fault.row) for fault in faults}
    counts = Counter(kind for kind, _ in rows)
    for kind in KINDS:
        counts.setdefault(kind, 0)
    return counts


def _fault(row: int, example: Example, detector: Detector, hit: Hit) -> Fault:
    field, (start, end) = hit
    text = getattr(example, field)[start:end]
    return Fault(row, detector.kind, field, (start, end), text, detector.severity, detector.fix)
