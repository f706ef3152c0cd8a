"""Conversations through a chat template: their texts, and checks of what the template writes.

Whether a template writes every message is found with messages of known texts, and once more with
each conversation: a system message that a template leaves out, or an answer of which it removes a
part, is an error with the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from alpaca_lib.chat_format import ChatFormat, Messages, is_interrupted, render_chat
from alpaca_lib.conversations import Conversation, Turn
from alpaca_lib.errors import DataError, SettingsError
from alpaca_lib.records import Example

Record = Example | Conversation
_OTHER = "; use a template that writes it, such as 'alpaca', or take it out of the row"  # the fix


class ChatRenderer:
    """Renders conversations with the chat template ``source``; ``form`` is None for a template
    of texts, whose generation prompt is what stands before each answer."""

    def __init__(
        self, tokenizer: Any, source: str, form: ChatFormat | None, now: datetime | None
    ) -> None:
        self.tokenizer, self.source, self.form, self.now = tokenizer, source, form, now
        self._checked: dict[tuple[bool, int], str] = {}

    def prompt(self, conversation: Conversation) -> str:
        """Returns the text before the answer to the conversation's last turn, the user's."""
        tail = None if self.form is None else self.form.tail
        text = self._render(conversation.messages(), for_answer=tail is None)
        return text if tail is None else text + tail

    def checked_prompt(self, conversation: Conversation, row: int) -> str:
        """Returns the prompt. Raises DataError, with the row, if a message is not in it."""
        with by_row(row):
            self.skeleton(conversation)
            text = self.prompt(conversation)
            check_messages(conversation, text)
        return text

    def skeleton(self, conversation: Conversation) -> str:
        """Returns the prompt of a conversation with as many messages, of known texts.

        Raises SettingsError if the template does not write each of them once, in order.
        """
        key = (bool(conversation.system), len(conversation.turns))
        if key not in self._checked:
            numbers = iter(range(len(conversation.turns) + 1))
            known = map_texts(conversation, lambda text: text and f"Qzx{next(numbers)}turn")
            text = self.prompt(known)
            check_messages(known, text)
            self._checked[key] = text
        return self._checked[key]

    def _render(self, messages: Messages, for_answer: bool) -> str:
        return render_chat(self.tokenizer, messages, for_answer, self.now, self.source)


def check_messages(conversation: Conversation, text: str) -> None:
    """Raises SettingsError if a message is not in a rendered text, as it is and in order."""
    if conversation.system.strip() not in text:
        raise SettingsError(f"the chat template does not write the system message{_OTHER}")
    place = 0
    for number, turn in enumerate(conversation.turns, start=1):
        content = turn.content.strip()
        place = text.find(content, place)
        if place < 0:
            raise SettingsError(
                f"the chat template does not write turn {number}, the {turn.role}'s, as it is, or "
                f"not in its place{_OTHER}"
            )
        place += len(content)


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
    turns = [Turn(t.role, change(t.content), change(t.reasoning)) for t in conversation.turns]
    return Conversation(tuple(turns), system)


def name_parts(conversation: Conversation) -> dict[str, str]:
    """Returns the texts of a conversation by their names in errors."""
    parts = {"system message": conversation.system} if conversation.system else {}
    for number, turn in enumerate(conversation.turns, start=1):
        parts[f"turn {number}"] = (
            f"{turn.reasoning} {turn.content}" if turn.reasoning else turn.content
        )
    return parts
