"""Recorded replies as a teacher: an OpenAI-compatible server on 127.0.0.1.

The same replies every time, so that a lesson, a check or a test gives the same
data every time, through the same client, parser and filter as a live teacher.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError


def load_replies(path: Path) -> list[dict[str, Any]]:
    """The replies of a .jsonl file: one chat completion a line, as the API sends it."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no readable file of recorded replies ({error})") from None
    replies = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            reply = json.loads(line)
            choice = reply["choices"][0]
            if not isinstance(choice["message"]["content"], str) or "usage" not in reply:
                raise KeyError("content or usage")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: is not a chat completion ({error!r})"
            ) from None
        replies.append(reply)
    if not replies:
        raise DataError(f"{path}: holds no replies")
    return replies


@contextlib.contextmanager
def serve(replies: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The address (http://127.0.0.1:port/v1) of a server that answers from the replies.

    A request's ``seed`` says which reply it gets, counted from 0; past the last one
    the answer is an error. ``stop`` cuts a reply as a live server does.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            try:
                asked = json.loads(self.rfile.read(size))
                status, body = answer(asked, replies)
            except (ValueError, TypeError, AttributeError) as error:
                status, body = 400, _error(f"not a request ({error})", "invalid_request")
            if self.path != "/v1/chat/completions":
                status, body = 404, _error(f"nothing at {self.path}", "not_found")
            self._send(status, body)

        def do_GET(self) -> None:
            model = {"id": replies[0].get("model", "replay"), "object": "model"}
            if self.path == "/v1/models":
                self._send(200, {"object": "list", "data": [model]})
            else:
                self._send(404, _error(f"nothing at {self.path}", "not_found"))

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *values: object) -> None:
            """Says nothing: the lesson's output is not a server's log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(asked: dict[str, Any], replies: Sequence[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """(status, body) for one request, as serve() sends them."""
    number = int(asked.get("seed") or 0)
    if not 0 <= number < len(replies):
        text = (
            f"request {number}: {len(replies)} replies are recorded, numbered from 0; "
            "ask for fewer tasks, or with the seed that they were recorded for"
        )
        return 400, _error(text, "replies_exhausted")
    stops = asked.get("stop") or []
    reply = json.loads(json.dumps(replies[number]))
    choice = reply["choices"][0]
    text = choice["message"]["content"]
    cuts = [
        at
        for stop in ([stops] if isinstance(stops, str) else stops)
        if (at := text.find(stop)) >= 0
    ]
    if cuts:
        choice["message"]["content"] = text[: min(cuts)]
        choice["finish_reason"] = "stop"
    return 200, reply


def _error(text: str, code: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", "code": code}}
