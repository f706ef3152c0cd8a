"""What a run keeps in its folder: checkpoints, its best model, the final model; and resuming."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from alpaca_lib.errors import CheckpointError
from alpaca_lib.files import dump_json, sha256_text
from alpaca_lib.tokenization import publish_prompts
from alpaca_lib.training import adapters, checkpoints, metrics, output_folder
from alpaca_lib.training.build import Built
from alpaca_lib.training.packing import Encoded
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

# Settings that a resumed run may change: they do not decide what a step computes.
_MAY_CHANGE = (
    {"max_steps", "epochs"}  # a run may be made longer
    | {"batching", "row_length", "rows_per_micro_batch", "share_prefix"}
    | {"activation_checkpointing"}
    | {"device", "compile", "sharding", "gather", "memory_check"}
    | {"log_every", "eval_every", "save_every", "keep_checkpoints", "keep_best"}
    | {"output_dir", "resume", "adapter", "trackers", "project", "run_name"}
)


def find_prompt_time(settings: Settings) -> datetime | None:
    """Returns the time that chat templates saw in the run that is resumed; None for a new run.

    The rows of a resumed run have to be those of its beginning, the date in them included.
    """
    if settings.resume == "never":
        return None
    folder = Path(settings.output_dir if settings.resume == "auto" else settings.resume)
    files = [*folder.glob("checkpoint-*/manifest.json"), *folder.glob("manifest.json")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            return datetime.fromisoformat(checkpoints.read_record(file.parent)["prompt_time"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or of a template that shows no time
    return None


@dataclass
class RunState:
    """Saves and restores the state of a run; every rank has one and makes the same calls.

    >>> run_state = RunState(settings, dist, built, optimizer, rows)
    >>> first = run_state.resume(steps)  # the step of the loaded checkpoint, 0 without one
    """

    settings: Settings
    dist: Distributed
    built: Built
    optimizer: Any
    rows: list[Encoded]  # to train on
    prompt_time: str = ""  # that a chat template has seen, in ISO form; empty if it shows none
    best: tuple[float, int] | None = None  # lowest validation loss (nats per token), its step

    def __post_init__(self) -> None:
        self.folder = Path(self.settings.output_dir)
        on_gpu = next(iter(self.built.weights.masters.values())).is_cuda
        self.saver = checkpoints.Saver(self.folder, self.dist, background=on_gpu)

    @cached_property
    def _data_checksum(self) -> str:
        """Differs if any token or label of the training rows does."""
        return sha256_text(dump_json(self.rows))

    def checkpoint(self, step: int) -> None:
        """Writes the checkpoint of a step and deletes those above keep_checkpoints."""
        record = {
            "settings": self.settings.to_dict(),
            "data": self._data_checksum,
            "prompt_time": self.prompt_time,
            "processes": self.dist.size,
        }
        state = self.built.weights.state(self.optimizer)
        self.saver.save(step, state, record, keep=self.settings.keep_checkpoints)

    def keep_if_best(self, loss: float, step: int, last: bool) -> None:
        """Saves the weights of a step as best-N if its validation loss is the lowest so far."""
        if self.best is not None and loss >= self.best[0]:
            return
        self.best = loss, step
        if not last:  # save_model() saves the last ones
            state = {"model": self.built.weights.state(self.optimizer)["model"]}
            self.saver.save(step, state, {"validation_loss": loss}, name=f"best-{step}")

    def resume(self, steps: int) -> int:
        """Loads the checkpoint that the settings ask for and returns its step; 0 without one.

        Deletes what the run will write again: best-N and lines of metrics after that step.
        Raises CheckpointError if the checkpoint is damaged or of another run.
        """
        settings, dist = self.settings, self.dist
        found = self._find_checkpoint()
        step = 0
        if found:
            path, step = found
            self._check_same_run(path)
            self._load(path)
            if dist.is_rank_zero:
                print(f"resuming from {path.name}: step {step} of {steps}", flush=True)
        if dist.is_rank_zero and (foreign := checkpoints.list_foreign(self.folder)):
            names = ", ".join(path.name for path in foreign)
            print(f"{names}: ignored and left as found: no checkpoint of a run here", flush=True)
        best = checkpoints.list_own(self.folder, "best")
        if settings.keep_best:
            intact = [(p, n) for n, p in best if n <= step and not checkpoints.find_damage(p)]
            losses = [(checkpoints.read_record(p).get("validation_loss"), n) for p, n in intact]
            self.best = min(((x, n) for x, n in losses if isinstance(x, float)), default=None)
        dist.barrier()
        if dist.is_rank_zero:
            for at, path in best:
                if at > step:
                    shutil.rmtree(path)
            metrics.drop_later(self.folder, step, steps)
        return step

    def _find_checkpoint(self) -> tuple[Path, int] | None:
        """Returns the checkpoint to resume from and its step. Rank 0 reads and checks it."""
        settings, dist = self.settings, self.dist
        if settings.resume == "never":
            return None
        if settings.resume == "auto":
            found = checkpoints.find_newest(self.folder) if dist.is_rank_zero else None
            step = int(dist.largest(found[1] if found else -1))
            return (self.folder / f"checkpoint-{step}", step) if step >= 0 else None
        path = Path(settings.resume)
        fault = checkpoints.find_damage(path) if dist.is_rank_zero else None
        if dist.any_rank(fault is not None):
            raise CheckpointError(f"{path}: {fault or 'damaged, as rank 0 reports'}")
        return path, int(checkpoints.read_record(path)["step"])

    def _load(self, path: Path, optimizer: bool = True) -> None:
        """Loads a checkpoint's weights, and the optimizer's moments, into this run."""
        weights = self.built.weights
        state = weights.state(self.optimizer)
        if optimizer:
            checkpoints.load(path, state, self.dist)
            weights.restore(state, self.optimizer)
        else:
            checkpoints.load(path, {"model": state["model"]}, self.dist)
            weights.copy_to_model()

    def _check_same_run(self, path: Path) -> None:
        """Raises CheckpointError for a checkpoint of a run that would take other steps."""
        record = checkpoints.read_record(path)
        saved, current = record.get("settings"), self.settings.to_dict()
        if not isinstance(saved, dict):
            raise CheckpointError(f"{path}: its manifest.json has no settings of a training run")
        differ = [
            f"{key} was {saved[key]!r}, is {current[key]!r}"
            for key in current
            if key not in _MAY_CHANGE and key in saved and saved[key] != current[key]
        ]
        if record.get("data") != self._data_checksum:
            differ.append(f"the training rows of {self.settings.data_path} have changed")
        if self.settings.optimizer == "adamw8bit" and record.get("processes") != self.dist.size:
            differ.append(
                f"processes were {record.get('processes')}, are {self.dist.size} (8-bit moments "
                "cannot be sharded differently)"
            )
        if differ:
            raise CheckpointError(
                f"{path} is of another run: {'; '.join(differ)}. Use another output_dir, the "
                'same settings, or resume "never"'
            )

    def save_model(self, steps: int, tokenizer: Any, dtype: Any) -> None:
        """Saves the trained model (or adapter) and the tokenizer in the output folder."""
        settings, dist, built = self.settings, self.dist, self.built
        # A run that is killed here resumes after its last step and only has to save the model.
        if settings.save_every:
            self.checkpoint(steps)
        self.saver.wait()
        dist.barrier()  # the other ranks read the best-N that rank 0 has renamed
        if settings.keep_best and self.best and self.best[1] != steps:
            self._load(self.folder / f"best-{self.best[1]}", optimizer=False)
            if dist.is_rank_zero:
                print(f"the model of step {self.best[1]} is kept: it has the lowest loss")
        tensors = built.weights.full_state_dict(built.model)
        if dist.is_rank_zero:
            work = self.folder / ".model-partial"
            shutil.rmtree(work, ignore_errors=True)
            publish_prompts(tokenizer, settings.template, built.model, settings.keep_reasoning)
            if settings.method == "lora":
                adapters.save_adapter(built.model, tensors, settings.model, work)
                adapters.check_saved(work, built.model, tensors, unsharded=not built.sharded)
            else:
                checkpoints.save_dense(built.model, tensors, dtype, work)
            tokenizer.save_pretrained(work)
            output_folder.replace_model(work, self.folder)
        dist.barrier()
