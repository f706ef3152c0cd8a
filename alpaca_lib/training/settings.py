"""One description of a training run, the same for every way of starting it."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import model_validator

from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.options import Options, option

_LONGEST = 2**24  # tokens of a row; longer than any published context
TRACKERS = ("tensorboard", "wandb", "trackio")


class Settings(Options):
    """A training run. An optimizer step sees ``examples_per_step`` examples over all ranks.

    >>> Settings(data_path="my.json", output_dir="runs/my", method="lora").save(Path("run.json"))
    """

    data_path: str = option(..., "rows or conversations to train on")
    output_dir: str = option(..., "folder for the model, checkpoints and metrics")
    model: str = option(DEFAULT_MODEL, "a folder, the embedded model or a hub id")
    method: Literal["full", "lora"] = option("full", "train all parameters, or LoRA adapters")
    template: str = option("alpaca", "prompt template")
    max_length: int = option(512, "tokens per example or conversation", least=2, most=_LONGEST)
    train_on_turns: Literal["all", "last"] = option(
        "all", "of a conversation: the loss counts on every answer, or on the last"
    )
    keep_reasoning: bool = option(
        False, "train on an answer's reasoning too, which a chat template writes before it"
    )
    mask_prompt: bool = option(True, "no loss on the prompt's tokens")
    add_eos: bool = option(True, "end every answer with the end-of-sequence token")
    validation_path: str = option("", "validation rows in a file of their own")
    validation_rows: int = option(0, "or that many rows drawn from data_path by the seed", least=0)
    epochs: float = option(1.0, "passes over the training rows", most=10_000)
    max_steps: int = option(
        0, "above 0: number of optimizer steps, instead of epochs", least=0, most=10**8
    )
    examples_per_step: int = option(
        16, "examples per optimizer step, over all ranks", least=1, most=10**6
    )
    row_length: int = option(512, "tokens per packed row, at least max_length", most=_LONGEST)
    rows_per_micro_batch: int = option(4, "rows computed at once on a device", least=1, most=10**6)
    batching: Literal["pack", "bucket", "pad"] = option(
        "pack", "pack: examples end to end; bucket: padded, similar lengths together; pad: in order"
    )
    share_prefix: Literal["auto", "off"] = option(
        "auto", "auto: examples of a packed row that begin alike compute that once; off: each"
    )
    learning_rate: float = option(2e-5, "highest learning rate", above=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0, most=10)
    warmup: float = option(
        0.03, "below 1: fraction of all steps; else number of steps", least=0, most=10**8
    )
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = option(
        "cosine", "learning-rate schedule"
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    optimizer: Literal["adamw", "adamw8bit"] = option(
        "adamw", "adamw8bit: moments in 8 bits (bitsandbytes)"
    )
    quantization: Literal["none", "int8", "nf4"] = option(
        "none", "the frozen base: none, int8 or nf4 (bitsandbytes)"
    )
    lora_rank: int = option(8, "rank r of the adapter matrices", least=1, most=4096)
    lora_alpha: int = option(
        16, "the adapter's product is scaled by alpha / r", least=1, most=10**5
    )
    lora_dropout: float = option(0.05, "dropout on the adapter's input", least=0, below=1)
    lora_targets: str = option("q_proj,v_proj", "comma-separated module names, or all-linear")
    lora_rs: bool = option(False, "scale by alpha / sqrt(r), not alpha / r (arXiv:2312.03732)")
    lora_dora: bool = option(False, "train direction and length separately (arXiv:2402.09353)")
    adapter: str = option("", "a saved adapter that provides the initial weights")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "dtype to compute with; auto: the device's best"
    )
    master_weights: bool = option(
        True, "float32 masters; false: bfloat16 alone, 6 to 10 bytes per parameter less"
    )
    activation_checkpointing: bool = option(
        False, "recompute a layer's activations in the backward pass: less memory, more time"
    )
    memory_check: bool = option(True, "refuse a run that would not fit, and list what would")
    compile: bool = option(False, "torch.compile each layer; needs a C++ compiler on a CPU")
    sharding: Literal["auto", "full", "hybrid"] = option(
        "auto", "full: over all ranks; hybrid: within a node, with replicas across nodes"
    )
    gather: Literal["auto", "step", "layer"] = option(
        "auto", "all-gather per step (faster) or layer (less memory)"
    )
    seed: int = option(
        0, "seed of the order of examples, of dropout and of new adapters", least=0, most=2**32 - 1
    )
    log_every: int = option(1, "steps between lines of metrics", least=1)
    eval_every: int = option(0, "steps between validations; 0: before and after only", least=0)
    save_every: int = option(0, "steps between checkpoints; 0: none", least=0)
    keep_checkpoints: int = option(1, "checkpoints kept; older ones are deleted", least=1)
    keep_best: bool = option(False, "save the model of the lowest validation loss, not the last")
    trackers: str = option("", "tensorboard, wandb, trackio, separated by commas")
    project: str = option("alpaca", "the trackers' name for a family of runs")
    run_name: str = option("", "the trackers' name for this run; empty: output_dir's name")
    resume: str = option("auto", "auto: from the newest complete checkpoint; never; or a folder")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        unknown = [name for name in self.tracker_names if name not in TRACKERS]
        empty = [name for name in ("data_path", "output_dir", "model") if not getattr(self, name)]
        if empty:
            raise ValueError(f"{empty[0]} '': a path is needed")
        for name, value in self:
            if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
                raise ValueError(f"{name} {value!r}: has a control character or half a pair")
        conflicts = {
            f"device {self.device!r}: use auto, cpu, cuda, cuda:0 ... or mps": (
                re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", self.device) is None
            ),
            f"warmup {self.warmup!r}: below 1 it is a fraction, else a whole number of steps": (
                self.warmup >= 1 and self.warmup != int(self.warmup)
            ),
            f"validation_rows {self.validation_rows} and validation_path {self.validation_path!r}: "
            "set one of the two": bool(self.validation_rows and self.validation_path),
            f"trackers {self.trackers!r}: names of {', '.join(TRACKERS)} separated by commas, or "
            "nothing": bool(unknown),
            "keep_best True: needs validation_path or validation_rows": (
                self.keep_best and not (self.validation_path or self.validation_rows)
            ),
            f"adapter {self.adapter!r}: only method lora begins with an adapter": (
                bool(self.adapter) and self.method != "lora"
            ),
            f"row_length {self.row_length!r}: at least max_length, {self.max_length}": (
                self.row_length < self.max_length
            ),
            f"quantization {self.quantization!r}: full training needs unquantised weights; set "
            'quantization to "none", or method to "lora"': (
                self.method == "full" and self.quantization != "none"
            ),
            f"epochs {self.epochs!r}: above 0, or set max_steps": (
                self.epochs <= 0 and self.max_steps == 0
            ),
        }
        for text, holds in conflicts.items():
            if holds:
                raise ValueError(text)
        return self

    @property
    def tracker_names(self) -> list[str]:
        """The trackers that are asked for."""
        return [name.strip() for name in self.trackers.split(",") if name.strip()]
