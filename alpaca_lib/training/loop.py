"""The training loop: full or LoRA, one process or many, the same steps in each.

An optimizer step is so many *examples*; how they are packed into rows, and the
rows dealt to ranks and micro-batches, changes the speed and not the step. Its
loss is the mean over the label tokens of the whole step, on all ranks together.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from alpaca_lib import models
from alpaca_lib.records import dump_json, write_text
from alpaca_lib.training import adapters, checkpoints, sharding
from alpaca_lib.training.examples import (
    Encoded,
    collate,
    label_count,
    load_data,
    micro_batches,
    pack,
    step_order,
)
from alpaca_lib.training.loss import LabelLoss, flops_per_token, gemm_rate
from alpaca_lib.training.process import give_back_memory, peak_memory, stop_signal
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import World

# What a run of the other method may have left in the folder.
_OTHER_KIND = {
    "full": ("adapter_config.json", "adapter_model.safetensors"),
    "lora": ("config.json", "generation_config.json", "model.safetensors"),
}
Report = Callable[[dict[str, Any]], None]


class TrainingStopped(RuntimeError):
    """A run that stopped before its end; the text says why, and how to go on."""


def train(settings: Settings, report: Report = lambda line: None) -> Path:
    """Trains as described and returns the output folder, which from_pretrained loads.

    ``report`` gets every line of metrics.jsonl on rank 0: step, loss, lr, grad_norm,
    tokens, tokens_per_second, mfu, peak_memory_bytes; or step and validation_loss.
    Raises DataError, ModelError, AdapterError before any work; TrainingStopped on a
    loss that is not a number, or on SIGTERM (after a checkpoint).
    """
    placement = models.place(settings.device, settings.dtype)
    tokenizer = models.load_tokenizer(settings.model)
    rows, held_out = load_data(settings, tokenizer)
    with sharding.world(placement.device) as here, stop_signal() as told_to_stop:
        run = _Run(settings, placement, tokenizer, rows, held_out, here, report)
        return run.to_the_end(told_to_stop)


class _Run:
    """What the steps of one run share."""

    def __init__(
        self,
        settings: Settings,
        placement: models.Placement,
        tokenizer: Any,
        rows: list[Encoded],
        held_out: list[Encoded],
        here: World,
        report: Report,
    ) -> None:
        self.settings, self.placement, self.tokenizer = settings, placement, tokenizer
        self.rows, self.held_out, self.here, self.report = rows, held_out, here, report
        self.folder = Path(settings.output_dir)
        per_epoch = math.ceil(len(rows) / settings.examples_per_step)
        self.steps = settings.max_steps or max(round(settings.epochs * per_epoch), 1)
        torch.manual_seed(settings.seed)
        self.model = self._build()
        context = sum(len(r["input_ids"]) ** 2 for r in rows) / sum(
            len(r["input_ids"]) for r in rows
        )
        self.flops_per_token = flops_per_token(self.model, settings.method, context)
        self.module = LabelLoss(self.model)
        if here.size > 1:
            sharding.shard(self.module, self.model, placement, here)
        elif placement.device != "cpu":
            self.module.to(placement.device)
        self.model.train()
        if settings.activation_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        warmup = settings.warmup
        self.schedule = transformers.get_scheduler(
            settings.schedule,
            self.optimizer,
            num_warmup_steps=math.ceil(warmup * self.steps) if warmup < 1 else int(warmup),
            num_training_steps=self.steps,
        )
        self.trained = trained

    def _build(self) -> Any:
        """The model: float32 master weights for full training (an update of lr 2e-5 is
        below bfloat16's resolution), the compute dtype for a frozen base."""
        settings, placement = self.settings, self.placement
        if settings.method == "full":
            if settings.quantization != "none":
                raise ValueError("full training needs whole weights: set quantization to none")
            whole = models.Placement(
                "cpu" if self.here.size > 1 else placement.device, "float32", ""
            )
            return models.load_model(settings.model, whole)
        if self.here.size > 1:
            raise ValueError("LoRA runs on one process here; start it without torchrun")
        base = models.load_model(settings.model, placement, settings.quantization)
        return adapters.add_lora(base, settings)

    def to_the_end(self, told_to_stop: threading.Event) -> Path:
        """Runs all steps, from the newest whole checkpoint on; saves and checks the model."""
        settings, here = self.settings, self.here
        first = self._resume()
        self.gemm = gemm_rate(self.placement.device, self.placement.torch_dtype)
        if here.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_run()
        here.barrier()
        if here.size > 1:
            mine = dump_json(sharding.shares(self.model))
            write_text(self.folder / "shards" / f"rank{here.rank}.json", mine)
        if first == 0:
            self._validate(0)
        for step in range(first, self.steps):
            line = self._step(step)
            done = step + 1
            if done % settings.log_every == 0 or done == self.steps:
                self._log(line)
            if done < self.steps:
                if settings.eval_every and done % settings.eval_every == 0:
                    self._validate(done)
                stop = here.agree(told_to_stop.is_set())
                if stop or (settings.save_every and done % settings.save_every == 0):
                    self._checkpoint(done)
                if stop:
                    raise TrainingStopped(
                        f"told to stop: step {done} of {self.steps} is saved in {self.folder}; "
                        "start the same run again to go on from it"
                    )
        self._validate(self.steps)
        self._save_model()
        return self.folder

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; returns its line of metrics."""
        settings, here = self.settings, self.here
        start = time.perf_counter()
        # Every rank plans the whole step, so nobody has to be told the token counts.
        torch.manual_seed(hash((settings.seed, step, here.rank)))
        chosen = step_order(len(self.rows), settings.examples_per_step, settings.seed, step)
        packed = pack([self.rows[i] for i in chosen], settings.row_length)
        labels = sum(label_count(self.rows[i]) for i in chosen)
        tokens = sum(len(self.rows[i]["input_ids"]) for i in chosen)
        batches = micro_batches(packed, settings.rows_per_micro_batch, here.rank, here.size)
        total = 0.0
        for batch in batches:
            loss = self._forward(batch)
            # FSDP averages gradients over ranks; the step wants their sum.
            (loss * (here.size / labels)).backward()
            total += float(loss.detach())
        whole: Any = torch.nn.utils.clip_grad_norm_(self.trained, settings.max_grad_norm)
        norm = float(whole.full_tensor() if hasattr(whole, "full_tensor") else whole)
        mean = here.sum(total) / labels
        if not math.isfinite(mean) or not math.isfinite(norm) or mean == 0.0:
            raise TrainingStopped(
                f"step {step + 1}: loss {mean}, gradient norm {norm}, on rows {chosen} of the "
                f"training data (numbered after validation rows and rows without a label are "
                "taken out). Lower learning_rate, or look at these rows"
            )
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        give_back_memory()
        speed = tokens / (time.perf_counter() - start)
        return {
            "step": step + 1,
            "loss": mean,
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "label_tokens": labels,
            "tokens_per_second": speed,
            "mfu": speed * self.flops_per_token / (self.gemm * here.size),
            "peak_memory_bytes": peak_memory(self.placement.device),
        }

    def _forward(self, rows: list[Any]) -> torch.Tensor:
        batch = collate(rows, self.tokenizer.pad_token_id or 0)
        device = self.placement.device
        # FSDP casts by its own policy; one process uses autocast for the same effect.
        cast = self.here.size == 1 and self.placement.dtype != "float32"
        kind = device.split(":")[0]
        with torch.autocast(kind, self.placement.torch_dtype) if cast else nullcontext():
            loss: torch.Tensor = self.module(**{k: v.to(device) for k, v in batch.items()})
        return loss

    def _validate(self, step: int) -> None:
        """Logs the mean loss over the validation set's label tokens, if there is one."""
        if not self.held_out:
            return
        packed = pack(self.held_out, self.settings.row_length)
        size = self.settings.rows_per_micro_batch
        self.model.eval()
        with torch.no_grad():
            total = sum(
                float(self._forward(batch))
                for batch in micro_batches(packed, size, self.here.rank, self.here.size)
            )
        self.model.train()
        labels = sum(label_count(row) for row in self.held_out)
        self._log({"step": step, "validation_loss": self.here.sum(total) / labels})

    def _log(self, line: dict[str, Any]) -> None:
        if self.here.first:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
                stream.write(dump_json(line) + "\n")
            self.report(line)

    def _write_run(self) -> None:
        """run.json: what decides the result, so that anyone can repeat it."""
        packages = ("torch", "transformers", "peft", "bitsandbytes")
        versions = {}
        for name in packages:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        run = {
            "settings": asdict(self.settings),
            "placement": asdict(self.placement),
            "processes": self.here.size,
            "steps": self.steps,
            "training_rows": len(self.rows),
            "validation_rows": len(self.held_out),
            "gemm_flops_per_second": self.gemm * self.here.size,
            "python": platform.python_version(),
            "versions": versions,
        }
        write_text(self.folder / "run.json", dump_json(run, indent=1) + "\n")

    def _resume(self) -> int:
        """Loads the checkpoint that the settings ask for; returns the step it is at."""
        settings, first = self.settings, self.here.first
        found: tuple[Path, int] | None = None
        if settings.resume == "auto":
            found = checkpoints.newest(self.folder, say=print if first else lambda text: None)
        elif settings.resume != "never":
            path = Path(settings.resume)
            if fault := checkpoints.damage(path):
                raise checkpoints.CheckpointError(f"{path}: {fault}")
            found = path, int(checkpoints.read_record(path)["step"])
        step = 0
        if found:
            path, step = found
            self._same_run(path)
            checkpoints.load(path, self.module, self.optimizer, self.here)
            for _ in range(step):
                self.schedule.step()
            if first:
                print(f"resuming from {path.name}: step {step} of {self.steps}", flush=True)
        if first and (self.folder / "metrics.jsonl").exists():
            _cut_metrics(self.folder / "metrics.jsonl", step, self.steps)
        return step

    def _same_run(self, path: Path) -> None:
        """Refuses a checkpoint of a run whose steps would be other ones."""
        record = checkpoints.read_record(path)
        there, now = record.get("settings", {}), asdict(self.settings)
        free = {"output_dir", "resume", "log_every", "eval_every", "save_every"}
        free |= {"keep_checkpoints", "rows_per_micro_batch", "row_length", "device"}
        free |= {"max_steps", "epochs", "activation_checkpointing"}  # a run may be lengthened
        differ = [
            f"{key} was {there.get(key)!r}, is {now[key]!r}"
            for key in now
            if key not in free and there.get(key) != now[key]
        ]
        if record.get("data") != self._data_digest():
            differ.append(f"the training rows of {self.settings.data_path} are other ones")
        if differ:
            raise checkpoints.CheckpointError(
                f"{path} is of another run: {'; '.join(differ)}. Use another output_dir, the "
                'same settings, or resume "never"'
            )

    def _data_digest(self) -> str:
        """Changes when any token or label of the training rows does."""
        return hashlib.sha256(dump_json(self.rows).encode("utf-8")).hexdigest()

    def _checkpoint(self, step: int) -> None:
        record = {
            "settings": asdict(self.settings),
            "data": self._data_digest(),
            "processes": self.here.size,
        }
        checkpoints.save(self.folder, step, self.module, self.optimizer, record, self.here)
        if self.here.first:
            checkpoints.remove_old(self.folder, self.settings.keep_checkpoints)

    def _save_model(self) -> None:
        """Puts the trained model (or adapter) and tokenizer into the folder. The last
        checkpoint is of the last step: a run killed in here has only this left to do."""
        settings, here = self.settings, self.here
        state = None
        if here.size > 1:
            from torch.distributed.checkpoint.state_dict import (
                StateDictOptions,
                get_model_state_dict,
            )

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(self.model, options=options)
        if settings.save_every:
            self._checkpoint(self.steps)
        if here.first:
            work = self.folder / ".model-partial"
            shutil.rmtree(work, ignore_errors=True)
            if settings.method == "lora":
                self.model.peft_config["default"].base_model_name_or_path = settings.model
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)
                    self.model.save_pretrained(work, save_embedding_layers=False)
                adapters.check_saved(work, self.model)
            else:
                checkpoints.save_dense(self.model, state, self.placement.torch_dtype, work)
            self.tokenizer.save_pretrained(work)
            for name in _OTHER_KIND[settings.method]:
                (self.folder / name).unlink(missing_ok=True)
            # config.json last: with it the folder is a model.
            for file in sorted(work.iterdir(), key=lambda p: p.name.endswith("config.json")):
                os.replace(file, self.folder / file.name)
            work.rmdir()
        here.barrier()


def _cut_metrics(file: Path, step: int, steps: int) -> None:
    """Drops the lines of steps, and of the last validation, that will be taken again."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
            again = found["step"] == steps and "validation_loss" in found
            if step > 0 and found["step"] <= step and not again:
                lines.append(line)
        except (ValueError, KeyError):
            continue
    write_text(file, "".join(line + "\n" for line in lines))
