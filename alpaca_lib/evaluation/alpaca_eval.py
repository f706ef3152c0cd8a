"""AlpacaEval's files of outputs: a list of {"instruction", "output", "generator"}.

AlpacaEval scores such a file (`alpaca_eval --model_outputs FILE`), and publishes those of many
models, which can be compared here. A conversation's row has the text of its turns as instruction,
and its ``messages``; where the questions were asked after the model's own answers, it has both as
``turns`` and ``answers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_lib.conversations import MESSAGES, conversation_from_row
from alpaca_lib.errors import DataError
from alpaca_lib.evaluation.tasks import OWN_ANSWERS, QUESTIONS, task_text
from alpaca_lib.files import dump_json, parse_json, read_bytes, write_text
from alpaca_lib.inference.decoding import Answer
from alpaca_lib.json_rows import RowError
from alpaca_lib.records import Conversation, Example, Turn
from alpaca_lib.tokenization import Record

ANSWERS = "answers"  # the model's own, to the questions of the same row


def save_outputs(
    file: Path, examples: Sequence[Record], answers: Sequence[Answer], generator: str
) -> Path:
    """Writes one model's answers in AlpacaEval's format; returns the file."""
    rows = []
    for example, answer in zip(examples, answers, strict=True):
        # AlpacaEval's judge sees the instruction alone: with the input, or the turns before.
        row: dict[str, Any] = {
            "instruction": task_text(example),
            "output": answer.text,
            "generator": generator,
        }
        if isinstance(example, Conversation):
            if example.extra.get(OWN_ANSWERS):
                texts = [turn.content for turn in example.turns]
                row |= {QUESTIONS: texts[::2], ANSWERS: [*texts[1:-1:2], answer.text]}
            else:
                row[MESSAGES] = example.question().messages()
        rows.append(row)
    return write_text(file, dump_json(rows, indent=2) + "\n")


def load_outputs(file: Path) -> tuple[str, list[Record]]:
    """Returns (generator's name, one record per output). Raises DataError, naming the row."""
    try:
        rows: Any = parse_json(read_bytes(file).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no JSON that can be read ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list of outputs is needed, and at least one")
    examples: list[Record] = []
    generators = set()
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("instruction", "output", "generator")
        ):
            raise DataError(
                f'{file}: row {place} needs "instruction", "output" and "generator", all texts'
            )
        generators.add(row["generator"])
        if MESSAGES in row or ANSWERS in row:
            examples.append(_read_conversation(row, f"{file}: row {place}"))
            continue
        examples.append(Example(row["instruction"], str(row.get("input") or ""), row["output"]))
    if len(generators) > 1:
        raise DataError(f"{file}: outputs of several models: {', '.join(sorted(generators)[:5])}")
    return generators.pop(), examples


def _read_conversation(row: dict[str, Any], where: str) -> Conversation:
    """Returns the conversation of a row with its output as the last answer."""
    if ANSWERS in row:
        asked, said = row.get(QUESTIONS), row[ANSWERS]
        lists = [one for one in (asked, said) if isinstance(one, list) and one]
        texts = all(isinstance(text, str) for one in lists for text in one)
        if len(lists) < 2 or not texts or len(lists[0]) != len(lists[1]):
            raise DataError(f"{where} needs `{QUESTIONS}` and `{ANSWERS}`, as many texts of each")
        pairs = zip(*lists, strict=True)
        turns = [turn for q, a in pairs for turn in (Turn("user", q), Turn("assistant", a))]
        return Conversation(tuple(turns), extra={OWN_ANSWERS: True})
    try:
        asked = conversation_from_row(row, answers="optional").question()
    except RowError as error:
        raise DataError(f"{where} {error}") from None
    return replace(asked, turns=(*asked.turns, Turn("assistant", row["output"])))


def load_pairs(one: Path, two: Path) -> tuple[str, str, list[tuple[Record, Record]]]:
    """Returns (a model's name, another's, their outputs to the tasks that both files have).

    Raises DataError, also if there are fewer than 2 such tasks.
    """
    (name, first), (other, second) = load_outputs(one), load_outputs(two)
    pairs = pair_outputs(first, second)
    if len(pairs) < 2:
        raise DataError(f"{one} and {two} share {len(pairs)} tasks; 2 are needed")
    return name, other, pairs


def pair_outputs(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Returns the outputs of two models to the same tasks, in the first one's order."""
    known = {_task_key(output): output for output in second}
    return [(output, known[_task_key(output)]) for output in first if _task_key(output) in known]


def _task_key(record: Record) -> object:
    """Returns what is the same of two models' outputs to one task."""
    if isinstance(record, Example):
        return record.instruction, record.input
    turns = record.question().turns
    if record.extra.get(OWN_ANSWERS):
        turns = tuple(turn for turn in turns if turn.role == "user")
    return record.system, turns
