"""What this machine can do: device, memory, disk, versions, hub and key."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from alpaca_lib import models
from alpaca_lib.course.notebooks import REPO, runs_folder
from alpaca_lib.models import embedded

GB = 1e9


def main() -> int:
    """Prints one line a fact; exit code 1 if something that is needed is missing."""
    good = True
    for status, name, text in facts():
        good = good and status != "FAIL"
        print(f"[{status:4}] {name:9} {text}", flush=True)
    return 0 if good else 1


def facts() -> Iterator[tuple[str, str, str]]:
    """(OK, note or FAIL; what; how it is) for each thing that decides what runs here."""
    yield "OK", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    import psutil

    placement = models.place()
    yield "OK", "device", f"{placement.device}, {placement.dtype}: {placement.reason}"
    memory = psutil.virtual_memory()
    enough = "OK" if memory.available > 9 * GB else "note"
    yield (
        enough,
        "memory",
        (
            f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f}, "
            f"{os.cpu_count()} cores; the course needs 9"
        ),
    )
    for name, folder in (("runs", runs_folder()), ("cache", embedded.cache_folder())):
        there = next(p for p in [folder, *folder.parents] if p.exists())
        free = shutil.disk_usage(there).free
        yield ("OK" if free > 4 * GB else "note"), "disk", f"{free / GB:.1f} GB free for {name}"
    yield from _versions()
    cached = (embedded.cache_folder() / embedded.DEFAULT_MODEL / "config.json").is_file()
    yield (
        "OK" if cached else "note",
        "model",
        (f"{embedded.DEFAULT_MODEL} {'is in the cache' if cached else 'is fetched at first use'}"),
    )
    yield from _reachable()
    key = bool(os.environ.get("OPENAI_API_KEY"))
    address = os.environ.get("OPENAI_BASE_URL", "OpenAI's own address")
    yield (
        "note",
        "key",
        (f"set, for {address}" if key else 'no OPENAI_API_KEY: teacher "local" needs none'),
    )


def _versions() -> Iterator[tuple[str, str, str]]:
    """Every line of requirements.txt against what is installed."""
    from packaging.requirements import Requirement

    wrong = 0
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    for requirement in wanted:
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = "not installed"
        if installed == "not installed" or not requirement.specifier.contains(installed, True):
            wrong += 1
            yield "FAIL", "version", f"{requirement.name} {installed}, wanted {requirement}"
    if not wrong:
        yield "OK", "versions", f"all {len(wanted)} packages of requirements.txt fit"
    else:
        print(f"cure: {sys.executable} -m pip install -r requirements.txt", file=sys.stderr)


def _reachable() -> Iterator[tuple[str, str, str]]:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urlopen(endpoint, timeout=5).close()
        yield "OK", "hub", f"{endpoint} answers"
    except HTTPError:
        yield "OK", "hub", f"{endpoint} answers"
    except (OSError, ValueError):
        yield "note", "hub", f"{endpoint} cannot be reached; the embedded model needs no hub"


if __name__ == "__main__":
    sys.exit(main())
