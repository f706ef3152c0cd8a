"""Opens files that may be compressed with gzip or Zstandard; their first bytes tell which."""

from __future__ import annotations

import gzip
import importlib
import os
import zlib
from pathlib import Path
from typing import IO, Any

from alpaca_lib.errors import FileError
from alpaca_lib.files import check_is_file
from alpaca_lib.optional import require

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
SUFFIXES = (".gz", ".zst")
TORN = (EOFError, zlib.error, gzip.BadGzipFile)


def open_bytes(path: str | os.PathLike[str]) -> IO[bytes]:
    """Returns a stream of a regular file's bytes, decompressed.

    Raises OSError if it is missing or unreadable, and MissingPackageError for Zstandard without
    pyarrow. What is damaged raises while it is read, see ``damage``.
    """
    check_is_file(path)
    stream = open(path, "rb")  # noqa: SIM115
    start = stream.peek(4)[:4]
    if start.startswith(GZIP):
        return gzip.open(stream)  # type: ignore[return-value]
    if start == ZSTD:
        try:
            require("pyarrow")
            arrow: Any = importlib.import_module("pyarrow")
            unpacked: IO[bytes] = arrow.CompressedInputStream(stream, "zstd")
            return unpacked
        except ImportError:
            stream.close()
            raise
    return stream


def read_decompressed(path: str | os.PathLike[str]) -> bytes:
    """Returns all bytes of a regular file, decompressed.

    Raises OSError if it is missing or unreadable, and FileError if it is damaged.
    """
    with open_bytes(path) as stream:
        try:
            return bytes(stream.read())
        except TORN as error:
            raise FileError(f"{path}: is not complete or damaged ({error})") from None


def inner_suffix(path: str | os.PathLike[str]) -> str:
    """Returns the suffix in lower case, without that of the compression.

    >>> inner_suffix("rows.JSONL.gz")
    '.jsonl'
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower()
