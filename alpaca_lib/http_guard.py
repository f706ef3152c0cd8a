"""Guards an HTTP server on this machine against web pages of other origins and slow clients.

A server on 127.0.0.1 is reachable by every page that the browser opens: by a request with
another origin, or with a name that resolves to 127.0.0.1 (DNS rebinding). ``Guard`` is an ASGI
middleware that refuses both, bodies that are too large, and clients that send or read too
slowly. The page of scripts/generate.py and the address of `alpaca serve` stand behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from alpaca_lib.errors import ModelError
from alpaca_lib.optional import require

MOST_SECONDS = 20.0  # for the header and body of a request, and until a client reads on
MOST_CONNECTIONS = 512  # at the same time; the system allows a process about 1024 files
DISCARDED = 1 << 26  # bytes of a refused body that are read, so that the client sees the answer
ALLOWS = "ALPACA_HOSTS=name in the server's environment allows a host name"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request that is answered with a status of HTTP and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Hosts:
    """The host names under which a server may be addressed.

    A server on 127.0.0.1 has the names of this machine's loopback. One that was opened to the
    network (0.0.0.0) has any IP address, which no name server can redirect, and the machine's
    names. ``trust`` allows further ones; so does ALPACA_HOSTS=name,name, for a proxy in front.
    """

    def __init__(self, bound: str = "127.0.0.1") -> None:
        self.names = {"localhost", "127.0.0.1", "::1", bound.strip("[]").lower()}
        self.any_address = bound in ("0.0.0.0", "::", "[::]")
        if self.any_address:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self.trusted = {h.strip().lower() for h in os.environ.get("ALPACA_HOSTS", "").split(",")}
        self.trusted.discard("")

    def trust(self, url: str) -> None:
        """Adds the host of a URL to those that are allowed, as are requests of its pages."""
        self.trusted |= {urlsplit(url).hostname or ""} - {""}

    def allow(self, host: str) -> bool:
        """Returns whether the value of a Host header is one of this server's."""
        name = _host_name(host)
        if name in self.names | self.trusted:
            return True
        try:
            return self.any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def allow_origin(self, origin: str, host: str) -> bool:
        """Returns whether a page of an origin may send requests: one of this server's own."""
        scheme, _, there = origin.lower().partition("://")
        default = {"http": ":80", "https": ":443"}.get(scheme, "")
        same = there.removesuffix(default) == host.lower().removesuffix(default)
        return bool(default) and (same or _host_name(there) in self.trusted)


def _host_name(host: str) -> str:
    """Returns the name of "name:port" in lower case; empty if it is malformed."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:/@\[\]\s]+)(:\d{1,5})?", host.lower())
    return found[1].strip("[]").removesuffix(".") if found else ""


class Guard:
    """An ASGI application in front of another one, which sees only requests that are in order.

    hosts: the names under which the server may be addressed.
    most_bytes: of a body. closed: a pattern; paths that match it in full are not found.
    """

    def __init__(self, app: App, hosts: Hosts, most_bytes: int, closed: str = r"(?!)") -> None:
        self.app = app
        self.hosts = hosts
        self.most_bytes = most_bytes
        self.closed = re.compile(closed)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
            body = await self._read(scope, receive)
        except Refusal as error:
            await refuse(send, error.status, str(error))
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await receive()

        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(MOST_SECONDS):
                await send(message)

        with contextlib.suppress(TimeoutError):  # the client no longer reads
            await self.app(scope, receive_again, send_soon)

    def _check(self, scope: Message) -> None:
        """Raises Refusal for a request that a page of another origin sends, or a closed path."""
        heads = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in heads if name == b"host"]
        host = hosts[0] if len(hosts) == 1 else ""
        if not self.hosts.allow(host):
            raise Refusal(403, f"this server is not addressed as {host[:100]!r}; {ALLOWS}")
        for name, value in heads:
            if name == b"origin" and not self.hosts.allow_origin(value, host):
                raise Refusal(
                    403, f"requests of pages of {value[:100]!r} are refused; {ALLOWS} (a proxy's)"
                )
        if self.closed.fullmatch(scope["path"]):
            raise Refusal(404, "not found")

    async def _read(self, scope: Message, receive: Receive) -> bytes:
        """Returns the body. Raises Refusal if it is too large, or does not come in time."""
        size, pieces = 0, []
        try:
            async with asyncio.timeout(MOST_SECONDS):
                while size <= DISCARDED:
                    message = await receive()
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size <= self.most_bytes:
                        pieces.append(piece)
                    else:
                        pieces.clear()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the body was cut off")
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {MOST_SECONDS:.0f} seconds") from None
        if size > self.most_bytes:
            raise Refusal(413, f"the body is too large: at most {self.most_bytes:,} bytes")
        return b"".join(pieces)


async def refuse(send: Send, status: int, text: str) -> None:
    """Sends an error in the form of OpenAI's, and closes the connection."""
    error = {"message": text, "type": "invalid_request_error", "code": status}
    head = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


@contextlib.contextmanager
def open_port(host: str, port: int) -> Iterator[socket.socket]:
    """Yields a listening socket. Raises ModelError if the port cannot be used."""
    if not 0 <= port < 65536:
        raise ModelError(f"port {port}: from 1 to 65535, or 0 for any that is free")
    name = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((name, port))
            listener.listen(256)
        except OSError as error:
            raise ModelError(
                f"port {port} on {host} cannot be used ({error.strerror or error}); "
                "another program may have it: take another one, or 0 for any that is free"
            ) from None
        yield listener


@contextlib.contextmanager
def run(app: App, listener: socket.socket) -> Iterator[None]:
    """Serves an ASGI application on a socket, in a thread, until the block ends."""
    uvicorn = require("uvicorn")
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Closes connections that send no request or do not read, and those above the limit.

        An abort, since a close waits for the client to read what is buffered.
        """

        writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > MOST_CONNECTIONS:
                transport.abort()
            self.loop.call_later(MOST_SECONDS, self._close_if_silent)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.writing = self.loop.call_later(MOST_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.writing:
                self.writing.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.writing:
                self.writing.cancel()

        def _close_if_silent(self) -> None:
            if self.cycle is None:
                self.transport.abort()

    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
