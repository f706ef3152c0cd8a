"""Checks the header of a GGUF file before llama.cpp reads it.

llama.cpp trusts a header: a count or a shape that lies ends the process. Here every length is
compared with the file's, and the counts of layers and heads with the tensors that are there.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from alpaca_lib.errors import ModelError

# {code: struct's format} of the scalars; 8 is a text, 9 an array.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
MOST_NUMBERS = 1 << 31  # per dimension of a tensor
POSITIVE = ("block_count", "embedding_length", "context_length", "attention.head_count")


def check_gguf(file: Path) -> None:
    """Raises ModelError if a file is no GGUF file, or its header lies or is cut off."""
    try:
        with open(file, "rb") as stream:
            _Header(stream, os.fstat(stream.fileno()).st_size).check()
    except (ValueError, struct.error, OverflowError) as error:
        raise ModelError(
            f"{file}: is no usable GGUF file ({error}); export or download it again"
        ) from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from None


class _Header:
    """Reads a header; every read raises ValueError at the end of the file."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.values: dict[str, Any] = {}
        self.order = "<"

    def check(self) -> None:
        """Reads the whole header. Raises ValueError with what is wrong."""
        if self.stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, known are 2 and 3")
        tensors, pairs = self.number("Q"), self.number("Q")
        if max(tensors, pairs) > self.size // 12:
            raise ValueError(f"{tensors} tensors and {pairs} keys do not fit into the file")
        for _ in range(pairs):
            key = self.text()
            self.values[key] = self.value(self.number("I"), key)
        shapes = [self.tensor() for _ in range(tensors)]
        self.check_tensors(shapes)
        self.check_values(len(shapes))

    def read(self, length: int) -> bytes:
        """Reads that many bytes."""
        if length > self.size - self.stream.tell():
            raise ValueError("it is cut off, or a length in it is too large")
        return self.stream.read(length)

    def number(self, kind: str) -> Any:
        """Reads a number of a struct format such as "Q"."""
        return struct.unpack(self.order + kind, self.read(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """Reads a text, which follows its length."""
        return self.read(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        """Reads a value; of an array, its length."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY or depth > 3:
            raise ValueError(f"{key} has the unknown type {kind}")
        kind, length = self.number("I"), self.number("Q")
        if kind in SCALARS:
            self.read(length * struct.calcsize(f"<{SCALARS[kind]}"))
            return length
        if length > self.size // 8:
            raise ValueError(f"{key}: {length} entries do not fit into the file")
        for _ in range(length):
            self.value(kind, key, depth + 1)
        return length

    def tensor(self) -> tuple[str, list[int], int, int]:
        """Reads (name, shape, type, offset) of a tensor."""
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        if not all(1 <= length < MOST_NUMBERS for length in shape):
            raise ValueError(f"tensor {name[:80]!r} has the shape {shape}")
        return name, shape, self.number("I"), self.number("Q")

    def check_tensors(self, tensors: list[tuple[str, list[int], int, int]]) -> None:
        """Raises ValueError unless the data of each tensor is in the file."""
        from gguf import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        step = self.values.get("general.alignment", 32)
        if not isinstance(step, int) or step < 1 or step % 8:
            raise ValueError(f"general.alignment is {step!r}")
        begin = -(-self.stream.tell() // step) * step
        names = set()
        for name, shape, kind, offset in tensors:
            if kind not in sizes:
                raise ValueError(f"tensor {name[:80]!r} has the unknown type {kind}")
            block, nbytes = sizes[kind]
            if shape[0] % block or offset % step:
                raise ValueError(
                    f"tensor {name[:80]!r}: its shape or its offset is none of its type"
                )
            if begin + offset + math.prod(shape) // block * nbytes > self.size:
                raise ValueError(f"tensor {name[:80]!r} is beyond the end of the file")
            if name in names:
                raise ValueError(f"tensor {name[:80]!r} is there twice")
            names.add(name)

    def check_values(self, tensors: int) -> None:
        """Raises ValueError for numbers out of range, and for layers without tensors."""
        architecture = self.values.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError("general.architecture is missing")
        for name in POSITIVE:
            value = self.values.get(f"{architecture}.{name}", 1)
            if not isinstance(value, int) or not 1 <= value < MOST_NUMBERS:
                raise ValueError(f"{architecture}.{name} is {value!r}")
        for name, value in self.values.items():
            numeric = type(value) in (int, float)
            bad = isinstance(value, float) and not math.isfinite(value)
            bad |= name.endswith("_epsilon") and not (numeric and value >= 0)
            bad |= name.endswith("rope.freq_base") and not (numeric and value > 0)
            if bad:  # llama.cpp ends the process, or writes noise
                raise ValueError(f"{name} is {value!r}")
        layers = self.values.get(f"{architecture}.block_count", 1)
        if layers > max(tensors, 1):
            raise ValueError(f"{architecture}.block_count is {layers}, with {tensors} tensors")
