"""The loop against transformers' Trainer: the same batches, the same losses and weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from alpaca_lib.records import load_examples
from alpaca_lib.training.examples import encode
from alpaca_lib.training.loop import train
from alpaca_lib.training.packing import IGNORE, step_order
from alpaca_lib.training.settings import Settings

STEPS, PER_STEP, PER_BATCH = 20, 4, 2
LORA = {"method": "lora", "lora_rank": 8, "lora_targets": "all-linear", "lora_dropout": 0.0}


class InOrder(Trainer):
    """The Trainer with the rows in the order given, and the loss of each step as a float."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.parts = [*getattr(self, "parts", []), float(loss)]
        return loss


def padded(rows):
    """A batch as everyone pads it: to the longest, on the right, with an attention mask."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        size = len(row["input_ids"])
        rest = longest - size
        batch["input_ids"].append(row["input_ids"] + [0] * rest)
        batch["labels"].append(row["labels"] + [IGNORE] * rest)
        batch["attention_mask"].append([1] * size + [0] * rest)
    return {name: torch.tensor(values) for name, values in batch.items()}


def trainers_run(settings, model, rows, folder):
    """The losses of the Trainer's steps on this run's examples, step for step."""
    order = [i for s in range(STEPS) for i in step_order(len(rows), PER_STEP, settings.seed, s)]
    assert len(order) == STEPS * PER_STEP
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, use_cpu=True, save_strategy="no",
        per_device_train_batch_size=PER_BATCH, gradient_accumulation_steps=PER_STEP // PER_BATCH,
        learning_rate=settings.learning_rate, weight_decay=0.0, max_grad_norm=1.0,
        lr_scheduler_type=settings.schedule, warmup_steps=math.ceil(settings.warmup * STEPS),
        report_to=[], disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    trainer = InOrder(
        model=model, args=arguments, data_collator=padded, train_dataset=[rows[i] for i in order]
    )
    trainer.train()
    per = PER_STEP // PER_BATCH
    return [sum(trainer.parts[at : at + per]) for at in range(0, len(trainer.parts), per)]


def distance(ours, theirs):
    """The largest over tensors of |ours - theirs| / |theirs|, as Euclidean norms."""
    assert ours and set(ours) == set(theirs)
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method, batching", [("full", "pack"), ("full", "pad"), ("lora", "pack")])
def test_twenty_steps_are_the_trainers(method, batching, small_folder, data_file, tmp_path):
    """fp32 on the CPU: the first loss to 1e-6, all losses and the final weights to 1e-4, and
    so the way that the weights went from where they began."""
    settings = Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "ours"), model=str(small_folder),
        max_steps=STEPS, examples_per_step=PER_STEP, rows_per_micro_batch=1, batching=batching,
        max_length=96, row_length=192, learning_rate=1e-2, warmup=0.1, max_grad_norm=1.0,
        device="cpu", dtype="float32", **(LORA if method == "lora" else {}),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    rows = [encode(e, tokenizer, max_length=96) for e in load_examples(data_file)]
    torch.manual_seed(settings.seed)  # of the adapters' first values
    model = AutoModelForCausalLM.from_pretrained(small_folder, dtype=torch.float32)
    if method == "lora":
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"
        )
        model = peft.get_peft_model(model, config)
    begun = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = trainers_run(settings, model, rows, tmp_path / "theirs")
    theirs = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    folder = train(settings)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0]["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    (file,) = Path(folder).glob("*.safetensors")
    ours = {
        (n.replace(".weight", ".default.weight") if method == "lora" else n): t
        for n, t in load_file(file).items()
    }
    assert distance(ours, theirs) < 1e-4
    moved = {n: theirs[n] - begun[n] for n in theirs}
    assert distance({n: ours[n] - begun[n] for n in ours}, moved) < 1e-4
    assert losses[-1] < losses[0] - 0.5
