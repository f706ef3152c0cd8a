"""Reads a completion that a server sent as a stream of events, all of it at once.

Some servers and proxies answer streaming requests alone. The events' deltas are put together, so
that the rest of the code sees one completion.
"""

from __future__ import annotations

import json
import re
from typing import Any

EVENTS = re.compile(rb"\s*(?:data|event|id|retry)?:")  # how a stream of events begins


def read_events(content: bytes) -> dict[str, Any]:
    """Returns the chat completion in a complete stream of events.

    Raises ValueError if the stream has no answer in it, or ends before the answer does.
    """
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    found: dict[str, Any] = {}
    finish_reason, is_done, is_legacy = None, False, False
    for block in re.split(r"\r?\n\r?\n", content.decode("utf-8", "replace")):
        lines = [line for line in re.split(r"\r?\n", block) if line.startswith("data:")]
        text = "\n".join(line.removeprefix("data:").removeprefix(" ") for line in lines).strip()
        if not text or is_done:
            continue
        if text == "[DONE]":
            is_done = True
            continue
        event = json.loads(text)
        if event.get("error"):
            return {"error": event["error"]}
        found |= {name: value for name, value in event.items() if value and name != "choices"}
        for choice in event.get("choices") or []:
            if choice.get("index", 0) == 0:
                is_legacy = is_legacy or "text" in choice
                _add(message, choice.get("delta") or {"content": choice.get("text")})
                finish_reason = choice.get("finish_reason") or finish_reason
    if not (is_done or finish_reason):
        raise ValueError("the stream ends before its answer does")
    if len(message) == 2 and not message["content"]:
        raise ValueError("the stream has no answer in it")
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    if is_legacy:
        choice["text"] = message["content"]
    return {**found, "choices": [choice]}


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Adds a delta's texts to a message: its content, reasoning and refusal."""
    for name, value in delta.items():
        if name != "role" and isinstance(value, str) and value:
            message[name] = message.get(name, "") + value
