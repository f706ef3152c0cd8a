"""A model's files that lie: sizes that cannot be, tensors that are missing or of another shape."""

from __future__ import annotations

import json
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca_lib.errors import ModelError
from alpaca_lib.models import ModelSource, place


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model, for a test to damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def change(folder, **values):
    """Writes other values into config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    "name, value",
    [
        *(("num_hidden_layers", n) for n in (10**7, 10**9, 0, -1, "two", 1.5)),
        *(("num_attention_heads", n) for n in (0, -4, 10**9)),
        ("num_key_value_heads", 0), ("vocab_size", 10**12), ("hidden_size", -64),
        ("num_experts", 10**9), ("max_position_embeddings", 0),
        ("text_config", {"num_hidden_layers": 10**9}),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(folder, name, value):
    """Refused at once, before transformers reads the file."""
    change(folder, **{name: value})
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"config\.json: \w+ is .* is possible"):
        ModelSource.resolve(str(folder))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\ud83d"])
def test_a_config_that_is_none(folder, text):
    """Text that is no JSON object."""
    (folder / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelSource.resolve(str(folder))


@pytest.mark.parametrize(
    "values",
    [{"model_type": 5}, {"hidden_act": "none-such"}, {"rope_parameters": "x"},
     {"num_attention_heads": 7}, {"torch_dtype": "float99"}, {"architectures": 3}],
    ids=str,
)  # fmt: skip
def test_values_that_transformers_trips_over(folder, values):
    """Whatever it raises, a ModelError names the model; or the value does not matter."""
    change(folder, **values)
    try:
        ModelSource.resolve(str(folder)).load_model(place("cpu", "float32"))
    except ModelError as error:
        assert str(folder) in str(error)


def test_a_missing_tensor_is_not_invented(folder):
    """transformers would warn, and go to work with random numbers."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "q_proj" in n)
    other = {n: t for n, t in tensors.items() if n != name}
    save_file(other, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"no {name}.*of another model"):
        ModelSource.resolve(str(folder)).load_model(place("cpu", "float32"))
    save_file({**other, name: torch.zeros(3, 3)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=str(folder)):
        ModelSource.resolve(str(folder)).load_model(place("cpu", "float32"))
    save_file(tensors, file, {"format": "pt"})
    ModelSource.resolve(str(folder)).load_model(place("cpu", "float32"))


def header(size, text):
    """A safetensors file's beginning."""
    return struct.pack("<Q", size) + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x08\x00", header(2**63, b"{}"), header(100, b"{}"), header(2, b"[]"),
        header(70, b'{"a":{"dtype":"F32","shape":[999999999,999999999],"data_offsets":[0,4]}}'),
        header(54, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99]}}'),
        header(55, b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}    '),
    ],
)  # fmt: skip
def test_headers_that_lie(folder, content):
    """A ModelError, in a moment."""
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=str(folder)):
        ModelSource.resolve(str(folder)).load_model(place("cpu", "float32"))
