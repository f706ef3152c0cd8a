"""Checkpoints that are complete or absent: written to a temporary folder, checked, renamed.

    checkpoint-40/  manifest.json   the step, and size and SHA-256 of every file
                    state/          model and optimizer, in shards (torch DCP)

A run resumes, with any number of processes, from the newest whose files match its manifest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as c10d

from alpaca_lib.errors import CheckpointError, FileError
from alpaca_lib.files import (
    dump_json,
    move,
    parse_json,
    read_small,
    sha256_file,
    sync,
    write_text,
)
from alpaca_lib.optional import hide_progress_bars
from alpaca_lib.training.sharding import Distributed

State = dict[str, Any]  # tensors, sharded or not, in nested dictionaries


class Saver:
    """Writes the checkpoints of one run; every rank has one and makes the same calls.

    ``folder`` is where checkpoint-N/ go. ``background`` (for a GPU): save() copies the state to
    main memory and returns; the checkpoint gets its name when it is complete. Call wait() last.

    >>> saver = Saver(folder, dist)
    >>> path = saver.save(40, state, record={"settings": settings.to_dict()}, keep=2)
    """

    def __init__(self, folder: Path, dist: Distributed, background: bool = False) -> None:
        self.folder, self.dist, self.background = folder, dist, background
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._group: Any = None
        if background and dist.size > 1:
            self._group = c10d.new_group(backend="gloo")

    def save(
        self, step: int, state: State, record: dict[str, Any], keep: int = 0, name: str = ""
    ) -> Path:
        """Writes folder/checkpoint-{step}, or folder/{name}, and returns its path.

        ``record`` goes into the manifest. With ``keep`` above 0 only the newest ``keep``
        checkpoints stay. Raises CheckpointError if this one or the one before failed.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        self.wait()
        final = self.folder / (name or f"checkpoint-{step}")
        work = self.folder / f".{final.name}-partial"
        if self.dist.is_rank_zero:
            _restore_replaced(self.folder)
            for leftover in _working_folders(self.folder, "partial", "old"):
                shutil.rmtree(leftover)  # of a run that was killed
            work.mkdir(parents=True)
        self.dist.barrier()

        def complete(write: Callable[[], object]) -> None:
            try:
                write()
                if self.dist.is_rank_zero:
                    _commit(work, final, {"step": step, **record})
                    if keep:
                        remove_old(self.folder, keep, step)
                    remove_superseded(self.folder)
            except (CheckpointException, OSError, RuntimeError) as error:
                if isinstance(_first_cause(error), KeyboardInterrupt):  # torch wraps it
                    raise KeyboardInterrupt from None
                why = _explain_full_disk(_count_bytes(state), work) or str(_first_cause(error))
                raise CheckpointError(f"{final}: was not written: {why}") from error

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            options: dict[str, Any] = {"checkpoint_id": work / "state"}
            options["no_dist"] = self.dist.size == 1
            if self.background:
                future: Any = dcp.async_save(state, process_group=self._group, **options)
                self._writing = self._thread.submit(complete, future.result)
            else:
                complete(lambda: dcp.save(state, **options))
                self.dist.barrier()
        return final

    def wait(self) -> None:
        """Blocks until the last checkpoint is complete. Raises CheckpointError if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _commit(work: Path, final: Path, record: dict[str, Any]) -> None:
    """Writes the manifest of the files in ``work``, syncs everything and renames the folder."""
    files = sorted(p for p in work.rglob("*") if p.is_file())
    for file in files:
        sync(file)
    listed = {
        p.relative_to(work).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in files
    }
    write_text(work / "manifest.json", dump_json({**record, "files": listed}, indent=1))
    for folder in [*(p for p in work.rglob("*") if p.is_dir()), work]:
        sync(folder)
    # If this step was saved before, the old folder stays until the new one has its name.
    replaced = final.with_name(f".{final.name}-old")
    if os.path.lexists(final) and not is_own(final):
        aside = next(p for n in range(1, 10**6) if not (p := Path(f"{final}.other{n}")).exists())
        move(final, aside)
        print(f"{final.name} was no checkpoint of a run here: it is now {aside.name}", flush=True)
    elif final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        move(final, replaced)
    move(work, final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def load(folder: Path, state: State, dist: Distributed) -> None:
    """Loads a checkpoint into the tensors of ``state``. CheckpointError if of another model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from alpaca_lib.training.state_reader import StatePlanner, StateReader

    reader = StateReader(folder / "state")
    saved = reader.read_metadata().state_dict_metadata
    expected = {f"model.{name}" for name in state["model"]}
    if more := [name for name in saved if name.startswith("model.") and name not in expected]:
        raise CheckpointError(f"{folder}: it has {more[0]}, which this model does not have")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            no_dist = dist.size == 1
            dcp.load(state, storage_reader=reader, planner=StatePlanner(), no_dist=no_dist)
        except CheckpointException as error:  # of torch, and no Exception
            raise CheckpointError(
                f"{folder}: its state is not this model's ({_first_cause(error)})"
            ) from error


def _first_cause(error: BaseException) -> BaseException:
    """Returns an error, or of torch's CheckpointException the first rank's cause."""
    causes = list(getattr(error, "failures", {}).values())
    return causes[0][0] if causes else error


def _explain_full_disk(needed: int, work: Path) -> str:
    """Returns what to do if the disk has no room for ``needed`` bytes, else an empty text."""
    # torch reports a full disk as an unexpected position in its file.
    written = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    free = shutil.disk_usage(work.parent).free + written
    if free >= needed:
        return ""
    return (
        f"it takes {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free in {work.parent}. Make "
        "room and start the same run again: it resumes from the checkpoint before, if there is one"
    )


def _count_bytes(state: State) -> int:
    """Returns the bytes of all tensors in a state; of sharded ones, all ranks' bytes."""
    return sum(
        _count_bytes(value) if isinstance(value, dict) else getattr(value, "nbytes", 0)
        for value in state.values()
    )


def find_newest(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, int] | None:
    """Returns the newest intact checkpoint and its step; says which damaged ones it skipped."""
    _restore_replaced(folder)
    for step, path in reversed(list_checkpoints(folder)):
        fault = find_damage(path)
        if fault is None and (recorded := read_record(path)["step"]) != step:
            fault = f"it is of step {recorded}"
        if fault is None:
            return path, step
        say(f"{path.name} is skipped: {fault}")
    return None


def _working_folders(folder: Path, *endings: str) -> list[Path]:
    """Returns the folders of saves that did not end: new ones (partial), and replaced ones (old).

    Those, and no others, are named by ``Saver.save``.
    """
    name = re.compile(rf"\.(checkpoint|best)-\d+-({'|'.join(endings)})", re.ASCII)
    return [p for p in folder.glob(".*") if name.fullmatch(p.name) and _is_folder(p)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _restore_replaced(folder: Path) -> None:
    """Renames an old checkpoint back if a kill came before the new one got its name."""
    for replaced in _working_folders(folder, "old"):
        final = folder / replaced.name[1:].removesuffix("-old")
        if not final.exists():
            move(replaced, final)


def list_checkpoints(folder: Path, kind: str = "checkpoint") -> list[tuple[int, Path]]:
    """Returns (step, folder) of every folder checkpoint-N (or best-N), by step.

    A symbolic link is none, and N are ASCII digits.
    """
    name = re.compile(rf"{kind}-(0|[1-9][0-9]*)")
    found = ((name.fullmatch(p.name), p) for p in folder.glob(f"{kind}-*") if _is_folder(p))
    return sorted((int(match[1]), p) for match, p in found if match)


def is_own(path: Path) -> bool:
    """Returns whether a folder has the manifest of a checkpoint of ours, intact or not."""
    return _is_folder(path) and _read_manifest(path) is not None


def list_own(folder: Path, kind: str = "checkpoint") -> list[tuple[int, Path]]:
    """Returns list_checkpoints() without folders that another program made."""
    return [(step, path) for step, path in list_checkpoints(folder, kind) if is_own(path)]


def list_foreign(folder: Path) -> list[Path]:
    """Returns what has a checkpoint's name, or nearly, and was made by another program."""
    own = {path for kind in ("checkpoint", "best") for _, path in list_own(folder, kind)}
    return sorted({*folder.glob("checkpoint-*"), *folder.glob("best-*")} - own)


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Returns a checkpoint's manifest, or None if it is not one that ``Saver`` wrote."""
    try:
        record = read_record(path)
        files = record["files"].items()
        is_own = all({"bytes", "sha256"} <= set(f) and ".." not in Path(n).parts for n, f in files)
    except (FileError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if is_own and isinstance(record.get("step"), int) else None


def find_damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is intact."""
    manifest = _read_manifest(path)
    if manifest is None:
        return "it has no readable manifest.json with a step and files"
    if not manifest["files"]:
        return "its manifest.json names no file"
    found = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()}
    if more := sorted(found - {"manifest.json", *manifest["files"]}):
        return f"{more[0]} is not in its manifest.json"
    for name, listed in manifest["files"].items():
        file, size, checksum = path / name, listed["bytes"], listed["sha256"]
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if sha256_file(file) != checksum:
            return f"{name} has another checksum"
    return None


def read_record(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's manifest: step, files, and what save() was given as record."""
    record: dict[str, Any] = parse_json(read_small(path / "manifest.json"))
    return record


def remove_old(folder: Path, keep: int, newest: int | None = None) -> None:
    """Deletes all but the newest ``keep`` checkpoints, and an earlier run's above ``newest``."""
    found = list_own(folder)
    current = [path for step, path in found if newest is None or step <= newest]
    for _, path in found:
        if path not in current[-keep:]:
            _delete(path)


def remove_superseded(folder: Path) -> None:
    """Deletes every best-N that no resumed run can need."""
    # Each has a lower loss than those before it, so a run resumed from checkpoint C needs the
    # newest with N <= C, and the run itself the newest of all.
    steps = [step for step, _ in list_own(folder)]
    best = list_own(folder, "best")
    needed = {sum(step < at for step in steps): path for at, path in best}
    for _, path in best:
        if path not in needed.values():
            _delete(path)


def _delete(path: Path) -> None:
    """Deletes a checkpoint under the name of an unfinished save: a kill leaves nothing foreign."""
    work = path.with_name(f".{path.name}-partial")
    if work.exists():
        shutil.rmtree(work)
    move(path, work)
    shutil.rmtree(work)


def save_dense(model: Any, state: State, dtype: torch.dtype, folder: Path) -> None:
    """Writes a trained model as a plain Hugging Face folder, with the full tensors ``state``."""
    if getattr(model.config, "tie_word_embeddings", False):
        # Gathered copies no longer share memory: without this the file holds both.
        for name in getattr(model, "_tied_weights_keys", None) or {}:
            state.pop(name, None)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with hide_progress_bars():
        model.save_pretrained(folder, state_dict=state)
    # save_pretrained writes the dtype of the model in memory, which may be the masters'.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_text(folder / "config.json", dump_json(config, indent=2) + "\n")
