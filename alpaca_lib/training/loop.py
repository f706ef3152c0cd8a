"""The training loop: full or LoRA, one process or many, the same steps in each.

An optimizer step is so many *examples*; how they are dealt to micro-batches and
ranks changes the speed and not the step. Its loss is the mean over the label
tokens of the whole step, on all ranks together.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from alpaca_lib import models
from alpaca_lib.records import dump_json, write_text
from alpaca_lib.training import adapters, checkpoints, metrics, sharding, trackers
from alpaca_lib.training.attention import Documents, attached
from alpaca_lib.training.build import build
from alpaca_lib.training.examples import Data, load_data
from alpaca_lib.training.flops import flops_per_token, gemm_rate, peak_rate
from alpaca_lib.training.packing import (
    Encoded,
    collate,
    deal,
    deal_rows,
    join,
    label_count,
    step_order,
)
from alpaca_lib.training.precision import optimizer_of
from alpaca_lib.training.process import keep_memory, peak_memory, stop_signal
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import World

# What a run of the other method may have left in the folder.
_OTHER_KIND = {
    "full": ("adapter_config.json", "adapter_model.safetensors"),
    "lora": ("config.json", "generation_config.json", "model.safetensors"),
}
# What may differ between a checkpoint's run and the one that goes on from it.
_FREE = {"output_dir", "resume", "log_every", "eval_every", "save_every", "keep_checkpoints"}
_FREE |= {"rows_per_micro_batch", "row_length", "batching", "device", "compile", "sharding"}
_FREE |= {"gather", "trackers", "project", "run_name", "activation_checkpointing", "adapter"}
_FREE |= {"max_steps", "epochs", "keep_best"}  # a run may be lengthened
Report = Callable[[dict[str, Any]], None]


class TrainingStopped(RuntimeError):
    """A run that stopped before its end; the text says why, and how to go on."""


def train(settings: Settings, report: Report = lambda line: None) -> Path:
    """Trains as described and returns the output folder, which from_pretrained loads.

    ``report`` gets every line of metrics.jsonl on rank 0: step, loss, lr, grad_norm,
    tokens, tokens_per_second, mfu, peak_memory_bytes; or step and validation_loss.
    Raises DataError, ModelError, AdapterError, TrackerError before any work;
    TrainingStopped on a loss that is not a number, or on SIGTERM (after a checkpoint).
    """
    trackers.check(settings)
    placement = models.place(settings.device, settings.dtype)
    keep_memory()
    tokenizer = models.load_tokenizer(settings.model)
    data = load_data(settings, tokenizer)
    with sharding.world(placement.device) as here, stop_signal() as told_to_stop:
        return _Run(settings, placement, tokenizer, data, here, report).to_the_end(told_to_stop)


class _Run:
    """What the steps of one run share."""

    def __init__(
        self,
        settings: Settings,
        placement: models.Placement,
        tokenizer: Any,
        data: Data,
        here: World,
        report: Report,
    ) -> None:
        self.settings, self.placement, self.tokenizer = settings, placement, tokenizer
        self.data, self.here, self.report = data, here, report
        self.rows = data.rows
        self.folder = Path(settings.output_dir)
        per_epoch = math.ceil(len(self.rows) / settings.examples_per_step)
        self.steps = settings.max_steps or max(round(settings.epochs * per_epoch), 1)
        self.built = build(settings, placement, here)
        _check_tokens(self.built.causal, [*data.rows, *data.held_out], settings.model)
        lengths = [len(row["input_ids"]) for row in self.rows]
        context = sum(n * n for n in lengths) / sum(lengths)
        self.flops_per_token = flops_per_token(self.built.model, settings.method, context)
        trained = self.built.trained
        self.optimizer = optimizer_of(
            trained, settings.optimizer, settings.learning_rate, settings.weight_decay
        )
        warmup = settings.warmup
        self.schedule = transformers.get_scheduler(
            settings.schedule,
            self.optimizer,
            num_warmup_steps=math.ceil(warmup * self.steps) if warmup < 1 else int(warmup),
            num_training_steps=self.steps,
        )
        on_gpu = placement.device != "cpu"
        self.saver = checkpoints.Saver(self.folder, here, background=on_gpu)
        self.gather_once = self.built.gather_once
        self.trackers = trackers.Trackers()
        self.best: tuple[float, int] | None = None
        self.pace: float | None = None  # seconds a step, the last ones count most

    def to_the_end(self, told_to_stop: threading.Event) -> Path:
        """Runs all steps, from the newest whole checkpoint on; saves and checks the model."""
        settings, here = self.settings, self.here
        first = self._resume()
        self.gemm = gemm_rate(self.placement.device, self.placement.torch_dtype)
        self.peak = peak_rate(self.placement.device) or self.gemm
        if here.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            run = self._write_run()
            self.trackers = trackers.open_trackers(settings, self.folder, run, first)
        here.barrier()
        if here.size > 1:
            mine = dump_json(sharding.shares(self.built.model))
            write_text(self.folder / "shards" / f"rank{here.rank}.json", mine)
        failed = True
        try:
            if first == 0:
                self._validate(0)
            for step in range(first, self.steps):
                self._one_step(step, told_to_stop)
            self._validate(self.steps)
            self._save_model()
            failed = False
        finally:
            self.saver.wait()
            self.trackers.close(failed)
        return self.folder

    def _one_step(self, step: int, told_to_stop: threading.Event) -> None:
        """A step, and what is due after it: a line, a validation, a checkpoint, a stop."""
        settings, done = self.settings, step + 1
        line = self._step(step)
        if done % settings.log_every == 0 or done == self.steps:
            self._log(line)
        if done == self.steps:
            return
        if settings.eval_every and done % settings.eval_every == 0:
            self._validate(done)
        stop = self.here.agree(told_to_stop.is_set())
        if stop or (settings.save_every and done % settings.save_every == 0):
            self._checkpoint(done)
        if stop:
            self.saver.wait()
            raise TrainingStopped(
                f"told to stop: step {done} of {self.steps} is saved in {self.folder}; "
                "start the same run again to go on from it"
            )

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; returns its line of metrics."""
        settings, here, trained = self.settings, self.here, self.built.trained
        start = time.perf_counter()
        torch.manual_seed(hash((settings.seed, step, here.rank)))
        # Every rank plans the whole step, so nobody has to be told the token counts.
        chosen = step_order(len(self.rows), settings.examples_per_step, settings.seed, step)
        examples = [self.rows[i] for i in chosen]
        labels = sum(label_count(row) for row in examples)
        tokens = sum(len(row["input_ids"]) for row in examples)
        batches = self._deal(examples)
        total = 0.0
        for number, ranks in enumerate(batches, 1):
            if self.gather_once:
                sharding.gather_once(self.built.module, last=number == len(batches))
            loss = self._forward(examples, ranks[here.rank])
            # FSDP averages gradients over ranks; the step wants their sum.
            (loss * (here.size / labels)).backward()
            total += float(loss.detach())
        norm = trained.collect()
        mean = here.sum(total) / labels
        if not (math.isfinite(mean) and math.isfinite(norm) and mean and norm):
            raise TrainingStopped(
                f"step {step + 1}: loss {mean}, gradient norm {norm}, on rows {chosen} of the "
                f"training data (numbered after validation rows and rows without a label are "
                "taken out). Lower learning_rate, or look at these rows"
            )
        trained.clip(norm, settings.max_grad_norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        trained.publish()
        self.schedule.step()
        seconds = time.perf_counter() - start
        self.pace = seconds if self.pace is None else 0.8 * self.pace + 0.2 * seconds
        speed = tokens / seconds
        flops = speed * self.flops_per_token / here.size
        return {
            "step": step + 1,
            "loss": mean,
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "label_tokens": labels,
            "tokens_per_second": speed,
            "mfu": flops / self.peak,
            "gemm_share": flops / self.gemm,
            "peak_memory_bytes": peak_memory(self.placement.device),
            "seconds_left": self.pace * (self.steps - step - 1),
        }

    def _deal(self, examples: list[Encoded]) -> list[list[list[int]]]:
        """[micro-batch][rank] -> the examples of each."""
        settings, size = self.settings, self.here.size
        lengths = [len(row["input_ids"]) for row in examples]
        if settings.batching != "pack":
            by_length = settings.batching == "bucket"
            return deal_rows(lengths, settings.rows_per_micro_batch, size, by_length)
        # A mask over the whole row costs its square: then a micro-batch is one row.
        rows = settings.rows_per_micro_batch if attached(self.built.causal) else 1
        return deal(lengths, rows * settings.row_length, size)

    def _forward(self, examples: list[Encoded], members: list[int]) -> torch.Tensor:
        """The summed loss of these examples, packed into one row or padded to several."""
        device, pad = self.placement.device, self.tokenizer.pad_token_id or 0
        packed = self.settings.batching == "pack"
        rows = [join(examples, members)] if packed and members else []
        if not packed:
            rows = [join(examples, [i]) for i in members]
        batch = collate(rows, pad, self.multiple)
        documents = None
        if packed and attached(self.built.causal):
            borders = [*(rows[0].borders if rows else [0])[:-1], batch["input_ids"].shape[1]]
            documents = Documents.of(borders if len(borders) > 1 else [0, *borders], device)
        elif not packed:  # causal rows with their padding last need no mask at all
            size = batch["input_ids"].shape
            batch["position_ids"] = torch.arange(size[1]).expand(size)
        moved = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        loss: torch.Tensor = self.built.module(**moved, documents=documents)
        return loss

    @property
    def multiple(self) -> int:
        """Batches are padded to a multiple of this, as the device's matrix units like it."""
        return 128 if self.placement.device.startswith("cuda") else 8

    def _validate(self, step: int) -> None:
        """Logs the mean loss over the validation set's label tokens, if there is one; keeps
        the weights of the lowest if the settings ask for it."""
        held = self.data.held_out
        if not held:
            return
        with adapters.evaluating(self.built.model), torch.no_grad():
            total = sum(
                float(self._forward(held, ranks[self.here.rank])) for ranks in self._deal(held)
            )
        mean = self.here.sum(total) / sum(label_count(row) for row in held)
        self._log({"step": step, "validation_loss": mean})
        if self.settings.keep_best and step and (self.best is None or mean < self.best[0]):
            self.best = mean, step
            if step < self.steps:
                state = {"model": self.built.trained.state(self.optimizer)["model"]}
                self.saver.save(step, state, {"validation_loss": mean}, name=f"best-{step}")

    def _log(self, line: dict[str, Any]) -> None:
        if self.here.first:
            metrics.append(self.folder, line)
            self.report(line)
            self.trackers.log(line)

    def _write_run(self) -> dict[str, Any]:
        facts = {
            "processes": self.here.size,
            "steps": self.steps,
            "training_rows": len(self.rows),
            "validation_rows": len(self.data.held_out),
            "rows_without_label": self.data.dropped,
            "rows_cut": self.data.cut,
            "attention": self.built.attention,
            "flops_per_token": self.flops_per_token,
            "gemm_flops_per_second": self.gemm * self.here.size,
        }
        return metrics.write_run(self.folder, self.settings, self.placement, facts)

    def _resume(self) -> int:
        """Loads the checkpoint that the settings ask for; returns the step it is at."""
        settings, first = self.settings, self.here.first
        say = print if first else lambda text: None
        found: tuple[Path, int] | None = None
        if settings.resume == "auto":
            found = checkpoints.newest(self.folder, say=say)
        elif settings.resume != "never":
            path = Path(settings.resume)
            if fault := checkpoints.damage(path):
                raise checkpoints.CheckpointError(f"{path}: {fault}")
            found = path, int(checkpoints.read_record(path)["step"])
        step = 0
        if found:
            path, step = found
            self._same_run(path)
            self._load(path)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
                for _ in range(step):
                    self.schedule.step()
            say(f"resuming from {path.name}: step {step} of {self.steps}")
        for at, path in checkpoints.all_of(self.folder, "best"):
            if 0 < at <= step and checkpoints.damage(path) is None:
                loss = float(checkpoints.read_record(path)["validation_loss"])
                if self.best is None or loss < self.best[0]:
                    self.best = loss, at
        self.here.barrier()
        if first:
            metrics.cut(self.folder, step, self.steps)
            for at, path in checkpoints.all_of(self.folder, "best"):
                if at > step:
                    shutil.rmtree(path)
        return step

    def _load(self, path: Path, optimizer: bool = True) -> None:
        """Puts a checkpoint's weights, and the optimizer's averages, into this run."""
        trained = self.built.trained
        state = trained.state(self.optimizer)
        if optimizer:
            checkpoints.load(path, state, self.here)
            trained.loaded(state, self.optimizer)
        else:
            checkpoints.load(path, {"model": state["model"]}, self.here)
            trained.publish()

    def _same_run(self, path: Path) -> None:
        """Refuses a checkpoint of a run whose steps would be other ones."""
        record = checkpoints.read_record(path)
        there, now = record.get("settings", {}), asdict(self.settings)
        differ = [
            f"{key} was {there[key]!r}, is {now[key]!r}"
            for key in now
            if key not in _FREE and key in there and there[key] != now[key]
        ]
        if record.get("data") != self._data_digest:
            differ.append(f"the training rows of {self.settings.data_path} are other ones")
        if self.settings.optimizer == "adamw8bit" and record.get("processes") != self.here.size:
            differ.append(
                f"processes were {record.get('processes')}, are {self.here.size} (8-bit averages "
                "cannot be cut anew)"
            )
        if differ:
            raise checkpoints.CheckpointError(
                f"{path} is of another run: {'; '.join(differ)}. Use another output_dir, the "
                'same settings, or resume "never"'
            )

    @cached_property
    def _data_digest(self) -> str:
        """Changes when any token or label of the training rows does."""
        return hashlib.sha256(dump_json(self.rows).encode("utf-8")).hexdigest()

    def _checkpoint(self, step: int) -> None:
        record = {
            "settings": asdict(self.settings),
            "data": self._data_digest,
            "processes": self.here.size,
        }
        state = self.built.trained.state(self.optimizer)
        self.saver.save(step, state, record, keep=self.settings.keep_checkpoints)

    def _save_model(self) -> None:
        """Puts the trained model (or adapter) and tokenizer into the folder. The last
        checkpoint is of the last step: a run killed in here has only this left to do."""
        settings, here, built = self.settings, self.here, self.built
        if settings.save_every:
            self._checkpoint(self.steps)
            self.saver.wait()
        if settings.keep_best and self.best and self.best[1] != self.steps:
            self._load(self.folder / f"best-{self.best[1]}", optimizer=False)
            if here.first:
                print(f"the model of step {self.best[1]} is kept: it has the lowest loss")
        values = built.trained.whole(built.model)
        if here.first:
            work = self.folder / ".model-partial"
            shutil.rmtree(work, ignore_errors=True)
            if settings.method == "lora":
                adapters.save_adapter(built.model, values, settings.model, work)
                adapters.check_saved(work, built.model, values, whole=not built.sharded)
            else:
                checkpoints.save_dense(built.model, values, self.placement.torch_dtype, work)
            self.tokenizer.save_pretrained(work)
            for name in _OTHER_KIND[settings.method]:
                (self.folder / name).unlink(missing_ok=True)
            # config.json last: with it the folder is a model.
            for file in sorted(work.iterdir(), key=lambda p: p.name.endswith("config.json")):
                os.replace(file, self.folder / file.name)
            work.rmdir()
        here.barrier()


def _check_tokens(model: Any, rows: list[Encoded], name: str) -> None:
    """That the embedding has a row for every token (it may have more: Qwen's has)."""
    embedding = model.get_input_embeddings()
    most = max(max(row["input_ids"]) for row in rows)
    if most >= embedding.num_embeddings:
        raise models.ModelError(
            f"{name}: the tokenizer gives token {most}, the model's embedding has only "
            f"{embedding.num_embeddings}; they do not belong together"
        )
