"""One description of a training run, the same for every way of starting it."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alpaca_lib.embedded import DEFAULT_MODEL
from alpaca_lib.records import dump_json, write_text

METHODS = ("full", "lora")
_KINDS = {"str": "text", "bool": "true or false", "int": "a whole number", "float": "a number"}
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
BATCHINGS = ("pack", "bucket", "pad")
OPTIMIZERS = ("adamw", "adamw8bit")
SHARDINGS = ("auto", "full", "hybrid")
GATHERS = ("auto", "step", "layer")
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class Settings:
    """A training run. A step sees ``examples_per_step`` examples, on all ranks together."""

    data_path: str
    output_dir: str
    model: str = DEFAULT_MODEL
    method: str = "full"
    template: str = "alpaca"
    max_length: int = 512
    mask_prompt: bool = True
    add_eos: bool = True
    validation_path: str = ""  # a file of its own, or ...
    validation_rows: int = 0  # ... so many rows taken out of data_path
    epochs: float = 1.0
    max_steps: int = 0  # above 0: instead of epochs
    examples_per_step: int = 16
    row_length: int = 512
    rows_per_micro_batch: int = 4
    batching: str = "pack"  # or bucket: rows of like length, padded; or pad: as they come
    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    warmup: float = 0.03  # below 1: a part of all steps; else steps
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"  # or adamw8bit: its averages in 8 bits (bitsandbytes)
    quantization: str = "none"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_targets: str = "q_proj,v_proj"  # names with commas between, or all-linear
    lora_rs: bool = False  # scale by alpha / sqrt(r), not alpha / r (arXiv:2312.03732)
    lora_dora: bool = False  # direction and length apart (arXiv:2402.09353)
    adapter: str = ""  # a saved adapter whose weights the run begins with
    device: str = "auto"
    dtype: str = "auto"
    master_weights: bool = True  # false: bfloat16 alone, 6 to 10 bytes a parameter less
    activation_checkpointing: bool = False
    memory_check: bool = True  # refuse a run that would not fit, and say what would
    compile: bool = False  # torch.compile, layer by layer; needs a C++ compiler on a CPU
    sharding: str = "auto"  # full: over all ranks; hybrid: within a node, copies across nodes
    gather: str = "auto"  # shards put together once a step (faster, more memory), or by layer
    seed: int = 0
    log_every: int = 1
    eval_every: int = 0  # 0: before the first and after the last step only
    save_every: int = 0  # 0: no checkpoints between
    keep_checkpoints: int = 1
    keep_best: bool = False  # the model of the lowest validation loss, not the last
    trackers: str = ""  # tensorboard, wandb, trackio, with commas between
    project: str = "alpaca"  # the trackers' name for a family of runs
    run_name: str = ""  # and for this one; empty: the name of output_dir
    resume: str = "auto"  # auto: go on from the newest whole checkpoint; never; or a folder

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            fits = {
                "str": isinstance(value, str),
                "bool": isinstance(value, bool),
                "int": isinstance(value, int) and not isinstance(value, bool),
                "float": isinstance(value, int | float) and not isinstance(value, bool),
            }[kind]
            if not fits:
                raise ValueError(f"{field.name} {value!r}: {_KINDS[kind]} is needed")
        checks = {
            "method": self.method in METHODS,
            "schedule": self.schedule in SCHEDULES,
            "batching": self.batching in BATCHINGS,
            "optimizer": self.optimizer in OPTIMIZERS,
            "sharding": self.sharding in SHARDINGS,
            "gather": self.gather in GATHERS,
            "trackers": all(name in TRACKERS for name in self.tracker_names),
            "keep_best": not self.keep_best or bool(self.validation_path or self.validation_rows),
            "adapter": not self.adapter or self.method == "lora",
            "max_length": self.max_length >= 2,
            "row_length": self.row_length >= self.max_length,
            "examples_per_step": self.examples_per_step >= 1,
            "rows_per_micro_batch": self.rows_per_micro_batch >= 1,
            "learning_rate": self.learning_rate > 0,
            "epochs": self.epochs > 0 or self.max_steps > 0,
            "validation_rows": self.validation_rows >= 0,
            "log_every": self.log_every >= 1,
            "lora_rank": self.lora_rank >= 1,
            "warmup": self.warmup >= 0,
            "max_steps": self.max_steps >= 0,
            "eval_every": self.eval_every >= 0,
            "save_every": self.save_every >= 0,
            "max_grad_norm": self.max_grad_norm > 0,
            "keep_checkpoints": self.keep_checkpoints >= 1,
        }
        cures = {
            "method": f"use one of {', '.join(METHODS)}",
            "schedule": f"use one of {', '.join(SCHEDULES)}",
            "batching": f"use one of {', '.join(BATCHINGS)}",
            "optimizer": f"use one of {', '.join(OPTIMIZERS)}",
            "sharding": f"use one of {', '.join(SHARDINGS)}",
            "gather": f"use one of {', '.join(GATHERS)}",
            "trackers": f"names of {', '.join(TRACKERS)} with commas between, or nothing",
            "keep_best": "needs validation_path or validation_rows",
            "adapter": "only method lora begins with an adapter",
            "row_length": f"at least max_length, {self.max_length}",
            "max_length": "at least 2",
            "learning_rate": "above 0",
            "epochs": "above 0, or set max_steps",
            "validation_rows": "0 or more",
            "warmup": "0 or more",
            "max_steps": "0 (as epochs says) or more",
            "eval_every": "0 (never) or more",
            "save_every": "0 (never) or more",
            "max_grad_norm": "above 0",
        }
        for name, good in checks.items():
            if not good:
                value = getattr(self, name)
                raise ValueError(f"{name} {value!r}: {cures.get(name, 'at least 1')}")

    @property
    def tracker_names(self) -> list[str]:
        """The trackers asked for."""
        return [name.strip() for name in self.trackers.split(",") if name.strip()]

    def save(self, path: Path) -> Path:
        """Writes the settings as JSON."""
        return write_text(path, dump_json(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Settings:
        """The settings of a JSON file; ValueError names what is wrong in it."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: no readable settings ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: is not an object of settings")
        return cls.of(values, str(path))

    @classmethod
    def of(cls, values: dict[str, Any], source: str = "settings") -> Settings:
        """The settings in a dictionary; an unknown name is an error with a suggestion."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{source}: no setting {name!r}{hint}")
        for name in ("data_path", "output_dir"):
            if not values.get(name):
                raise ValueError(f"{source}: {name} is needed")
        return cls(**values)
