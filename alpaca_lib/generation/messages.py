"""A request as it is sent to a teacher, and the reply as it comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import ReplyError

# What decoded JSON of another shape than expected raises when it is taken apart.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Request:
    """A request: the path below the teacher's address, the JSON body, and its prompt."""

    path: str
    body: dict[str, Any]
    prompt: str

    @property
    def most_tokens(self) -> tuple[int, int]:
        """Upper bounds of its (prompt, reply) tokens.

        A token is at least one byte, and a schema is part of the prompt.
        """
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 0
        shown = self.prompt + str(self.body.get("response_format", ""))
        return len(shown.encode("utf-8", "replace")) + 64, int(limit)


@dataclass(frozen=True)
class RawReply:
    """A reply as the teacher sent it; ``refusal`` is the text of a refusal, if it is one.

    usd: its cost in dollars, by the prices and the way of asking when it arrived.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    refusal: str = ""
    usd: float = 0.0


def parse_completion(content: bytes | Mapping[str, Any]) -> RawReply:
    """Returns the RawReply in the body of a completion. Raises ReplyError if there is none."""
    try:
        body = json.loads(content) if isinstance(content, bytes) else content
        choice = body["choices"][0]
        message = choice.get("message") or {}
        text = choice["text"] if "text" in choice else message["content"]
        if not isinstance(text, str | None):
            raise TypeError("the content is not text")
        usage = body.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        return RawReply(
            text=text or "",
            finish_reason=choice.get("finish_reason") or "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(cached or 0),
            reasoning_tokens=int(reasoning or 0),
            refusal=str(message.get("refusal") or ""),
        )
    except MALFORMED as error:
        raise ReplyError(f"no completion in its reply, {type(error).__name__}") from None
