"""Conversations: a system message, and turns of user and assistant one after the other.

A conversation's row is that of chat APIs: a list of messages, each with a role and a content.

>>> asked = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
>>> conversation_from_row({"messages": asked}).turns[1].content
'Hello.'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from alpaca_lib.json_rows import RowError, describe, show

Role = Literal["user", "assistant"]
MESSAGES = "messages"
# Keys in which servers and data sets keep the reasoning before an answer.
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call", "tool_call_id", "function")
_THOUGHTS = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """One message of the user or the assistant; ``reasoning`` came before an assistant's answer."""

    role: Role
    content: str
    reasoning: str = ""


@dataclass(frozen=True)
class Conversation:
    """A conversation: ``turns`` begin with the user's, and alternate.

    It is trained on if its last turn is the assistant's, and answered if it is the user's.
    ``extra`` keeps the row's other keys and does not count in comparisons.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_answered(self) -> bool:
        """Whether the last turn is the assistant's."""
        return bool(self.turns) and self.turns[-1].role == "assistant"

    def question(self) -> Conversation:
        """Returns the conversation without its last answer, so that the last turn is the user's."""
        return replace(self, turns=self.turns[:-1]) if self.is_answered else self

    def messages(self, with_reasoning: bool = False) -> list[dict[str, str]]:
        """Returns the messages of chat templates and chat APIs, the system message first."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            message = {"role": str(turn.role), "content": turn.content}
            if with_reasoning and turn.reasoning:
                message[REASONING[0]] = turn.reasoning
            found.append(message)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the row that is written to a file: the messages, then ``extra``."""
        row = {MESSAGES: self.messages(with_reasoning=True)}
        return {**row, **{key: value for key, value in self.extra.items() if key not in row}}


def conversation_from_row(
    row: object, answers: Literal["required", "optional"] = "required"
) -> Conversation:
    """Returns the Conversation of one decoded JSON row with ``messages``.

    answers: "optional" if the last turn may be the user's. Raises RowError with what is wrong
    with the row; the caller adds the file and the line.
    """
    if not isinstance(row, dict):
        raise RowError(f"is {describe(row)}, not an object")
    messages = row.get(MESSAGES)
    if not isinstance(messages, list):
        raise RowError(f"has `{MESSAGES}` that is {describe(messages)}, not a list of messages")
    extra = {str(key): value for key, value in row.items() if key != MESSAGES}
    return conversation_from_messages(messages, answers, extra)


def conversation_from_messages(
    messages: Sequence[object],
    answers: Literal["required", "optional"] = "required",
    extra: dict[str, Any] | None = None,
) -> Conversation:
    """Returns the Conversation of decoded messages, see ``conversation_from_row``."""
    system, turns = "", list[Turn]()
    for number, message in enumerate(messages, start=1):
        where = f"has message {number} that"
        if not isinstance(message, dict):
            raise RowError(f"{where} is {describe(message)}, not an object")
        role, content = message.get("role"), message.get("content")
        if called := next((key for key in CALLS if message.get(key)), None):
            raise RowError(f"{where} has `{called}`, and calls of tools are not supported")
        if role not in ("system", "developer", "user", "assistant"):
            named = show(role) if isinstance(role, str) else describe(role)
            raise RowError(f"{where} has the role {named}; roles are system, user, assistant")
        if not isinstance(content, str):
            raise RowError(f"{where} has `content` that is {describe(content)}, not text")
        if role in ("system", "developer"):
            if number > 1:
                raise RowError(f"{where} is of the {role}; a system message comes first")
            system = content if content.strip() else ""
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected:
            what = "two turns of one role" if turns else "a conversation begins with the user"
            raise RowError(f"{where} is the {role}'s, not the {expected}'s: {what}")
        reasoning = _find_reasoning(message, where)
        if role == "assistant" and (block := _THOUGHTS.match(content)):
            reasoning, content = reasoning or block[1], content[block.end() :]
        if not content.strip():
            raise RowError(f"{where} is empty")
        turns.append(Turn("assistant" if role == "assistant" else "user", content, reasoning))
    if not turns:
        raise RowError(f"has `{MESSAGES}` without a turn")
    if answers == "required" and turns[-1].role == "user":
        raise RowError("has a last message without an answer", "--drop-unanswered")
    return Conversation(tuple(turns), system, extra or {})


def _find_reasoning(message: dict[str, Any], where: str) -> str:
    for key in REASONING:
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{where} has `{key}` that is {describe(value)}, not text")
        if value and value.strip():
            return value
    return ""
