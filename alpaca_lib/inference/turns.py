"""Steps of a chat: conversations are never changed, each step returns a new one.

>>> chat = ask(Conversation((), system="Be brief."), "Name a river.")
>>> chat = answered(chat, "The Elbe.")
>>> take_back(chat)[1]
'Name a river.'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alpaca_lib.records import Conversation, Turn

NOTHING = Conversation(())


def is_open(conversation: Conversation) -> bool:
    """Returns whether the last question has no answer."""
    return bool(conversation.turns) and not conversation.is_answered


def ask(conversation: Conversation, text: str) -> Conversation:
    """Returns the conversation with a question; it replaces a last one without an answer."""
    asked = take_back(conversation)[0] if is_open(conversation) else conversation
    return replace(asked, turns=(*asked.turns, Turn("user", text)))


def answered(conversation: Conversation, text: str) -> Conversation:
    """Returns a conversation whose last question has this answer, and no other."""
    asked = conversation.question()
    return replace(asked, turns=(*asked.turns, Turn("assistant", text)))


def take_back(conversation: Conversation) -> tuple[Conversation, str]:
    """Returns (the conversation before its last question, that question)."""
    turns = conversation.question().turns
    return replace(conversation, turns=turns[:-1]), turns[-1].content if turns else ""


def edit(conversation: Conversation, place: int, text: str) -> Conversation:
    """Returns the conversation up to turn ``place`` (from 0), a question, with another text."""
    return replace(conversation, turns=(*conversation.turns[:place], Turn("user", text)))


def without_oldest(conversation: Conversation, count: int) -> Conversation:
    """Returns the conversation without its ``count`` oldest questions and their answers."""
    return replace(conversation, turns=conversation.turns[2 * count :])


def oldest_to_drop(conversation: Conversation, fits: Callable[[Conversation], bool]) -> int:
    """Returns the least number of oldest questions, with their answers, that must go until the
    rest fits; 0 if it does not fit with its last question alone either."""
    most = (len(conversation.turns) - 1) // 2
    if most < 1 or not fits(without_oldest(conversation, most)):
        return 0
    least = 1
    while least < most:  # a shorter conversation fits wherever a longer one does
        middle = (least + most) // 2
        if fits(without_oldest(conversation, middle)):
            most = middle
        else:
            least = middle + 1
    return least
