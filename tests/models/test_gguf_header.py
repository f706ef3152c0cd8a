"""GGUF files whose headers lie: a ModelError that names the file, before llama.cpp sees it."""

from __future__ import annotations

import struct

import pytest

from alpaca_lib.errors import ModelError
from alpaca_lib.export.gguf import export_gguf
from alpaca_lib.models import llama_server
from alpaca_lib.models.gguf_header import check_gguf

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def good(few_tokens_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return export_gguf(str(few_tokens_folder), file, "f16")


def test_files_that_are_in_order(good):
    from alpaca_lib.models import gguf_file

    check_gguf(good)
    check_gguf(gguf_file("smollm2-135m"))


def change(good, folder, offset, data):
    """A copy of a file with other bytes at an offset."""
    content = bytearray(good.read_bytes())
    content[offset : offset + len(data)] = data
    file = folder / "bad.gguf"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("offset", "data", "says"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "version 50331648"),
        (8, struct.pack("<Q", 2**63), "do not fit"),
        (8, struct.pack("<Q", 10**6), "version|cut off|dimensions|shape|fit"),
        (16, struct.pack("<Q", 2**63), "do not fit"),
        (24, struct.pack("<Q", 2**63), "cut off, or a length"),
    ],
)
def test_counts_that_lie(offset, data, says, good, tmp_path):
    file = change(good, tmp_path, offset, data)
    with pytest.raises(ModelError, match=says) as caught:
        check_gguf(file)
    assert str(caught.value).startswith(f"{file}: is no usable GGUF file (")


@pytest.mark.parametrize("value", [0, 1000, 2**31 - 1, 2**32 - 1])
def test_layers_that_are_not_there(value, good, tmp_path):
    """2**31 - 1 layers ended the process in llama.cpp."""
    field = gguf.GGUFReader(good).fields["llama.block_count"]
    place = field.offset + 8 + len(field.name) + 4
    file = change(good, tmp_path, int(place), struct.pack("<I", value))
    with pytest.raises(ModelError, match=r"llama\.block_count is"), llama_server.serve(file):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"])
def test_numbers_that_are_none(name, value, good, tmp_path):
    """An epsilon of NaN or below 0 ended the process in llama.cpp."""
    field = gguf.GGUFReader(good).fields[name]
    place = field.offset + 8 + len(field.name) + 4
    file = change(good, tmp_path, int(place), struct.pack("<f", value))
    with pytest.raises(ModelError, match=f"{name} is {value}"), llama_server.serve(file):
        pass


def test_tensors_that_lie(good, tmp_path):
    """Offsets beyond the file, shapes of 2**40, unknown types, no dimension."""
    tensor = gguf.GGUFReader(good).tensors[0]
    begin = int(tensor.field.offset) + 8 + len(tensor.name)
    count = len(tensor.shape)
    for offset, data, says in (
        (begin, struct.pack("<I", 0), "0 dimensions"),
        (begin, struct.pack("<I", 2**31), "dimensions"),
        (begin + 4, struct.pack("<Q", 2**40), "has the shape"),
        (begin + 4, struct.pack("<Q", 0), "has the shape"),
        (begin + 4, struct.pack("<Q", 2**30), "beyond the end"),
        (begin + 4 + 8 * count, struct.pack("<I", 999), "unknown type 999"),
        (begin + 8 + 8 * count, struct.pack("<Q", 2**60), "beyond the end"),
        (begin + 8 + 8 * count, struct.pack("<Q", 7), "offset"),
    ):
        with pytest.raises(ModelError, match=says):
            check_gguf(change(good, tmp_path, offset, data))


def test_a_file_that_is_cut_anywhere_is_refused(good, tmp_path):
    content = good.read_bytes()
    for length in (0, 3, 4, 12, 24, 100, 5000, len(content) // 2, len(content) - 40):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf: is no usable GGUF file"):
            check_gguf(tmp_path / "cut.gguf")
