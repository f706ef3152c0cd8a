"""llama.cpp as an OpenAI-compatible server in this process, for the teacher and for inference.

It speaks /v1/chat/completions, /v1/completions and llama.cpp's own /completion, /tokenize.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from alpaca_lib.errors import ModelError
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
) -> Iterator[str]:
    """Yields the address (http://127.0.0.1:port/v1) of a server for one GGUF file.

    The server lives in this process and stops when the block ends. Raises ModelError.

    slots: concurrent requests, each with ``context`` tokens; further ones wait.
    port: 0 takes any free one.
    adapters: LoRA files in GGUF that are applied to the model.
    name: the model's name in responses.
    threads: 0 takes one core fewer than there are.
    """
    xllamacpp = require("xllamacpp")
    for file in (gguf, *adapters):
        if not file.is_file():
            raise ModelError(f"{file}: no such file; a .gguf model is needed")
    if port:
        _check_port(host, port)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context
    # llama.cpp's threads wait for each other by spinning: where another program needs a
    # core, as many threads as cores are several times slower than one fewer.
    parameters.cpuparams.n_threads = threads or max((os.cpu_count() or 1) - 1, 1)
    parameters.verbosity = 0
    if name:
        parameters.model_alias = {name}
    if adapters:
        parameters.lora_adapters = [_adapter(xllamacpp, file) for file in adapters]
    try:
        server = xllamacpp.Server(parameters)
    except Exception as error:
        files = ", ".join(map(str, (gguf, *adapters)))
        raise ModelError(f"{files}: llama.cpp cannot load it ({error})") from None
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its destructor stops the threads and closes the port


def _adapter(xllamacpp: object, file: Path) -> object:
    adapter = xllamacpp.CommonAdapterLoraInfo()  # type: ignore[attr-defined]
    adapter.path, adapter.scale = str(file), 1.0
    return adapter


def _check_port(host: str, port: int) -> None:
    """Checks a port first: llama.cpp would only report that it could not start."""
    if not 0 < port < 65536:
        raise ModelError(f"port {port}: from 1 to 65535, or 0 for any that is free")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ModelError(
                f"port {port} on {host} cannot be used ({error.strerror or error}); "
                "another program may have it: take another one, or 0 for any that is free"
            ) from None
