"""Reports what this machine can do: device, memory, disk, versions, hub and key."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
from packaging.requirements import Requirement

from alpaca_lib import models
from alpaca_lib.course.minutes import predict_minutes
from alpaca_lib.course.notebooks import REPO, runs_folder
from alpaca_lib.errors import SettingsError
from alpaca_lib.models import embedded
from alpaca_lib.server_address import server_address

GB = 1e9
NEEDED = 6.5  # GB of free memory for the course's largest lesson, in all its processes


def main() -> int:
    """Prints one line per finding; returns 1 if something that is needed is missing."""
    failed = False
    for status, name, text in check_machine():
        failed |= status == "FAIL"
        print(f"[{status:4}] {name:9} {text}", flush=True)
    return int(failed)


def check_machine() -> Iterator[tuple[str, str, str]]:
    """Yields (OK, note or FAIL; name; text) for each thing that decides what runs here."""
    yield "OK", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    placement = models.place()
    yield "OK", "device", f"{placement.device}, {placement.dtype}: {placement.reason}"
    minutes, rate = predict_minutes(placement)
    text = ", ".join(f"{name[:2]}: {max(time, 1):.0f}" for name, time in minutes.items())
    yield (
        "OK",
        "time",
        f"{sum(minutes.values()):.0f} minutes for the course ({text}), as large "
        f"matrix products reach {rate / 1e9:,.0f} GFLOP/s",
    )
    memory = psutil.virtual_memory()
    text = f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f}, {os.cpu_count()} cores"
    yield (
        _status(memory.available > NEEDED * GB),
        "memory",
        f"{text}; the course needs {NEEDED} free",
    )
    for name, folder in (("runs", runs_folder()), ("cache", embedded.cache_folder())):
        existing = next(p for p in [folder, *folder.parents] if p.exists())
        free = shutil.disk_usage(existing).free
        yield _status(free > 4 * GB), "disk", f"{free / GB:.1f} GB free for {name}"
    yield from _check_versions()
    folder = embedded.cache_folder() / embedded.DEFAULT_MODEL
    if not (folder / "config.json").is_file():
        yield "note", "model", f"{embedded.DEFAULT_MODEL} is fetched at first use"
    elif damage := embedded.find_damage(folder, thorough=True):
        yield "note", "model", f"{damage}; it is made again at the next use"
    else:
        yield (
            "OK",
            "model",
            f"{embedded.DEFAULT_MODEL} is in the cache, and its checksums are right",
        )
    yield _check_hub()
    if os.environ.get("OPENAI_API_KEY"):
        try:
            text = f"set, for {server_address().url}"
        except SettingsError as error:
            text = f"set, but {error}"
    else:
        text = 'no OPENAI_API_KEY: teacher "local" needs none'
    yield "note", "key", text


def _status(good: bool) -> str:
    return "OK" if good else "note"


def _check_versions() -> Iterator[tuple[str, str, str]]:
    """Compares every line of requirements.txt with what is installed."""
    wrong = 0
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("#")[0].strip() for line in lines if not line.startswith("-")]
    wanted = [Requirement(text) for text in texts if text]
    for requirement in wanted:
        try:
            installed = metadata.version(requirement.name)
            fits = requirement.specifier.contains(installed, prereleases=True)
        except metadata.PackageNotFoundError:
            installed, fits = "not installed", False
        if not fits:
            wrong += 1
            yield "FAIL", "version", f"{requirement.name} {installed}, wanted {requirement}"
    if wrong:
        print(f"fix: {sys.executable} -m pip install -r requirements.txt", file=sys.stderr)
    else:
        yield "OK", "versions", f"all {len(wanted)} packages of requirements.txt fit"


def _check_hub() -> tuple[str, str, str]:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    shown = re.sub(r"//[^/]*@", "//", endpoint)  # without a name and a password
    try:
        urlopen(endpoint, timeout=5).close()
    except HTTPError:  # it answers, with an error of its own
        pass
    except (OSError, ValueError):
        return "note", "hub", f"{shown} is not reachable; the embedded model needs no hub"
    return "OK", "hub", f"{shown} answers"


if __name__ == "__main__":
    sys.exit(main())
