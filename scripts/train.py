"""Trains every parameter of a model on instruction data, as Stanford Alpaca's train.py.

torchrun --nproc_per_node=4 train.py --data_path FILE --output_dir DIR [--flag value ...]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import conversions
import flags
from flags import Flag, Given, Script
from pydantic import Field, PositiveInt

from alpaca_lib.errors import UsageError
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.training.settings import Settings

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
DTYPES = {None: "auto", True: "bfloat16", False: "float32"}  # by the value of --bf16


def _explain_max_steps(steps: int) -> str:
    return f"max_steps {steps}" if steps > 0 else "as many steps as the epochs need"


def _explain_evaluation(strategy: str) -> str:
    if strategy == "no":
        return "eval_every 0: before and after the training only, if there is --validation_path"
    return "evaluations every --eval_steps steps"


def _explain_save_strategy(strategy: str) -> str:
    return "save_every 0" if strategy == "no" else f"a checkpoint by {strategy}"


def _explain_bf16(bf16: bool | None) -> str:
    meaning = ": bfloat16 where the device computes it, else float32" if bf16 is None else ""
    return f"dtype {DTYPES[bf16]}{meaning}"


def _explain_fp16(fp16: bool) -> str:
    if fp16:
        return "bfloat16 or float32, whichever the device has: float16 overflows"
    return "no float16"


def _explain_tf32(tf32: bool) -> str:
    return f"float32 matmul precision {'high' if tf32 else 'highest'} (GPUs only)"


def _explain_fsdp(text: str) -> str:
    sharding, gather, meaning = conversions.sharding(text)
    if PROCESSES == 1:
        return "nothing to shard: this is one process (torchrun starts more)"
    return f"sharding {sharding}, gather {gather}: FSDP2, {meaning}"


def _explain_max_length(length: int) -> str:
    row_length = conversions.packing(1, length)["row_length"]
    return f"max_length {length}; examples are packed into rows of {row_length}"


def _explain_optimizer(name: str) -> str:
    note = "; its memory is not paged" if name.startswith("paged") else ""
    return f"optimizer {conversions.OPTIMIZERS[name]}{note}"


SCRIPT = Script(
    name="train.py",
    about="""
Stage 03 of the Alpaca recipe: trains all parameters of a model, with the loss on the answers
only. Plain python is one process; torchrun starts --nproc_per_node of them, and each holds a
shard of the model (FSDP2).

Defaults are the values of Stanford's command. The model, metrics.jsonl, run.json and
checkpoint-N/ go to OUTPUT_DIR; the same command again resumes from the newest checkpoint.
""",
    options=Settings.model_fields,
    flags=(
        Flag("model_name_or_path", sets="model", default=DEFAULT_MODEL),
        Flag("data_path", sets="data_path", becomes="data {}"),
        Flag("output_dir", sets="output_dir"),
        Flag("num_train_epochs", sets="epochs", default=3.0),
        Flag(
            "max_steps",
            sets="max_steps",
            default=-1,
            kind=int,
            convert=lambda steps: max(steps, 0),
            becomes=_explain_max_steps,
        ),
        Flag(
            "per_device_train_batch_size",
            default=4,
            kind=PositiveInt,
            help="examples per device and micro-batch",
            becomes="{} x gradient_accumulation_steps x processes = examples_per_step",
        ),
        Flag(
            "gradient_accumulation_steps",
            default=8,
            kind=PositiveInt,
            help="micro-batches per optimizer step",
            becomes="{} x per_device_train_batch_size x processes = examples_per_step",
        ),
        Flag(
            "per_device_eval_batch_size",
            default=4,
            kind=PositiveInt,
            help="examples per device and micro-batch of an evaluation",
            becomes="nothing: Stanford's recipe evaluates nothing",
        ),
        Flag(
            "evaluation_strategy",
            default="no",
            kind=Literal["no", "steps"],
            help="when to evaluate",
            becomes=_explain_evaluation,
            aliases=("eval_strategy",),
        ),
        Flag("validation_path", sets="validation_path", default="", unset="no validation"),
        Flag(
            "eval_steps",
            default=None,
            kind=PositiveInt | None,
            help="steps between evaluations, with --evaluation_strategy steps",
            becomes="eval_every {}",
            unset="a fifth of all steps",
        ),
        Flag(
            "save_strategy",
            default="steps",
            kind=Literal["no", "steps", "epoch"],
            help="when to write a checkpoint",
            becomes=_explain_save_strategy,
        ),
        Flag(
            "save_steps",
            sets="save_every",
            default=2000,
            kind=PositiveInt,
            help="steps between checkpoints",
        ),
        Flag("save_total_limit", sets="keep_checkpoints", default=1),
        Flag("resume_from_checkpoint", sets="resume", default="auto", convert=conversions.resume),
        Flag("learning_rate", sets="learning_rate", default=2e-5),
        Flag("weight_decay", sets="weight_decay", default=0.0),
        Flag(
            "warmup_ratio",
            sets="warmup",
            default=0.03,
            kind=Annotated[float, Field(ge=0, lt=1)],
            help="fraction of all steps in which the rate rises",
        ),
        Flag("lr_scheduler_type", sets="schedule", default="cosine"),
        Flag("logging_steps", sets="log_every", default=1),
        Flag(
            "bf16",
            default=None,
            kind=bool | None,
            help="compute in bfloat16",
            becomes=_explain_bf16,
            unset="the device's best dtype",
        ),
        Flag("fp16", default=False, kind=bool, help="compute in float16", becomes=_explain_fp16),
        Flag(
            "tf32",
            default=False,
            kind=bool,
            help="float32 products in TF32, on NVIDIA GPUs since Ampere",
            becomes=_explain_tf32,
        ),
        Flag(
            "fsdp",
            default="",
            help=f"how to shard: {', '.join(conversions.FSDP)}",
            becomes=_explain_fsdp,
            unset="chosen from the processes and nodes",
            many=True,
        ),
        Flag(
            "fsdp_transformer_layer_cls_to_wrap",
            default="",
            help="the class of a layer",
            becomes="nothing: the class is read from the model",
            unset="read from the model",
        ),
        Flag(
            "gradient_checkpointing",
            sets="activation_checkpointing",
            default=False,
            aliases=("activation_checkpointing",),
        ),
        Flag("torch_compile", sets="compile", default=False),
        conversions.GROUP_BY_LENGTH,
        Flag("model_max_length", sets="max_length", default=512, becomes=_explain_max_length),
        Flag(
            "optim",
            sets="optimizer",
            default="adamw_torch",
            help="optimizer; 8bit: moments in 8 bits (bitsandbytes)",
            kind=Literal[tuple(conversions.OPTIMIZERS)],
            convert=conversions.OPTIMIZERS.__getitem__,
            becomes=_explain_optimizer,
        ),
        Flag(
            "cache_dir",
            default="",
            help="folder for downloads",
            becomes="HF_HUB_CACHE {}",
            unset="HF_HUB_CACHE, or the hub's own",
        ),
        Flag("seed", sets="seed", default=42),
        conversions.report_to(default="none"),
        Flag(
            "project",
            sets="project",
            default="",
            convert=conversions.project,
            unset="WANDB_PROJECT, or alpaca",
        ),
        Flag("run_name", sets="run_name", default="", unset="OUTPUT_DIR's name"),
    ),
    examples=(
        """\
  python scripts/train.py --model_name_or_path smollm2-135m \\
      --data_path data/alpaca_520.json --output_dir runs/alpaca --max_steps 10""",
        """\
  torchrun --nproc_per_node=2 --master_port=29501 scripts/train.py \\
      --model_name_or_path smollm2-135m --data_path data/alpaca_520.json \\
      --output_dir runs/alpaca --num_train_epochs 3 --fsdp "full_shard auto_wrap\"""",
    ),
)


def to_settings(given: Given, processes: int) -> Settings:
    """Returns the run that the flags describe. Raises SettingsError."""
    if given["bf16"] and given["fp16"]:
        raise UsageError("--bf16 and --fp16 together: choose one")
    sharding, gather, _ = conversions.sharding(given["fsdp"])
    per_device = given["per_device_train_batch_size"]
    values = {
        **given.options,
        **conversions.packing(per_device, given["model_max_length"]),
        "examples_per_step": per_device * given["gradient_accumulation_steps"] * processes,
        "dtype": "auto" if given["fp16"] else DTYPES[given["bf16"]],
        "sharding": sharding if processes > 1 else "auto",
        "gather": gather if processes > 1 else "auto",
    }
    if given["save_strategy"] == "no":
        values["save_every"] = 0
    if given["evaluation_strategy"] == "steps":
        if not given["validation_path"]:
            raise UsageError("--evaluation_strategy steps: needs --validation_path, a data file")
        values["eval_every"] = given["eval_steps"] or 1  # see adapt
    elif given["eval_steps"]:
        raise UsageError("--eval_steps: needs --evaluation_strategy steps")
    return Settings.from_dict(values, SCRIPT.name)


def work(given: Given) -> None:
    """Trains as the flags say."""
    settings = to_settings(given, PROCESSES)
    given.print_changes()
    if given["cache_dir"]:  # read by huggingface_hub when it is imported
        os.environ["HF_HUB_CACHE"] = given["cache_dir"]
    flags.print_once(
        f"examples_per_step = {given['per_device_train_batch_size']} x "
        f"{given['gradient_accumulation_steps']} x {PROCESSES} process"
        f"{'es' if PROCESSES > 1 else ''} = {settings.examples_per_step}; checkpoints "
        + {"no": "never", "epoch": "every epoch"}.get(
            given["save_strategy"], f"every {settings.save_every} steps"
        )
    )
    names = {"max_length": "--model_max_length"}
    train(settings, tf32=given["tf32"], adapt=partial(adapt, given), names=names)


def adapt(given: Given, settings: Settings, rows: int) -> Settings:
    """Returns the settings for the number of rows that are trained: what an epoch's steps are."""
    from alpaca_lib.training import count_steps

    per_step = settings.examples_per_step
    if given["save_strategy"] == "epoch":
        settings = settings.replace(save_every=count_steps(rows, per_step, epochs=1))
    if settings.eval_every and not given["eval_steps"]:
        steps = count_steps(rows, per_step, settings.epochs, settings.max_steps)
        settings = settings.replace(eval_every=max(steps // 5, 1))
    return settings


def train(
    settings: Settings,
    tf32: bool = False,
    adapt: Callable[[Settings, int], Settings] = lambda settings, rows: settings,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Trains in this process, prints each line of metrics, and returns the output folder.

    ``names`` are the script's names of options, which the lines before the training have.
    """
    import torch

    from alpaca_lib import launch
    from alpaca_lib.models import place
    from alpaca_lib.training.metrics import format_metrics

    if tf32 and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    placement = place(settings.device, settings.dtype)
    flags.print_once(f"device {placement.device}, {placement.dtype}: {placement.reason}")

    def report(line: dict[str, Any]) -> None:
        run = json.loads((Path(settings.output_dir) / "run.json").read_text(encoding="utf-8"))
        print(format_metrics(line, run["steps"]), flush=True)

    def say(text: str) -> None:
        for option, flag in names.items():
            text = text.replace(option, flag)
        print(text, flush=True)

    folder = launch.run(settings, report=report, adapt=adapt, say=say)
    flags.print_once(f"done: {folder}")
    return folder


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
