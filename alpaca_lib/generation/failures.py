"""Classifies a failed request by what to do next.

Stop, wait and try again, or try again without a parameter: every error of the openai client,
and every response that is no completion, is of one kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import ReplyError
from alpaca_lib.generation.backoff import retry_after
from alpaca_lib.optional import require

# Parameters that a request can do without.
DROPPABLE = (
    "reasoning_effort",
    "temperature",
    "top_p",
    "seed",
    "response_format",
    "service_tier",
    "max_completion_tokens",
)
REFUSED_PARAMETER = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
REFUSAL_TEXTS = ("unsupported", "not supported", "unrecognized", "extra inputs")


@dataclass(frozen=True)
class Failure:
    """One failed attempt.

    kind: "fatal", "rate", "busy", "lost" (no answer came back), "garbled",
    "parameter" or "filtered".
    """

    kind: str
    text: str
    wait: float | None = None  # seconds that the server asks to wait
    parameter: str = ""  # the one that the server rejects
    maybe_paid: bool = False  # the server may have done the work


def classify_failure(error: Exception, address: str, model: str) -> Failure:
    """Returns the Failure behind an exception of one attempt; re-raises any other exception."""
    openai = require("openai")
    if isinstance(error, TimeoutError) or (
        isinstance(error, openai.APIConnectionError) and "Timeout" in _causes(error)
    ):
        text = f"{address}: no answer in time, after several tries; resume later"
        return Failure("lost", text, maybe_paid=True)
    # The openai client does not wrap aiohttp's errors about a response that is not HTTP.
    if isinstance(error, ReplyError) or type(error).__module__.startswith("aiohttp"):
        return Failure(
            "garbled",
            f"{address}: what answers there is no OpenAI-compatible server ({error}); the address "
            "usually ends in /v1 (OPENAI_BASE_URL)",
            maybe_paid=True,
        )
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error, address, model)
    if isinstance(error, openai.APIConnectionError):
        text = f"{address}: cannot be reached; check the address (OPENAI_BASE_URL)"
        return Failure("lost", text, maybe_paid="Connector" not in _causes(error))
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
    first = next((n for n in reversed(chain) if n.startswith(("Client", "Server", "Socket"))), "")
    if first in ("ServerTimeoutError", "SocketTimeoutError", "ConnectionTimeoutError"):
        return "Timeout"
    if first:
        return "Connector" if "Connector" in first else "Dropped"
    if any(name in ("ReadTimeout", "WriteTimeout", "TimeoutError") for name in chain):
        return "Timeout"
    unsent = ("ConnectError", "ConnectTimeout", "ConnectionRefusedError")
    return "Connector" if any(name in unsent for name in chain) else "Dropped"


def _classify_status(error: Any, address: str, model: str) -> Failure:
    code, status = error.code or "", error.status_code
    message = _message(error)
    if code == "insufficient_quota":
        text = f"{address}: no credit left on this key; add some, then resume"
        return Failure("fatal", text)
    if status in (401, 403):
        return Failure("fatal", f"{address}: the key in OPENAI_API_KEY is refused; set a valid one")
    if status == 404:
        return Failure("fatal", f"{address}: no model {model!r} there; set another model name")
    if code in ("content_filter", "content_policy_violation"):
        return Failure("filtered", message)
    if status in (400, 422) and (name := _refused_parameter(error)):
        return Failure("parameter", f"{address}: {message}", parameter=name)
    if code == "context_length_exceeded":
        text = f"{address}: the prompt is too long for {model!r}; show fewer or shorter seeds"
        return Failure("fatal", f"{text} ({message})")
    if status == 429:
        text = f"{address}: too many requests, after several tries; lower concurrency"
        return Failure("rate", text, wait=retry_after(error.response.headers))
    if status in (408, 409) or status >= 500:
        text = f"{address}: {type(error).__name__}, after several tries: {message}"
        return Failure("busy", text, wait=retry_after(error.response.headers))
    return Failure("fatal", f"{address}: {type(error).__name__}: {message}")


def _message(error: Any) -> str:
    """Returns the server's message; not every server puts it into error.message."""
    body = error.body
    plain = isinstance(body, dict) and isinstance(body.get("message"), str)
    return str(error) if plain else f"{error} {error.response.text}"


def _refused_parameter(error: Any) -> str:
    """Returns the parameter that a 400 is about, if the request can do without it."""
    named = [name for name in DROPPABLE if name == error.param]
    if error.code not in REFUSED_PARAMETER:  # other servers say it in the message alone
        message = _message(error).lower()
        if not any(text in message for text in REFUSAL_TEXTS):
            return ""
        named += [name for name in DROPPABLE if name in message]
    return next(iter(named), "")
