"""The training loop: full or LoRA, one process or many, the same steps in each.

An optimizer step is so many *examples*; how they are dealt to micro-batches and
ranks changes the speed and not the step. Its loss is the mean over the label
tokens of the whole step, on all ranks together.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from alpaca_lib import models
from alpaca_lib.records import dump_json, write_text
from alpaca_lib.training import adapters, metrics, planner, sharding, trackers
from alpaca_lib.training.attention import Documents, attached
from alpaca_lib.training.build import build
from alpaca_lib.training.examples import Data, load_data
from alpaca_lib.training.flops import flops_per_token, gemm_rate, peak_rate
from alpaca_lib.training.keeper import Keeper
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
from alpaca_lib.training.process import Heap, keep_memory, peak_memory, stop_signal
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import World

Report = Callable[[dict[str, Any]], None]


class TrainingStopped(RuntimeError):
    """A run that stopped before its end; the text says why, and how to go on."""


class NotEnoughMemory(RuntimeError):
    """A run that would not fit; the text says what would. memory_check false tries it."""


def train(settings: Settings, report: Report = lambda line: None) -> Path:
    """Trains as described and returns the output folder, which from_pretrained loads.

    ``report`` gets every line of metrics.jsonl on rank 0: step, loss, lr, grad_norm,
    tokens, tokens_per_second, mfu, peak_memory_bytes; or step and validation_loss.
    Raises DataError, ModelError, AdapterError, TrackerError, NotEnoughMemory before any work;
    TrainingStopped on a loss that is not a number, or on SIGTERM (after a checkpoint).
    """
    trackers.check(settings)
    placement = models.place(settings.device, settings.dtype)
    keep_memory()
    tokenizer = models.load_tokenizer(settings.model)
    data = load_data(settings, tokenizer)
    with sharding.world(placement.device) as here, stop_signal() as told_to_stop:
        advice = planner.check(settings, placement, here.size, data.rows) if here.first else None
        if here.agree(advice is not None):
            raise NotEnoughMemory(advice or "not enough memory: rank 0 says what would fit")
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
        self.keeper = Keeper(settings, here, self.built, self.optimizer, self.rows)
        self.trackers = trackers.Trackers()
        words = self.built.causal.get_input_embeddings().num_embeddings
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None and pad < words else 0  # it is never seen
        self.heap = Heap()
        self.pace: float | None = None  # seconds a step, the last ones count most

    def to_the_end(self, told_to_stop: threading.Event) -> Path:
        """Runs all steps, from the newest whole checkpoint on; saves and checks the model."""
        settings, here = self.settings, self.here
        first = self._go_on()
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
            self.keeper.save_model(self.steps, self.tokenizer, self.placement.torch_dtype)
            failed = False
        finally:
            self.keeper.saver.wait()
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
            self.keeper.checkpoint(done)
        if stop:
            self.keeper.saver.wait()
            raise TrainingStopped(
                f"told to stop: step {done} of {self.steps} is saved in {self.folder}; "
                "start the same run again to go on from it"
            )

    def _go_on(self) -> int:
        """Goes on from the checkpoint that the settings ask for; returns the step it is at."""
        step = self.keeper.resume(self.steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
            for _ in range(step):
                self.schedule.step()
        return step

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
            if self.built.gather_once:
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
        self.heap.tidy()
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
        device, pad = self.placement.device, self.pad
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
        if self.settings.keep_best and step:
            self.keeper.note(mean, step, last=step == self.steps)

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


def _check_tokens(model: Any, rows: list[Encoded], name: str) -> None:
    """That the embedding has a row for every token (it may have more: Qwen's has)."""
    embedding = model.get_input_embeddings()
    most = max(max(row["input_ids"]) for row in rows)
    if most >= embedding.num_embeddings:
        raise models.ModelError(
            f"{name}: the tokenizer gives token {most}, the model's embedding has only "
            f"{embedding.num_embeddings}; they do not belong together"
        )
