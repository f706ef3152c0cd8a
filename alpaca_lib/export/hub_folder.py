"""A trained model -> a folder that can go to a hub as it is: weights, tokenizer, model card.

The card states recipe, data, prompt, scores and licence, as far as they are known; for the rest
it says that nobody stated it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alpaca_lib.errors import FileError, ModelError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.inference.model_pool import as_source, read_run
from alpaca_lib.models import ModelSource
from alpaca_lib.optional import hide_progress_bars, require
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example
from alpaca_lib.tokenization import publish_prompts

UNKNOWN = "not stated by whoever made this card"
RECIPE = (  # the settings on the card, in this order
    "method epochs max_steps examples_per_step learning_rate schedule warmup max_length template "
    "lora_rank lora_alpha lora_dropout lora_targets lora_rs lora_dora quantization seed"
)
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{header}tags:
- instruction-tuned
- alpaca
---

# {title}

- **Base:** {base}
- **Data:** {data}; licence: {data_licence}
- **Licence of the weights:** {licence}. It cannot be freer than the base's, nor than the \
data's: many teachers' terms restrict what their answers may train.

{prompt}## Recipe

{recipe}

## Scores

{scores}

## Limits

A model that was taught to follow instructions learnt their manner, not their facts: what it \
says may be wrong, and it says it fluently. It was not made safe: put a policy before and after \
it where others can reach it, and measure that policy.
"""
PROMPT = """\
## Prompt

It answers to this prompt, to the character, and to others less well. The tokenizer's chat \
template makes it from one user message.

```text
{prompt}
```

"""


def publish(
    model: str | ModelSource,
    folder: Path,
    title: str = "",
    licence: str = "",
    data_licence: str = "",
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Writes model, tokenizer and card into ``folder`` and returns it; an adapter is merged.

    ``licence``: of the weights, an SPDX name, or a hub's ("other"). ``scores``: name -> number,
    from lesson 05. Raises ModelError if the folder is not empty, FileError if it cannot be
    written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ModelError(f"{folder}: is not empty; give a new folder")
    source = as_source(model)
    run = read_run(source)
    base = source.base.name if source.is_adapter else str(run.get("settings", {}).get("model", ""))
    merged, dtype = source.load_merged()
    tokenizer = source.load_tokenizer()
    template = run.get("settings", {}).get("template")
    publish_prompts(tokenizer, template, merged)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with hide_progress_bars():
            merged.to(getattr(require("torch"), dtype)).save_pretrained(part)
        tokenizer.save_pretrained(part)
        if run:
            write_text(part / "run.json", dump_json(_without_paths(run), indent=1) + "\n")
        card = model_card(
            title=title or folder.name,
            base=_without_paths(base),
            run=run,
            licence=licence,
            data_licence=data_licence,
            scores=scores,
            tokenizer=tokenizer,
        )
        write_text(part / "README.md", card)
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror or error})") from None
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
    """Returns the card as Markdown with the header that hubs read. ``run``: a run.json or {}."""
    settings = run.get("settings", {})
    template = str(settings.get("template") or "")
    header = f"license: {licence}\n" if licence else ""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and Path(base).parts[0] != "runs"
    if on_hub and not Path(base).exists():
        header += f"base_model: {base}\n"
    lora = settings.get("method") == "lora"
    recipe = [
        (f"`{key}`", str(settings[key]))
        for key in RECIPE.split()
        if key in settings and (lora or not key.startswith("lora_"))
    ]
    versions = ", ".join(f"{package} {v}" for package, v in run.get("versions", {}).items())
    shown = render_prompt(Example("Name three colours."), template, tokenizer) if template else ""
    return CARD.format(
        header=header,
        title=title,
        base=base or UNKNOWN,
        data=Path(str(settings.get("data_path", ""))).name or UNKNOWN,
        data_licence=data_licence or UNKNOWN,
        licence=licence or UNKNOWN,
        prompt=PROMPT.format(prompt=shown) if template else "",
        recipe=_table([*recipe, ("versions", versions or UNKNOWN)] if settings else []),
        scores=_table((scores or {}).items()),
    )


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    """Returns a Markdown table of names and values, or UNKNOWN if there is no row."""
    lines = []
    for name, value in rows:
        lines.append(f"| {name} | {f'{value:.3f}' if isinstance(value, float) else value} |")
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else UNKNOWN


def _without_paths(value: Any) -> Any:
    """Returns a JSON value in which absolute paths are shortened to their last part."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        return Path(value).name
    return value
