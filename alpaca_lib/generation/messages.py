"""A request as it is sent to a teacher, and the reply as it comes back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from alpaca_lib.errors import ReplyError
from alpaca_lib.generation.event_stream import EVENTS, read_events

# What decoded JSON of another shape than expected raises when it is taken apart.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
MOST_TOKENS = 10_000_000  # no model reads or writes more at once: a larger count is no count
BYTES_PER_TOKEN = 8  # more than any tokenizer reaches on average over a text
REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
_MESSAGES = ("message", "msg", "error_msg", "error_message")  # what servers call their words
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # UTF-8 cannot encode it
# A part of an error's code, and the HTTP status that it stands for.
STATUS_OF_CODE = {
    "rate_limit": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "quota": 402,
    "insufficient": 402,
    "billing": 402,
    "api_key": 401,
    "authentication": 401,
    "unauthorized": 401,
    "permission": 403,
    "forbidden": 403,
    "not_found": 404,
    "context_length": 400,
    "content_filter": 400,
    "content_policy": 400,
    "unsupported": 400,
    "unknown_parameter": 400,
    "invalid_request": 400,
    "bad_request": 400,
    "timeout": 408,
}


def least_tokens(text: str) -> int:
    """Returns a lower bound of the tokens of a text; a run of one character counts once."""
    runs_once = re.sub(r"(.)\1+", r"\1", text, flags=re.DOTALL)
    return math.ceil(len(runs_once.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


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
        limit += self.body.get("thinking_budget") or 0  # where the limit is of the answer alone
        shown = self.prompt + str(self.body.get("response_format", ""))
        return len(shown.encode("utf-8", "replace")) + 64, int(limit)


@dataclass(frozen=True)
class RawReply:
    """A reply as the teacher sent it; ``refusal`` is the text of a refusal, if it is one.

    Token counts are 0 where the server gave none, or none that can be true.
    usd: its cost in dollars, by the prices and the way of asking when it arrived.
    only_reasoning: the model's reasoning came back, and no answer.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    refusal: str = ""
    usd: float = 0.0
    only_reasoning: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> RawReply:
        """Returns the reply of a journal's line. Raises TypeError or ValueError if it is none."""
        reply = cls(**row)
        for field in fields(cls):
            value = getattr(reply, field.name)
            kind = type(field.default) if field.default is not MISSING else None
            kind = kind or (int if field.name.endswith("tokens") else str)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f"{field.name} is no {kind.__name__}")
        read_usd(reply.usd)
        return reply


def read_usd(value: Any) -> float:
    """Returns a number of dollars of a journal's line. Raises ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError(f"{value!r} is no number of dollars")
    return float(value)


@dataclass(frozen=True)
class ServerError:
    """An error as a server reports it. status: of HTTP, or the one that its code stands for."""

    status: int
    code: str
    message: str
    parameter: str = ""


class ErrorReply(ReplyError):
    """Reports an error object in a response whose HTTP status is 200."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.message)
        self.error = error


class PageReply(ReplyError):
    """Reports a web page in place of a completion."""


def parse_completion(
    content: bytes | Mapping[str, Any], redact: Callable[[str], str] = str
) -> RawReply:
    """Returns the RawReply in the body of a completion; ``redact`` removes secrets from its texts.

    Raises ErrorReply for an error object in its place, and ReplyError if there is neither.
    Token counts never make a reply fail: what cannot be a count is 0.
    """
    try:
        # int() refuses more than 4300 digits; such a number is no count, but no reason to fail.
        body = _decode(content) if isinstance(content, bytes) else content
        choices = body.get("choices") if isinstance(body, dict) else None
        if not choices and (error := read_error(body, redact=redact)):
            raise ErrorReply(error)
        choice = body["choices"][0]
        message = choice.get("message") or {}
        text, refusal = _read_content(choice["text"] if "text" in choice else message["content"])
        if not text and choice.get("error") and (error := read_error(choice, redact=redact)):
            raise ErrorReply(error)
    except ErrorReply:
        raise
    except MALFORMED as error:
        reason = _describe(content, error, redact)
        kind = PageReply if "a web page" in reason[:20] else ReplyError
        raise kind(f"no completion in its reply, {reason}") from None
    prompt, completion, cached, reasoning = _read_usage(body.get("usage"))
    thoughts = [message[name] for name in REASONING if message.get(name)]
    if thoughts and not reasoning:
        reasoning = _share_of_reasoning(thoughts[0], text, completion)
    reason = choice.get("finish_reason")
    has_reasoning = bool(reasoning or thoughts)
    return RawReply(
        text=redact(text),
        finish_reason=redact(_clean(reason)) if isinstance(reason, str) and reason else "unknown",
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        refusal=redact(refusal or _clean(message.get("refusal") or "")),
        only_reasoning=has_reasoning and not text.strip(),
    )


def _share_of_reasoning(thoughts: Any, text: str, completion: int) -> int:
    """Returns the reply's tokens that are reasoning, by bytes, where the server does not say."""
    shown = thoughts if isinstance(thoughts, str) else json.dumps(thoughts, ensure_ascii=False)
    thought, answer = (len(part.encode("utf-8", "replace")) for part in (shown, text))
    return round(completion * thought / (thought + answer))


def _decode(content: bytes) -> Any:
    if EVENTS.match(content):
        return read_events(content)
    return json.loads(content, parse_int=lambda digits: int(digits) if len(digits) < 20 else -1)


def _clean(text: object) -> str:
    return LONE_SURROGATE.sub("\ufffd", str(text))


def _read_content(content: Any) -> tuple[str, str]:
    """Returns the (text, refusal) of a message's content; parts with reasoning are left out."""
    if content is None or isinstance(content, str):
        return _clean(content or ""), ""
    texts, refusals = [], []
    for part in [content] if isinstance(content, dict) else content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type", "text") in ("text", "output_text"):
            if not isinstance(part["text"], str):
                raise TypeError("a part's text is not text")
            texts.append(part["text"])
        elif part["type"] == "refusal":
            refusals.append(str(part.get("refusal") or "refused"))
    return _clean("".join(texts)), _clean("\n".join(refusals))


def _read_usage(usage: Any) -> tuple[int, int, int, int]:
    """Returns (prompt, completion, cached, reasoning) tokens; 0 each for a usage that is none."""

    def count(table: Any, *path: str) -> int | None:
        for name in path:
            table = table.get(name) if isinstance(table, dict) else None
        try:
            number = float(table) if isinstance(table, str) else table
        except ValueError:
            return None
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None
        return math.ceil(number) if 0 <= number <= MOST_TOKENS else None

    prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    if prompt is None or completion is None:
        return 0, 0, 0, 0
    cached = count(usage, "prompt_tokens_details", "cached_tokens") or 0
    reasoning = count(usage, "completion_tokens_details", "reasoning_tokens")
    reasoning = reasoning or count(usage, "reasoning_tokens") or 0
    total = count(usage, "total_tokens") or 0
    if reasoning > completion or total == prompt + completion + reasoning:
        completion += reasoning  # some servers count the answer alone as completion
    return prompt, completion, cached if cached <= prompt else 0, reasoning


def read_error(
    body: Any, status: int = 0, redact: Callable[[str], str] = str
) -> ServerError | None:
    """Returns the error in a response's body or a part of it; None if there is none.

    status: of the HTTP response; 0: the one that the error's code stands for, 500 if unknown.
    Servers write {"error": {...}}, {"error": text}, a list of those, {"detail": ...},
    {"object": "error", "message": ...}, or with a status that is an error the message alone.
    """
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return None
    error = body.get("error") or body.get("errors") or body.get("detail")
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = error[0] if "message" in error[0] else error
    if not error and (status or body.get("object") == "error" or "choices" not in body):
        error = body if any(body.get(name) for name in _MESSAGES) else None
    if not error:
        return None
    table: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    codes = [table.get(name) for name in ("code", "status", "status_code", "type")]
    numbers = [int(c) for c in map(str, codes) if c.isdecimal() and 400 <= int(c[:9]) <= 599]
    words = " ".join(str(c) for c in codes if c) or str(table.get("message"))
    words = re.sub(r"[\s-]+", "_", words[:500].lower())
    if not status:
        known = (number for word, number in STATUS_OF_CODE.items() if word in words)
        status = next(iter(numbers), 0) or next(known, 500)
    message = next((table[name] for name in _MESSAGES if table.get(name)), error)
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    code = next((c for c in codes if isinstance(c, str) and c), "")
    parameter = table.get("param")
    return ServerError(
        status, code, shorten(redact(text)), parameter if isinstance(parameter, str) else ""
    )


def shorten(text: str, most: int = 2000) -> str:
    """Returns the start of a server's text as one printable line, without HTML's tags."""
    text = text[: 4 * most]
    if "<html" in text.lower() or "<!doctype" in text.lower():
        text = re.sub(r"<[^<>]*>", " ", text)
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())[:most]


def _describe(
    content: bytes | Mapping[str, Any], error: Exception, redact: Callable[[str], str]
) -> str:
    """Returns what came in place of a completion."""
    if not isinstance(content, bytes):
        return f"but other JSON ({type(error).__name__})"
    start = content.lstrip()[:1000]
    if not start:
        return "but an empty body"
    if start.startswith((b"data:", b"event:", b": ")):
        return "but a stream of events without a complete answer"
    if start.startswith(b"<"):
        page = redact(content[:100_000].decode("utf-8", "replace"))
        return f"but a web page: {shorten(page, 200)!r}"
    if isinstance(error, json.JSONDecodeError):
        return f"but invalid or cut JSON ({error.msg} at character {error.pos})"
    if isinstance(error, RecursionError):
        return "but JSON that is nested too deeply"
    return f"but other JSON ({type(error).__name__})"
