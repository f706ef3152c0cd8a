"""Held-out tasks: single ones, conversations, and questions with follow-up questions.

A model answers the last turn of a conversation, and the reference is the last answer. Follow-up
questions, as MT-Bench's (arXiv:2306.05685), have no answers between them: each is asked after the
model's own answer to the one before.

>>> tasks = load_follow_ups(Path("mt_bench.jsonl"))
>>> conversations = answer_follow_ups(model, tokenizer, tasks, Decoding(), "chat")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.evaluation.constraint_checks import meets
from alpaca_lib.examples import chat_content
from alpaca_lib.inference import turns
from alpaca_lib.inference.decoding import Answer, Decoding, answer
from alpaca_lib.json_rows import read_rows
from alpaca_lib.records import Conversation, Example, Turn, load_records
from alpaca_lib.tokenization import Record

QUESTIONS = "turns"  # the column of a row with follow-up questions
OWN_ANSWERS = "own_answers"  # marks a conversation whose answers are all the model's


def load_tasks(file: Path) -> list[Record]:
    """Returns held-out tasks. Raises DataError for a constraint that cannot be checked, or if
    no task has a reference answer."""
    tasks = load_records(file)
    for task in tasks:
        if "check" in task.extra:
            meets(task.extra["check"], "x")
    if not any(task.output for task in tasks):
        raise DataError(f"{file}: has no reference answers; a comparison needs them")
    return tasks


def load_follow_ups(file: Path) -> list[Conversation]:
    """Returns conversations of questions alone, one user turn after the other; none if the first
    row of the file has no ``turns``. Raises DataError for a row that differs."""
    if file.suffix not in (".json", ".jsonl") or not file.is_file():
        return []
    rows = read_rows(file)
    first = rows.values[0] if rows.values else None
    if not isinstance(first, dict) or not _has_questions(first):
        return []
    found = []
    for number, row in enumerate(rows.values, start=1):
        if not isinstance(row, dict) or not _has_questions(row):
            raise DataError(
                f"{file}: {rows.name(number)} needs `{QUESTIONS}`, a list of questions, as row 1 "
                "has; put other tasks into a file of their own"
            )
        extra = {key: value for key, value in row.items() if key != QUESTIONS}
        asked = tuple(Turn("user", text) for text in row[QUESTIONS])
        found.append(Conversation(asked, extra={**extra, OWN_ANSWERS: True}))
    return found


def _has_questions(row: dict[str, Any]) -> bool:
    texts = row.get(QUESTIONS)
    is_list = isinstance(texts, list) and bool(texts)
    return is_list and all(isinstance(text, str) and text.strip() for text in texts or ())


def answer_follow_ups(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Conversation],
    decoding: Decoding | None = None,
    template: str = "chat",
    batch_size: int = 0,
) -> list[tuple[Conversation, Answer]]:
    """Returns, per task, the conversation with the model's own answers, and the last Answer."""
    done: list[Conversation] = [replace(task, turns=()) for task in tasks]
    last: dict[int, Answer] = {}
    for number in range(max((len(task.turns) for task in tasks), default=0)):
        places = [place for place, task in enumerate(tasks) if number < len(task.turns)]
        for place in places:
            done[place] = turns.ask(done[place], tasks[place].turns[number].content)
        asked = [done[place] for place in places]
        answers = answer(model, tokenizer, asked, decoding, template, batch_size)
        for place, said in zip(places, answers, strict=True):
            done[place] = turns.answered(done[place], said.text)
            last[place] = said
    return [(conversation, last[place]) for place, conversation in enumerate(done)]


def task_text(record: Record) -> str:
    """Returns what a record asks as one text: instruction and input, or the turns with roles."""
    if isinstance(record, Example):
        return chat_content(record)
    asked = record.question()
    if len(asked.turns) == 1 and not asked.system:
        return asked.turns[0].content
    lines = [f"[{message['role']}]\n{message['content']}" for message in asked.messages()]
    return "\n\n".join(lines)


def number_turns(conversation: Record, role: str) -> str:
    """Returns the texts of one role, numbered: the questions, or the answers to them."""
    assert isinstance(conversation, Conversation)
    word = {"user": "Question", "assistant": "Answer to question"}[role]
    texts = [turn.content for turn in conversation.turns if turn.role == role]
    return "\n\n".join(f"[{word} {number}]\n{text}" for number, text in enumerate(texts, start=1))
