"""A fake server that speaks the OpenAI protocol, and seed tasks to ask it with."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alpaca_lib.generation import backoff
from alpaca_lib.records import Example

KEY = "secret-123"


class FakeOpenAI:
    """Answers /v1/chat/completions with what ``respond`` says; remembers every request.

    ``models``: the rows that GET /v1/models lists; None: there is no such page.

    ``respond(body)`` returns a text (a good reply), (status, headers, content), or None: the
    connection is reset.
    """

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[dict] | None = None
        self.delay = lambda body: 0.0
        self.respond = lambda body: (500, {}, {"error": {"message": "not set up"}})
        fake, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    fake.requests.append(body)
                    fake.headers.append({k.lower(): v for k, v in self.headers.items()})
                time.sleep(fake.delay(body))
                answer = fake.respond(body)
                if isinstance(answer, str):
                    answer = (200, {}, chat(answer))
                if answer is None:
                    linger = struct.pack("ii", 1, 0)  # RST, not FIN
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, content = answer
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    kind = {"Content-Type": "application/json", "Content-Length": len(data)}
                    for name, value in {**kind, **headers}.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    self.wfile.write(data)
                    if "Content-Length" in headers:  # a false one: the body is cut
                        self.close_connection = True
                except OSError:  # the client is gone
                    self.close_connection = True

            def do_GET(self):
                listed = self.path.endswith("/models") and fake.models is not None
                data = json.dumps({"object": "list", "data": fake.models}).encode()
                self.send_response(200 if listed else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Closes the port."""
        self.server.shutdown()
        self.server.server_close()


def chat(text: str | None, finish_reason: str = "stop") -> dict:
    """A chat completion as OpenAI sends it."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }


@pytest.fixture
def fake(monkeypatch):
    """A running FakeOpenAI that the environment points to, with the key secret-123."""
    server = FakeOpenAI()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.01)  # retried as often, sooner
    monkeypatch.setattr(backoff, "LONGEST_WAIT", 0.05)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def make_chat():
    """The function that makes a chat completion."""
    return chat


@pytest.fixture(scope="session")
def seeds():
    """Eight seed tasks that share few words."""
    texts = [
        "Explain why the sea is salty.",
        "Translate the sentence into French.",
        "Compose a rhyme about winter mornings.",
        "Sort these animals by their weight.",
        "Give three tips against noisy neighbours.",
        "Which planet has the most moons?",
        "Summarize the paragraph for children.",
        "Find the mistake in this recipe.",
    ]
    return [
        Example(text, "" if n % 2 else f"material {n}", f"Answer {n}.")
        for n, text in enumerate(texts)
    ]
