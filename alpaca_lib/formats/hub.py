"""Reads data sets of the Hugging Face hub, or folders of data files, through ``datasets``.

"owner/name" and "owner/name:split" name a data set; without a split its only one is read, or
"train".
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from alpaca_lib.compression import SUFFIXES
from alpaca_lib.errors import DataError
from alpaca_lib.hub_data import cached_only, find_failure
from alpaca_lib.optional import require

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", *SUFFIXES)
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(?::(?P<split>[\w.-]+))?")


def split_name(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Returns (name, split or "") of a data set; None for the name of a file.

    >>> split_name("tatsu-lab/alpaca:train")
    ('tatsu-lab/alpaca', 'train')
    """
    text = os.fspath(path)
    if os.path.isfile(text):
        return None
    if os.path.isdir(text):
        return (text, "") if _has_data(Path(text)) else None
    folder, _, split = text.rpartition(":")
    if folder and os.path.isdir(folder) and _has_data(Path(folder)):
        return folder, split
    found = _NAME.fullmatch(text)
    is_file_name = Path(text).suffix.lower() in DATA_SUFFIXES
    if found is None or is_file_name or os.path.lexists(text) or os.path.isdir(text.split("/")[0]):
        return None
    return found["name"], found["split"] or ""


def _has_data(folder: Path) -> bool:
    """Returns whether a folder holds data files, itself or one folder down."""
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    return any(path.suffix.lower() in DATA_SUFFIXES and path.is_file() for path in found)


def read_hub(path: str | os.PathLike[str]) -> Any:
    """Returns the rows of a data set: a sequence that stays on the disk.

    Raises DataError if there is no such data set or split, or the hub cannot be reached, and
    MissingPackageError without datasets.
    """
    name, split = split_name(path) or ("", "")
    datasets = require("datasets")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    failure = "" if os.path.isdir(name) else find_failure()
    try:
        if os.path.isdir(name) and (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        elif os.path.isdir(name) and (Path(name) / "state.json").is_file():
            found = {"train": datasets.load_from_disk(name)}
        else:
            with cached_only() if failure else nullcontext():
                found = datasets.load_dataset(name)
    except Exception as error:
        raise DataError(f"{path}: {_explain(name, error, failure)}") from None
    splits = list(found)
    split = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else "")
    if split not in splits:
        raise DataError(
            f"{path}: has the splits {', '.join(map(str, splits))}; name one, as in "
            f"{name}:{splits[0]}"
        )
    return found[split]


def _explain(name: str, error: Exception, failure: str) -> str:
    """Returns why a data set cannot be read, with what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if os.path.isdir(name):
        return f"the folder cannot be read as a data set ({reason})"
    if failure:
        return (
            f"is no file here, and the Hugging Face hub cannot be reached ({failure}); download "
            "the data set elsewhere, and name its file or folder"
        )
    return f"is no file here, and no data set that the hub gives ({reason})"
