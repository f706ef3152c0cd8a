"""The front door of llama.cpp's server: an OpenAI-compatible address with few endpoints.

llama.cpp itself listens on a random port of 127.0.0.1, below a path that nobody can guess. The
relay, behind ``http_guard.Guard``, passes on what answers need; the others (/props, /slots,
/lora-adapters, ...) show paths of this machine or change the server, and do not exist here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from alpaca_lib.http_guard import Message, Receive, Refusal, Send, refuse
from alpaca_lib.optional import require

OPEN = {
    "/health": "GET",
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/completion": "POST",  # llama.cpp's own: prompts as token ids, probabilities of tokens
    "/tokenize": "POST",
    "/apply-template": "POST",  # the text of a chat's prompt
}
MOST_PROBABILITIES = 1000  # per token; of a whole vocabulary they would fill the memory


class Relay:
    """An ASGI application that passes requests on to a llama.cpp server.

    inner: the server's address. prefix: the path below which the endpoints are.
    """

    def __init__(self, inner: str, prefix: str = "") -> None:
        self.inner = inner
        self.prefix = prefix
        self.httpx = require("httpx")
        self._client: Any = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request; llama.cpp stops to write when the client goes away."""
        body = (await receive()).get("body", b"")
        try:
            path = _check(scope["method"], scope["path"], self.prefix, body)
        except Refusal as error:
            await refuse(send, error.status, str(error))
            return
        passing = asyncio.ensure_future(self._pass_on(scope["method"], path, body, send))
        leaving = asyncio.ensure_future(_wait_until_gone(receive))
        await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not passing.done():
            passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)

    async def _pass_on(self, method: str, path: str, body: bytes, send: Send) -> None:
        """Sends a request to llama.cpp and its reply, piece by piece, to the client."""
        if self._client is None:
            limits = self.httpx.Limits(max_keepalive_connections=0)
            timeout = self.httpx.Timeout(None, connect=10)
            self._client = self.httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False)
        head = {"content-type": "application/json"}
        started = False
        try:
            url = self.inner + path
            async with self._client.stream(method, url, content=body, headers=head) as reply:
                kind = reply.headers.get("content-type", "application/json").encode("latin-1")
                heads = [(b"content-type", kind), (b"connection", b"close")]
                status = reply.status_code
                await send({"type": "http.response.start", "status": status, "headers": heads})
                started = True
                async for piece in reply.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except self.httpx.HTTPError as error:
            if not started:
                await refuse(send, 502, f"llama.cpp gave no reply ({type(error).__name__})")


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check(method: str, path: str, prefix: str, body: bytes) -> str:
    """Returns llama.cpp's path for a request. Raises Refusal for one that is not answered."""
    name = path.removeprefix(prefix) if path.startswith(prefix) else ""
    if name not in OPEN:
        known = ", ".join(OPEN) if not prefix else "those of the address that was given"
        raise Refusal(404, f"no such endpoint; there are {known}")
    if method != OPEN[name]:
        raise Refusal(405, f"{name} takes {OPEN[name]}")
    if method == "GET":
        return name
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not a JSON object")
    asked = [fields.get(key) for key in ("n_probs", "logprobs", "top_logprobs")]
    if not prefix and any(isinstance(n, int) and n > MOST_PROBABILITIES for n in asked):
        raise Refusal(400, f"at most {MOST_PROBABILITIES} log-probabilities per token")
    if name == "/v1/completions" and fields.get("echo"):
        raise Refusal(
            400,
            "echo is not supported: llama.cpp returns no log-probabilities of a prompt, and no "
            "prompt; leave it out, or score texts in PyTorch (alpaca compare)",
        )
    return name
