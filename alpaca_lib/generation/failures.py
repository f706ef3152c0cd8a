"""What went wrong with a request, in the terms that decide what happens next.

Stop at once, wait and try again, or try again without a parameter: every error of
the openai client, and every reply that is none, falls into one kind.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import ReplyError

# What a server may refuse without the request losing its sense.
DROPPABLE = (
    *("reasoning_effort", "temperature", "top_p", "seed", "response_format"),
    *("service_tier", "max_completion_tokens"),
)
LONGEST_WAIT = 300.0  # seconds of Retry-After that are believed


@dataclass(frozen=True)
class Failure:
    """One failed attempt.

    kind: "fatal", "rate", "busy", "lost" (no answer came back), "garbled",
    "parameter" or "filtered". maybe_paid: the server may have done the work.
    """

    kind: str
    text: str
    wait: float | None = None
    parameter: str = ""
    maybe_paid: bool = False


def failure_of(error: Exception, openai: Any, address: str, model: str) -> Failure:
    """The Failure behind an exception of one attempt; raises what is none."""
    if isinstance(error, TimeoutError) or (
        isinstance(error, openai.APIConnectionError) and "Timeout" in _causes(error)
    ):
        text = f"{address}: no answer in time, after several tries; resume later"
        return Failure("lost", text, maybe_paid=True)
    # What is no HTTP at all comes out of aiohttp as it is.
    if isinstance(error, ReplyError) or type(error).__module__.startswith("aiohttp"):
        return Failure(
            "garbled",
            f"{address}: what answers there is no OpenAI-compatible server ({error}); the address "
            "usually ends in /v1 (OPENAI_BASE_URL)",
            maybe_paid=True,
        )
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, openai, address, model)
    if isinstance(error, openai.APIConnectionError):
        text = f"{address}: cannot be reached; check the address (OPENAI_BASE_URL)"
        return Failure("lost", text, maybe_paid="Connector" not in _causes(error))
    if isinstance(error, openai.OpenAIError):
        return Failure("fatal", f"{address}: {type(error).__name__}: {error}")
    raise error  # not the server's fault


def _causes(error: BaseException) -> str:
    """Of a lost connection: "Timeout", "Connector" (nothing was sent) or "Dropped".

    The transports name the same thing differently, and aiohttp's calls any loss a timeout to
    connect; the first exception of the chain tells.
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


def _of_status(error: Any, openai: Any, address: str, model: str) -> Failure:
    code, status = error.code or "", error.status_code
    said = _said(error)
    if code == "insufficient_quota":
        text = f"{address}: no credit left on this key; add some, then resume"
        return Failure("fatal", text)
    if status in (401, 403):
        return Failure("fatal", f"{address}: the key in OPENAI_API_KEY is refused; set a valid one")
    if status == 404:
        return Failure("fatal", f"{address}: no model {model!r} there; set another model name")
    if code in ("content_filter", "content_policy_violation"):
        return Failure("filtered", said)
    if status in (400, 422) and (name := _refused_parameter(error)):
        return Failure("parameter", f"{address}: {said}", parameter=name)
    if code == "context_length_exceeded":
        text = f"{address}: the prompt is too long for {model!r}; show fewer or shorter seeds"
        return Failure("fatal", f"{text} ({said})")
    if status == 429:
        text = f"{address}: too many requests, after several tries; lower concurrency"
        return Failure("rate", text, wait=retry_after(error.response.headers))
    if status in (408, 409) or status >= 500:
        text = f"{address}: {type(error).__name__}, after several tries: {said}"
        return Failure("busy", text, wait=retry_after(error.response.headers))
    return Failure("fatal", f"{address}: {type(error).__name__}: {said}")


def _said(error: Any) -> str:
    """What the server says went wrong; not only OpenAI puts it into error.message."""
    body = error.body
    plain = isinstance(body, dict) and isinstance(body.get("message"), str)
    return str(error) if plain else f"{error} {error.response.text}"


def _refused_parameter(error: Any) -> str:
    """The parameter that a 400 is about, if the request can do without it."""
    named = [name for name in DROPPABLE if name == error.param]
    if error.code in ("unsupported_parameter", "unsupported_value", "unknown_parameter"):
        return next(iter(named), "")
    # Other servers say it in words alone.
    said = _said(error).lower()
    if any(w in said for w in ("unsupported", "not supported", "unrecognized", "extra inputs")):
        named += [name for name in DROPPABLE if name in said]
    else:
        named = []
    return next(iter(named), "")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, from its headers; None if it does not."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            parsed = email.utils.parsedate_tz(value)
            if parsed is None:
                continue
            try:
                seconds = email.utils.mktime_tz(parsed) - time.time()
            except (ValueError, OverflowError):
                continue
        if 0 <= seconds <= LONGEST_WAIT:
            return seconds
    return None
