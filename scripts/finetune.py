"""Trains LoRA adapters on instruction data, as Alpaca-LoRA's finetune.py.

python finetune.py --base_model MODEL --data_path FILE --output_dir DIR [--flag value ...]
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import flags
from flags import Flag, Given, Script

from alpaca_lib.errors import AdapterError, DataError
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.optional import require
from alpaca_lib.records import example_from_row, load_examples, save_examples

if TYPE_CHECKING:
    from alpaca_lib.training.settings import Settings

UPSTREAM_VALIDATION = 2000
WARMUP_STEPS, EVERY = 100, 200


def begin(text: str) -> tuple[str, str]:
    """Settings.resume and Settings.adapter for --resume_from_checkpoint.

    A checkpoint holds the optimizer's state and the step too. An adapter alone gives its
    weights to a run that starts at step 0, and that may itself be stopped and resumed.
    """
    found = flags.resume(text)
    folder = Path(found)
    if found in ("auto", "never") or (folder / "manifest.json").is_file():
        return found, ""
    if not any(folder.glob("adapter_model.*")):
        raise AdapterError(
            f"{folder}: neither a checkpoint (no manifest.json) nor an adapter (no "
            "adapter_model.safetensors); give a checkpoint-N folder or an adapter's"
        )
    return "auto", text


def _begins(text: str) -> str:
    resume, adapter = begin(text)
    return f"adapter {adapter}: its weights, from step 0 on" if adapter else f"resume {resume}"


SCRIPT = Script(
    name="finetune.py",
    about="""
        Stage 04 of the Alpaca recipe: the base model stays as it is, in 8 bits, and small LoRA
        matrices beside some of its layers are trained. The adapter (a few MB), metrics.jsonl,
        run.json and checkpoint-N/ go to OUTPUT_DIR.

        Names and defaults are Alpaca-LoRA's, with one exception: add_eos_token is True, since
        a model that never saw the end of an answer does not end its own. Warm-up is 100 steps
        (a tenth of them if there are fewer than 1000), evaluation and checkpoints are every 200.
        With validation rows, the adapter at the end is the one of the lowest validation loss.
    """,
    flags=(
        Flag(
            *("base_model", str, DEFAULT_MODEL, "a folder, a hub id or the embedded model"),
            *("model {}",),
        ),
        Flag(
            *("data_path", str, "yahma/alpaca-cleaned", ".json or .jsonl, or a hub data set"),
            *("data {}",),
        ),
        Flag("output_dir", str, "./lora-alpaca", "where the adapter goes", "output_dir {}"),
        Flag("batch_size", int, 128, "examples of a step", "examples_per_step {}", least=1),
        Flag(
            *("micro_batch_size", int, 4, "examples that the device takes at once"),
            *("packed rows with as many tokens as {} examples of cutoff_len",),
            least=1,
        ),
        Flag("num_epochs", float, 3.0, "passes over the data", "epochs {}", least=0),
        Flag("max_steps", int, 0, "above 0: so many steps, whatever the epochs", "max_steps {}"),
        Flag("learning_rate", float, 3e-4, "the highest rate", "learning_rate {}", least=0),
        Flag("cutoff_len", int, 256, "tokens of an example", "max_length {}", least=2),
        Flag(
            *("val_set_size", int, UPSTREAM_VALIDATION, "the first so many rows validate"),
            lambda n: (
                f"validation_rows {n}"
                + (" (a tenth, if there are no more)" if n == UPSTREAM_VALIDATION else "")
                + (", keep_best True" if n else "")
            ),
            least=0,
        ),
        Flag("lora_r", int, 8, "rank of the matrices", "lora_rank {}", least=1),
        Flag("lora_alpha", int, 16, "their product counts alpha / r", "lora_alpha {}", least=1),
        Flag(
            "lora_dropout", float, 0.05, "part of their input left out", "lora_dropout {}", least=0
        ),
        Flag(
            *("lora_target_modules", str, "[q_proj,v_proj]", "layers that get one, or all-linear"),
            lambda text: f"lora_targets {targets(text)}",
        ),
        Flag(
            *("train_on_inputs", bool, True, "whether the loss counts the prompt too"),
            lambda on: f"mask_prompt {not on}",
        ),
        Flag(
            *("add_eos_token", bool, True, "an end token after each answer (upstream: False)"),
            lambda on: f"add_eos {on}" + ("" if on else "; its answers will not end"),
        ),
        Flag("group_by_length", bool, False, "examples of like length together", flags.GROUPED),
        Flag(
            *("prompt_template_name", str, "alpaca", "the prompt's text, by upstream's name"),
            lambda name: f"template {flags.template(name)}",
        ),
        Flag(
            *("quantization", str, "int8", "how the base model's weights are stored"),
            *("quantization {}", ("none", "int8", "nf4")),
        ),
        Flag(
            *("resume_from_checkpoint", str, "auto", "auto, never, a checkpoint or an adapter"),
            _begins,
        ),
        Flag("use_rslora", bool, False, "scale by alpha / sqrt(r), not alpha / r", "lora_rs {}"),
        Flag("use_dora", bool, False, "train direction and length apart", "lora_dora {}"),
        Flag(
            *("activation_checkpointing", bool, False, "less memory, a third more time"),
            *("activation_checkpointing {}",),
            aliases=("gradient_checkpointing",),
        ),
        flags.report_to("", unset="wandb where a wandb_project is named, else none"),
        Flag(
            *("wandb_project", str, "", "Weights & Biases: the project, which turns it on"),
            *("trackers wandb, project {}",),
            unset="WANDB_PROJECT, or off",
        ),
        Flag(
            *("wandb_run_name", str, "", "the run's name, at any tracker", "run_name {}"),
            unset="OUTPUT_DIR's name",
        ),
        Flag(
            *("wandb_watch", str, "", "histograms to log"),
            "no histograms: their hooks could stop the training; grad_norm is in every line",
            ("", "false", "gradients", "parameters", "all"),
        ),
        Flag(
            *("wandb_log_model", str, "", "upload the adapter at the end"),
            lambda on: "WANDB_LOG_MODEL true: an artifact" if on == "true" else "no upload",
            ("", "false", "true"),
        ),
        Flag("seed", int, 42, "order of the examples, dropout, first matrices", "seed {}", least=0),
    ),
    example="""
        python scripts/finetune.py --base_model smollm2-135m --data_path data/alpaca_520.json \\
            --output_dir runs/lora-alpaca --batch_size 16 --num_epochs 3 --cutoff_len 512 \\
            --lora_target_modules '[q_proj,v_proj]' --train_on_inputs --group_by_length
    """,
)


def targets(text: str) -> str:
    """'[q_proj,v_proj]' as the library writes it: q_proj,v_proj."""
    names = [name.strip(" \"'") for name in text.strip().strip("[]()").split(",")]
    return ",".join(name for name in names if name)


def data_file(name: str, folder: Path) -> str:
    """The data as a file: ``name`` itself, or a hub data set saved as folder/data.json."""
    is_file = Path(name).exists() or name.endswith((".json", ".jsonl"))
    if is_file or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    hub = require("huggingface_hub")
    try:  # first and fast: `datasets` itself tries an unreachable hub for half a minute
        hub.HfApi().dataset_info(name, timeout=10)
    except hub.errors.RepositoryNotFoundError:
        raise DataError(f"{name}: neither a file nor a data set on the hub") from None
    except Exception as error:
        raise DataError(
            f"{name}: no such file, and the hub cannot be reached ({type(error).__name__}); "
            "check the network, set HF_ENDPOINT to a mirror, or give a .json or .jsonl file"
        ) from None
    try:
        rows = require("datasets").load_dataset(name, split="train")
        examples = [example_from_row(row) for row in rows]
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{name}: this data set cannot be used ({first[0]})") from None
    path = save_examples(examples, folder / "data.json")
    flags.say(f"{name}: {len(examples)} rows, saved as {path}")
    return str(path)


def validation_rows(wanted: int, rows: int, path: str) -> int:
    """How many rows validate; upstream's 2000 becomes a tenth of a data set that is smaller."""
    if wanted < rows:
        return wanted
    if wanted != UPSTREAM_VALIDATION:
        raise DataError(
            f"{path}: {rows} rows, of which --val_set_size takes {wanted}; "
            f"give fewer, for example {max(rows // 10, 1)}, or 0 for no validation"
        )
    tenth = rows // 10
    flags.say(f"val_set_size {wanted} -> {tenth}, a tenth: there are only {rows} rows")
    return tenth


def trackers(given: Given) -> str:
    """Settings.trackers; as upstream, a project of wandb's turns wandb on. Raises FlagError."""
    asked, named = given["report_to"], flags.trackers(given["report_to"])
    if given["wandb_project"]:
        if asked and not named:
            raise flags.FlagError("--wandb_project and --report_to none together: choose one")
        return named if "wandb" in named else ",".join(filter(None, [named, "wandb"]))
    if not asked and (project := os.environ.get("WANDB_PROJECT")):
        flags.say(f"WANDB_PROJECT {project} -> trackers wandb (--report_to none: without)")
        return "wandb"
    return named


def to_settings(given: Given) -> Settings:
    """The run that the flags describe. Reads the data, to count its rows."""
    from alpaca_lib.training import Settings, count_steps

    resume, adapter = begin(given["resume_from_checkpoint"])
    if adapter and Path(adapter).resolve() == Path(given["output_dir"]).resolve():
        raise AdapterError(f"{adapter}: the run begins with it; give another --output_dir")
    tracked = trackers(given)
    template = flags.template(given["prompt_template_name"])
    data_path = data_file(given["data_path"], Path(given["output_dir"]))
    rows = len(load_examples(data_path))
    held_out = validation_rows(given["val_set_size"], rows, data_path)
    max_steps = max(given["max_steps"], 0)
    steps = count_steps(rows - held_out, given["batch_size"], given["num_epochs"], max_steps)
    warmup = min(WARMUP_STEPS, steps // 10)
    if warmup < WARMUP_STEPS:
        flags.say(f"warm-up {WARMUP_STEPS} steps -> {warmup}, a tenth of all {steps} steps")
    length = given["cutoff_len"]
    row_length = max(512, length)
    return Settings(
        data_path=data_path,
        output_dir=given["output_dir"],
        model=given["base_model"],
        method="lora",
        template=template,
        max_length=length,
        mask_prompt=not given["train_on_inputs"],
        add_eos=given["add_eos_token"],
        validation_rows=held_out,
        epochs=given["num_epochs"],
        max_steps=max_steps,
        examples_per_step=given["batch_size"],
        row_length=row_length,
        rows_per_micro_batch=max(given["micro_batch_size"] * length // row_length, 1),
        learning_rate=given["learning_rate"],
        warmup=warmup,
        schedule="linear",
        quantization=given["quantization"],
        lora_rank=given["lora_r"],
        lora_alpha=given["lora_alpha"],
        lora_dropout=given["lora_dropout"],
        lora_targets=targets(given["lora_target_modules"]),
        lora_rs=given["use_rslora"],
        lora_dora=given["use_dora"],
        adapter=adapter,
        activation_checkpointing=given["activation_checkpointing"],
        seed=given["seed"],
        log_every=10,
        eval_every=EVERY if held_out else 0,
        save_every=EVERY,
        keep_checkpoints=3,
        keep_best=held_out > 0,
        trackers=tracked,
        project=flags.project(given["wandb_project"]),
        run_name=given["wandb_run_name"],
        resume=resume,
    )


def work(given: Given) -> None:
    """Trains as the flags say."""
    given.tell()
    settings = to_settings(given)
    if given["wandb_log_model"]:
        os.environ["WANDB_LOG_MODEL"] = given["wandb_log_model"]
    from train import train

    train(settings)


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
