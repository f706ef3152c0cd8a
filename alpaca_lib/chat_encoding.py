"""Conversations through a chat template: their texts, where each answer is, and checks of both.

A conversation is rendered once. Every answer begins where the same conversation, cut before it,
ends with its generation prompt, so that training sees what inference sees:

    once       <user>Q1<end><assistant>A1<end><user>Q2<end><assistant>A2<end>
    before A1  <user>Q1<end><assistant>
    before A2  <user>Q1<end><assistant>A1<end><user>Q2<end><assistant>

A template that renders a turn in another way once others follow it, or leaves a message out, is
an error with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from alpaca_lib.chat_format import Messages, is_interrupted, render_chat, render_marked
from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.records import Example

Record = Example | Conversation
TrainOn = Literal["all", "last"]
_READS_REASONING = re.compile(r"\b(reasoning_content|reasoning)\b|[.'\"]thinking\b")
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OTHER = "; use a template that writes it, such as 'alpaca', or take it out of the row"


@dataclass(frozen=True)
class Rendered:
    """A conversation's text, with places in it that tokens may not span, as character offsets.

    ``answers``: where each answer that is trained on begins, after its prompt. ``marks``: for
    each of them the parts that the template marks with {% generation %}, if it marks any.
    """

    text: str
    answers: list[int]
    marks: list[list[tuple[int, int]]]

    @property
    def places(self) -> list[int]:
        """All places, in order."""
        marked = {place for marks in self.marks for mark in marks for place in mark}
        return sorted({*self.answers, *marked})

    @property
    def pieces(self) -> list[str]:
        """The text, cut at ``places``."""
        ends = [*self.places, len(self.text)]
        return [self.text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


class ChatRenderer:
    """Renders conversations with the chat template ``source``.

    ``tail`` is the generation prompt; None: the template's own.
    """

    def __init__(
        self,
        tokenizer: Any,
        source: str,
        tail: str | None,
        now: datetime | None,
        keep_reasoning: bool,
    ) -> None:
        self.tokenizer, self.source, self.tail, self.now = tokenizer, source, tail, now
        self.keep_reasoning = keep_reasoning
        self.is_marked = _MARKED.search(source) is not None
        self._checked: dict[object, Any] = {}

    def prompt(self, conversation: Conversation) -> str:
        """Returns the text before the answer to the conversation's last turn, the user's."""
        text = self._render(self._messages(conversation), for_answer=self.tail is None)
        return text if self.tail is None else text + self.tail

    def checked_prompt(self, conversation: Conversation) -> str:
        """Returns the prompt. Raises SettingsError if a message is not in it."""
        self.skeleton(conversation)
        text = self.prompt(conversation)
        self._check_messages(conversation, text)
        return text

    def trained(self, conversation: Conversation, train_on: TrainOn) -> Rendered:
        """Returns a conversation rendered once, checked against its turns.

        Raises SettingsError if they differ.
        """
        messages = self._messages(conversation)
        marks: list[tuple[int, int]] = []
        if self.is_marked:
            with _name_system(messages):
                text, marks = render_marked(self.tokenizer, messages, self.now, self.source)
        else:
            text = self._render(messages, for_answer=False)
        numbers = range(1, len(conversation.turns), 2)
        numbers = numbers if train_on == "all" else numbers[-1:]
        self._check_messages(conversation, text, reasoned=numbers if self.keep_reasoning else ())
        answers = [self._find_answer(conversation, number, text) for number in numbers]
        found = []
        for start, end in zip(answers, [*answers[1:], len(text)], strict=True):
            found.append([mark for mark in marks if mark[1] > start and mark[0] < end])
            if self.is_marked and not found[-1]:
                raise SettingsError(
                    "the chat template's {% generation %} marks leave an answer out; set "
                    "train_on_turns to 'last', or use another template, such as 'chatml'"
                )
        return Rendered(text, answers, found)

    def skeleton(self, conversation: Conversation, train_on: TrainOn | None = None) -> Rendered:
        """Returns a conversation with as many messages rendered, but with known texts.

        Without ``train_on`` it is its prompt. Raises SettingsError if the template does not
        write each of them once, in order.
        """
        key = (train_on, *self.shape(conversation))
        if key not in self._checked:
            numbers = iter(range(2 * len(conversation.turns) + 1))
            known = map_texts(conversation, lambda text: text and f"Qzx{next(numbers)}turn")
            if train_on is None:
                text = self.prompt(known)
                self._check_messages(known, text)
                self._checked[key] = Rendered(text, [], [])
            else:
                self._checked[key] = self.trained(known, train_on)
        found: Rendered = self._checked[key]
        return found

    def shape(self, conversation: Conversation) -> tuple[bool, ...]:
        """Returns which texts a conversation has, by which templates differ."""
        reasoning = [bool(turn.reasoning) and self.keep_reasoning for turn in conversation.turns]
        return (bool(conversation.system), *reasoning)

    def _messages(self, conversation: Conversation) -> Messages:
        if not self.keep_reasoning:
            return conversation.messages()
        if _READS_REASONING.search(self.source):
            return conversation.messages(with_reasoning=True)
        turns = [
            Turn(turn.role, f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}")
            if turn.reasoning
            else turn
            for turn in conversation.turns
        ]
        return Conversation(tuple(turns), conversation.system).messages()

    def _find_answer(self, conversation: Conversation, number: int, text: str) -> int:
        """Returns where the answer after ``number`` turns begins in the whole text."""
        before = Conversation(conversation.turns[:number], conversation.system)
        prompt = self.prompt(before)
        if text.startswith(prompt):
            return len(prompt)
        same = next(
            (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text)
        )
        last = number == len(conversation.turns) - 1
        fix = "" if last else "set train_on_turns to 'last', or "
        raise SettingsError(
            f"before turn {number + 1} the chat template writes {_near(prompt, same)} for an "
            f"answer, but {_near(text, same)} in the whole conversation: training would not see "
            f"what inference sees; {fix}use another template, such as 'chatml' or 'alpaca'"
        )

    def _check_messages(
        self, conversation: Conversation, text: str, reasoned: Sequence[int] = ()
    ) -> None:
        """Raises SettingsError if a message is not in a rendered text, as it is and in order.

        ``reasoned``: indices of the turns whose reasoning has to be there too.
        """
        if conversation.system.strip() not in text:
            raise SettingsError(f"the chat template does not write the system message{_OTHER}")
        place = 0
        for number, turn in enumerate(conversation.turns, start=1):
            content = turn.content.strip()
            found = text.find(content, place)
            if found < 0:
                raise SettingsError(
                    f"the chat template does not write turn {number}, the {turn.role}'s, as it "
                    f"is, or not in its place{_OTHER}"
                )
            reasoning = turn.reasoning.strip() if number - 1 in reasoned else ""
            if reasoning:
                at = text.find(reasoning, place)
                found = text.find(content, at + len(reasoning)) if at >= 0 else -1
            if found < 0:
                raise SettingsError(
                    f"the chat template does not write the reasoning of turn {number}; set "
                    "keep_reasoning to false or train_on_turns to 'last', or use a template that "
                    "writes it, such as 'chatml'"
                )
            place = found + len(content)

    def _render(self, messages: Messages, for_answer: bool) -> str:
        with _name_system(messages):
            return render_chat(self.tokenizer, messages, for_answer, self.now, self.source)


@contextmanager
def _name_system(messages: Messages) -> Iterator[None]:
    """Adds to a SettingsError of the block that a system message may be its reason."""
    try:
        yield
    except SettingsError as error:
        if is_interrupted(error) or messages[0]["role"] != "system":
            raise
        raise SettingsError(
            f"{error} or 'gemma', which write a system message, or take it out of the row"
        ) from error


def _near(text: str, place: int) -> str:
    """Returns a text around a place, for an error."""
    return repr(text[max(place - 12, 0) : place + 24])


@contextmanager
def by_row(row: int) -> Iterator[None]:
    """Raises a SettingsError of the block as a DataError with the row, counted from 0."""
    try:
        yield
    except SettingsError as error:
        if is_interrupted(error):
            raise
        raise DataError(f"row {row + 1}: {error}") from error


def map_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """Returns a conversation whose texts are changed: system message and turns, in order."""
    system = change(conversation.system)
    turns = [
        Turn(role=t.role, reasoning=change(t.reasoning), content=change(t.content))
        for t in conversation.turns
    ]
    return Conversation(tuple(turns), system)


def name_parts(conversation: Conversation) -> dict[str, str]:
    """Returns the texts of a conversation by their names in errors."""
    parts = {"system message": conversation.system} if conversation.system else {}
    for number, turn in enumerate(conversation.turns, start=1):
        parts[f"turn {number}"] = " ".join(filter(None, (turn.reasoning, turn.content)))
    return parts
