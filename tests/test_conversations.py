"""Conversations from rows of messages: what is read, and what is refused by message."""

from __future__ import annotations

import json

import pytest

from alpaca_lib.conversations import Conversation, Turn, conversation_from_row
from alpaca_lib.records import RowError

USER, ASSISTANT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(*messages, answers="required"):
    return conversation_from_row({"messages": list(messages), "id": 7}, answers)


def test_a_conversation_is_read_and_written():
    found = read(SYSTEM, USER, ASSISTANT, USER, ASSISTANT)
    assert found.system == "Be brief." and len(found.turns) == 4 and found.is_answered
    assert found.extra == {"id": 7}
    row = json.loads(json.dumps(found.to_dict()))
    assert row["messages"] == [SYSTEM, USER, ASSISTANT, USER, ASSISTANT] and row["id"] == 7
    assert conversation_from_row(row) == found


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\nFour."},
        {"role": "assistant", "content": "Four.", "reasoning_content": "Add."},
        {"role": "assistant", "content": "Four.", "thinking": "Add."},
    ],
)
def test_reasoning_is_apart(message):
    found = read(USER, message)
    assert found.turns[1] == Turn("assistant", "Four.", "Add.")
    assert "Add." not in str(found.messages())
    assert conversation_from_row(found.to_dict()) == found


def test_the_last_turn_may_be_the_users():
    found = read(USER, answers="optional")
    assert found == Conversation((Turn("user", "Hi."),)) and not found.is_answered


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "without a turn"),
        ([SYSTEM], "without a turn"),
        ([ASSISTANT, USER], "message 1 that is the assistant's.*begins with the user"),
        ([USER, USER, ASSISTANT], "message 2 that is the user's.*two turns of one role"),
        ([USER, ASSISTANT, ASSISTANT], "message 3 that is the assistant's.*two turns"),
        ([USER, {**ASSISTANT, "content": " \n"}], "message 2 that is empty"),
        ([USER, {**ASSISTANT, "content": "<think>\nHm.\n</think>\n"}], "message 2 that is empty"),
        ([USER, SYSTEM, ASSISTANT], "message 2 that is of the system; .* comes first"),
        ([USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}], "message 2 that has `tool_calls`"),
        ([USER, {"role": "tool", "content": "3"}], "message 2 that has the role tool"),
        ([USER, {"role": None, "content": "3"}], "message 2 that has the role null"),
        ([USER, {**ASSISTANT, "content": None}], "message 2 .*`content` that is null, not text"),
        ([USER, {**ASSISTANT, "content": ["a"]}], "`content` that is a list, not text"),
        ([USER, "Hello."], "message 2 that is text, not an object"),
        ([USER, {**ASSISTANT, "thinking": 3}], "`thinking` that is the number 3, not text"),
        ([USER], "last message without an answer"),
    ],
)
def test_what_is_refused(messages, fault):
    with pytest.raises(RowError, match=fault):
        read(*messages)


@pytest.mark.parametrize("row", [None, [], {"messages": None}, {"messages": "Hi."}, {}])
def test_rows_that_are_none(row):
    with pytest.raises(RowError, match=r"not an object|not a list of messages"):
        conversation_from_row(row)
