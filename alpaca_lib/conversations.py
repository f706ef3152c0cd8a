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

from alpaca_lib.examples import Example, chat_content
from alpaca_lib.json_rows import RowError, describe, show

Role = Literal["user", "assistant"]
MESSAGES = "messages"
# Keys in which servers and data sets keep the reasoning before an answer.
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call", "tool_call_id", "function")
# What data sets call the roles.
ROLES = {
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "用户", "人类"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatgpt", "model", "助手", "机器人"), "assistant"),
}
TOOL_ROLES = frozenset(
    (
        *("tool", "tools", "tool_call", "tool_response", "工具"),
        *("function", "function_call", "function_response"),
        *("observation", "ipython", "environment"),
    )
)
NO_CALLS = "calls of tools are not supported"
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

    @property
    def output(self) -> str:
        """The last answer; "" if the last turn is the user's."""
        return self.turns[-1].content if self.is_answered else ""

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


def as_conversation(record: Example | Conversation) -> Conversation:
    """Returns a record as a conversation: an example's input stands below its instruction."""
    if isinstance(record, Conversation):
        return record
    turns = [Turn("user", chat_content(record))]
    if record.output.strip():
        turns.append(Turn("assistant", record.output))
    return Conversation(tuple(turns), "", record.extra)


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
    role_key: str = "role",
    content_key: str = "content",
) -> Conversation:
    """Returns the Conversation of decoded messages, see ``conversation_from_row``.

    role_key, content_key: the keys of a message, "from" and "value" in ShareGPT's files.
    """
    system, turns, is_users = "", list[Turn](), True
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise RowError(f"has message {number} that is {describe(message)}, not an object")
        given, content, reasoning = message.get(role_key), message.get(content_key), ""
        role = ROLES.get(given) if isinstance(given, str) else None
        if role is None or len(message) > 2 or not isinstance(content, str):
            where = f"has message {number} that"
            _refuse_keys(message, where, role == "assistant")
            if role is None:
                raise _wrong_role(given, message, role_key, where)
            if not isinstance(content, str):
                content = join_parts(content, content_key, where)
            reasoning = _find_reasoning(message, where)
        if role == "system":
            if number > 1:
                raise RowError(
                    f"has message {number} that is of the {given}; a system message comes first"
                )
            system = content if content.strip() else ""
            continue
        if (role == "user") is not is_users:
            what = "two turns of one role" if turns else "a conversation begins with the user"
            expected = "user" if is_users else "assistant"
            raise RowError(
                f"has message {number} that is the {role}'s, not the {expected}'s: {what}"
            )
        may_think = not is_users and content.lstrip().startswith("<think>")
        if may_think and (block := _THOUGHTS.match(content)):
            reasoning, content = reasoning or block[1], content[block.end() :]
        if not content or content.isspace():
            raise RowError(f"has message {number} that is empty")
        turns.append(Turn(role, content, reasoning))  # type: ignore[arg-type]
        is_users = not is_users
    if not turns:
        raise RowError("has a conversation without a turn")
    if answers == "required" and turns[-1].role == "user":
        raise RowError("has a last message without an answer", "--drop-unanswered")
    return Conversation(tuple(turns), system, extra or {})


def _refuse_keys(message: dict[str, Any], where: str, is_answer: bool) -> None:
    """Raises RowError for the keys of a message that change what would be trained on."""
    if called := next((key for key in CALLS if message.get(key)), None):
        raise RowError(f"{where} has `{called}`, and {NO_CALLS}")
    for key in ("weight", "train"):
        if is_answer and message.get(key) in (0, False):
            raise RowError(f"{where} has `{key}` {message[key]}: each answer is trained on")


def _wrong_role(given: object, message: dict[str, Any], role_key: str, where: str) -> RowError:
    """Returns the error for a role that is none of a conversation's."""
    if role_key not in message:
        has = ", ".join(f"`{show(str(key))}`" for key in message) or "nothing"
        return RowError(f"{where} has no `{role_key}` (it has {has})")
    if isinstance(given, str) and given.lower() in TOOL_ROLES:
        return RowError(f"{where} has the role {show(given)}, and {NO_CALLS}")
    named = show(given) if isinstance(given, str) else describe(given)
    return RowError(f"{where} has the role {named}; roles are system, user, assistant")


def join_parts(content: object, key: str, where: str) -> str:
    """Returns the text of a content in parts, as chat APIs write it, one line break between.

    Raises RowError if it is something else, or if a part is an image, a call or a sound.
    """
    if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        kinds = [one.get("type", "text") for one in content]
        if other := next((kind for kind in kinds if kind not in ("text", "input_text")), None):
            raise RowError(f"{where} has a part of the type {show(str(other))}, not text")
        if all(isinstance(one.get("text"), str) for one in content):
            return "\n".join(one["text"] for one in content)
    raise RowError(f"{where} has `{key}` that is {describe(content)}, not text")


def _find_reasoning(message: dict[str, Any], where: str) -> str:
    for key in REASONING:
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{where} has `{key}` that is {describe(value)}, not text")
        if value and value.strip():
            return value
    return ""
