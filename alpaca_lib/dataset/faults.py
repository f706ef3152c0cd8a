"""The known faults of instruction data: where each occurs in a set, with a suggested fix.

The kinds are those that the volunteers of AlpacaDataCleaned found by hand in Alpaca, and those
that the stop sequences of Alpaca's generation caused. A detector reports; it changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alpaca_lib.dataset.detectors import DETECTORS, Span
from alpaca_lib.dataset.rouge import SCORES_AT_ONCE, NoveltyIndex
from alpaca_lib.records import Example

# (kind, field, length in characters above which a repeated text is suspicious)
REPEATED = (("repeated input", "input", 25), ("repeated output", "output", 40))
SAME_TASK = 0.39  # ROUGE-L above which two instructions ask for the same
KINDS = (*(detector.kind for detector in DETECTORS), *(kind for kind, _, _ in REPEATED))


@dataclass(frozen=True)
class Fault:
    """One hit of one detector.

    ``row`` counts from 0; ``text`` is the part of the row's ``field`` at ``span``.
    ``severity`` is "error" (nearly always a fault) or "review" (a reader decides).
    """

    row: int
    kind: str
    field: str
    span: Span
    text: str
    severity: str
    fix: str


def find_faults(examples: Sequence[Example]) -> list[Fault]:
    """Returns every hit of every detector, in order of rows."""
    faults = []
    for row, example in enumerate(examples):
        for one in DETECTORS:
            for field, (start, end) in one.find(example):
                text = getattr(example, field)[start:end]
                fault = Fault(row, one.kind, field, (start, end), text, one.severity, one.fix)
                faults.append(fault)
    for kind, field, length in REPEATED:
        rows_with: defaultdict[str, list[int]] = defaultdict(list)
        for row, example in enumerate(examples):
            rows_with[getattr(example, field)].append(row)
        for text, rows in rows_with.items():
            if len(text) > length:
                faults += _find_same_tasks(examples, rows, kind, field)
    return sorted(faults, key=lambda fault: fault.row)


def _find_same_tasks(
    examples: Sequence[Example], rows: list[int], kind: str, field: str
) -> Iterator[Fault]:
    """Yields the rows, of those with the same text, whose instruction repeats an earlier row's.

    Different tasks about one text are no fault, nor is one right answer to several tasks.
    """
    if len(rows) < 2:
        return
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        groups[examples[row].input if field == "output" else ""].append(row)
    for group in groups.values():
        firsts: dict[str, int] = {}  # by instruction, the first row that has it
        for row in group:
            firsts.setdefault(examples[row].instruction, row)
        similar = _find_similar(list(firsts))
        for row in group:
            instruction = examples[row].instruction
            earlier = firsts[instruction]
            if earlier == row:
                if instruction not in similar:
                    continue
                earlier = firsts[similar[instruction]]
            text = getattr(examples[row], field)
            fix = f"keep one of rows {earlier + 1} and {row + 1}"
            yield Fault(row, kind, field, (0, len(text)), text, "review", fix)


def _find_similar(texts: list[str]) -> dict[str, str]:
    """Returns, for each text that asks for the same as an earlier one, the first such text."""
    index = NoveltyIndex(texts, mode="unicode")
    similar = {}
    block = max(SCORES_AT_ONCE // len(texts), 1)
    for start in range(0, len(texts) if len(texts) > 1 else 0, block):
        above = index.score_table(texts[start : start + block]) > SAME_TASK
        for place, row in enumerate(above, start):
            if row[:place].any():
                similar[texts[place]] = texts[int(row[:place].argmax())]
    return similar


def count_faults(faults: Sequence[Fault]) -> Counter[str]:
    """Returns the number of rows with each kind of fault; kinds without one count 0."""
    counts = Counter(dict.fromkeys(KINDS, 0))
    counts.update(kind for kind, _ in {(fault.kind, fault.row) for fault in faults})
    return counts
