"""Data sets of the Hugging Face hub: from the hub or its cache, or an error within seconds.

Without a network ``datasets`` retries for half a minute per data set, and its error does not
say what to do. One request decides whether the hub is reachable.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from alpaca_lib.errors import DataError
from alpaca_lib.optional import require

SECONDS = 5.0  # to wait for the hub
LOCAL = frozenset({"json", "csv", "parquet", "text", "arrow", "xml", "webdataset"})


def load_rows(path: str, split: str, fix: str) -> list[dict[str, Any]]:
    """Returns the rows of a data set on the hub. Raises DataError, which ends with ``fix``."""
    with explained_downloads("", fix):
        return [dict(row) for row in require("datasets").load_dataset(path, split=split)]


@contextlib.contextmanager
def explained_downloads(task: str, fix: str) -> Iterator[None]:
    """Makes ``datasets.load_dataset`` fail at once, and with a fix, while the block runs.

    ``task`` is named in the error. Where the hub is unreachable, only its cache is looked into.
    """
    datasets = require("datasets")
    load = datasets.load_dataset

    def load_or_explain(path: str, *args: Any, **options: Any) -> Any:
        is_local = path in LOCAL or Path(path).exists()
        failure = "" if is_local else find_failure()
        with cached_only() if failure else contextlib.nullcontext():
            try:
                return load(path, *args, **options)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                where = f"{task}: " if task else ""
                if is_local:
                    raise DataError(f"{where}its data cannot be read ({reason})") from None
                raise DataError(
                    f"{where}the data set {path} cannot be loaded ({failure or reason}); {fix}"
                ) from None

    with mock.patch.object(datasets, "load_dataset", load_or_explain):
        yield


@contextlib.contextmanager
def cached_only() -> Iterator[None]:
    """Makes ``datasets`` look into its cache alone while the block runs."""
    with (
        mock.patch("datasets.config.HF_HUB_OFFLINE", True),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
    ):
        yield


@lru_cache(maxsize=1)
def find_failure() -> str:
    """Returns why the hub is unreachable, after SECONDS at most, or an empty text."""
    hub = require("huggingface_hub")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    found: list[str] = []

    def ask() -> None:
        try:
            hub.get_session().head(endpoint, timeout=SECONDS)
            found.append("")
        except Exception as error:
            found.append(type(error).__name__)

    # A thread: a name server that does not answer has a timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    failure = found[0] if found else f"no answer in {SECONDS} s"
    return failure and f"it is not in the cache, and {endpoint} is unreachable: {failure}"
