"""A trained model -> a folder that can go to a hub as it is: weights, tokenizer, model card.

The weights are those of the full model, or of the adapter alone, a few megabytes that name the
base they need by its hub id.

The card states recipe, data, prompt, scores and licence, as far as they are known; for the rest
it says that nobody stated it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from alpaca_lib.errors import FileError, ModelError
from alpaca_lib.files import dump_json, move, write_text
from alpaca_lib.inference.model_pool import as_source, read_run
from alpaca_lib.models import EMBEDDED, ModelSource, base_name
from alpaca_lib.models.embedded import cache_folder
from alpaca_lib.optional import hide_progress_bars, require
from alpaca_lib.prompts import render_prompt
from alpaca_lib.records import Example
from alpaca_lib.tokenization import publish_prompts

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNKNOWN = "not stated by whoever made this card"
RECIPE = (  # the settings on the card, in this order
    "method epochs max_steps examples_per_step learning_rate schedule warmup max_length template "
    "lora_rank lora_alpha lora_dropout lora_targets lora_rs lora_dora quantization seed"
)
CARD = """\
---
library_name: {library}
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

{use}{prompt}## Recipe

{recipe}

## Scores

{scores}

## Limits

A model that was taught to follow instructions learnt their manner, not their facts: what it \
says may be wrong, and it says it fluently. It was not made safe: put a policy before and after \
it where others can reach it, and measure that policy.
"""
USE = """\
## Use

These are the weights of a LoRA adapter alone; it is added to its base:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "this folder, or its id on a hub")
tokenizer = AutoTokenizer.from_pretrained("this folder, or its id on a hub")
```

"""
PROMPT = """\
## Prompt

It answers to this prompt, character for character, and to others less well. The tokenizer's \
chat template makes it from one user message.

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
    *,
    adapter_only: bool = False,
    base: str = "",
) -> Path:
    """Writes model, tokenizer and card into ``folder`` and returns it.

    An adapter is merged, or written as it is with ``adapter_only``: PEFT's two files, which
    need the base. ``base``: the base's hub id, where the model's files do not say it.
    ``licence``: of the weights, an SPDX name, or a hub's ("other"). ``scores``: name -> number,
    from lesson 05. Raises ModelError if the folder is not empty, or for an adapter alone whose
    base has no known hub id; FileError if the folder cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ModelError(f"{folder}: is not empty; give a new folder")
    source = as_source(model)
    run = read_run(source)
    trained_on = str(run.get("settings", {}).get("model", ""))
    named = base_name(source.folder) if source.is_adapter else trained_on
    base_id = base or hub_id(named) or hub_id(trained_on)
    if adapter_only:
        _check_adapter(source, named, base_id)
    tokenizer = source.load_tokenizer()
    template = run.get("settings", {}).get("template")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        if adapter_only:
            publish_prompts(tokenizer, template)
            _copy_adapter(source.folder, part, base_id)
        else:
            merged, dtype = source.load_merged()
            publish_prompts(tokenizer, template, merged)
            with hide_progress_bars():
                merged.to(getattr(require("torch"), dtype)).save_pretrained(part)
        tokenizer.save_pretrained(part)
        if run:
            write_text(part / "run.json", dump_json(_without_paths(run), indent=1) + "\n")
        card = model_card(
            title=title or folder.name,
            base=base_id or _without_paths(named),
            run=run,
            licence=licence,
            data_licence=data_licence,
            scores=scores,
            tokenizer=tokenizer,
            adapter_only=adapter_only,
        )
        write_text(part / "README.md", card)
        if folder.is_dir():
            folder.rmdir()
        move(part, folder)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def hub_id(name: str) -> str:
    """Returns the hub id of a model's name, "" if it has none that is known.

    A name is a hub id, an embedded model's or a folder: of the hub's cache
    (models--owner--name/snapshots/...), or of the cache of embedded models.
    """
    path = Path(name).expanduser()
    if path.name in EMBEDDED and (name in EMBEDDED or path.parent == cache_folder()):
        return EMBEDDED[path.name].hub_id
    for part in path.parts:
        if found := re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", part):
            return "/".join(found.groups())
    is_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.startswith("runs/")
    return name if is_id and not path.exists() else ""


def _check_adapter(source: ModelSource, base: str, base_id: str) -> None:
    """Raises ModelError if an adapter cannot be published without its base."""
    if not source.is_adapter:
        raise ModelError(f"{source.name}: is no adapter; leave out --adapter")
    if not (source.folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{source.name}: has no {ADAPTER_WEIGHTS}")
    if not base_id:
        raise ModelError(
            f"{source.name}: its base is {base}, which others do not have; --base OWNER/NAME "
            "names it on a hub, or leave out --adapter to publish the merged model"
        )


def _copy_adapter(source: Path, folder: Path, base_id: str) -> None:
    """Copies PEFT's two files of an adapter; its configuration names the base by its hub id."""
    shutil.copyfile(source / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config = {**_without_paths(config), "base_model_name_or_path": base_id}
    write_text(folder / ADAPTER_CONFIG, dump_json(config, indent=2) + "\n")


def model_card(
    title: str,
    base: str,
    run: Mapping[str, Any],
    licence: str = "",
    data_licence: str = "",
    scores: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    *,
    adapter_only: bool = False,
) -> str:
    """Returns the card as Markdown with the header that hubs read. ``run``: a run.json or {}."""
    settings = run.get("settings", {})
    template = str(settings.get("template") or "")
    header = f"license: {licence}\n" if licence else ""
    if on_hub := hub_id(base):
        header += f"base_model: {on_hub}\n"
        header += "base_model_relation: adapter\n" if adapter_only else ""
    lora = settings.get("method") == "lora"
    recipe = [
        (f"`{key}`", str(settings[key]))
        for key in RECIPE.split()
        if key in settings and (lora or not key.startswith("lora_"))
    ]
    versions = ", ".join(f"{package} {v}" for package, v in run.get("versions", {}).items())
    shown = render_prompt(Example("Name three colours."), template, tokenizer) if template else ""
    return CARD.format(
        library="peft" if adapter_only else "transformers",
        header=header,
        title=title,
        base=on_hub or base or UNKNOWN,
        data=Path(str(settings.get("data_path", ""))).name or UNKNOWN,
        data_licence=data_licence or UNKNOWN,
        licence=licence or UNKNOWN,
        use=USE.format(base=on_hub) if adapter_only else "",
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
    """Returns a JSON value in which absolute paths are shortened to their last part.

    Paths of POSIX and of Windows, wherever they are published.
    """
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and "\n" not in value:
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value
