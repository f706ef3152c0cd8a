"""A trained model -> a folder that can go to a hub as it is: weights, tokenizer, model card.

The card says what a reader has to know and what only the run knows: recipe, data, prompt,
scores, licence. What nobody gave is said to be unknown.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.optional import hide_progress_bars, require
from alpaca_lib.prompts import CHAT, chat_template, render_prompt
from alpaca_lib.records import Example

UNKNOWN = "not stated by whoever made this card"
SETTINGS = (  # what a reader needs to make it again, in this order
    *("method", "epochs", "max_steps", "examples_per_step", "learning_rate", "schedule"),
    *("warmup", "max_length", "template", "lora_rank", "lora_alpha", "lora_dropout"),
    *("lora_targets", "lora_rs", "lora_dora", "quantization", "seed"),
)


def publish(
    name: str,
    folder: Path,
    title: str = "",
    licence: str = "",
    data_licence: str = "",
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Writes model, tokenizer and card into ``folder``; an adapter is merged. Returns it.

    ``licence``: an SPDX name, or a hub's ("other"), for the weights. ``scores``: name -> number,
    from lesson 05. Raises ModelError if the folder has something in it, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ModelError(f"{folder}: is not empty; give a new folder")
    source = Path(models.ModelSource.resolve(name).path)
    run = _json(source / "run.json")
    adapter = _json(source / "adapter_config.json")
    base = str(adapter.get("base_model_name_or_path") or run.get("settings", {}).get("model", ""))
    base = Path(base).name if Path(base).is_absolute() else base  # no path of this machine
    model, dtype = models.ModelSource.resolve(name).load_merged()
    tokenizer = models.ModelSource.resolve(name).load_tokenizer()
    template = run.get("settings", {}).get("template")
    if template and template != CHAT:
        tokenizer.chat_template = chat_template(template)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with hide_progress_bars():
            model.to(getattr(require("torch"), dtype)).save_pretrained(part)
        tokenizer.save_pretrained(part)
        if run:
            write_text(part / "run.json", dump_json(_without_paths(run), indent=1) + "\n")
        card = model_card(title or folder.name, base, run, licence, data_licence, scores, tokenizer)
        write_text(part / "README.md", card)
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def model_card(
    title: str,
    base: str,
    run: Mapping[str, Any],
    licence: str = "",
    data_licence: str = "",
    scores: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
) -> str:
    """The card as Markdown with the header that hubs read. ``run``: a run.json, or empty."""
    settings = run.get("settings", {})
    data = Path(str(settings.get("data_path", ""))).name
    template = str(settings.get("template") or "")
    header = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    header += [f"license: {licence}"] if licence else []
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and Path(base).parts[0] != "runs"
    header += [f"base_model: {base}"] if on_hub and not Path(base).exists() else []
    header += ["tags:", "- instruction-tuned", "- alpaca", "---", ""]
    lines = [
        *header,
        f"# {title}",
        "",
        f"- **Base:** {base or UNKNOWN}",
        f"- **Data:** {data or UNKNOWN}; licence: {data_licence or UNKNOWN}",
        f"- **Licence of the weights:** {licence or UNKNOWN}. It cannot be freer than the "
        "base's, nor than the data's: many teachers' terms restrict what their answers may train.",
        "",
    ]
    if template:
        lines += [
            "## Prompt",
            "",
            "It answers to this prompt, to the character, and to others less well. The "
            "tokenizer's chat template makes it from one user message.",
            "",
            "```text",
            render_prompt(Example("Name three colours."), template, tokenizer),
            "```",
            "",
        ]
    lines += ["## Recipe", ""]
    if settings:
        lines += ["| | |", "|---|---|"]
        lora = settings.get("method") == "lora"
        for key in SETTINGS:
            if key in settings and (lora or not key.startswith("lora_")):
                lines.append(f"| `{key}` | {settings[key]} |")
        versions = ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items())
        lines += [f"| versions | {versions or UNKNOWN} |", ""]
    else:
        lines += [UNKNOWN, ""]
    lines += ["## Scores", ""]
    if scores:
        lines += ["| | |", "|---|---|"]
        lines += [f"| {key} | {_number(value)} |" for key, value in scores.items()] + [""]
    else:
        lines += [UNKNOWN, ""]
    lines += [
        "## Limits",
        "",
        "A model that was taught to follow instructions learnt their manner, not their facts: "
        "what it says may be wrong, and it says it fluently. It was not made safe: put a policy "
        "before and after it where others can reach it, and measure that policy.",
        "",
    ]
    return "\n".join(lines)


def _without_paths(value: Any) -> Any:
    """The same without folders of this machine: of an absolute path only the name is left."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        return Path(value).name
    return value


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
