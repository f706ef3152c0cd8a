"""Checkpoints that are whole or not there: written beside, checked, then renamed.

    checkpoint-40/  manifest.json   step, and size and SHA-256 of every file
                    state/          model and optimizer, in shards (torch DCP)

Resuming takes the newest one whose files are what its manifest says. A checkpoint
of two processes loads on one, and the other way round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca_lib.errors import CheckpointError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.optional import hide_progress_bars
from alpaca_lib.training.sharding import Distributed

if TYPE_CHECKING:
    import torch

State = dict[str, Any]  # tensors, sharded or not, in nested dictionaries


class Saver:
    """Writes the checkpoints of one run; every rank has one and calls it alike.

    In the background (for a GPU: the state is copied to main memory and training goes
    on) a checkpoint takes its name when it is complete; wait() before the process ends.
    """

    def __init__(self, folder: Path, dist: Distributed, background: bool = False) -> None:
        self.folder, self.dist, self.background = folder, dist, background
        self._writing: threading.Thread | None = None
        self._failed: list[CheckpointError] = []
        self._group: Any = None
        if background and dist.size > 1:
            import torch.distributed as c10d

            self._group = c10d.new_group(backend="gloo")

    def save(
        self, step: int, state: State, record: dict[str, Any], keep: int = 0, name: str = ""
    ) -> Path:
        """Writes folder/checkpoint-{step}, or folder/{name}; then, if keep is above 0, deletes
        all but the newest ``keep`` checkpoints. CheckpointError if it cannot be written."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        self.wait()
        final = self.folder / (name or f"checkpoint-{step}")
        work = self.folder / f".{final.name}-partial"
        if self.dist.is_rank_zero:
            _put_back(self.folder)
            for left in [*self.folder.glob(".*-partial"), *_asides(self.folder)]:
                shutil.rmtree(left)  # of a run that was killed
            work.mkdir(parents=True)
        self.dist.barrier()

        def finish() -> None:
            if self.dist.is_rank_zero:
                _name(work, final, {"step": step, **record})
                if keep:
                    remove_old(self.folder, keep, step)
                remove_worse(self.folder)

        def refused(error: BaseException) -> CheckpointError:
            why = _no_room(_bytes(state), work) or _why(error)
            return CheckpointError(f"{final}: was not written: {why}")

        with _alone(self.dist) as alone:
            if self.background:
                future: Any = dcp.async_save(
                    state, checkpoint_id=work / "state", process_group=self._group, no_dist=alone
                )
                self._writing = threading.Thread(
                    target=self._complete, args=(future, finish, refused)
                )
                self._writing.start()
                return final
            try:
                dcp.save(state, checkpoint_id=work / "state", no_dist=alone)
                finish()
            except (CheckpointException, OSError) as error:  # the first is no Exception
                raise refused(error) from error
        self.dist.barrier()
        return final

    def _complete(
        self,
        future: Any,
        finish: Callable[[], None],
        refused: Callable[[BaseException], CheckpointError],
    ) -> None:
        try:
            future.result()
            finish()
        except BaseException as error:
            self._failed.append(refused(error))

    def wait(self) -> None:
        """Until what is being written has its name; CheckpointError if it could not be."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failed:
            raise self._failed.pop()


def _name(work: Path, final: Path, record: dict[str, Any]) -> None:
    """Checks what was written in ``work`` into a manifest, and renames it."""
    files = sorted(p for p in work.rglob("*") if p.is_file())
    for file in files:
        _sync(file)
    manifest = {
        **record,
        "files": {
            p.relative_to(work).as_posix(): {"bytes": p.stat().st_size, "sha256": _digest(p)}
            for p in files
        },
    }
    write_text(work / "manifest.json", dump_json(manifest, indent=1))
    for place in [*(p for p in work.rglob("*") if p.is_dir()), work]:
        _sync(place)
    # A step that is saved again: the old one stays until the new one has its name.
    aside = final.with_name(f".{final.name}-old")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(work, final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path, state: State, dist: Distributed) -> None:
    """Puts a checkpoint's values into the tensors of ``state``, at any number of ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    known = dcp.FileSystemReader(folder / "state").read_metadata().state_dict_metadata
    mine = {f"model.{name}" for name in state["model"]}
    if more := [name for name in known if name.startswith("model.") and name not in mine]:
        raise CheckpointError(f"{folder}: it has {more[0]}, which this model has not")
    with _alone(dist) as alone:
        try:
            dcp.load(state, checkpoint_id=folder / "state", no_dist=alone)
        except CheckpointException as error:  # of torch, and no Exception
            raise CheckpointError(
                f"{folder}: its state is not this model's ({_why(error)})"
            ) from error


def _why(error: BaseException) -> str:
    """What went wrong; of torch's errors the first rank's cause, without its traceback."""
    causes = list(getattr(error, "failures", {}).values())
    return str(causes[0][0] if causes else error)


def _no_room(needed: int, work: Path) -> str:
    """What a full disk is to be called, which torch calls a wrong place in its file; or ''."""
    begun = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    free = shutil.disk_usage(work.parent).free + begun
    if free >= needed:
        return ""
    return (
        f"it takes {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free in {work.parent}. Make "
        "room and start the same run again: it goes on from the checkpoint before, if there is one"
    )


def _bytes(state: State) -> int:
    """Of all tensors in a state, whole ones where they are sharded."""
    return sum(
        _bytes(value) if isinstance(value, dict) else getattr(value, "nbytes", 0)
        for value in state.values()
    )


def newest(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; says which damaged ones it passed over."""
    _put_back(folder)
    for step, path in reversed(all_of(folder)):
        fault = damage(path)
        if fault is None and (there := read_record(path)["step"]) != step:
            fault = f"it is of step {there}"
        if fault is None:
            return path, step
        say(f"{path.name} is passed over: {fault}")
    return None


def _asides(folder: Path) -> list[Path]:
    """Checkpoints that were about to be replaced by new ones of their step."""
    return [*folder.glob(".checkpoint-*-old"), *folder.glob(".best-*-old")]


def _put_back(folder: Path) -> None:
    """Gives a checkpoint its name back that a kill has left aside, without its new one."""
    for aside in _asides(folder):
        final = folder / aside.name[1:].removesuffix("-old")
        if not final.exists():
            os.replace(aside, final)


def all_of(folder: Path, kind: str = "checkpoint") -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint-N (or best-N), by N."""
    found = ((p.name.rsplit("-", 1)[1], p) for p in folder.glob(f"{kind}-*"))
    return sorted((int(number), p) for number, p in found if number.isdigit())


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = [(n, int(f["bytes"]), str(f["sha256"])) for n, f in manifest["files"].items()]
        if not files:
            return "its manifest.json names no file"
        if not isinstance(manifest["step"], int):
            return "its manifest.json names no step"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "it has no readable manifest.json"
    for name, size, digest in files:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if _digest(file) != digest:
            return f"{name} has another checksum"
    return None


def read_record(path: Path) -> dict[str, Any]:
    """A whole checkpoint's manifest: step, and what save() was given as record."""
    record: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    return record


def remove_old(folder: Path, keep: int, newest: int | None = None) -> None:
    """Deletes all but the newest ``keep`` checkpoints; those above step ``newest``, of a run
    that was given up for this one, count as old."""
    found = all_of(folder)
    mine = [path for step, path in found if newest is None or step <= newest]
    for _, path in found:
        if path not in mine[-keep:]:
            shutil.rmtree(path)


def remove_worse(folder: Path) -> None:
    """Deletes what no run that goes on can need: of the best-N up to each checkpoint, and of
    those after the last one, all but the newest, which has the lowest loss."""
    steps = [step for step, _ in all_of(folder)]
    best = all_of(folder, "best")
    needed = {sum(step < at for step in steps): path for at, path in best}
    for _, path in best:
        if path not in needed.values():
            shutil.rmtree(path)


@contextlib.contextmanager
def _alone(dist: Distributed) -> Iterator[bool]:
    """Whether this is the only process; torch need not warn that it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield dist.size == 1


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Until a file's bytes, or a folder's names, are on the disk: after a power cut a rename
    may be there without them."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:  # which some network file systems cannot sync
            raise
    finally:
        os.close(handle)


def save_dense(model: Any, state: State, dtype: torch.dtype, folder: Path) -> None:
    """Writes a trained model as a plain Hugging Face folder; ``state``: its whole tensors."""
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
