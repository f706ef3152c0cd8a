"""Serves recorded replies as a teacher: an OpenAI-compatible server on 127.0.0.1.

A lesson, a check or a test gets the same data every time, through the same client, parser
and filter as with a live teacher.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from alpaca_lib.errors import DataError
from alpaca_lib.records import read_text


def load_replies(path: Path) -> list[dict[str, Any]]:
    """Returns the replies of a .jsonl file: one chat completion per line, as the API sends it.

    Raises DataError, naming the line, if there are none or one is not a chat completion.
    """
    try:
        lines = read_text(path).split("\n")
    except DataError as error:
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
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: is not a chat completion ({error!r})"
            ) from None
        replies.append(reply)
    if not replies:
        raise DataError(f"{path}: holds no replies")
    return replies


@contextlib.contextmanager
def serve(replies: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields the address (http://127.0.0.1:port/v1) of a server that answers from the replies.

    A request's ``seed`` is the index of its reply; past the last one the answer is an error.
    ``stop`` cuts a reply as a live server does.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            try:
                status, body = answer(json.loads(self.rfile.read(size)), replies)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
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
            """Prints nothing: a server's log does not belong into a lesson's output."""

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


def answer(
    request: dict[str, Any], replies: Sequence[dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """Returns the (status, body) for one request, as serve() sends them."""
    number = int(request.get("seed") or 0)
    if not 0 <= number < len(replies):
        text = (
            f"request {number}: {len(replies)} replies are recorded, numbered from 0; "
            "ask for fewer tasks, or with the seed that they were recorded for"
        )
        return 400, _error(text, "replies_exhausted")
    stops = request.get("stop") or []
    reply = copy.deepcopy(replies[number])
    choice = reply["choices"][0]
    text = choice["message"]["content"]
    found = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
    if cuts := [at for at in found if at >= 0]:
        choice["message"]["content"] = text[: min(cuts)]
        choice["finish_reason"] = "stop"
    return 200, reply


def _error(text: str, code: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", "code": code}}
