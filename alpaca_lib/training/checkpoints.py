"""Checkpoints that are complete or absent: written to a temporary folder, checked, renamed.

    checkpoint-40/  manifest.json   the step, and size and SHA-256 of every file
                    state/          model and optimizer, in shards (torch DCP)

A run resumes, with any number of processes, from the newest whose files match its manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as c10d

from alpaca_lib.errors import CheckpointError
from alpaca_lib.files import dump_json, sha256_file, sync, write_text
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
            for leftover in [*self.folder.glob(".*-partial"), *_replaced(self.folder)]:
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
                why = _explain_full_disk(_count_bytes(state), work) or _first_cause(error)
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
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(final, replaced)
    os.replace(work, final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def load(folder: Path, state: State, dist: Distributed) -> None:
    """Loads a checkpoint into the tensors of ``state``. CheckpointError if of another model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    saved = dcp.FileSystemReader(folder / "state").read_metadata().state_dict_metadata
    expected = {f"model.{name}" for name in state["model"]}
    if more := [name for name in saved if name.startswith("model.") and name not in expected]:
        raise CheckpointError(f"{folder}: it has {more[0]}, which this model does not have")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load(state, checkpoint_id=folder / "state", no_dist=dist.size == 1)
        except CheckpointException as error:  # of torch, and no Exception
            raise CheckpointError(
                f"{folder}: its state is not this model's ({_first_cause(error)})"
            ) from error


def _first_cause(error: BaseException) -> str:
    """Returns an error's text; of torch's CheckpointException the first rank's cause."""
    causes = list(getattr(error, "failures", {}).values())
    return str(causes[0][0] if causes else error)


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


def _replaced(folder: Path) -> list[Path]:
    """Returns the old folders of checkpoints whose step was being saved again."""
    return [*folder.glob(".checkpoint-*-old"), *folder.glob(".best-*-old")]


def _restore_replaced(folder: Path) -> None:
    """Renames an old checkpoint back if a kill came before the new one got its name."""
    for replaced in _replaced(folder):
        final = folder / replaced.name[1:].removesuffix("-old")
        if not final.exists():
            os.replace(replaced, final)


def list_checkpoints(folder: Path, kind: str = "checkpoint") -> list[tuple[int, Path]]:
    """Returns (step, folder) of every checkpoint-N (or best-N), by step."""
    numbered = ((p.name.rsplit("-", 1)[1], p) for p in folder.glob(f"{kind}-*"))
    return sorted((int(number), p) for number, p in numbered if number.isdigit())


def find_damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is intact."""
    try:
        manifest = read_record(path)
        files = [(n, int(f["bytes"]), str(f["sha256"])) for n, f in manifest["files"].items()]
        if not files or not isinstance(manifest["step"], int):
            return "its manifest.json names no file, or no step"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "it has no readable manifest.json"
    for name, size, checksum in files:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if sha256_file(file) != checksum:
            return f"{name} has another checksum"
    return None


def read_record(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's manifest: step, files, and what save() was given as record."""
    record: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    return record


def remove_old(folder: Path, keep: int, newest: int | None = None) -> None:
    """Deletes all but the newest ``keep`` checkpoints, and an earlier run's above ``newest``."""
    found = list_checkpoints(folder)
    current = [path for step, path in found if newest is None or step <= newest]
    for _, path in found:
        if path not in current[-keep:]:
            shutil.rmtree(path)


def remove_superseded(folder: Path) -> None:
    """Deletes every best-N that no resumed run can need."""
    # Each has a lower loss than those before it, so a run resumed from checkpoint C needs the
    # newest with N <= C, and the run itself the newest of all.
    steps = [step for step, _ in list_checkpoints(folder)]
    best = list_checkpoints(folder, "best")
    needed = {sum(step < at for step in steps): path for at, path in best}
    for _, path in best:
        if path not in needed.values():
            shutil.rmtree(path)


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
