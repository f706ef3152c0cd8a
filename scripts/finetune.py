"""Trains LoRA adapters on instruction data, as Alpaca-LoRA's finetune.py.

python finetune.py --base_model MODEL --data_path FILE --output_dir DIR [--flag value ...]
"""

from __future__ import annotations

import operator
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import conversions
import flags
import train
from flags import Flag, Given, Script
from pydantic import NonNegativeInt, PositiveInt

from alpaca_lib.errors import AdapterError, DataError, UsageError
from alpaca_lib.models.embedded import DEFAULT_MODEL
from alpaca_lib.optional import require
from alpaca_lib.records import example_from_row, load_examples, save_examples
from alpaca_lib.training.settings import Settings

VALIDATION_ROWS = 2000  # Alpaca-LoRA's default
WARMUP_STEPS, EVERY = 100, 200


def initial_state(text: str) -> tuple[str, str]:
    """Returns Settings.resume and Settings.adapter for --resume_from_checkpoint.

    A checkpoint also holds the optimizer's state and the step. An adapter alone gives its
    weights to a run that starts at step 0, and that may itself be stopped and resumed.
    Raises AdapterError for a folder that is neither.
    """
    found = conversions.resume(text)
    folder = Path(found)
    if found in ("auto", "never") or (folder / "manifest.json").is_file():
        return found, ""
    if not any(folder.glob("adapter_model.*")):
        raise AdapterError(
            f"{folder}: neither a checkpoint (no manifest.json) nor an adapter (no "
            "adapter_model.safetensors); give a checkpoint-N folder or an adapter's"
        )
    return "auto", text


def _explain_initial_state(text: str) -> str:
    resume, adapter = initial_state(text)
    return f"adapter {adapter}: its weights, from step 0" if adapter else f"resume {resume}"


def _explain_validation(rows: int) -> str:
    tenth = " (a tenth, if there are no more)" if rows == VALIDATION_ROWS else ""
    return f"validation_rows {rows}{tenth}" + (", keep_best True" if rows else "")


def _explain_add_eos(add_eos: bool) -> str:
    return f"add_eos {add_eos}" + ("" if add_eos else "; its answers will not end")


def _explain_log_model(text: str) -> str:
    return "WANDB_LOG_MODEL true: an artifact" if text == "true" else "no upload"


SCRIPT = Script(
    name="finetune.py",
    about=f"""
Stage 04 of the Alpaca recipe: the base model is frozen, in 8 bits, and small LoRA matrices added
to some of its layers are trained. The adapter (a few MB), metrics.jsonl, run.json and
checkpoint-N/ go to OUTPUT_DIR.

Names and defaults are Alpaca-LoRA's, with one exception: add_eos_token is True, since a model
that was trained without an end token does not end its answers. Warm-up is 100 steps (a tenth of
all steps if there are fewer than 1000); checkpoints are 200 steps apart, evaluations too, or a
fifth of a shorter run. With validation rows, the final adapter is the one with the lowest
validation loss.

{conversions.list_templates("prompt_template_name")}
""",
    options=Settings.model_fields,
    flags=(
        Flag("base_model", sets="model", default=DEFAULT_MODEL),
        Flag(
            "data_path",
            default="yahma/alpaca-cleaned",
            help="a .json or .jsonl file, or a hub data set",
            becomes="data {}",
        ),
        Flag("output_dir", sets="output_dir", default="./lora-alpaca"),
        Flag("batch_size", sets="examples_per_step", default=128),
        Flag(
            "micro_batch_size",
            default=4,
            kind=PositiveInt,
            help="examples that the device computes at once",
            becomes="packed rows with as many tokens as {} examples of cutoff_len",
        ),
        Flag("num_epochs", sets="epochs", default=3.0),
        Flag(
            "max_steps", sets="max_steps", default=0, kind=int, convert=lambda steps: max(steps, 0)
        ),
        Flag("learning_rate", sets="learning_rate", default=3e-4),
        Flag("cutoff_len", sets="max_length", default=256),
        Flag(
            "val_set_size",
            default=VALIDATION_ROWS,
            kind=NonNegativeInt,
            help="rows for validation, drawn from the data by the seed",
            becomes=_explain_validation,
        ),
        Flag(
            "validation_path",
            sets="validation_path",
            default="",
            unset="val_set_size rows of the data",
        ),
        Flag(
            "eval_steps",
            default=None,
            kind=PositiveInt | None,
            help="steps between evaluations",
            becomes="eval_every {}",
            unset=f"a fifth of all steps, at most {EVERY}",
        ),
        Flag("save_steps", sets="save_every", default=EVERY),
        Flag("lora_r", sets="lora_rank", default=8),
        Flag("lora_alpha", sets="lora_alpha", default=16),
        Flag("lora_dropout", sets="lora_dropout", default=0.05),
        Flag(
            "lora_target_modules",
            sets="lora_targets",
            default="[q_proj,v_proj]",
            convert=conversions.targets,
        ),
        Flag(
            "train_on_inputs",
            sets="mask_prompt",
            default=True,
            help="whether the loss includes the prompt's tokens",
            convert=operator.not_,
        ),
        Flag(
            "add_eos_token",
            sets="add_eos",
            default=True,
            help="an end token after each answer (upstream: False)",
            becomes=_explain_add_eos,
        ),
        conversions.GROUP_BY_LENGTH,
        Flag(
            "prompt_template_name",
            sets="template",
            default="alpaca",
            help="prompt template, by Alpaca-LoRA's or this project's name",
            convert=conversions.template,
            becomes=conversions.explain_template,
        ),
        Flag("quantization", sets="quantization", default="int8"),
        Flag(
            "resume_from_checkpoint",
            default="auto",
            help="auto, never, a checkpoint or an adapter",
            becomes=_explain_initial_state,
        ),
        Flag("use_rslora", sets="lora_rs", default=False),
        Flag("use_dora", sets="lora_dora", default=False),
        Flag(
            "activation_checkpointing",
            sets="activation_checkpointing",
            default=False,
            aliases=("gradient_checkpointing",),
        ),
        conversions.report_to(default="", unset="wandb if a wandb_project is named, else none"),
        Flag(
            "wandb_project",
            default="",
            help="Weights & Biases: the project, which turns it on",
            becomes="wandb project {}",
            unset="WANDB_PROJECT, or off",
        ),
        Flag("wandb_run_name", sets="run_name", default="", unset="OUTPUT_DIR's name"),
        Flag(
            "wandb_watch",
            default="",
            kind=Literal["", "false", "gradients", "parameters", "all"],
            help="histograms to log",
            becomes="no histograms: their hooks could stop the training; metrics have grad_norm",
        ),
        Flag(
            "wandb_log_model",
            default="",
            kind=Literal["", "false", "true"],
            help="upload the adapter at the end",
            becomes=_explain_log_model,
            unset="no upload",
        ),
        Flag("seed", sets="seed", default=42),
    ),
    examples=(
        """\
  python scripts/finetune.py --base_model smollm2-135m --data_path data/alpaca_520.json \\
      --output_dir runs/lora-alpaca --max_steps 10""",
        """\
  python scripts/finetune.py --base_model smollm2-135m --data_path data/alpaca_520.json \\
      --output_dir runs/lora-alpaca --batch_size 16 --num_epochs 3 --cutoff_len 512 \\
      --lora_target_modules '[q_proj,v_proj]' --train_on_inputs --group_by_length""",
    ),
)


def data_file(name: str, folder: Path) -> str:
    """Returns the data as a file: ``name``, or a hub data set saved as folder/data.json.

    Raises DataError for a data set that is unavailable or has other columns.
    """
    is_file = Path(name).exists() or name.endswith((".json", ".jsonl"))
    if is_file or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    hub = require("huggingface_hub")
    try:  # fails fast: `datasets` itself tries an unreachable hub for 30 s
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
    flags.print_once(f"{name}: {len(examples)} rows, saved as {path}")
    return str(path)


def validation_rows(wanted: int, rows: int, path: str) -> int:
    """Returns the number of validation rows; the default becomes a tenth of smaller data.

    Raises DataError if no row is left for training.
    """
    if wanted < rows:
        return wanted
    if wanted != VALIDATION_ROWS:
        raise DataError(
            f"{path}: {rows} rows, and --val_set_size takes {wanted}; "
            f"give fewer, for example {max(rows // 10, 1)}, or 0 for no validation"
        )
    tenth = rows // 10
    flags.print_once(f"val_set_size {wanted} -> {tenth}, a tenth: there are only {rows} rows")
    return tenth


def trackers(given: Given) -> str:
    """Returns Settings.trackers; as upstream, a Weights & Biases project turns wandb on.

    Raises UsageError for a project together with --report_to none.
    """
    asked, named = given["report_to"], given.options["trackers"]
    if given["wandb_project"]:
        if asked and not named:
            raise UsageError("--wandb_project and --report_to none together: choose one")
        return named if "wandb" in named else ",".join(filter(None, [named, "wandb"]))
    if not asked and (project := os.environ.get("WANDB_PROJECT")):
        flags.print_once(f"WANDB_PROJECT {project} -> trackers wandb (--report_to none: without)")
        return "wandb"
    return named


def to_settings(given: Given) -> Settings:
    """Returns the run that the flags describe; reads the data, to count its rows.

    Raises SettingsError, DataError or AdapterError.
    """
    resume, adapter = initial_state(given["resume_from_checkpoint"])
    if adapter and Path(adapter).resolve() == Path(given["output_dir"]).resolve():
        raise AdapterError(f"{adapter}: the run begins with it; give another --output_dir")
    tracked = trackers(given)
    own_file = bool(given["validation_path"])
    if own_file and "val_set_size" in given.given and given["val_set_size"]:
        raise UsageError("--validation_path and --val_set_size together: choose one")
    data_path = data_file(given["data_path"], Path(given["output_dir"]))
    rows = len(load_examples(data_path))
    held_out = 0 if own_file else validation_rows(given["val_set_size"], rows, data_path)
    validates = own_file or held_out > 0
    values = {
        **given.options,
        **conversions.packing(given["micro_batch_size"], given["cutoff_len"]),
        "data_path": data_path,
        "method": "lora",
        "validation_rows": held_out,
        "warmup": WARMUP_STEPS,
        "schedule": "linear",
        "adapter": adapter,
        "resume": resume,
        "log_every": 10,
        "eval_every": (given["eval_steps"] or EVERY) if validates else 0,
        "keep_checkpoints": 3,
        "keep_best": validates,
        "trackers": tracked,
        "project": conversions.project(given["wandb_project"]),
    }
    return Settings.from_dict(values, SCRIPT.name)


def adapt(given: Given, settings: Settings, rows: int) -> Settings:
    """Returns the settings for the number of rows that are trained.

    A short run has a warm-up of a tenth of its steps, and an evaluation every fifth of them,
    so that there is a best one to keep.
    """
    from alpaca_lib.training import count_steps

    steps = count_steps(rows, settings.examples_per_step, settings.epochs, settings.max_steps)
    warmup, every = min(WARMUP_STEPS, steps // 10), settings.eval_every
    if warmup < WARMUP_STEPS:
        flags.print_once(f"warm-up {WARMUP_STEPS} steps -> {warmup}, a tenth of all {steps} steps")
    if every and not given["eval_steps"] and steps // 5 < every:
        every = max(steps // 5, 1)
        flags.print_once(f"evaluations every {EVERY} steps -> every {every}, five in the run")
    return settings.replace(warmup=warmup, eval_every=every)


def work(given: Given) -> None:
    """Trains as the flags say."""
    given.print_changes()
    if "prompt_template_name" not in given.given:
        flags.print_once(conversions.explain_template(given["prompt_template_name"]))
    settings = to_settings(given)
    if given["wandb_log_model"]:
        os.environ["WANDB_LOG_MODEL"] = given["wandb_log_model"]
    train.train(settings, adapt=partial(adapt, given), names={"max_length": "--cutoff_len"})


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return flags.run(lambda: work(flags.parse(SCRIPT, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
