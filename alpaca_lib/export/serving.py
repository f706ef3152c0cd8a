"""A trained model behind an OpenAI-compatible address, answered by llama.cpp.

The model may be a GGUF file, a model folder, an adapter folder or a name: what is no GGUF
yet is exported first, once, beside the weights it was made from. So the model of lesson 04
can be what lesson 01 asks for data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.export import gguf
from alpaca_lib.models.embedded import EMBEDDED
from alpaca_lib.models.llama_server import serve


@contextlib.contextmanager
def serving(
    name: str,
    kind: str = "q8_0",
    slots: int = 4,
    context: int = 2048,
    host: str = "127.0.0.1",
    port: int = 0,
    template: str | None = None,
) -> Iterator[str]:
    """The address (…/v1) of a model of any form. See llama_server.serve and gguf_of."""
    file = gguf_of(name, kind, template)
    with serve(file, slots, context, host, port, name=file.stem) as address:
        yield address


def gguf_of(name: str, kind: str = "q8_0", template: str | None = None) -> Path:
    """The GGUF file of a model, which is exported if it is not there or older than the weights.

    The embedded model has one already (Q4_1), which is used whatever ``kind`` says. Without
    ``template``, what the model was trained with (its run.json) makes llama.cpp's chat.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or (name in EMBEDDED and not path.is_dir()):
        return models.gguf_file(name)
    located = Path(models.ModelSource.resolve(name).path)
    if not located.is_dir():
        raise ModelError(f"{name}: is on the hub; `export {name}` writes its GGUF file first")
    weights = [*located.glob("model*.safetensors"), *located.glob("adapter_model.safetensors")]
    if weights and (located / "adapter_config.json").is_file():
        base = Path(models.ModelSource.resolve(models.base_name(located)).path)
        weights += base.glob("model*.safetensors")
    if not weights:
        return models.gguf_file(name)
    asked = f"-{template}" if template else ""
    file = located / f"{located.name}-{kind}{asked}.gguf"
    newest = max(one.stat().st_mtime for one in weights)
    if file.is_file() and file.stat().st_mtime >= newest:
        return file
    return gguf.export(name, file, kind, template or trained_template(located))


def trained_template(folder: Path) -> str | None:
    """The prompt that a model was trained on, as the run.json in its folder says; or None."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return str(run["settings"]["template"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
