"""Compares training with its peers, in one table per section.

python benchmarks/training.py [--only SECTION ...]

On this machine's CPU, with a 135M LLaMA and rows like Alpaca's; tokens do not include padding.
Every line is a separate process that trains the same rows once, after a warm-up; the lines
alternate, and medians of --runs are shown.

  full, lora   alpaca_lib, HF Trainer and TRL, each peer with the best of --peers' batches: rows
               padded and grouped by length, or packed without padding; in the dtype that this
               machine multiplies natively
  ladder       the speed-up of each factor: predicted from FLOPs and bytes, then measured;
               --rungs packed "shared prefixes" --method lora measures these two for LoRA
  fsdp         two processes with one thread each, and one process with two
  rows         tokenise, mask and pack a data set, and Stanford's preprocessing
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("full", "lora", "ladder", "fsdp", "rows")
MODEL, TEMPLATE = "smollm2-135m", "alpaca-lora"
LENGTH = 512  # tokens per row
STEP = 16  # rows per optimizer step
RATE = 5e-5
ALPACA = 52_002
# From HF Trainer's method to alpaca_lib's: each rung adds one change.
RUNGS = (
    "all logits",
    "label logits",
    "fused Adam",
    "memory kept",
    "buckets",
    "packed",
    "shared prefixes",
    "fused layers",
    "compiled",
)


def main() -> None:
    """Prints the tables of the chosen sections; with --worker, measures one line."""
    options = build_parser().parse_args()
    if options.worker:
        with contextlib.redirect_stdout(sys.stderr):
            found = WORKERS[options.worker](options)
        print(json.dumps(found))
        return
    import torch

    print(f"{MODEL}, {options.rows} rows of {options.data.name}, {options.step} per step, ", end="")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}; medians of {options.runs} runs")
    for section in options.only or SECTIONS:
        print(f"\n{section}")
        TABLES[section](options)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=SECTIONS)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "alpaca_520.json")
    parser.add_argument("--rows", type=int, default=64, help="rows per run (default 64)")
    parser.add_argument(
        "--step", type=int, default=STEP, help="rows per step (default 16); of peers always 16"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="the ladder's last rung (minutes)")
    parser.add_argument(
        "--rungs", nargs="*", choices=RUNGS, default=RUNGS[:-1], metavar="RUNG", help=f"{RUNGS}"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--method", default="full", help="of the ladder: full or lora")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["2", "4", "8", "4p", "16p"],
        help="rows per micro-batch to try for a peer; p: packed (default 2 4 8 4p 16p)",
    )
    parser.add_argument("--batch", default="4", help=argparse.SUPPRESS)
    parser.add_argument("--rung", default="fused layers", help=argparse.SUPPRESS)
    parser.add_argument("--gather", default="step", help=argparse.SUPPRESS)
    return parser


# --- workers: one line each, in a separate process ---------------------------------------------


def make_data(options: argparse.Namespace) -> tuple[Path, Path, int]:
    """Returns (warm-up file, file of the measured rows, their tokens); rows at equal distances."""
    from alpaca_lib import models
    from alpaca_lib.records import load_examples, save_examples
    from alpaca_lib.training.examples import count_labels, encode_all

    folder = Path(tempfile.mkdtemp())
    examples = load_examples(options.data)[:512]
    tokenizer = models.ModelSource.resolve(MODEL).load_tokenizer()
    rows = encode_all(examples, tokenizer, TEMPLATE, LENGTH)
    usable = [e for e, row in zip(examples, rows, strict=True) if count_labels(row)]
    chosen = usable[:: max(len(usable) // options.rows, 1)][: options.rows]
    encoded = encode_all(chosen, tokenizer, TEMPLATE, LENGTH)
    tokens = sum(len(row["input_ids"]) for row in encoded)
    warm = [e for e in usable if e not in chosen][:STEP]
    return (
        save_examples(warm, folder / "warm.json"),
        save_examples(chosen, folder / "rows.json"),
        tokens,
    )


def build_settings(options: argparse.Namespace, path: Path, folder: Path) -> Any:
    """Returns alpaca_lib's settings of a run on a file."""
    from alpaca_lib.training.settings import Settings

    return Settings(
        data_path=str(path),
        output_dir=str(folder),
        model=MODEL,
        method=options.method,
        template=TEMPLATE,
        max_length=LENGTH,
        row_length=LENGTH,
        examples_per_step=options.step,
        rows_per_micro_batch=4,
        learning_rate=RATE,
        warmup=0,
        schedule="constant",
        lora_rank=8,
        lora_targets="q_proj,v_proj",
        lora_dropout=0.0,
        gather=options.gather,
        resume="never",
    )


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Measures alpaca_lib in one process, on a rung of the ladder."""
    import resource

    from alpaca_lib.training import loop

    warm, rows, tokens = make_data(options)
    changes = remove_above(options.rung)
    lines: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp())
    loop.train(build_settings(options, warm, folder / "warm").replace(**changes))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    loop.train(build_settings(options, rows, folder / "run").replace(**changes), lines.append)
    steps = [line for line in lines if "loss" in line]
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in steps)
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "loss": mean_loss(steps),
        "gemm_share": statistics.fmean(line["gemm_share"] for line in steps),
        "gemm": json.loads((folder / "run" / "run.json").read_text())["gemm_flops_per_second"],
        "peak": max(line["peak_memory_bytes"] for line in steps),
        "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
    }


def remove_above(rung: str) -> dict[str, Any]:
    """Removes the changes above a rung from this process; returns the rung's settings."""
    import torch

    from alpaca_lib.training import fused_layers, loop, loss

    at = RUNGS.index(rung)
    if at < RUNGS.index("label logits"):
        loss.LabelLoss.forward = all_logits  # type: ignore[method-assign]
    if at < RUNGS.index("fused Adam"):

        def unfused(trained: Any, name: str, lr: float, decay: float) -> Any:
            parameters = list(trained.masters.values())
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=False)

        loop.create_optimizer = unfused
    if at < RUNGS.index("memory kept"):
        loop.keep_freed_memory = lambda block: None  # type: ignore[assignment]
    if at < RUNGS.index("fused layers"):
        fused_layers.fuse = lambda model: 0  # type: ignore[assignment]
    batching = "pack"
    if at < RUNGS.index("packed"):
        batching = "bucket" if rung == "buckets" else "pad"
    share = "auto" if at >= RUNGS.index("shared prefixes") else "off"
    return {"batching": batching, "share_prefix": share, "compile": rung == "compiled"}


def all_logits(self: Any, input_ids: Any, labels: Any, position_ids: Any, documents: Any) -> Any:
    """Returns the summed loss from the logits of every token, as transformers computes it."""
    from torch.nn import functional as F

    logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    flat = logits[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum")


def mean_loss(steps: list[dict[str, Any]]) -> float:
    """Returns the mean loss of the steps over label tokens."""
    labels = sum(line["label_tokens"] for line in steps)
    return float(sum(line["loss"] * line["label_tokens"] for line in steps) / labels)


def launched(options: argparse.Namespace) -> dict[str, Any]:
    """Measures one process with two threads, or two with one (FSDP2), launched the same way."""
    from alpaca_lib.launch.launcher import launch

    _, rows, _ = make_data(options)
    settings = build_settings(options, rows, Path(tempfile.mkdtemp()))
    processes = {"one": 1, "two": 2}[options.worker]
    steps = [line for line in launch(settings, processes=processes) if "loss" in line]
    # The first step is the warm-up: a launched process trains one run only.
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in steps[1:])
    return {
        "tokens_per_second": sum(line["tokens"] for line in steps[1:]) / seconds,
        "peak": max(line["peak_memory_bytes"] for line in steps),
        "loss": mean_loss(steps),
    }


def native_dtype() -> str:
    """Returns the dtype to compute with on this CPU: bfloat16 only where it is native."""
    from alpaca_lib import models

    return models.place("cpu").dtype


def peer_model(method: str) -> Any:
    """Returns the model as users of HF Trainer load it: float32, or for LoRA the native dtype."""
    import peft

    from alpaca_lib import models

    placement = models.Placement("cpu", "float32" if method == "full" else native_dtype(), "")
    model = models.ModelSource.resolve(MODEL).load_model(placement)
    model.train()
    if method == "full":
        return model
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    return peft.get_peft_model(model, config)


def encode_file(path: Path) -> list[dict[str, list[int]]]:
    """Returns the rows of a file as token ids and labels."""
    from alpaca_lib import models
    from alpaca_lib.records import load_examples
    from alpaca_lib.training.examples import encode_all

    tokenizer = models.ModelSource.resolve(MODEL).load_tokenizer()
    return encode_all(load_examples(path), tokenizer, TEMPLATE, LENGTH)


def peer_arguments(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Returns the TrainingArguments of both peers."""
    rows = int(options.batch.rstrip("p"))
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": native_dtype() == "bfloat16",
        "num_train_epochs": 1,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": STEP // rows,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
    }


def train_peer(make: Callable[[Any, Any], Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measures a peer: a warm-up, then the measured rows, with the same model."""
    warm, rows, tokens = make_data(options)
    model = peer_model(options.method)
    make(model, encode_file(warm)).train()
    trainer = make(model, encode_file(rows))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "loss": statistics.fmean(losses),
        "peak": peak(),
    }


def peak() -> int:
    """Returns the peak memory of this process in bytes."""
    from alpaca_lib.training.process import peak_memory

    return peak_memory("cpu")


def trainer(options: argparse.Namespace) -> dict[str, Any]:
    """Measures HF Trainer: rows padded and grouped by length, or flattened into one."""
    import transformers
    from datasets import Dataset

    from alpaca_lib import models

    padded = transformers.DataCollatorForSeq2Seq(
        models.ModelSource.resolve(MODEL).load_tokenizer(), pad_to_multiple_of=8
    )
    flat = transformers.DataCollatorWithFlattening()
    collator = flat if options.batch.endswith("p") else padded

    def make(model: Any, rows: Any) -> Any:
        arguments = transformers.TrainingArguments(**peer_arguments(options, tempfile.mkdtemp()))
        return transformers.Trainer(
            model, arguments, data_collator=collator, train_dataset=Dataset.from_list(rows)
        )

    return train_peer(make, options)


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """Measures TRL's SFTTrainer on the same token ids, padded or padding-free.

    Padding-free, for which its documentation asks for FlashAttention, keeps examples apart by
    their position_ids here.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from alpaca_lib import models

    def make(model: Any, rows: Any) -> Any:
        masks = [
            {
                "input_ids": row["input_ids"],
                "completion_mask": [int(label != -100) for label in row["labels"]],
            }
            for row in rows
        ]
        packed = options.batch.endswith("p")
        arguments = SFTConfig(
            **peer_arguments(options, tempfile.mkdtemp()),
            max_length=None if packed else LENGTH,  # the rows are within it
            gradient_checkpointing=False,
            padding_free=packed,
            completion_only_loss=True,
        )
        return SFTTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(masks),
            processing_class=models.ModelSource.resolve(MODEL).load_tokenizer(),
        )

    return train_peer(make, options)


def products(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the matrix products of alpaca_lib's micro-batches alone: what no trainer can beat.

    Per matrix one product forward, one for the gradient of its input and, in full training, one
    for its own; the head at the labels. Nothing else: no attention, norm, loss or optimizer.
    """
    import torch

    from alpaca_lib import models
    from alpaca_lib.training.examples import count_labels
    from alpaca_lib.training.micro_batches import plan_step
    from alpaca_lib.training.packing import step_order
    from alpaca_lib.training.prefixes import list_segments

    _, path, tokens = make_data(options)
    settings, rows = build_settings(options, path, Path()), encode_file(path)
    dtype = models.place("cpu").torch_dtype
    config = models.ModelSource.resolve(MODEL).config
    hidden, middle = config.hidden_size, config.intermediate_size
    narrow = hidden * config.num_key_value_heads // config.num_attention_heads
    layer = {(hidden, hidden): 2, (hidden, narrow): 2, (hidden, middle): 2, (middle, hidden): 1}

    def best_time(a: Any, b: Any) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        return min(times)

    def one(count: int, inputs: int, outputs: int) -> float:
        x, weight = torch.randn(count, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        y = torch.randn(count, outputs).to(dtype)
        seconds = best_time(x, weight.T) + best_time(y, weight)
        return seconds + (best_time(y.T, x) if options.method == "full" else 0.0)

    seconds = 0.0
    for step in range(-(-len(rows) // options.step)):
        chosen = [rows[i] for i in step_order(len(rows), options.step, 0, step)]
        plan = plan_step(settings, chosen, 1, True, share=True)
        for (group,) in plan.groups:
            count = sum(s.tokens for s in list_segments(plan.lengths, group, plan.prefixes))
            labels = sum(count_labels(chosen[i]) for i in group)
            each = sum(n * one(count, *shape) for shape, n in layer.items())
            seconds += config.num_hidden_layers * each + one(labels, hidden, config.vocab_size)
    return {"tokens_per_second": tokens / seconds}


WORKERS = {
    "products": products,
    "ours": ours,
    "two": launched,
    "one": launched,
    "trainer": trainer,
    "trl": trl,
}


# --- the tables -------------------------------------------------------------------------


def measure(
    options: argparse.Namespace, lines: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, float]]:
    """Returns the medians of each line's results; the lines alternate, --runs times."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in lines}
    for _ in range(options.runs):
        for name, (worker, more) in lines.items():
            if result := work(options, worker, more):
                found[name].append(result)
    return {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in found.items()
        if results
    }


def work(options: argparse.Namespace, worker: str, more: dict[str, Any]) -> dict[str, float] | None:
    """Runs a worker and returns its result; prints the error and returns None if it fails."""
    from alpaca_lib.command_line import ENVIRONMENT

    command = [sys.executable, __file__, "--worker", worker, "--data", str(options.data)]
    command += ["--rows", str(options.rows), "--step", str(options.step)]
    command += [word for key, value in more.items() for word in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as folder:  # deletes the worker's files
        # The peers have what `alpaca train` sets for itself, too.
        environment = ENVIRONMENT | os.environ | {"TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"  {worker} {more}: {last[:150]}")
        return None
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def against_peers(options: argparse.Namespace, method: str) -> None:
    """Prints alpaca_lib, and HF Trainer and TRL each with its fastest batch."""
    lines = {"alpaca_lib": ("ours", {"method": method})}
    lines["its products alone"] = ("products", {"method": method})
    for name, worker in (("HF Trainer", "trainer"), ("TRL SFTTrainer", "trl")):
        tried = {b: work(options, worker, {"method": method, "batch": b}) for b in options.peers}
        speeds = {b: r["tokens_per_second"] for b, r in tried.items() if r}
        if not speeds:
            continue
        print(f"  {name} by rows per micro-batch (p: packed), tokens/s: ", end="")
        print(", ".join(f"{b}: {s:.0f}" for b, s in speeds.items()))
        best = max(speeds, key=lambda b: speeds[b])
        lines[f"{name} ({best})"] = (worker, {"method": method, "batch": best})
    found = measure(options, lines)
    mine = found["alpaca_lib"]["tokens_per_second"]
    print(f"  {'':22}{'tokens/s':>10}{'ours/theirs':>13}{'mean loss':>11}{'peak GB':>9}")
    for name, r in found.items():
        speed = r["tokens_per_second"]
        rest = f"{r['loss']:11.3f}{r['peak'] / 1e9:9.2f}" if "loss" in r else ""
        print(f"  {name:22}{speed:10.0f}{mine / speed:13.2f}{rest}")
    share, rate = found["alpaca_lib"]["gemm_share"], found["alpaca_lib"]["gemm"]
    print(
        f"  alpaca_lib reaches {share:.0%} of the {native_dtype()} GEMM rate of its run, "
        f"{rate / 1e9:.0f} GFLOP/s"
    )


def ladder(options: argparse.Namespace) -> None:
    """Prints each rung's speed, its gain, and the predicted gain."""
    rungs = [*options.rungs, *RUNGS[-1:]] if options.compile else options.rungs
    method = options.method
    found = measure(options, {rung: ("ours", {"rung": rung, "method": method}) for rung in rungs})
    predicted = predict_gains(options, found)
    print(f"  {'':14}{'tokens/s':>10}{'step':>8}{'predicted':>11}{'peak GB':>9}  why")
    before = None
    for rung, r in found.items():
        speed = r["tokens_per_second"]
        step = f"{speed / before:.2f}" if before else ""
        gain, why = predicted.get(rung, (0.0, ""))
        text = f"{gain:.2f}" if gain else ""
        print(f"  {rung:14}{speed:10.0f}{step:>8}{text:>11}{r['peak'] / 1e9:9.2f}  {why}")
        before = speed


def predict_gains(
    options: argparse.Namespace, found: dict[str, dict[str, float]]
) -> dict[str, tuple[float, str]]:
    """Returns {rung: (predicted speed-up over the rung before, why)}, from counts alone."""
    from alpaca_lib import models
    from alpaca_lib.training.examples import count_labels
    from alpaca_lib.training.micro_batches import group_rows, plan_step
    from alpaca_lib.training.packing import step_order

    _, path, tokens = make_data(options)
    settings = build_settings(options, path, Path())
    rows = encode_file(path)
    lengths = [len(row["input_ids"]) for row in rows]
    labels = sum(count_labels(row) for row in rows)
    config = models.ModelSource.resolve(MODEL).config
    head = config.vocab_size * config.hidden_size
    body = 134_515_008 - head

    def padded(by_length: bool) -> int:
        total = 0
        for step in range(-(-len(rows) // STEP)):
            chosen = [lengths[i] for i in step_order(len(rows), STEP, 0, step)]
            for micro in group_rows(chosen, 4, 1, by_length):
                longest = max(chosen[i] for i in micro[0])
                total += len(micro[0]) * -(-longest // 8) * 8
        return total

    def computed() -> int:
        total = 0
        for step in range(-(-len(rows) // options.step)):
            chosen = [rows[i] for i in step_order(len(rows), options.step, 0, step)]
            total += plan_step(settings, chosen, 1, True, share=True).computed_tokens
        return total

    wide, narrow, shared = padded(False), padded(True), computed()
    seconds = {rung: r["seconds"] for rung, r in found.items()}
    steps = -(-len(rows) // STEP)
    bandwidth, fault = copy_bandwidth(), fault_seconds()
    # Unfused, each of AdamW's operations reads and writes its tensors: 14 passes, not 7.
    adam = (14 - 7) * 4 * 134_515_008 * steps / bandwidth

    def less(rung: str, saved: float) -> float:
        return seconds[rung] / max(seconds[rung] - saved, 1e-9)

    by_time = {}
    if "label logits" in found:
        gain = less("label logits", adam)
        by_time["fused Adam"] = gain, f"7 passes fewer at {bandwidth / 1e9:.0f} GB/s"
    if "fused Adam" in found and "memory kept" in found:
        kept = found["fused Adam"]["faults"] - found["memory kept"]["faults"]
        by_time["memory kept"] = (
            less("fused Adam", kept * fault),
            f"{kept / 1e6:.1f} M page faults fewer, {fault * 1e6:.1f} µs each",
        )
    return by_time | {
        "label logits": (
            (wide * (body + head)) / (wide * body + labels * head),
            f"logits of {labels:,} labels, not of {wide:,} tokens",
        ),
        "buckets": (
            (wide * body + labels * head) / (narrow * body + labels * head),
            f"{narrow:,} tokens with padding, not {wide:,}",
        ),
        "packed": (
            (narrow * body + labels * head) / (tokens * body + labels * head),
            f"{tokens:,} tokens, no padding",
        ),
        "shared prefixes": (
            (tokens * body + labels * head) / (shared * body + labels * head),
            f"{shared:,} tokens computed",
        ),
        "fused layers": (0.0, "kept per MLP: two matrices of its width, not three"),
        "compiled": (0.0, "element-wise operations of a layer in one pass"),
    }


def copy_bandwidth() -> float:
    """Returns bytes per second, read and written, of copying a large tensor."""
    import torch

    source = torch.zeros(64 * 2**20)
    target = torch.zeros_like(source)
    best = min(timed(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.numel() * 4 / best


def fault_seconds() -> float:
    """Returns the seconds of the first access to a page of 4 KB."""
    import mmap

    size = 2**28
    with mmap.mmap(-1, size) as memory:
        seconds = timed(lambda: [memory.__setitem__(at, 1) for at in range(0, size, 4096)])
        again = timed(lambda: [memory.__setitem__(at, 1) for at in range(0, size, 4096)])
    return (seconds - again) / (size / 4096)


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fsdp(options: argparse.Namespace) -> None:
    """Prints the speed and memory of two processes and of one, for both ways to gather."""
    found = measure(
        options,
        {
            "1 process x 2 threads": ("one", {}),
            "2 x 1, gathered once per step": ("two", {"gather": "step"}),
            "2 x 1, gathered by layer": ("two", {"gather": "layer"}),
        },
    )
    print(f"  {'':30}{'tokens/s':>10}{'of one':>9}{'peak GB per process':>20}{'mean loss':>11}")
    single = found["1 process x 2 threads"]["tokens_per_second"]
    for name, r in found.items():
        speed = r["tokens_per_second"]
        print(
            f"  {name:30}{speed:10.0f}{speed / single:9.0%}{r['peak'] / 1e9:20.2f}{r['loss']:11.3f}"
        )


def stanford(examples: list[Any], tokenizer: Any) -> int:
    """Prepares texts as train.py of 2023 does and returns the number of tokens.

    Each text is tokenised by its own call, as a tensor, twice: complete, and the prompt alone.
    The labels are copies with the prompt masked.
    """
    import copy

    from alpaca_lib.prompts import render_prompt

    sources = [render_prompt(example, "alpaca") for example in examples]
    texts = [s + e.output + tokenizer.eos_token for s, e in zip(sources, examples, strict=True)]

    def ids(texts: list[str]) -> list[Any]:
        return [
            tokenizer(
                text, return_tensors="pt", padding="longest", max_length=LENGTH, truncation=True
            ).input_ids[0]
            for text in texts
        ]

    inputs, prompts = ids(texts), ids(sources)
    labels = copy.deepcopy(inputs)
    for label, prompt in zip(labels, prompts, strict=True):
        label[: len(prompt)] = -100
    return sum(len(i) for i in inputs)


def preprocessing(options: argparse.Namespace) -> None:
    """Prints the time of tokenising, masking and packing, and of Stanford's preprocessing."""
    from alpaca_lib import models
    from alpaca_lib.records import load_examples
    from alpaca_lib.training.examples import encode_all
    from alpaca_lib.training.packing import pack

    examples = load_examples(options.data)
    while len(examples) < ALPACA:  # the shipped data have a hundredth of Alpaca's rows
        examples = (examples * 2)[:ALPACA] if len(examples) * 2 > ALPACA else examples * 2
    tokenizer = models.ModelSource.resolve(MODEL).load_tokenizer()
    mine, theirs, packed = [], [], []
    for _ in range(options.runs):
        start = time.perf_counter()
        rows = encode_all(examples, tokenizer, "alpaca", LENGTH)
        middle = time.perf_counter()
        bins = pack(rows, LENGTH)
        end = time.perf_counter()
        mine.append(end - start)
        packed.append(end - middle)
        part = examples[:: max(len(examples) // 5200, 1)]
        scale = len(examples) / len(part)
        theirs.append(timed(lambda: stanford(part, tokenizer)) * scale)  # noqa: B023
    tokens = sum(len(row["input_ids"]) for row in rows)
    ours_median, peer = statistics.median(mine), statistics.median(theirs)
    print(f"  {len(examples):,} rows, {tokens:,} tokens -> {len(bins):,} rows of {LENGTH}, ")
    print(f"  {tokens / (len(bins) * LENGTH):.1%} full")
    print(f"  alpaca_lib   {ours_median:8.1f} s  (packing alone {statistics.median(packed):.1f} s)")
    print(f"  Stanford's   {peer:8.1f} s  (a tenth of the rows, times ten; it packs nothing)")
    print(f"  {peer / ours_median:.1f} times as fast")


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "full": lambda options: against_peers(options, "full"),
    "lora": lambda options: against_peers(options, "lora"),
    "ladder": ladder,
    "fsdp": fsdp,
    "rows": preprocessing,
}

if __name__ == "__main__":
    main()
