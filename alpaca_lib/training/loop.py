"""The training loop: full or LoRA, one process or many, the same steps in each.

An optimizer step is a number of *examples*; how they are split into micro-batches and over ranks
changes the speed and not the step. Its loss is the mean over the label tokens of the whole
step, on all ranks together.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from alpaca_lib.errors import NotEnoughMemory, TrainingStopped
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.models import ModelSource, Placement, place
from alpaca_lib.models.adapters import weights_checksum
from alpaca_lib.training import (
    adapters,
    counts,
    metrics,
    output_folder,
    packing,
    sharding,
    trackers,
)
from alpaca_lib.training.attention import Documents, is_attached, shares_keys
from alpaca_lib.training.build import build
from alpaca_lib.training.examples import Data, load_data
from alpaca_lib.training.flops import flops_per_token, gemm_rate, peak_rate
from alpaca_lib.training.loss import unwrap_peft
from alpaca_lib.training.micro_batches import StepPlan, can_share, plan_step
from alpaca_lib.training.packing import Encoded, count_labels
from alpaca_lib.training.precision import create_optimizer
from alpaca_lib.training.prefixes import attention_context, list_segments
from alpaca_lib.training.process import (
    Heap,
    keep_freed_memory,
    largest_block,
    peak_memory,
    stop_signal,
)
from alpaca_lib.training.run_state import RunState, find_prompt_time
from alpaca_lib.training.schedule import rate_factor
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

Report = Callable[[dict[str, Any]], None]
Adapt = Callable[[Settings, int], Settings]
# (settings, placement, ranks, rows, model) -> settings that would fit, or None if these do
CheckMemory = Callable[[Settings, Placement, int, list[Encoded], ModelSource], str | None]


def train(
    settings: Settings,
    report: Report = lambda line: None,
    check_memory: CheckMemory | None = None,
    adapt: Adapt = lambda settings, rows: settings,
    say: Callable[[str], None] = print,
) -> Path:
    """Trains as the settings say; returns the output folder, which from_pretrained loads.

    ``report`` receives every line of metrics.jsonl on rank 0 (see alpaca_lib.training.metrics).
    ``check_memory`` predicts whether the run fits, as ``alpaca_lib.planning.check_memory`` does;
    ``alpaca_lib.launch.run`` passes it. ``adapt`` gives the final settings for the number of rows
    that are trained, without those that are dropped; ``say`` prints that number. Raises
    DataError, ModelError, AdapterError, FileError, SettingsError, TrackerError, NotEnoughMemory
    before any step; TrainingStopped if the loss is not finite,
    or on SIGTERM (after a checkpoint).
    """
    trackers.check(settings)
    placement = place(settings.device, settings.dtype)
    source = ModelSource.resolve(settings.model)
    output_folder.check(settings, source)
    tokenizer = source.load_tokenizer()
    data = load_data(settings, tokenizer, find_prompt_time(settings))
    settings = adapt(settings, len(data.rows))
    steps = packing.count_steps(
        len(data.rows), settings.examples_per_step, settings.epochs, settings.max_steps
    )
    packing.count_warmup(settings.warmup, steps)
    with (
        sharding.distributed(placement.device) as dist,
        output_folder.claimed(settings, dist),
        stop_signal() as stop_requested,
    ):
        if data.prompt_time and dist.size > 1:  # all ranks need the same rows
            seconds = datetime.fromisoformat(data.prompt_time).timestamp()
            now = datetime.fromtimestamp(dist.largest(seconds))
            data = load_data(settings, tokenizer, now)
        if dist.is_rank_zero:
            for line in counts.describe_rows(settings, data, steps):
                say(line)
        if check_memory is not None:
            advice = None
            if dist.is_rank_zero:
                advice = check_memory(settings, placement, dist.size, data.rows, source)
            if dist.any_rank(advice is not None):
                raise NotEnoughMemory(advice or "not enough memory: rank 0 lists what would fit")
        run = _Run(settings, placement, tokenizer, data, dist, report, source)
        return run.fit(stop_requested)


@dataclass
class _Run:
    """The model, optimizer and data of one run; ``fit`` takes its steps."""

    settings: Settings
    placement: Placement
    tokenizer: Any
    data: Data
    dist: Distributed
    report: Report
    source: ModelSource

    def __post_init__(self) -> None:
        settings, data = self.settings, self.data
        self.rows = data.rows
        self.folder = Path(settings.output_dir)
        self.steps = packing.count_steps(
            len(self.rows), settings.examples_per_step, settings.epochs, settings.max_steps
        )
        self.built = build(settings, self.placement, self.dist, self.source)
        causal = unwrap_peft(self.built.model)
        vocab_size = causal.get_input_embeddings().num_embeddings
        at_most = settings.rows_per_micro_batch * settings.row_length  # tokens at once
        keep_freed_memory(largest_block(causal, at_most) * 5 // 4)  # and what is a little larger
        counts.check_ids(settings, data, causal.config, vocab_size)
        self.within_documents = is_attached(causal)
        pad = self.tokenizer.pad_token_id
        self.pad = pad if pad is not None and pad < vocab_size else 0  # masked in any case
        self.sharing = self._describe_sharing()
        self.optimizer = create_optimizer(
            self.built.weights, settings.optimizer, settings.learning_rate, settings.weight_decay
        )
        self.warmup = packing.count_warmup(settings.warmup, self.steps)
        self.run_state = RunState(
            settings, self.dist, self.built, self.optimizer, self.rows, data.prompt_time
        )
        self.trackers = trackers.Trackers()
        self.heap = Heap()
        self.step_seconds: float | None = None  # moving average, for the time left

    def fit(self, stop_requested: threading.Event) -> Path:
        """Takes the steps after the newest intact checkpoint, then saves and checks the model."""
        first = self.run_state.resume(self.steps)
        self.dist.barrier()  # ranks may share a core: all measure at the same time, each its share
        self.gemm = gemm_rate(self.placement.device, self.placement.torch_dtype)
        self.peak = peak_rate(self.placement.device) or self.gemm
        if self.dist.is_rank_zero:
            run = self._write_run()
            self.trackers = trackers.open_trackers(self.settings, self.folder, run, first)
        self.dist.barrier()
        if self.dist.size > 1:
            shards = dump_json(sharding.describe_shards(self.built.model))
            write_text(self.folder / "shards" / f"rank{self.dist.rank}.json", shards)
        failed = True
        try:
            if first == 0:
                self._validate(0)
            for step in range(first, self.steps):
                self._after_step(self._step(step), stop_requested)
            self._validate(self.steps)
            self.run_state.save_model(self.steps, self.tokenizer, self.placement.torch_dtype)
            failed = False
        finally:
            self.run_state.saver.wait()
            self.trackers.close(failed)
        return self.folder

    def _step(self, step: int) -> dict[str, Any]:
        """Takes optimizer step ``step`` (from 0); returns its line of metrics."""
        settings, dist, weights = self.settings, self.dist, self.built.weights
        start = time.perf_counter()
        torch.manual_seed(hash((settings.seed, step, dist.rank)))  # of dropout

        # 1. The step's examples, split into micro-batches with one group per rank. Every rank
        #    computes the same plan, so each knows the label tokens of all.
        chosen = packing.step_order(len(self.rows), settings.examples_per_step, settings.seed, step)
        examples = [self.rows[i] for i in chosen]
        tokens = sum(len(row["input_ids"]) for row in examples)
        label_tokens = sum(count_labels(row) for row in examples)
        plan = self._plan(examples)

        # 2. Forward and backward pass per micro-batch; gradients accumulate. Wanted is
        #    d/dw of  sum over ranks and micro-batches of loss / label_tokens.
        #    FSDP averages gradients over ranks: multiply by size to get the sum.
        total = 0.0
        for number, groups in enumerate(plan.groups, 1):
            if self.built.gather_once:
                sharding.keep_gathered(self.built.module, last=number == len(plan.groups))
            loss = self._forward(examples, groups[dist.rank], plan)
            (loss * (dist.size / label_tokens)).backward()
            total += float(loss.detach())

        # 3. All-reduce: what FSDP has not reduced yet, the gradient norm, and the loss.
        norm = weights.reduce_gradients()
        mean = dist.sum(total) / label_tokens
        if not (math.isfinite(mean) and math.isfinite(norm) and mean and norm):
            raise TrainingStopped(
                f"step {step + 1}: loss {mean}, gradient norm {norm}, on rows {chosen} of the "
                f"training data (numbered after validation rows and rows without a label are "
                "taken out). Lower learning_rate, or look at these rows"
            )

        # 4. Learning rate, clip, optimizer step.
        factor = rate_factor(settings.schedule, step, self.steps, self.warmup)
        rate = settings.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weights.clip(norm, settings.max_grad_norm)
        self.optimizer.step()
        weights.copy_to_model()
        self.heap.trim()

        # 5. Metrics. MFU is the share of the peak FLOP/s, of one device as of all.
        seconds = time.perf_counter() - start
        before = seconds if self.step_seconds is None else self.step_seconds
        self.step_seconds = 0.8 * before + 0.2 * seconds
        computed = plan.computed_tokens
        per_token = flops_per_token(self.built.model, settings.method, plan.context)
        flops = computed * per_token / seconds / dist.size
        return {
            "step": step + 1,
            "loss": mean,
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "label_tokens": label_tokens,
            "computed_tokens": computed,
            "tokens_per_second": tokens / seconds,
            "mfu": flops / self.peak,
            "gemm_share": flops / self.gemm,
            "peak_memory_bytes": peak_memory(self.placement.device),
            "seconds_left": self.step_seconds * (self.steps - step - 1),
        }

    def _after_step(self, line: dict[str, Any], stop_requested: threading.Event) -> None:
        """Does what is due after a step: logs, validates, saves, stops."""
        settings, done = self.settings, line["step"]
        if done % settings.log_every == 0 or done == self.steps:
            self._log(line)
        if done == self.steps:
            return
        if settings.eval_every and done % settings.eval_every == 0:
            self._validate(done)
        stop = self.dist.any_rank(stop_requested.is_set())
        if stop or (settings.save_every and done % settings.save_every == 0):
            self.run_state.checkpoint(done)
        if stop:
            self.run_state.saver.wait()
            raise TrainingStopped(
                f"stop requested: step {done} of {self.steps} is saved in {self.folder}; "
                "start the same run again to resume"
            )

    def _plan(self, examples: list[Encoded]) -> StepPlan:
        share, _ = self.sharing
        return plan_step(self.settings, examples, self.dist.size, self.within_documents, share)

    @cached_property
    def _held_out_plan(self) -> StepPlan:
        return self._plan(self.data.held_out)

    def _describe_sharing(self) -> tuple[bool, str]:
        """Returns whether examples share their prefixes, and what run.json says of it."""
        if self.settings.share_prefix == "off":
            return False, "off"
        if not can_share(self.settings, self.within_documents):
            return False, "off: needs packed rows, and attention within documents"
        if not shares_keys(self.placement.device, self.placement.torch_dtype):
            return False, "off: on this device attention to a shared prefix gives other values"
        return True, "computed once per row"

    def _forward(self, examples: list[Encoded], members: list[int], plan: StepPlan) -> torch.Tensor:
        """Returns the summed loss of some examples, packed into one row or padded to several."""
        device, documents = self.placement.device, None
        if self.settings.batching == "pack":
            rows = [packing.join(examples, members, plan.prefixes)] if members else []
        else:
            rows = [packing.join(examples, [i]) for i in members]
        batch = packing.collate(rows, self.pad, packing.padding_multiple(device))
        shape = batch["input_ids"].shape  # (rows, tokens)
        if self.settings.batching != "pack":
            # Padding comes last, and causal attention does not look ahead: no mask needed.
            batch["position_ids"] = torch.arange(shape[1]).expand(shape)
        elif self.within_documents:
            starts, parents = (rows[0].boundaries[:-1], rows[0].parents) if rows else ([0], [-1])
            # Padding becomes part of the last segment, which is never a shared one.
            documents = Documents.of([*starts, shape[1]], device, parents)
        on_cuda = device.startswith("cuda")  # MPS may read a batch that is freed by then
        moved = {k: v.to(device, non_blocking=on_cuda) for k, v in batch.items()}
        loss: torch.Tensor = self.built.module(**moved, documents=documents)
        return loss

    def _validate(self, step: int) -> None:
        """Logs the mean loss per label token of the validation set; keeps the best weights."""
        held = self.data.held_out
        if not held:
            return
        with adapters.evaluating(self.built.model), torch.no_grad():
            plan = self._held_out_plan
            total = sum(
                float(self._forward(held, groups[self.dist.rank], plan)) for groups in plan.groups
            )
        mean = self.dist.sum(total) / sum(count_labels(row) for row in held)
        self._log({"step": step, "validation_loss": mean})
        if self.settings.keep_best and step:
            self.run_state.keep_if_best(mean, step, last=step == self.steps)

    def _log(self, line: dict[str, Any]) -> None:
        if self.dist.is_rank_zero:
            metrics.append(self.folder, line)
            self.report(line)
            self.trackers.log(line)

    def _write_run(self) -> dict[str, Any]:
        lengths = [len(row["input_ids"]) for row in self.rows]
        context = attention_context(list_segments(lengths, range(len(lengths))))
        per_token = flops_per_token(self.built.model, self.settings.method, context)
        facts = {
            "processes": self.dist.size,
            "steps": self.steps,
            "training_rows": len(self.rows),
            "validation_rows": len(self.data.held_out),
            "validation_row_numbers": self.data.drawn,
            "rows_without_label": self.data.dropped,
            "rows_cut": self.data.cut,
            "conversations": self.data.conversations,
            "answers_in_conversations": self.data.turns,
            "reasoning_left_out": self.data.reasoning_left_out,
            "prompt_time": self.data.prompt_time,
            "attention": self.built.attention,
            "shared_prefixes": self.sharing[1],
            "flops_per_token": per_token,
            "gemm_flops_per_second": self.gemm * self.dist.size,
        }
        if self.settings.method == "lora":
            facts["base_checksum"] = weights_checksum(self.source.folder)
        return metrics.write_run(self.folder, self.settings, self.placement, facts)
