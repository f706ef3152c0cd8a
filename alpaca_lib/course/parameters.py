"""Keeps the notes of the notebooks' parameters equal to the descriptions of the options.

``python -m alpaca_lib.course.parameters`` writes ``name: type = value  # description`` for the
parameters that are options; the others, and those of NOTES, have a note of their own.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from alpaca_lib import generation, inference, training
from alpaca_lib.course.notebooks import LESSONS, REPO
from alpaca_lib.errors import RunError
from alpaca_lib.files import dump_json, write_text
from alpaca_lib.options import Options, explain

OPTIONS: dict[str, tuple[type[Options], ...]] = {  # {lesson: the models whose options it sets}
    "01_self_instruct": (generation.Settings, generation.Limits),
    "03_full_finetune_fsdp": (training.Settings,),
    "04_lora_finetune": (training.Settings,),
    "05_inference_comparison": (inference.Decoding,),
}
NOTES = {  # of parameters whose meaning differs from the option's, or that need a shorter note
    ("01_self_instruct", "tasks_per_request"): "new tasks per prompt; 20 for a large teacher",
    ("01_self_instruct", "temperature"): "sampling temperature; 1.0 for a large teacher",
    ("01_self_instruct", "threshold"): "drop a task with a ROUGE-L above this",
    ("01_self_instruct", "max_usd"): "spend at most that many dollars; 0: no limit",
    ("01_self_instruct", "seed"): "seed of each prompt, and of the local teacher's sampling",
    ("03_full_finetune_fsdp", "template"): "prompt template: Stanford's, and a line break",
    ("03_full_finetune_fsdp", "activation_checkpointing"): "recompute: less memory, more time",
    ("03_full_finetune_fsdp", "learning_rate"): "highest learning rate; Stanford's for 7B: 2e-5",
    ("04_lora_finetune", "template"): "prompt template: Stanford's, and a line break",
    ("04_lora_finetune", "learning_rate"): "highest learning rate; above full training's",
    ("04_lora_finetune", "lora_rank"): "rank r of the adapter matrices; alpha is 2 r",
    ("04_lora_finetune", "activation_checkpointing"): "recompute: less memory, more time",
    ("05_inference_comparison", "repetition_penalty"): "above 1: repeated tokens less likely",
    ("05_inference_comparison", "seed"): "seed of all random draws",
}


def check_value(lesson: str, name: str, value: Any, where: str) -> None:
    """Raises RunError for an option's value out of its range or its choices.

    The text begins with ``where``.
    """
    for model in OPTIONS.get(lesson, ()):
        if name in model.model_fields:
            try:
                fields = model.model_fields.items()
                needed: dict[str, Any] = {key: "x" for key, f in fields if f.is_required()}
                alone = model.model_construct(**needed)
                model.__pydantic_validator__.validate_assignment(alone, name, value)
            except ValidationError as error:
                if error.errors()[0]["loc"]:  # not of a check across several options
                    raise RunError(f"{where}: {explain(model, error)}") from None


def update_notes(lesson: str, source: str) -> str:
    """Returns the source of a lesson's parameters cell with the notes that it should have."""
    lines = []
    for line in source.splitlines():
        code, note = line.split("  # ", 1)
        name = code.partition(":")[0]
        for model in OPTIONS.get(lesson, ()):
            if name in model.model_fields:
                note = model.model_fields[name].description or note
        lines.append(f"{code}  # {NOTES.get((lesson, name), note)}")
    return "\n".join(lines)


def main() -> None:
    """Writes the notes into the notebooks."""
    for lesson in LESSONS:
        path = REPO / "notebooks" / f"{lesson}.ipynb"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", ()):
                source = update_notes(lesson, "".join(cell["source"]))
                cell["source"] = source.splitlines(keepends=True)
        write_text(path, dump_json(notebook, indent=1) + "\n")


if __name__ == "__main__":
    main()
