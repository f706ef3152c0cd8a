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

from alpaca_lib.errors import ModelError, NotEnoughMemory, TrainingStopped
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.models import ModelSource, Placement, place
from alpaca_lib.training import adapters, metrics, sharding, trackers
from alpaca_lib.training.attention import Documents, attached
from alpaca_lib.training.build import build
from alpaca_lib.training.examples import Data, load_data
from alpaca_lib.training.flops import flops_per_token, gemm_rate, peak_rate
from alpaca_lib.training.packing import (
    Encoded,
    collate,
    count_steps,
    join,
    label_count,
    micro_batches,
    padding_multiple,
    step_order,
)
from alpaca_lib.training.precision import optimizer_of
from alpaca_lib.training.process import Heap, keep_memory, peak_memory, stop_signal
from alpaca_lib.training.run_state import RunState
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

Report = Callable[[dict[str, Any]], None]
# (settings, placement, ranks, rows, model) -> what would fit, or None if the run does
CheckMemory = Callable[[Settings, Placement, int, list[Encoded], ModelSource], str | None]


def train(
    settings: Settings,
    report: Report = lambda line: None,
    check_memory: CheckMemory | None = None,
) -> Path:
    """Trains as described and returns the output folder, which from_pretrained loads.

    ``report`` receives every line of metrics.jsonl on rank 0: step, loss, lr, grad_norm,
    tokens, tokens_per_second, mfu, peak_memory_bytes; or step and validation_loss.
    ``check_memory`` predicts whether the run fits, as ``alpaca_lib.planning.check`` does;
    ``alpaca_lib.launch.run`` passes it. Raises DataError, ModelError, AdapterError,
    TrackerError, NotEnoughMemory before any work; TrainingStopped if the loss is not finite,
    or on SIGTERM (after a checkpoint).
    """
    trackers.check(settings)
    placement = place(settings.device, settings.dtype)
    keep_memory()
    source = ModelSource.resolve(settings.model)
    tokenizer = source.load_tokenizer()
    data = load_data(settings, tokenizer)
    with sharding.distributed(placement.device) as dist, stop_signal() as told_to_stop:
        if check_memory is not None:
            advice = None
            if dist.is_rank_zero:
                advice = check_memory(settings, placement, dist.size, data.rows, source)
            if dist.any_rank(advice is not None):
                raise NotEnoughMemory(advice or "not enough memory: rank 0 says what would fit")
        run = _Run(settings, placement, tokenizer, data, dist, report, source)
        return run.fit(told_to_stop)


class _Run:
    """What the steps of one run share."""

    def __init__(
        self,
        settings: Settings,
        placement: Placement,
        tokenizer: Any,
        data: Data,
        dist: Distributed,
        report: Report,
        source: ModelSource,
    ) -> None:
        self.settings, self.placement, self.tokenizer = settings, placement, tokenizer
        self.data, self.dist, self.report = data, dist, report
        self.rows = data.rows
        self.folder = Path(settings.output_dir)
        self.steps = count_steps(
            len(self.rows), settings.examples_per_step, settings.epochs, settings.max_steps
        )
        self.built = build(settings, placement, dist, source)
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
        self.run_state = RunState(settings, dist, self.built, self.optimizer, self.rows)
        self.trackers = trackers.Trackers()
        words = self.built.causal.get_input_embeddings().num_embeddings
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None and pad < words else 0  # it is never seen
        self.heap = Heap()
        self.pace: float | None = None  # seconds a step, the last ones count most

    def fit(self, told_to_stop: threading.Event) -> Path:
        """Runs all steps, from the newest whole checkpoint on; saves and checks the model."""
        settings, dist = self.settings, self.dist
        first = self._resume()
        self.gemm = gemm_rate(self.placement.device, self.placement.torch_dtype)
        self.peak = peak_rate(self.placement.device) or self.gemm
        if dist.is_rank_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            run = self._write_run()
            self.trackers = trackers.open_trackers(settings, self.folder, run, first)
        dist.barrier()
        if dist.size > 1:
            mine = dump_json(sharding.shares(self.built.model))
            write_text(self.folder / "shards" / f"rank{dist.rank}.json", mine)
        failed = True
        try:
            if first == 0:
                self._validate(0)
            for step in range(first, self.steps):
                self._one_step(step, told_to_stop)
            self._validate(self.steps)
            self.run_state.save_model(self.steps, self.tokenizer, self.placement.torch_dtype)
            failed = False
        finally:
            self.run_state.saver.wait()
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
        stop = self.dist.any_rank(told_to_stop.is_set())
        if stop or (settings.save_every and done % settings.save_every == 0):
            self.run_state.checkpoint(done)
        if stop:
            self.run_state.saver.wait()
            raise TrainingStopped(
                f"told to stop: step {done} of {self.steps} is saved in {self.folder}; "
                "start the same run again to go on from it"
            )

    def _resume(self) -> int:
        """Goes on from the checkpoint that the settings ask for; returns the step it is at."""
        step = self.run_state.resume(self.steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step")
            for _ in range(step):
                self.schedule.step()
        return step

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; returns its line of metrics."""
        settings, dist, trained = self.settings, self.dist, self.built.trained
        start = time.perf_counter()
        torch.manual_seed(hash((settings.seed, step, dist.rank)))
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
            loss = self._forward(examples, ranks[dist.rank])
            # FSDP averages gradients over ranks; the step wants their sum.
            (loss * (dist.size / labels)).backward()
            total += float(loss.detach())
        norm = trained.reduce_gradients()
        mean = dist.sum(total) / labels
        if not (math.isfinite(mean) and math.isfinite(norm) and mean and norm):
            raise TrainingStopped(
                f"step {step + 1}: loss {mean}, gradient norm {norm}, on rows {chosen} of the "
                f"training data (numbered after validation rows and rows without a label are "
                "taken out). Lower learning_rate, or look at these rows"
            )
        trained.clip(norm, settings.max_grad_norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        trained.copy_to_model()
        self.schedule.step()
        self.heap.tidy()
        seconds = time.perf_counter() - start
        self.pace = seconds if self.pace is None else 0.8 * self.pace + 0.2 * seconds
        speed = tokens / seconds
        flops = speed * self.flops_per_token / dist.size
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
        """Returns [micro-batch][rank] -> the indices of the examples of each."""
        lengths = [len(row["input_ids"]) for row in examples]
        return micro_batches(
            self.settings, lengths, self.dist.size, by_document=attached(self.built.causal)
        )

    def _forward(self, examples: list[Encoded], members: list[int]) -> torch.Tensor:
        """The summed loss of these examples, packed into one row or padded to several."""
        device, pad = self.placement.device, self.pad
        packed = self.settings.batching == "pack"
        rows = [join(examples, members)] if packed and members else []
        if not packed:
            rows = [join(examples, [i]) for i in members]
        batch = collate(rows, pad, padding_multiple(device))
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

    def _validate(self, step: int) -> None:
        """Logs the mean loss over the validation set's label tokens, if there is one; keeps
        the weights of the lowest if the settings ask for it."""
        held = self.data.held_out
        if not held:
            return
        with adapters.evaluating(self.built.model), torch.no_grad():
            total = sum(
                float(self._forward(held, ranks[self.dist.rank])) for ranks in self._deal(held)
            )
        mean = self.dist.sum(total) / sum(label_count(row) for row in held)
        self._log({"step": step, "validation_loss": mean})
        if self.settings.keep_best and step:
            self.run_state.note(mean, step, last=step == self.steps)

    def _log(self, line: dict[str, Any]) -> None:
        if self.dist.is_rank_zero:
            metrics.append(self.folder, line)
            self.report(line)
            self.trackers.log(line)

    def _write_run(self) -> dict[str, Any]:
        facts = {
            "processes": self.dist.size,
            "steps": self.steps,
            "training_rows": len(self.rows),
            "validation_rows": len(self.data.held_out),
            "rows_without_label": self.data.dropped,
            "rows_cut": self.data.cut,
            "attention": self.built.attention,
            "flops_per_token": self.flops_per_token,
            "gemm_flops_per_second": self.gemm * self.dist.size,
        }
        return metrics.write_run(self.folder, self.settings, self.placement, facts)


def _check_tokens(model: Any, rows: list[Encoded], name: str) -> None:
    """That the embedding has a row for every token (it may have more: Qwen's has)."""
    embedding = model.get_input_embeddings()
    most = max(max(row["input_ids"]) for row in rows)
    if most >= embedding.num_embeddings:
        raise ModelError(
            f"{name}: the tokenizer gives token {most}, the model's embedding has only "
            f"{embedding.num_embeddings}; they do not belong together"
        )
