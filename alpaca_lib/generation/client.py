"""The openai client of a teacher: its time limits, and a limit on the size of a response."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from alpaca_lib.errors import ReplyError
from alpaca_lib.generation.messages import MALFORMED, ErrorReply, read_error
from alpaca_lib.generation.settings import Limits
from alpaca_lib.optional import require

ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")  # of a response


def open_client(
    address: str,
    key: str,
    timeout: float,
    limits: Limits,
    headers: dict[str, str],
    query: dict[str, str],
    redact: Callable[[str], str],
) -> Any:
    """Returns an openai.AsyncOpenAI that never retries and refuses responses that are too large.

    timeout: seconds without a byte, unless a request has its own. redact: removes secrets from
    a server's message.
    """
    openai, httpx = require("openai"), require("httpx2")
    http_client = None
    if limits.way != "batch":  # aiohttp repeats a lost GET by itself
        with contextlib.suppress(RuntimeError, ImportError, TypeError):
            # aiohttp takes half the processor time per request of the default transport.
            http_client = _limited(openai.DefaultAioHttpClient, limits.max_reply_bytes, redact)
    if http_client is None:
        http_client = _limited(openai.DefaultAsyncHttpxClient, limits.max_reply_bytes, redact)
    return openai.AsyncOpenAI(
        base_url=address,
        api_key=key,
        max_retries=0,  # retried by Connection, which knows the limits and the budget
        timeout=httpx.Timeout(timeout, connect=limits.connect_timeout, pool=None),
        default_headers={"Accept-Encoding": "gzip, deflate", **headers},
        default_query=query,
        http_client=http_client,
    )


def _limited(base: Any, most: int, redact: Callable[[str], str]) -> Any:
    """Returns an HTTP client of a class whose responses have at most ``most`` bytes, decoded."""

    class Limited(base):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            response = await super().send(request, stream=True, **options)
            if stream and response.is_success:
                return response
            response = await read_response(response, most)
            if response.is_success:
                refuse_error(response.content, redact)
            return response

    return Limited()


def refuse_error(content: bytes, redact: Callable[[str], str] = str) -> None:
    """Raises ErrorReply if a successful response holds an error object and no completion."""
    if b'"error"' not in content:
        return
    try:
        body = json.loads(content)
    except MALFORMED:
        return  # what parses the body will say so
    is_error = isinstance(body, dict) and (body.get("error") or body.get("object") == "error")
    if is_error and not body.get("choices") and (error := read_error(body, redact=redact)):
        raise ErrorReply(error)


async def read_response(response: Any, most: int) -> Any:
    """Returns a response with its body read and decoded.

    Raises ReplyError if that has more than ``most`` bytes: a few kilobytes of gzip can hold
    gigabytes.
    """
    try:
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in ENCODINGS:
            raise ReplyError(f"the encoding {encoding[:40]!r} of its body was not requested")
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > most:
                raise ReplyError(
                    f"its reply is larger than {most} bytes; a larger max_reply_bytes allows it"
                )
    finally:
        await response.aclose()
    dropped = ("content-encoding", "content-length", "transfer-encoding")
    headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in dropped]
    return require("httpx2").Response(
        response.status_code,
        headers=headers,
        content=bytes(data),
        request=response.request,
        extensions=response.extensions,
    )
