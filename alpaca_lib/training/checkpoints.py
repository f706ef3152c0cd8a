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
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca_lib.embedded import quiet
from alpaca_lib.records import dump_json, write_text
from alpaca_lib.training.sharding import World

if TYPE_CHECKING:
    import torch


class CheckpointError(RuntimeError):
    """A checkpoint that was asked for and cannot be used."""


def save(
    folder: Path, step: int, model: Any, optimizer: Any, record: dict[str, Any], here: World
) -> Path:
    """Writes folder/checkpoint-{step}; every rank calls it, each writes its shards."""
    import torch.distributed.checkpoint as dcp

    final, work = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}-partial"
    if here.first:
        for left in folder.glob(".checkpoint-*-partial"):  # of a run that was killed
            shutil.rmtree(left)
        work.mkdir(parents=True)
    here.barrier()
    with _alone(here) as alone:
        dcp.save(_state(model, optimizer), checkpoint_id=work / "state", no_dist=alone)
    if here.first:
        files = sorted(p for p in work.rglob("*") if p.is_file())
        for file in files:
            _sync(file)
        manifest = {
            "step": step,
            **record,
            "files": {
                p.relative_to(work).as_posix(): {"bytes": p.stat().st_size, "sha256": _digest(p)}
                for p in files
            },
        }
        write_text(work / "manifest.json", dump_json(manifest, indent=1))
        if final.exists():
            shutil.rmtree(final)
        os.replace(work, final)
    here.barrier()
    return final


def load(folder: Path, model: Any, optimizer: Any, here: World) -> None:
    """Puts a checkpoint's state into model and optimizer, at any number of ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    state = _state(model, optimizer)
    # The parameters are loaded in place; the optimizer takes what was loaded.
    with _alone(here) as alone:
        dcp.load(state, checkpoint_id=folder / "state", no_dist=alone)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def newest(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; says which damaged ones it passed over."""
    found = sorted(
        (int(p.name.rsplit("-", 1)[1]), p)
        for p in folder.glob("checkpoint-*")
        if p.name.rsplit("-", 1)[1].isdigit()
    )
    for step, path in reversed(found):
        fault = damage(path)
        if fault is None:
            return path, step
        say(f"{path.name} is passed over: {fault}")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = [(n, int(f["bytes"]), str(f["sha256"])) for n, f in manifest["files"].items()]
        if not files:
            return "its manifest.json names no file"
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


def remove_old(folder: Path, keep: int) -> None:
    """Deletes all but the newest ``keep`` checkpoints."""
    steps = sorted(
        int(p.name.rsplit("-", 1)[1])
        for p in folder.glob("checkpoint-*")
        if p.name.rsplit("-", 1)[1].isdigit()
    )
    for step in steps[: max(len(steps) - keep, 0)]:
        shutil.rmtree(folder / f"checkpoint-{step}")


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    """The trained parameters (a frozen base, in 8 bits or not, is not kept) and the optimizer."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {"model": trained, "optimizer": get_optimizer_state_dict(model, optimizer)}


@contextlib.contextmanager
def _alone(here: World) -> Iterator[bool]:
    """Whether this is the only process; torch need not warn that it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield here.size == 1


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def save_dense(model: Any, state: dict[str, Any] | None, dtype: torch.dtype, folder: Path) -> None:
    """Writes a trained model as a plain Hugging Face folder; ``state``: its gathered shards."""
    state = model.state_dict() if state is None else state
    if getattr(model.config, "tie_word_embeddings", False):
        # Gathered copies no longer share memory: without this the file holds both.
        for name in getattr(model, "_tied_weights_keys", None) or {}:
            state.pop(name, None)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with quiet():
        model.save_pretrained(folder, state_dict=state)
    # save_pretrained writes the dtype of the model in memory, which is the master weights'.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_text(folder / "config.json", dump_json(config, indent=2) + "\n")
