"""Serves a trained model behind an OpenAI-compatible address, answered by llama.cpp.

The model may be a GGUF file, a model folder, an adapter folder or a name: a folder is exported
first, once, next to its weights. So the model of lesson 04 can be the teacher of lesson 01.

A conversation makes the prompt of training and of this project's own inference, token by token:
one user message, or turns with a system message. With Alpaca's templates a message of the role
"input" after the user's is the task's input, and a system message stands before the instruction.
/v1/completions takes a prompt as it is and puts BOS before it where the tokenizer does: send a
text without BOS, or token ids. llama.cpp makes special tokens of their texts in messages and
prompts (``<|im_end|>``), where this project's own inference keeps them as text; a client that
passes on texts of strangers sends token ids (``prompt_ids``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf import export_gguf, find_adapter_file
from alpaca_lib.inference.model_pool import trained_template
from alpaca_lib.models import EMBEDDED, ModelSource, gguf_file
from alpaca_lib.models.llama_server import serve


@contextlib.contextmanager
def serve_model(
    name: str,
    kind: str = "q8_0",
    slots: int = 4,
    context: int = 2048,
    host: str = "127.0.0.1",
    port: int = 0,
    template: str | None = None,
    private: bool | None = None,
) -> Iterator[str]:
    """Yields the address (…/v1) of a model in any form: see llama_server.serve, find_gguf.

    ``private`` is the default without a port.
    """
    file = find_gguf(name, kind, template)
    private = not port if private is None else private
    with serve(file, slots, context, host, port, name=file.stem, private=private) as address:
        yield address


def find_gguf(name: str, kind: str = "q8_0", template: str | None = None) -> Path:
    """Returns a model's GGUF file; exports it if it is missing or older than the weights.

    The embedded model has one already (Q4_1), which is used whatever ``kind`` says. Without
    ``template``, llama.cpp's chat renders the template that the model was trained on.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or (name in EMBEDDED and not path.is_dir()):
        return gguf_file(name)
    source = ModelSource.resolve(name)
    folder = source.folder
    if not folder.is_dir():
        raise ModelError(f"{name}: is on the hub; `export {name}` writes its GGUF file first")
    weights = list(folder.glob("model*.safetensors"))
    if source.is_adapter:
        weights = [find_adapter_file(folder)]
        weights += source.base.folder.glob("model*.safetensors")
    if not weights:
        return gguf_file(name)
    suffix = f"-{template}" if template else ""
    file = folder / f"{folder.name}-{kind}{suffix}.gguf"
    if file.is_file() and file.stat().st_mtime >= max(one.stat().st_mtime for one in weights):
        return file
    return export_gguf(source, file, kind, template or trained_template(source))
