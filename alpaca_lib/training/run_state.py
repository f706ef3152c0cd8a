"""What a run keeps: checkpoints, its best model, the model at the end; and how it goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from alpaca_lib.files import dump_json
from alpaca_lib.training import adapters, checkpoints, metrics
from alpaca_lib.training.build import Built
from alpaca_lib.training.packing import Encoded
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

# What a run of the other method may have left in the folder.
_OTHER_KIND = {
    "full": ("adapter_config.json", "adapter_model.safetensors"),
    "lora": ("config.json", "generation_config.json", "model*.safetensors*"),
}
# What may differ between a checkpoint's run and the one that goes on from it.
_FREE = {"output_dir", "resume", "log_every", "eval_every", "save_every", "keep_checkpoints"}
_FREE |= {"rows_per_micro_batch", "row_length", "batching", "device", "compile", "sharding"}
_FREE |= {"gather", "trackers", "project", "run_name", "activation_checkpointing", "adapter"}
_FREE |= {"max_steps", "epochs", "keep_best", "memory_check"}  # a run may be lengthened


class RunState:
    """Writes and reads what one run keeps; every rank has one and calls it alike."""

    def __init__(
        self,
        settings: Settings,
        dist: Distributed,
        built: Built,
        optimizer: Any,
        rows: list[Encoded],
    ) -> None:
        self.settings, self.dist, self.built = settings, dist, built
        self.optimizer, self.rows = optimizer, rows
        self.folder = Path(settings.output_dir)
        on_gpu = next(iter(built.trained.masters.values())).is_cuda
        self.saver = checkpoints.Saver(self.folder, dist, background=on_gpu)
        self.best: tuple[float, int] | None = None  # the lowest validation loss, and its step

    @cached_property
    def _data_digest(self) -> str:
        """Changes when any token or label of the training rows does."""
        return hashlib.sha256(dump_json(self.rows).encode("utf-8")).hexdigest()

    def checkpoint(self, step: int) -> None:
        """Writes the checkpoint of a step, and lets older ones go."""
        record = {
            "settings": self.settings.to_dict(),
            "data": self._data_digest,
            "processes": self.dist.size,
        }
        state = self.built.trained.state(self.optimizer)
        self.saver.save(step, state, record, keep=self.settings.keep_checkpoints)

    def note(self, loss: float, step: int, last: bool) -> None:
        """Keeps the weights of a step if its validation loss is the lowest so far."""
        if self.best is not None and loss >= self.best[0]:
            return
        self.best = loss, step
        if not last:  # the last ones are saved anyway
            state = {"model": self.built.trained.state(self.optimizer)["model"]}
            self.saver.save(step, state, {"validation_loss": loss}, name=f"best-{step}")

    def resume(self, steps: int) -> int:
        """Loads the checkpoint that the settings ask for; returns the step it is at."""
        settings, dist = self.settings, self.dist
        found = self._found()
        step = 0
        if found:
            path, step = found
            self._same_run(path)
            self._load(path)
            if dist.is_rank_zero:
                print(f"resuming from {path.name}: step {step} of {steps}", flush=True)
        for at, path in checkpoints.all_of(self.folder, "best"):
            if settings.keep_best and 0 < at <= step and checkpoints.damage(path) is None:
                loss = float(checkpoints.read_record(path)["validation_loss"])
                if self.best is None or loss < self.best[0]:
                    self.best = loss, at
        dist.barrier()
        if dist.is_rank_zero:
            for at, path in checkpoints.all_of(self.folder, "best"):
                if at > step:  # found again when that step comes again
                    shutil.rmtree(path)
            metrics.cut(self.folder, step, steps)
        return step

    def _found(self) -> tuple[Path, int] | None:
        """The checkpoint to go on from and its step. Rank 0 looks, and reads every byte."""
        settings, dist = self.settings, self.dist
        if settings.resume == "never":
            return None
        if settings.resume == "auto":
            found = checkpoints.newest(self.folder) if dist.is_rank_zero else None
            step = int(dist.largest(found[1] if found else -1))
            return (self.folder / f"checkpoint-{step}", step) if step >= 0 else None
        path = Path(settings.resume)
        fault = checkpoints.damage(path) if dist.is_rank_zero else None
        if dist.any_rank(fault is not None):
            raise checkpoints.CheckpointError(f"{path}: {fault or 'damaged, as rank 0 says'}")
        return path, int(checkpoints.read_record(path)["step"])

    def _load(self, path: Path, optimizer: bool = True) -> None:
        """Puts a checkpoint's weights, and the optimizer's averages, into this run."""
        trained = self.built.trained
        state = trained.state(self.optimizer)
        if optimizer:
            checkpoints.load(path, state, self.dist)
            trained.loaded(state, self.optimizer)
        else:
            checkpoints.load(path, {"model": state["model"]}, self.dist)
            trained.copy_to_model()

    def _same_run(self, path: Path) -> None:
        """Refuses a checkpoint of a run whose steps would be other ones."""
        record = checkpoints.read_record(path)
        there, now = record.get("settings", {}), self.settings.to_dict()
        differ = [
            f"{key} was {there[key]!r}, is {now[key]!r}"
            for key in now
            if key not in _FREE and key in there and there[key] != now[key]
        ]
        if record.get("data") != self._data_digest:
            differ.append(f"the training rows of {self.settings.data_path} are other ones")
        if self.settings.optimizer == "adamw8bit" and record.get("processes") != self.dist.size:
            differ.append(
                f"processes were {record.get('processes')}, are {self.dist.size} (8-bit averages "
                "cannot be cut anew)"
            )
        if differ:
            raise checkpoints.CheckpointError(
                f"{path} is of another run: {'; '.join(differ)}. Use another output_dir, the "
                'same settings, or resume "never"'
            )

    def save_model(self, steps: int, tokenizer: Any, dtype: Any) -> None:
        """Puts the trained model (or adapter) and tokenizer into the folder. The last
        checkpoint is of the last step: a run killed in here has only this left to do."""
        settings, dist, built = self.settings, self.dist, self.built
        if settings.save_every:
            self.checkpoint(steps)
        self.saver.wait()
        dist.barrier()  # the others read what rank 0 has given its name
        if settings.keep_best and self.best and self.best[1] != steps:
            self._load(self.folder / f"best-{self.best[1]}", optimizer=False)
            if dist.is_rank_zero:
                print(f"the model of step {self.best[1]} is kept: it has the lowest loss")
        values = built.trained.full_state_dict(built.model)
        if dist.is_rank_zero:
            work = self.folder / ".model-partial"
            shutil.rmtree(work, ignore_errors=True)
            if settings.method == "lora":
                adapters.save_adapter(built.model, values, settings.model, work)
                adapters.check_saved(work, built.model, values, whole=not built.sharded)
            else:
                checkpoints.save_dense(built.model, values, dtype, work)
            tokenizer.save_pretrained(work)
            for pattern in _OTHER_KIND[settings.method]:
                for file in self.folder.glob(pattern):
                    file.unlink()
            # config.json last: with it the folder is a model.
            for file in sorted(work.iterdir(), key=lambda p: p.name.endswith("config.json")):
                os.replace(file, self.folder / file.name)
            work.rmdir()
        dist.barrier()
