"""Reads a checkpoint's state (torch DCP) without running code that its files may hold.

DCP unpickles its ``.metadata`` and every entry that is no tensor, and a pickle can call any
function. Here the first may name only DCP's own record classes, and the second only what
``torch.load(weights_only=True)`` accepts.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem

from alpaca_lib.errors import CheckpointError

_RECORDS: dict[tuple[str, str], Any] = {
    (metadata.__name__, name): getattr(metadata, name)
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
}
_RECORDS[filesystem.__name__, "_StorageInfo"] = filesystem._StorageInfo
_RECORDS["torch", "Size"] = torch.Size
_RECORDS["torch.serialization", "_get_layout"] = torch.serialization._get_layout
_RECORDS["collections", "OrderedDict"] = OrderedDict


def _enum_member(owner: Any, name: str) -> Any:
    """Stands for getattr, by which some versions of Python store enums (3.11.2 does)."""
    if owner is metadata._MEM_FORMAT_ENCODING and name in owner.__members__:
        return owner[name]
    raise CheckpointError(f"it asks for {name!r} of {owner!r}, which no checkpoint of a run does")


_RECORDS["builtins", "getattr"] = _enum_member


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return _RECORDS[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.split(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):
            return PurePath  # of the folder that it was written to
        raise CheckpointError(f"it names {module}.{name}, which no checkpoint of a run has")


class StateReader(FileSystemReader):
    """DCP's reader of a folder, whose ``.metadata`` can create DCP's records and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Returns DCP's record of names, shapes and places. Raises CheckpointError."""
        file = Path(self.path) / ".metadata"
        try:
            with open(file, "rb") as stream:
                found = _Unpickler(stream).load()
            if not isinstance(found, metadata.Metadata):
                raise CheckpointError("it holds no DCP metadata")
            _check_places(found)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: refused: {error}") from None
        except Exception as error:  # a damaged pickle raises anything
            raise CheckpointError(
                f"{file}: cannot be read ({type(error).__name__}: {error})"
            ) from None
        found.storage_meta = found.storage_meta or metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


def _check_places(found: metadata.Metadata) -> None:
    """Raises CheckpointError for a place outside the checkpoint's own folder."""
    for info in (found.storage_data or {}).values():
        if Path(info.relative_path).name != info.relative_path:
            raise CheckpointError(f"it names the file {info.relative_path!r}")


class StatePlanner(DefaultLoadPlanner):
    """DCP's plan of a load, in which entries that are no tensors are numbers and texts."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Loads one entry. Raises CheckpointError if it is more than plain values."""
        try:
            entry = torch.load(value, weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{read_item.dest_index.fqn}: refused: more than numbers and texts "
                f"({str(error).strip().splitlines()[0]})"
            ) from None
        plain = io.BytesIO()
        torch.save(entry, plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
