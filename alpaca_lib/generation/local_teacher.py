"""llama.cpp as a teacher: an OpenAI-compatible server on 127.0.0.1, in this process.

A 135M model loses the list's format after a task or two; a grammar holds it to
the format, token by token, and leaves the words to the model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_lib.embedded import ModelError, need


@contextlib.contextmanager
def serve(gguf: Path, slots: int = 4, context: int = 2048) -> Iterator[str]:
    """The address (http://127.0.0.1:port/v1) of a server for one GGUF file.

    ``slots`` requests are answered at once, each with ``context`` tokens. The
    server lives in this process and stops when the block ends.
    """
    xllamacpp = need("xllamacpp")
    if not gguf.is_file():
        raise ModelError(f"{gguf}: no such file; a .gguf model is needed")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # any free one
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context
    # llama.cpp's threads wait for each other by spinning: where another program needs a
    # core, as many threads as cores are several times slower than one fewer.
    parameters.cpuparams.n_threads = max((os.cpu_count() or 1) - 1, 1)
    parameters.verbosity = 0
    try:
        server = xllamacpp.Server(parameters)
    except Exception as error:
        raise ModelError(f"{gguf}: llama.cpp cannot load it ({error})") from None
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its destructor stops the threads and closes the port


def options(first_number: int, tasks: int) -> dict[str, Any]:
    """llama.cpp's own options for a list of tasks: the format, and what keeps a small model
    from repeating itself (a little) and from unlikely words (min_p)."""
    return {"grammar": task_grammar(first_number, tasks), "repeat_penalty": 1.05, "min_p": 0.1}


def task_grammar(first_number: int, tasks: int, no_input: str = "<noinput>") -> str:
    """A GBNF grammar: ``tasks`` entries of the list, numbered from first_number.

    The reply begins after "N. Instruction:", as the prompt ends there.
    """
    numbers = range(first_number, first_number + tasks)
    rules = ["root ::= " + ' "###\\n" '.join(f"task-{n}" for n in numbers)]
    for n in numbers:
        heading = "" if n == first_number else f'"{n}. Instruction:" '
        rules.append(
            f'task-{n} ::= {heading}" " instruction "\\n{n}. Input:\\n" input '
            f'"\\n{n}. Output:\\n" output "\\n"'
        )
    rules += [
        # A letter first, then one sentence; no # and no <, which are the format's.
        # Bounded, since a small model seldom comes to an end by itself.
        "instruction ::= letter [^\\n#<>.?!。？！]{8,140} [.?!。？！]",
        f'input ::= "{no_input}" | line',
        # A number may stand alone or begin a text, but not as "5.": that is a heading's.
        'output ::= line ("\\n" letter-or-dash [^\\n#<>]{1,120}){0,2}',
        'line ::= sentence (" " sentence){0,2} | [0-9]+ ([^\\n#<>.)0-9] [^\\n#<>]{0,80})?',
        "sentence ::= letter-or-dash [^\\n#<>.?!。？！]{1,140} [.?!。？！]",
        "letter ::= [^\\x00-\\x40\\x5b-\\x60\\x7b-\\x7f]",
        "letter-or-dash ::= letter | [-]",
    ]
    return "\n".join(rules) + "\n"
