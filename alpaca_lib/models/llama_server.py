"""llama.cpp as an OpenAI-compatible server in this process, for the teacher and for inference.

It speaks /v1/chat/completions, /v1/completions and llama.cpp's own /completion, /tokenize; the
relay in front of it refuses everything else, and requests of web pages of other origins.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from alpaca_lib import http_guard
from alpaca_lib.errors import ModelError
from alpaca_lib.models.gguf_header import check_gguf
from alpaca_lib.models.relay import Relay
from alpaca_lib.optional import require


@contextlib.contextmanager
def serve(
    gguf: Path,
    slots: int = 4,
    context: int = 2048,
    host: str = "127.0.0.1",
    port: int = 0,
    adapters: Sequence[Path] = (),
    name: str = "",
    threads: int = 0,
    private: bool = True,
) -> Iterator[str]:
    """Yields the address (http://127.0.0.1:port/.../v1) of a server for one GGUF file.

    The server lives in this process and stops when the block ends. Raises ModelError.

    slots: concurrent requests, each with ``context`` tokens; further ones wait.
    port: 0 takes any free one.
    adapters: LoRA files in GGUF that are applied to the model.
    name: the model's name in responses.
    threads: 0 takes one core fewer than there are.
    private: the address holds a random path, so that only who knows it can use the server.
    """
    xllamacpp = require("xllamacpp")
    for file in (gguf, *adapters):
        if not file.is_file():
            raise ModelError(f"{file}: no such file; a .gguf model is needed")
        check_gguf(file)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_prefix = inner = f"/{secrets.token_hex(16)}"
    parameters.ui = parameters.endpoint_slots = parameters.cors_credentials = False
    parameters.cors_origins = ""
    # Each waits for an answer, and for a client to read it: one per connection.
    parameters.n_threads_http = http_guard.MOST_CONNECTIONS
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context
    # llama.cpp's threads wait for each other by spinning: where another program needs a
    # core, as many threads as cores are several times slower than one fewer.
    parameters.cpuparams.n_threads = threads or max((os.cpu_count() or 1) - 1, 1)
    parameters.verbosity = 0
    parameters.model_alias = {name or gguf.stem}  # otherwise replies show the path
    if adapters:
        parameters.lora_adapters = [_adapter(xllamacpp, file) for file in adapters]
    with http_guard.open_port(host, port) as listener:
        try:
            server = xllamacpp.Server(parameters)
        except Exception as error:
            files = ", ".join(map(str, (gguf, *adapters)))
            raise ModelError(f"{files}: llama.cpp cannot load it ({error})") from None
        prefix = f"/{secrets.token_urlsafe(16)}" if private else ""
        relay = Relay(server.listening_address + inner, prefix)
        most_bytes = (1 << 20) + 64 * context * slots
        guard = http_guard.Guard(relay, http_guard.Hosts(host), most_bytes)
        shown = f"[{host}]" if ":" in host else host
        try:
            with http_guard.run(guard, listener):
                yield f"http://{shown}:{listener.getsockname()[1]}{prefix}/v1"
        finally:
            del server  # its destructor stops the threads and closes the port


def _adapter(xllamacpp: object, file: Path) -> object:
    adapter = xllamacpp.CommonAdapterLoraInfo()  # type: ignore[attr-defined]
    adapter.path, adapter.scale = str(file), 1.0
    return adapter
