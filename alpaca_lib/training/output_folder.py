"""The output folder of a run: whose files are in it, and that one run at a time writes there.

    .training.lock      held by rank 0 while the run lasts; its text names host and process
    model_files.json    the model's files with their SHA-256: what a later run may replace

A run removes and replaces only files that a manifest of an earlier run names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from alpaca_lib.errors import AlpacaError, FileError, SettingsError
from alpaca_lib.files import (
    acquire_lock,
    dump_json,
    move,
    parse_json,
    read_small,
    sha256_file,
    write_text,
)
from alpaca_lib.models import ModelSource
from alpaca_lib.models.adapters import read_adapter_config
from alpaca_lib.training import checkpoints, metrics
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

MANIFEST = "model_files.json"
LOCK = ".training.lock"
# What a model's folder consists of, and what a run writes next to it.
_MODEL = (
    *("config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors"),
    *("model*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*", "vocab.*", "merges.txt", "*.model"),
)
_RECORDS = ("run.json", "metrics.jsonl", "settings.json", "train.log", MANIFEST)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a network's file systems
_BUSY = "another process has the lock"
_MARK = {"full": "adapter_config.json", "lora": "config.json"}  # of a model of the other method


def check(settings: Settings, source: ModelSource) -> None:
    """Raises SettingsError or FileError if a run would write over what it reads.

    ``source`` is the model that is trained. The output folder may not be, hold or be in the
    folder of the model, of the adapter to begin with or of that adapter's base.
    """
    out = Path(settings.output_dir)
    if source.is_adapter:
        raise SettingsError(
            f"model {settings.model!r}: is a LoRA adapter; set adapter to it and model to its "
            f"base, or merge it (alpaca merge {settings.model} merged) and train that"
        )
    _check_path(out)
    for what, folder in _inputs(settings, source):
        _check_apart(out, what, folder)
    for name in ("data_path", "validation_path"):
        if text := getattr(settings, name):
            _check_data(out, name, Path(text))


def check_new(folder: Path, inputs: Mapping[str, Path], overwrite: bool = False) -> None:
    """Raises SettingsError or FileError unless a folder can be written: it is new or empty.

    It may not be, hold or be in one of ``inputs`` (description -> folder). With ``overwrite``
    it may have files, if its manifest names them all.
    """
    _check_path(folder)
    for what, path in inputs.items():
        _check_apart(folder, what, path)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileError(f"{folder}: is not empty; give a new folder")
    known = _read_manifest(folder)
    for file in sorted(folder.iterdir()):
        if file.name not in (MANIFEST, "run.json") and not _is_ours(file, known):
            raise FileError(
                f"{file}: was not written by merge, or was changed since, and is not replaced; "
                "give a new folder, or move it away"
            )


def _check_path(out: Path) -> None:
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise FileError(f"{out}: {existing} is a file; give a folder")


def _inputs(settings: Settings, source: ModelSource) -> Iterator[tuple[str, Path]]:
    """Yields what the run reads: (a description, its folder)."""
    if source.folder.is_dir():
        yield f"model {settings.model}", source.folder
    if settings.adapter:
        yield f"adapter {settings.adapter}", Path(settings.adapter)
        with contextlib.suppress(AlpacaError):  # refused where it is loaded
            config = read_adapter_config(Path(settings.adapter))
            base = str(config.get("base_model_name_or_path") or "")
            if base and Path(base).is_dir():
                yield f"base model {base} of {settings.adapter}", Path(base)


def _check_apart(out: Path, what: str, path: Path) -> None:
    mine, theirs = out.resolve(), path.resolve()
    if mine == theirs or (out.exists() and path.exists() and out.samefile(path)):
        relation = "is the folder of"
    elif theirs in mine.parents:
        relation = "is inside the folder of"
    elif mine in theirs.parents:
        relation = "holds the folder of"
    else:
        return
    raise SettingsError(
        f"output_dir {str(out)!r}: {relation} the {what}, whose files could be replaced; give "
        "a folder of its own, for example runs/my"
    )


def _check_data(out: Path, name: str, path: Path) -> None:
    """Raises SettingsError for data that is a file with the name of one that a run writes."""
    inside = path.resolve().parent == out.resolve()
    if path.resolve() == out.resolve() or (inside and _is_written(path.name)):
        raise SettingsError(
            f"output_dir {str(out)!r}: a run writes {path.name} there, and {name} {str(path)!r} "
            "is that file; give another output_dir"
        )


def _is_written(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*_MODEL, *_RECORDS))


def _check_contents(settings: Settings) -> None:
    """Raises FileError if the folder has a model or records that no run here made.

    A model of the other method is refused unless the run starts over (resume "never").
    """
    out, other = Path(settings.output_dir), _MARK[settings.method]
    fix = "give another output_dir, or move it away"
    known = _read_manifest(out)
    for file in sorted(out.iterdir()):
        is_model = any(fnmatchcase(file.name, pattern) for pattern in _MODEL)
        if is_model and not _is_ours(file, known):
            changed = "was changed since" if file.name in known else "was not written by"
            raise FileError(f"{file}: {changed} a run in this folder; {fix}")
    if (out / other).exists() and settings.resume != "never":
        model = "an adapter" if settings.method == "full" else "a full model"
        raise FileError(
            f"{out}: has {model}, which a run with method {settings.method} would delete; give "
            'another output_dir, or set resume to "never" to delete it'
        )
    run, lines = out / "run.json", out / metrics.FILE
    if run.exists() and not _is_run(run):
        raise FileError(f"{run}: is not the run.json of a training run; {fix}")
    if lines.exists() and not run.exists() and not checkpoints.list_own(out):
        raise FileError(f"{lines}: is not of a run in this folder (no run.json); {fix}")


def _is_run(file: Path) -> bool:
    try:
        run = parse_json(read_small(file))
    except (FileError, ValueError):
        return False
    return isinstance(run, dict) and isinstance(run.get("settings"), dict) and "steps" in run


def _read_manifest(folder: Path) -> dict[str, list[str]]:
    """Returns name -> accepted checksums of the model's files; nothing without a manifest."""
    try:
        files = parse_json(read_small(folder / MANIFEST))["files"]
        return {str(name): [str(one) for one in sums] for name, sums in files.items()}
    except (FileError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_ours(file: Path, known: Mapping[str, list[str]]) -> bool:
    """Returns whether a manifest names this file with the checksum that it has."""
    is_plain = file.is_file() and not file.is_symlink()
    return file.name in known and is_plain and sha256_file(file) in known[file.name]


def replace_model(work: Path, folder: Path) -> None:
    """Moves the files of a new model from ``work`` into ``folder``; older ones of ours go.

    config.json comes last: it is what makes the folder a model. A kill in between leaves
    files that the manifest names, old or new. A file there that no run wrote stays.
    """
    known = _read_manifest(folder)
    new = {file.name: sha256_file(file) for file in work.iterdir()}
    for name in list(new):
        if os.path.lexists(folder / name) and not _is_ours(folder / name, known):
            print(f"{folder / name}: is left as it is: no run in this folder wrote it", flush=True)
            (work / name).unlink()
            del new[name]
    accepted = {name: sorted({*known.get(name, []), *new.get(name, "").split()})
                for name in known | new}  # fmt: skip
    _write_manifest(folder, accepted)
    for name in known.keys() - new.keys():
        if _is_ours(folder / name, known):
            (folder / name).unlink()
    for name in sorted(new, key=lambda name: name.endswith("config.json")):
        move(work / name, folder / name)
    _write_manifest(folder, {name: [checksum] for name, checksum in new.items()})
    work.rmdir()


def write_manifest(folder: Path) -> None:
    """Writes the manifest of every file in a new model folder, but for run.json."""
    files = [file for file in folder.iterdir() if file.is_file() and file.name != "run.json"]
    _write_manifest(folder, {file.name: [sha256_file(file)] for file in files})


def _write_manifest(folder: Path, files: Mapping[str, list[str]]) -> None:
    write_text(folder / MANIFEST, dump_json({"files": dict(sorted(files.items()))}, indent=1))


def swap(work: Path, folder: Path) -> None:
    """Gives a complete folder ``work`` the name ``folder``; what had the name is deleted."""
    old = folder.with_name(f".{folder.name}-replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        move(folder, old)
    move(work, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def claimed(settings: Settings, dist: Distributed) -> Iterator[None]:
    """Holds output_dir for this run; rank 0 locks it, and all ranks learn whether it could.

    Raises FileError if another run holds it, with its host and process, if it cannot be
    written, or if it has a model or records that no run of this method made
    there. The system frees the lock of a process that dies. A new folder that stays empty goes.
    """
    folder = Path(settings.output_dir)
    with contextlib.ExitStack() as stack:
        fault: FileError | None = None
        if dist.is_rank_zero:
            try:
                stack.enter_context(_locked(folder))
                _check_contents(settings)
            except FileError as error:
                fault = error
        if dist.any_rank(fault is not None):
            raise fault or FileError(f"{folder}: cannot be used, as rank 0 reports")
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(folder / LOCK, wait=False, busy=_BUSY)
        except OSError as error:
            _explain(folder, error)
        with contextlib.suppress(OSError):  # Windows does not let a locked file be written
            text = f"process {os.getpid()} on {socket.gethostname()}"
            (folder / LOCK).write_text(text, encoding="utf-8")
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):  # Windows deletes no open file
                (folder / LOCK).unlink()
            lock.release()
        with contextlib.suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


def _explain(folder: Path, error: OSError) -> None:
    """Raises FileError for a folder that was not locked, unless no folder can be there."""
    if str(error) == _BUSY:
        raise FileError(_busy(folder)) from None
    if error.errno not in _NO_LOCKS:
        raise FileError(
            f"{folder}: cannot be written ({error.strerror or error}); give an output_dir in "
            "which you may write"
        ) from error
    print(f"{folder}: this file system has no locks; start one run at a time there", flush=True)


def check_free(settings: Settings) -> None:
    """Raises FileError if ``claimed`` would refuse output_dir now; writes nothing."""
    folder = Path(settings.output_dir)
    if (folder / LOCK).is_file():
        acquire_lock(folder / LOCK, wait=False, busy=_busy(folder)).release()
    if folder.is_dir():
        _check_contents(settings)


def _busy(folder: Path) -> str:
    holder = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        holder = (folder / LOCK).read_text(encoding="utf-8")[:200]
    return (
        f"{folder}: another run writes in it ({holder or 'process unknown'}); wait for its end, "
        "end that process, or give another output_dir"
    )
