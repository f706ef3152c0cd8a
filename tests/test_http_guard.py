"""The guard of the servers: foreign hosts and origins, large bodies, slow clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from alpaca_lib import http_guard
from alpaca_lib.errors import ModelError
from alpaca_lib.models import relay

pytest.importorskip("uvicorn")
LOCAL = ["localhost", "127.0.0.1", "[::1]", "LOCALHOST.", "localhost:1"]
FOREIGN = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1:80@evil.example",
    "192.168.1.7",
    "0.0.0.0",
    "::1",
    "local host",
    "",
]


@pytest.mark.parametrize("host", LOCAL)
def test_a_local_server_has_the_names_of_the_loopback(host):
    assert http_guard.Hosts("127.0.0.1").allow(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_any_other_host_is_foreign(host):
    assert not http_guard.Hosts("127.0.0.1").allow(host)


def test_a_server_that_is_open_to_the_network_has_addresses_and_its_own_names(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")
    hosts = http_guard.Hosts("0.0.0.0")
    assert all(map(hosts.allow, ["192.168.1.7:8080", "[fe80::1]:80", "desk", "localhost"]))
    assert not hosts.allow("evil.example") and not hosts.allow("desk.evil.example")
    assert not hosts.allow_origin("http://192.168.1.8", "192.168.1.7")


@pytest.mark.parametrize(
    ("origin", "host", "fine"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://localhost", "localhost:80", True),
        ("https://LOCALHOST", "localhost:443", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://localhost", "localhost:8080", False),
        ("http://evil.example", "localhost:8080", False),
        ("null", "localhost:8080", False),
        ("file://", "localhost", False),
        ("chrome-extension://abc", "localhost", False),
        ("", "localhost", False),
    ],
)
def test_an_origin_is_the_servers_own(origin, host, fine):
    assert http_guard.Hosts().allow_origin(origin, host) is fine


def test_names_that_the_user_trusts(monkeypatch):
    monkeypatch.setenv("ALPACA_HOSTS", "hub.example, Other.example")
    hosts = http_guard.Hosts()
    hosts.trust("https://abc.gradio.live/")
    hosts.trust("")
    for name in ("hub.example:443", "other.example", "abc.gradio.live"):
        assert hosts.allow(name)
    assert hosts.allow_origin("https://hub.example", "localhost:7860")
    assert not hosts.allow("gradio.live") and not hosts.allow("")


async def echo(scope, receive, send):
    """Answers with the size of the body."""
    size = len((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
def port():
    """The port of a guarded server that takes 1000 bytes, and nothing below /files."""
    guard = http_guard.Guard(echo, http_guard.Hosts(), 1000, closed=r"/files.*")
    with http_guard.open_port("127.0.0.1", 0) as listener, http_guard.run(guard, listener):
        yield listener.getsockname()[1]


def ask(port, path="/", body=None, method="POST", **heads):
    """(status, text) of a request."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.request(method, path, body, heads)
    reply = client.getresponse()
    text = reply.read().decode()
    assert not [name for name, _ in reply.getheaders() if name.lower().startswith("access-")]
    client.close()
    return reply.status, text


def test_what_reaches_the_application_and_what_does_not(port):
    assert ask(port, body=b"x" * 1000) == (200, "1000")
    assert ask(port, body=b"x" * 1001)[0] == 413
    assert ask(port, body=b"x" * 50_000_000)[0] == 413
    assert ask(port, body=iter([b"x" * 600] * 2))[0] == 413  # chunked: without a length
    assert ask(port, Host="evil.example")[0] == 403
    status, text = ask(port, Origin="http://evil.example")
    error = json.loads(text)["error"]
    assert status == error["code"] == 403
    assert "requests of pages of 'http://evil.example' are refused; ALPACA_HOSTS" in text
    assert ask(port, Origin=f"http://127.0.0.1:{port}") == (200, "0")
    assert ask(port, method="OPTIONS", Origin="http://evil.example")[0] == 403
    for path in ("/files", "/files=etc/passwd", "/%66iles/x"):
        assert ask(port, path)[0] == 404


def test_slow_clients_are_closed_and_block_nobody(port, monkeypatch):
    monkeypatch.setattr(http_guard, "MOST_SECONDS", 1.0)
    starts = [
        b"GET / HTTP/1.1\r\nHost: ",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
    ]
    slow = []
    for number in range(64):
        slow.append(socket.create_connection(("127.0.0.1", port)))
        slow[-1].sendall(starts[number % 2])
    assert ask(port) == (200, "0")

    def drip(client):
        """Sends a byte now and then; returns after how many seconds the server closed."""
        begin = time.monotonic()
        client.settimeout(0.05)
        while time.monotonic() - begin < 20:
            try:
                client.sendall(b"x")
                if client.recv(4096) == b"":
                    break
            except TimeoutError:
                time.sleep(0.2)
            except OSError:
                break
        client.close()
        return time.monotonic() - begin

    with ThreadPoolExecutor(64) as pool:
        assert max(pool.map(drip, slow)) < 15


async def stream(scope, receive, send):
    """Answers with a reply that fits into no buffer; "/" is a short one."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(0 if scope["path"] == "/" else 1000):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


def test_clients_that_do_not_read_are_closed_and_make_room(monkeypatch):
    monkeypatch.setattr(http_guard, "MOST_SECONDS", 1.0)
    monkeypatch.setattr(http_guard, "MOST_CONNECTIONS", 16)
    guard = http_guard.Guard(stream, http_guard.Hosts(), 1000)
    with http_guard.open_port("127.0.0.1", 0) as listener, http_guard.run(guard, listener):
        address = listener.getsockname()
        unread = [socket.create_connection(address) for _ in range(16)]
        for client in unread:
            client.sendall(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 20
        answer = None
        while not answer and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = ask(address[1])
            time.sleep(0.2)
        assert answer == (200, "end")
        assert len(ask(address[1], "/long")[1]) == 100_000_003  # who reads gets everything
        for client in unread:
            client.close()


def test_connections_above_the_limit_are_closed(port, monkeypatch):
    monkeypatch.setattr(http_guard, "MOST_CONNECTIONS", 4)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
    for client in idle:
        client.settimeout(1)

    def is_closed(client):
        try:
            return client.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(is_closed, idle)) == 8
    for client in idle:
        client.close()


@pytest.mark.parametrize("port_number", [-1, 65536])
def test_a_port_that_no_server_can_have(port_number):
    with (
        pytest.raises(ModelError, match="from 1 to 65535"),
        http_guard.open_port("127.0.0.1", port_number),
    ):
        pass


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/props", b"", 404, "there are /health, /v1/models"),
        ("POST", "/lora-adapters", b"[]", 404, "no such endpoint"),
        ("GET", "/slots", b"", 404, "no such endpoint"),
        ("GET", "/v1/models/../../props", b"", 404, "no such endpoint"),
        ("GET", "/v1/completions", b"", 405, "takes POST"),
        ("POST", "/v1/completions", b"[]", 400, "not a JSON object"),
        ("POST", "/v1/completions", b"[" * 100_000, 400, "not JSON"),
        ("POST", "/v1/completions", b"\xff", 400, "not JSON"),
        ("POST", "/v1/completions", b'{"echo": true, "logprobs": 1}', 400, "echo is not supported"),
    ],
)
def test_what_the_relay_refuses(method, path, body, status, says):
    with pytest.raises(http_guard.Refusal, match=says) as caught:
        relay._check(method, path, "", body)
    assert caught.value.status == status


def test_what_the_relay_passes_on():
    assert relay._check("POST", "/v1/completions", "", b'{"echo": false}') == "/v1/completions"
    assert relay._check("GET", "/abc/health", "/abc", b"") == "/health"
    for path in ("/health", "/abd/health", "/abc", "/abc/abc/health"):
        with pytest.raises(http_guard.Refusal, match="no such endpoint"):
            relay._check("GET", path, "/abc", b"")
