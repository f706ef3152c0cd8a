"""Classifies a failed request by what to do next.

Stop, wait and try again, or try again without a parameter: every error of the openai client,
and every response that is no completion, is of one kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from alpaca_lib.errors import ReplyError
from alpaca_lib.generation.backoff import retry_after
from alpaca_lib.generation.messages import (
    MALFORMED,
    ErrorReply,
    PageReply,
    ServerError,
    read_error,
    shorten,
)
from alpaca_lib.optional import require

# What a request cannot do without.
REQUIRED = ("model", "messages", "prompt", "grammar", "stream")
REASONING_PARAMETERS = (
    "reasoning_effort",
    "reasoning",
    "thinking",
    "enable_thinking",
    "thinking_budget",
    "chat_template_kwargs",
)
PROSE = ("reasoning", "thinking")  # also words of a sentence about another parameter
REFUSED_PARAMETER = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
REFUSAL_TEXTS = (
    "unsupported",
    "not supported",
    "not support ",
    "unrecognized",
    "extra inputs",
    "unavailable",
    "not permitted",
    "not allowed",
    "unknown",
)
# Said of a value: a reasoning effort or a format that a server does not have.
VALUE_TEXTS = ("must be one of", "input should be", "supported values", "invalid value")
STREAM_ONLY = re.compile(
    r"non-stream|only\b.{0,30}\bstream|\bstream\w*\b.{0,30}\b(required|true|only)\b"
    r"|\b(enable|requires?)\b.{0,30}\bstream",
    re.IGNORECASE,
)
UNREACHABLE = "cannot be reached"
_CHECK = "check the address (OPENAI_BASE_URL)"


@dataclass(frozen=True)
class Failure:
    """One failed attempt.

    kind: "fatal", "rate", "busy", "late" (no answer in time), "lost" (no answer came back),
    "garbled", "parameter" or "filtered".
    """

    kind: str
    text: str
    wait: float | None = None  # seconds that the server asks to wait
    parameter: str = ""  # the one that the server rejects
    maybe_paid: bool = False  # the server may have done the work
    words: str = ""  # the server's own about a parameter
    is_page: bool = False  # a web page came back: a login, a proxy, another service


def classify_failure(
    error: Exception,
    address: str,
    model: str,
    redact: Callable[[str], str] = str,
    sent: Collection[str] = (),
    key_name: str = "OPENAI_API_KEY",
    start: str = "",
) -> Failure:
    """Returns the Failure behind an exception of one attempt; re-raises any other exception.

    redact: removes secrets from the server's words, before they are shortened. sent: the
    parameters of the request. key_name: the environment variable of the key. start: the command
    that starts the server, if it is the user's own.
    """
    openai = require("openai")

    def classify(found: ServerError, wait: float | None) -> Failure:
        return _classify_error(found, wait, address, model, sent, key_name)

    cause = ""
    if isinstance(error, openai.APIConnectionError):
        cause = _causes(error)
    if isinstance(error, TimeoutError) or cause == "Timeout":
        text = f"{address}: no answer in time, after several tries; resume later"
        return Failure("late", f"{text}, or raise idle_timeout", maybe_paid=True)
    if isinstance(error, ErrorReply):
        # Within status 200 only a refusal is certain not to have been paid for.
        failure = classify(error.error, None)
        return replace(failure, maybe_paid=failure.kind == "busy")
    # The openai client does not wrap aiohttp's errors about a response that is not HTTP.
    if isinstance(error, ReplyError) or type(error).__module__.startswith("aiohttp"):
        return Failure(
            "garbled",
            f"{address}: {error}; perhaps what answers there is no OpenAI-compatible server: the "
            "address usually ends in /v1 (OPENAI_BASE_URL)",
            maybe_paid=True,
            is_page=isinstance(error, PageReply),
        )
    if isinstance(error, openai.APIStatusError):
        response = error.response
        found = _read_response(response, redact)
        return classify(found, retry_after(response.headers))
    if isinstance(error, openai.APIConnectionError):
        text = f"{address}: {UNREACHABLE}; {_CHECK}"
        if start:
            text = f"{address}: {UNREACHABLE}; start the server with `{start}`, or {_CHECK}"
        return Failure("lost", text, maybe_paid=cause != "Connector")
    if isinstance(error, openai.OpenAIError):
        return Failure("fatal", f"{address}: {type(error).__name__}: {error}")
    raise error


def _causes(error: BaseException) -> str:
    """Returns why a connection was lost: "Timeout", "Connector" (nothing was sent) or "Dropped".

    The transports name the same event differently, and aiohttp's reports every loss as a
    connection timeout, so the first exception of the chain decides.
    """
    chain: list[str] = []
    at: BaseException | None = error
    while at is not None and len(chain) < 10:
        chain.append(type(at).__name__)
        at = at.__cause__ or at.__context__
    aiohttp = ("Client", "Server", "Socket", "ConnectionTimeoutError")
    first = next((n for n in reversed(chain) if n.startswith(aiohttp)), "")
    if first in ("ServerTimeoutError", "SocketTimeoutError"):
        return "Timeout"
    if first:
        return "Connector" if first.startswith("Connection") or "Connector" in first else "Dropped"
    unsent = ("ConnectError", "ConnectTimeout", "ConnectionRefusedError")
    if any(name in unsent for name in chain):
        return "Connector"
    waited = ("ReadTimeout", "WriteTimeout", "TimeoutError")
    return "Timeout" if any(name in waited for name in chain) else "Dropped"


def _read_response(response: Any, redact: Callable[[str], str]) -> ServerError:
    """Returns the error in a response whose status says that it is one."""
    try:
        found = read_error(json.loads(response.content), response.status_code, redact)
    except MALFORMED:
        found = None
    if found is None:
        found = ServerError(response.status_code, "", shorten(redact(response.text)))
    return found


def _classify_error(
    error: ServerError,
    wait: float | None,
    address: str,
    model: str,
    sent: Collection[str],
    key_name: str,
) -> Failure:
    code, status = error.code, error.status
    words = f" (it says: {error.message})" if error.message else ""
    if code == "insufficient_quota" or status == 402:
        text = f"{address}: no credit left on this key; add some, then resume"
        return Failure("fatal", text + words)
    if status in (401, 403):
        text = f"{address}: the key in {key_name} is refused; set a valid one"
        return Failure("fatal", text + words)
    if status == 404:
        text = f"{address}: no model {model!r} there; set another model name, or {_CHECK}, which "
        text += "usually ends in /v1"
        return Failure("fatal", text + words)
    if code in ("content_filter", "content_policy_violation"):
        return Failure("filtered", error.message)
    if status in (400, 422) and (name := _refused_parameter(error, sent)):
        if name == "service_tier":  # without it a reply would cost twice as much
            text = f'{address}: does not offer flex for {model!r}; way "online" works'
            return Failure("fatal", text + words)
        text = f"{address}: {error.message}"
        return Failure("parameter", text, parameter=name, words=error.message)
    if code == "context_length_exceeded":
        text = f"{address}: the prompt is too long for {model!r}; show fewer or shorter seeds"
        return Failure("fatal", text + words)
    if status == 429:
        text = f"{address}: too many requests, after several tries; lower concurrency"
        return Failure("rate", text + words, wait=wait)
    if status in (408, 409) or status >= 500:
        text = f"{address}: error {status}, after several tries: {error.message}"
        return Failure("busy", text, wait=wait)
    return Failure("fatal", f"{address}: error {status}: {error.message}")


def _refused_parameter(error: ServerError, sent: Iterable[str]) -> str:
    """Returns the parameter that a 400 is about, if the request can do without it.

    Servers name it as a field, or in the message alone: then the first one there is meant, and
    a name that is an ordinary word too only if there is no other one.
    """
    message = error.message.lower()
    optional = [name for name in sent if name not in REQUIRED]
    named = re.split(r"[.\[]", error.parameter, maxsplit=1)[0]
    if error.code in REFUSED_PARAMETER and named:
        return named if named in optional else ""
    if STREAM_ONLY.search(message):
        return "stream"
    found = []
    for name in optional:
        if place := re.search(rf"(?<!\w){name}(?!\w)", message):
            is_prose = name in PROSE and not re.search(rf"[`'\"]{name}[`'\"]", message)
            found.append((is_prose, place.start(), name))
    name = named if named in optional else min(found, default=(False, 0, ""))[2]
    texts = list(REFUSAL_TEXTS)
    if name in (*REASONING_PARAMETERS, "response_format"):
        texts += VALUE_TEXTS
    is_refusal = error.code in REFUSED_PARAMETER or any(text in message for text in texts)
    return name if is_refusal else ""
