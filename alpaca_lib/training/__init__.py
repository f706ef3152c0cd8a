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
    from alpaca_lib.training.adapters import add_lora as add_lora
    from alpaca_lib.training.adapters import merge as merge
    from alpaca_lib.training.adapters import trainable as trainable
    from alpaca_lib.training.examples import encode as encode
    from alpaca_lib.training.examples import encode_all as encode_all
    from alpaca_lib.training.examples import load_data as load_data
    from alpaca_lib.training.loop import train as train
    from alpaca_lib.training.loss import LabelLoss as LabelLoss
    from alpaca_lib.training.metrics import format_metrics as format_metrics
    from alpaca_lib.training.metrics import read_metrics as read_metrics
    from alpaca_lib.training.packing import IGNORE as IGNORE
    from alpaca_lib.training.packing import balance_micro_batches as balance_micro_batches
    from alpaca_lib.training.packing import collate as collate
    from alpaca_lib.training.packing import count_labels as count_labels
    from alpaca_lib.training.packing import count_steps as count_steps
    from alpaca_lib.training.packing import group_rows as group_rows
    from alpaca_lib.training.packing import join as join
    from alpaca_lib.training.packing import pack as pack
    from alpaca_lib.training.packing import step_order as step_order
    from alpaca_lib.training.process import free_memory as free_memory
    from alpaca_lib.training.process import peak_memory as peak_memory
    from alpaca_lib.training.settings import Settings as Settings
    from alpaca_lib.training.sharding import layers_of as layers_of

__getattr__, __dir__, __all__ = attach(__name__, __file__)
