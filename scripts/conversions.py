"""Values of the original scripts' flags -> options of alpaca_lib.training.settings.Settings."""

from __future__ import annotations

import os
from pathlib import Path

from flags import Flag

from alpaca_lib.errors import UsageError
from alpaca_lib.prompts import ALIASES, describe_templates, template_names
from alpaca_lib.training.settings import TRACKERS, Settings

# Hugging Face's values of --fsdp: Settings.sharding, Settings.gather, and what they mean.
FSDP = {
    "full_shard": ("full", "auto", "parameters, gradients and optimizer over all processes"),
    "shard_grad_op": ("full", "step", "as full_shard, with one all-gather per step"),
    "hybrid_shard": ("hybrid", "auto", "within a node, with replicas across nodes"),
    "hybrid_shard_zero2": ("hybrid", "step", "as hybrid_shard, with one all-gather per step"),
}
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw8bit",
    "adamw_bnb_8bit": "adamw8bit",
    "paged_adamw_8bit": "adamw8bit",
}
GROUP_BY_LENGTH = Flag(
    "group_by_length",
    default=False,
    kind=bool,
    help="examples of similar length in a batch, to pad less",
    becomes="batching pack, on or off: rows are filled with whole examples, with less padding",
)


def sharding(text: str) -> tuple[str, str, str]:
    """Returns Settings.sharding, Settings.gather and their meaning for --fsdp.

    Raises UsageError for a strategy that is unknown, and for two of them.
    """
    found = [word for word in text.replace(",", " ").split() if word != "auto_wrap"]
    for word in found:
        if word not in FSDP:
            raise UsageError(
                f"--fsdp {text!r}: takes {', '.join(FSDP)}, and auto_wrap after it; "
                f"{word!r} is not supported"
            )
    if len(found) > 1:
        raise UsageError(f"--fsdp {text!r}: choose one of {' and '.join(found)}")
    return FSDP[found[0]] if found else ("auto", "auto", "chosen from the processes and nodes")


def packing(examples: int, max_length: int) -> dict[str, int]:
    """Returns the options of packed rows for a padded micro-batch of the original script.

    The rows have as many tokens as ``examples`` padded to ``max_length`` would have:
    8 examples of 256 tokens are 4 rows of 512.
    """
    row_length = max(Settings.model_fields["row_length"].default, max_length)
    return {
        "row_length": row_length,
        "rows_per_micro_batch": max(examples * max_length // row_length, 1),
    }


def targets(text: str) -> str:
    """Returns Settings.lora_targets: '[q_proj,v_proj]' -> 'q_proj,v_proj'."""
    names = [name.strip(" \"'") for name in text.strip().strip("[]()").split(",")]
    return ",".join(name for name in names if name)


def template(name: str) -> str:
    """Returns the library's name of a prompt template of Alpaca-LoRA. Raises UsageError."""
    # Alpaca-LoRA's file "alpaca" is a text of its own; Stanford's is its "alpaca_legacy".
    found = "alpaca-lora" if name == "alpaca" else ALIASES.get(name, name)
    if found not in template_names():
        known = ", ".join(dict.fromkeys(["alpaca", *ALIASES, *template_names()]))
        raise UsageError(f"no prompt template {name!r}; there are {known}")
    return found


def explain_template(name: str) -> str:
    """Returns which of the library's templates a name of Alpaca-LoRA's commands means."""
    found = template(name)
    if name == "alpaca":
        return f"template alpaca of Alpaca-LoRA = {found} here (stanford: Stanford's)"
    return f"template {found}"


def list_templates(flag: str) -> str:
    """Returns the end of a script's description: the templates and what Alpaca-LoRA's name means.

    The library's "alpaca" is listed as "stanford", since these commands had the name before.
    """
    lines = [f"  {line}" for line in describe_templates({"alpaca": "stanford"})]
    return "\n".join([f"Templates of --{flag} (alpaca means alpaca-lora here):", *lines])


def resume(text: str) -> str:
    """Returns Settings.resume for --resume_from_checkpoint. Raises UsageError."""
    if text.lower() in ("auto", "true", ""):
        return "auto"
    if text.lower() in ("never", "false", "none"):
        return "never"
    if not Path(text).is_dir():
        raise UsageError(f"--resume_from_checkpoint {text!r}: no such folder")
    return text


def trackers(text: str) -> str:
    """Returns Settings.trackers for --report_to. Raises UsageError."""
    names = list(dict.fromkeys(text.replace(",", " ").split()))
    if names in ([], ["none"]):
        return ""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--report_to {text!r}: takes none, or some of {', '.join(TRACKERS)}")
    return ",".join(names)


def report_to(default: str, unset: str = "none") -> Flag:
    """Returns the flag that names trackers."""
    return Flag(
        "report_to",
        sets="trackers",
        default=default,
        help="trackers: wandb, tensorboard, trackio; or none",
        convert=trackers,
        becomes=lambda text: f"trackers {trackers(text) or 'none: see OUTPUT_DIR/metrics.jsonl'}",
        unset=unset,
        many=True,
    )


def project(named: str) -> str:
    """Returns the trackers' project: the named one, else WANDB_PROJECT, else the default."""
    default: str = Settings.model_fields["project"].default
    return named or os.environ.get("WANDB_PROJECT") or default
