"""Trains every parameter of a model on instruction data, as Stanford Alpaca's train.py.

torchrun --nproc_per_node=4 train.py --data_path FILE --output_dir DIR [--flag value ...]
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flags
from flags import NEEDED, Flag, Given, Script

from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.training.settings import SCHEDULES

if TYPE_CHECKING:
    from alpaca_lib.training.settings import Settings

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
# Hugging Face's words: Settings.sharding, Settings.gather, and what these mean.
FSDP = {
    "full_shard": ("full", "auto", "parameters, gradients and optimizer over all processes"),
    "shard_grad_op": ("full", "step", "as full_shard, but put together once a step"),
    "hybrid_shard": ("hybrid", "auto", "within a node, with copies across nodes"),
    "hybrid_shard_zero2": ("hybrid", "step", "as hybrid_shard, but put together once a step"),
}
OPTIMIZERS: dict[str, Any] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw8bit"),
}


def _dtype(bf16: bool | None) -> str:
    if bf16 is None:
        return "dtype auto: bfloat16 where the device computes it, else float32"
    return "dtype bfloat16" if bf16 else "dtype float32"


def _optimizer(name: str) -> str:
    paged = "; its memory is not paged" if name.startswith("paged") else ""
    return f"optimizer {OPTIMIZERS[name]}{paged}"


def fsdp(text: str) -> tuple[Any, Any, str]:
    """Settings.sharding, Settings.gather and their meaning, for --fsdp. Raises FlagError."""
    found = [word for word in text.replace(",", " ").split() if word != "auto_wrap"]
    for word in found:
        if word not in FSDP:
            raise flags.FlagError(
                f"--fsdp {text!r}: takes {', '.join(FSDP)}, and auto_wrap beside it; "
                f"{word!r} is not done here"
            )
    if len(found) > 1:
        raise flags.FlagError(f"--fsdp {text!r}: choose one of {' and '.join(found)}")
    return FSDP[found[0]] if found else ("auto", "auto", "as the processes and nodes suggest")


def _sharding(text: str) -> str:
    sharding, gather, meaning = fsdp(text)
    if PROCESSES == 1:
        return "nothing to shard: this is one process (torchrun starts more)"
    return f"sharding {sharding}, gather {gather}: FSDP2, {meaning}"


SCRIPT = Script(
    name="train.py",
    about="""
        Stage 03 of the Alpaca recipe: all parameters of a model are trained, on the answers
        only. Under plain python it is one process; torchrun starts as many as
        --nproc_per_node says, and then every one holds a shard of the model (FSDP2).

        Defaults are the values of Stanford's command. The model, metrics.jsonl, run.json and
        checkpoint-N/ go to OUTPUT_DIR; the same command again goes on from the newest
        checkpoint.
    """,
    flags=(
        Flag(
            *("model_name_or_path", str, DEFAULT_MODEL, "a folder, a hub id or the embedded model"),
            *("model {}",),
        ),
        Flag("data_path", str, NEEDED, "instruction, input, output: .json or .jsonl", "data {}"),
        Flag("output_dir", str, NEEDED, "where the model goes", "output_dir {}"),
        Flag(
            *("num_train_epochs", float, 3.0, "passes over the data", "epochs {}"),
            least=0,
        ),
        Flag(
            *("max_steps", int, -1, "above 0: so many steps, whatever the epochs"),
            lambda steps: f"max_steps {steps}" if steps > 0 else "as many steps as the epochs need",
        ),
        Flag(
            *("per_device_train_batch_size", int, 4, "examples that one device takes at once"),
            *("{} x gradient_accumulation_steps x processes = examples_per_step",),
            least=1,
        ),
        Flag(
            *("gradient_accumulation_steps", int, 8, "such batches before one optimizer step"),
            *("{} x per_device_train_batch_size x processes = examples_per_step",),
            least=1,
        ),
        Flag(
            *("per_device_eval_batch_size", int, 4, "examples at once in an evaluation"),
            *("nothing: Stanford's recipe evaluates nothing",),
            least=1,
        ),
        Flag(
            *("evaluation_strategy", str, "no", "when to evaluate"),
            *("no evaluation: this recipe has no validation data (finetune.py has)", ("no",)),
            aliases=("eval_strategy",),
        ),
        Flag(
            *("save_strategy", str, "steps", "when to write a checkpoint"),
            lambda how: "save_every 0" if how == "no" else f"a checkpoint by {how}",
            choices=("no", "steps", "epoch"),
        ),
        Flag("save_steps", int, 2000, "steps between checkpoints", "save_every {}", least=1),
        Flag("save_total_limit", int, 1, "checkpoints kept", "keep_checkpoints {}", least=1),
        Flag(
            *("resume_from_checkpoint", str, "auto", "auto, never, or a checkpoint's folder"),
            lambda text: f"resume {flags.resume(text)}",
        ),
        Flag("learning_rate", float, 2e-5, "the highest rate", "learning_rate {}", least=0),
        Flag("weight_decay", float, 0.0, "AdamW's decay", "weight_decay {}", least=0),
        Flag(
            *("warmup_ratio", float, 0.03, "part of all steps in which the rate rises"),
            *("warmup {}",),
            least=0,
        ),
        Flag(
            *("lr_scheduler_type", str, "cosine", "how the rate falls", "schedule {}", SCHEDULES),
        ),
        Flag("logging_steps", int, 1, "steps between lines of metrics", "log_every {}", least=1),
        Flag(
            *("bf16", bool, None, "compute in bfloat16", _dtype),
            unset="what the device does best",
        ),
        Flag(
            *("fp16", bool, False, "compute in float16"),
            lambda on: (
                "bfloat16 or float32, whichever the device has: float16 overflows"
                if on
                else "no float16"
            ),
        ),
        Flag(
            *("tf32", bool, False, "float32 products in TF32, on NVIDIA GPUs since Ampere"),
            lambda on: f"float32 matmul precision {'high' if on else 'highest'} (GPUs only)",
        ),
        Flag("fsdp", str, "", f"how to shard: {', '.join(FSDP)}", _sharding, many=True),
        Flag(
            *("fsdp_transformer_layer_cls_to_wrap", str, "", "the class of a layer"),
            *("nothing: the class is read from the model",),
        ),
        Flag(
            *("gradient_checkpointing", bool, False, "less memory, a third more time"),
            *("activation_checkpointing {}",),
            aliases=("activation_checkpointing",),
        ),
        Flag("torch_compile", bool, False, "compile the layers (on a CPU: with g++)", "compile {}"),
        Flag("group_by_length", bool, False, "examples of like length together", flags.GROUPED),
        Flag(
            *("model_max_length", int, 512, "tokens of an example, prompt and answer"),
            lambda n: f"max_length {n}; examples are packed into rows of {max(512, n)}",
            least=2,
        ),
        Flag(
            *("optim", str, "adamw_torch", "the optimizer", _optimizer, tuple(OPTIMIZERS)),
        ),
        Flag("cache_dir", str, "", "where downloads are kept", "HF_HUB_CACHE {}"),
        Flag("seed", int, 42, "order of the examples, dropout", "seed {}", least=0),
        flags.report_to("none"),
        Flag(
            *("project", str, "", "the trackers' name for a family of runs", "project {}"),
            unset="WANDB_PROJECT, or alpaca",
        ),
        Flag("run_name", str, "", "and for this one", "run_name {}", unset="OUTPUT_DIR's name"),
    ),
    example="""
        torchrun --nproc_per_node=2 --master_port=29501 scripts/train.py \\
            --model_name_or_path smollm2-135m --data_path data/alpaca_520.json \\
            --output_dir runs/alpaca --num_train_epochs 3 --fsdp "full_shard auto_wrap"
    """,
)


def to_settings(given: Given, processes: int) -> Settings:
    """The run that the flags describe. Raises FlagError, or ValueError as Settings does."""
    from alpaca_lib.training.settings import Settings

    sharding, gather, _ = fsdp(given["fsdp"])
    if processes == 1:
        sharding = gather = "auto"
    if given["bf16"] and given["fp16"]:
        raise flags.FlagError("--bf16 and --fp16 together: choose one")
    if given["warmup_ratio"] >= 1:
        raise flags.FlagError(f"--warmup_ratio '{given['warmup_ratio']}': takes 0 up to below 1")
    dtypes = {None: "auto", True: "bfloat16", False: "float32"}
    length = given["model_max_length"]
    row_length = max(512, length)
    per_step = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    return Settings(
        data_path=given["data_path"],
        output_dir=given["output_dir"],
        model=given["model_name_or_path"],
        max_length=length,
        epochs=given["num_train_epochs"],
        max_steps=max(given["max_steps"], 0),
        examples_per_step=per_step * processes,
        row_length=row_length,
        # As many tokens at once as upstream's padded examples would have.
        rows_per_micro_batch=max(given["per_device_train_batch_size"] * length // row_length, 1),
        optimizer=OPTIMIZERS[given["optim"]],
        learning_rate=given["learning_rate"],
        weight_decay=given["weight_decay"],
        warmup=given["warmup_ratio"],
        schedule=given["lr_scheduler_type"],
        dtype="auto" if given["fp16"] else dtypes[given["bf16"]],
        activation_checkpointing=given["gradient_checkpointing"],
        compile=given["torch_compile"],
        sharding=sharding,
        gather=gather,
        seed=given["seed"],
        log_every=given["logging_steps"],
        save_every=0 if given["save_strategy"] == "no" else given["save_steps"],
        keep_checkpoints=given["save_total_limit"],
        trackers=flags.trackers(given["report_to"]),
        project=flags.project(given["project"]),
        run_name=given["run_name"],
        resume=flags.resume(given["resume_from_checkpoint"]),
    )


def work(given: Given) -> None:
    """Trains as the flags say."""
    settings = to_settings(given, PROCESSES)
    given.tell()
    if given["cache_dir"]:  # read by huggingface_hub when it is imported
        os.environ["HF_HUB_CACHE"] = given["cache_dir"]
    if given["save_strategy"] == "epoch":
        from alpaca_lib.records import load_examples

        rows = len(load_examples(settings.data_path))
        settings = settings.replace(save_every=math.ceil(rows / settings.examples_per_step))
    flags.say(
        f"examples_per_step = {given['per_device_train_batch_size']} x "
        f"{given['gradient_accumulation_steps']} x {PROCESSES} process"
        f"{'es' if PROCESSES > 1 else ''} = {settings.examples_per_step}; checkpoints "
        + (f"every {settings.save_every} steps" if settings.save_every else "never")
    )
    train(settings, tf32=given["tf32"])


def train(settings: Settings, tf32: bool = False) -> Path:
    """Runs the library's loop, printing each line of metrics; returns the output folder."""
    import torch

    from alpaca_lib import launch
    from alpaca_lib.models import place
    from alpaca_lib.training.metrics import format_metrics

    if tf32 and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    placement = place(settings.device, settings.dtype)
    flags.say(f"device {placement.device}, {placement.dtype}: {placement.reason}")

    def report(line: dict[str, Any]) -> None:
        run = json.loads((Path(settings.output_dir) / "run.json").read_text(encoding="utf-8"))
        print(format_metrics(line, run["steps"]), flush=True)

    folder = launch.run(settings, report=report)
    flags.say(f"done: {folder}")
    return folder


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
