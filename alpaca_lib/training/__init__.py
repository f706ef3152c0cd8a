"""Trains a causal language model on instructions: full or LoRA, one process or many.

    folder = train(Settings(data_path="my.json", output_dir="runs/my", method="lora"))
    losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]

``train`` returns a folder that ``AutoModelForCausalLM.from_pretrained`` (or ``PeftModel``) loads,
with metrics.jsonl, run.json and checkpoint-N/. Its parts, one by one:

    data = load_data(settings, tokenizer)                  # or encode(example, tokenizer)
    order = step_order(len(data.rows), 16, seed=0, step=0)  # the examples of the first step
    batch = collate(pack([data.rows[i] for i in order], 512), tokenizer.pad_token_id)
    loss = LabelLoss(model)(**batch)                       # summed over the label tokens
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.training.adapters import add_lora, merge, trainable
    from alpaca_lib.training.examples import encode, encode_all, load_data
    from alpaca_lib.training.loop import train
    from alpaca_lib.training.loss import LabelLoss
    from alpaca_lib.training.metrics import format_metrics, read_metrics
    from alpaca_lib.training.micro_batches import balance_micro_batches, group_rows, plan_step
    from alpaca_lib.training.packing import (
        IGNORE,
        collate,
        count_labels,
        count_steps,
        join,
        pack,
        share_prefixes,
        step_order,
    )
    from alpaca_lib.training.process import free_memory, peak_memory, release_memory
    from alpaca_lib.training.settings import Settings
    from alpaca_lib.training.sharding import layers_of

__getattr__, __dir__, __all__ = attach(__name__, __file__)
