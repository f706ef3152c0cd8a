"""python benchmarks/training.py [--only SECTION ...]: training beside its peers, one table.

On this machine's CPU, a 135M LLaMA, rows of Alpaca's kind; tokens are real ones, padding
is not counted. Every line is a process of its own that trains the same rows once, after a
warm-up; the lines take turns, and a median of --runs is shown.

  full, lora   alpaca_lib beside HF Trainer (bfloat16, padded, grouped by length) and TRL
  ladder       what each factor is worth: predicted from FLOPs and bytes, then measured
  fsdp         two processes with one thread each beside one process with two
  rows         tokenise, mask and pack a data set, beside Stanford's preprocessing
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
MODEL, TEMPLATE, LENGTH, STEP, RATE = "smollm2-135m", "alpaca-lora", 512, 16, 5e-5
ALPACA = 52_002
# From HF Trainer's way of working to ours: each rung adds one thing.
RUNGS = ("all logits", "label logits", "fused Adam", "memory kept", "buckets", "packed", "compiled")


def main() -> None:
    """Runs the sections asked for and prints their tables; with --worker, one line's work."""
    options = parser().parse_args()
    if options.worker:
        with contextlib.redirect_stdout(sys.stderr):
            found = WORKERS[options.worker](options)
        print(json.dumps(found))
        return
    import torch

    print(f"{MODEL}, {options.rows} rows of {options.data.name}, {options.step} a step, ", end="")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}; medians of {options.runs} runs")
    for section in options.only or SECTIONS:
        print(f"\n{section}")
        TABLES[section](options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="*", choices=SECTIONS)
    made.add_argument("--data", type=Path, default=ROOT / "data" / "alpaca_520.json")
    made.add_argument("--rows", type=int, default=64, help="rows that a run trains (default 64)")
    made.add_argument(
        "--step", type=int, default=STEP, help="rows of a step (default 16); peers keep 16"
    )
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--compile", action="store_true", help="the ladder's last rung (minutes)")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    made.add_argument("--method", default="full", help=argparse.SUPPRESS)
    made.add_argument("--batch", type=int, default=4, help=argparse.SUPPRESS)
    made.add_argument("--rung", default="packed", help=argparse.SUPPRESS)
    made.add_argument("--gather", default="step", help=argparse.SUPPRESS)
    return made


# --- one line each, in a process of its own ---------------------------------------------


def data(options: argparse.Namespace) -> tuple[Path, Path, int]:
    """(warm-up file, file of the measured rows, their tokens): rows spread over the data."""
    from alpaca_lib import models
    from alpaca_lib.records import load_examples, save_examples
    from alpaca_lib.training.examples import count_labels, encode_all

    folder = Path(tempfile.mkdtemp())
    examples = load_examples(options.data)[:512]
    coded = encode_all(
        examples, models.ModelSource.resolve(MODEL).load_tokenizer(), TEMPLATE, LENGTH
    )
    usable = [e for e, c in zip(examples, coded, strict=True) if count_labels(c)]
    chosen = usable[:: max(len(usable) // options.rows, 1)][: options.rows]
    tokens = sum(
        len(c["input_ids"])
        for c in encode_all(
            chosen, models.ModelSource.resolve(MODEL).load_tokenizer(), TEMPLATE, LENGTH
        )
    )
    warm = [e for e in usable if e not in chosen][:STEP]
    return (
        save_examples(warm, folder / "warm.json"),
        save_examples(chosen, folder / "rows.json"),
        tokens,
    )


def settings_of(options: argparse.Namespace, path: Path, folder: Path) -> Any:
    """Our run on that file."""
    from alpaca_lib.training.settings import Settings

    return Settings(
        data_path=str(path), output_dir=str(folder), model=MODEL, method=options.method,
        template=TEMPLATE, max_length=LENGTH, row_length=LENGTH, examples_per_step=options.step,
        rows_per_micro_batch=4, learning_rate=RATE, warmup=0, schedule="constant",
        lora_rank=8, lora_targets="q_proj,v_proj", lora_dropout=0.0, gather=options.gather,
        resume="never",
    )  # fmt: skip


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """One process, this library, as the rung says."""
    import resource

    from alpaca_lib.training import loop

    warm, rows, tokens = data(options)
    changes = without(options.rung)
    lines: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp())
    loop.train(settings_of(options, warm, folder / "warm").replace(**changes))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    loop.train(settings_of(options, rows, folder / "run").replace(**changes), lines.append)
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


def without(rung: str) -> dict[str, Any]:
    """Takes from this process what comes after a rung of the ladder; returns settings."""
    import torch

    from alpaca_lib.training import loop, loss

    at = RUNGS.index(rung)
    if at < RUNGS.index("label logits"):
        loss.LabelLoss.forward = all_logits  # type: ignore[method-assign]
    if at < RUNGS.index("fused Adam"):
        loop.create_optimizer = lambda trained, name, lr, decay: torch.optim.AdamW(  # type: ignore
            list(trained.masters.values()), lr=lr, weight_decay=decay, fused=False
        )
    if at < RUNGS.index("memory kept"):
        loop.keep_freed_memory = lambda: None  # type: ignore[assignment]
    return {
        "batching": {0: "pad", 1: "pad", 2: "pad", 3: "pad", 4: "bucket"}.get(at, "pack"),
        "compile": rung == "compiled",
    }


def all_logits(self: Any, input_ids: Any, labels: Any, position_ids: Any, documents: Any) -> Any:
    """A loss that makes the logits of every token at once, as transformers' own does."""
    from torch.nn import functional as F

    logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    flat = logits[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum")


def mean_loss(steps: list[dict[str, Any]]) -> float:
    """The mean over label tokens of the losses of steps."""
    labels = sum(line["label_tokens"] for line in steps)
    return float(sum(line["loss"] * line["label_tokens"] for line in steps) / labels)


def launched(options: argparse.Namespace) -> dict[str, Any]:
    """One process with two threads or two with one (FSDP2), both launched and counted alike."""
    from alpaca_lib.launch.launcher import launch

    _, rows, _ = data(options)
    settings = settings_of(options, rows, Path(tempfile.mkdtemp()))
    processes = {"one": 1, "two": 2}[options.worker]
    steps = [line for line in launch(settings, processes=processes) if "loss" in line]
    # Here the first step is the warm-up: the second run of a process is not to be had.
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in steps[1:])
    return {
        "tokens_per_second": sum(line["tokens"] for line in steps[1:]) / seconds,
        "peak": max(line["peak_memory_bytes"] for line in steps),
        "loss": mean_loss(steps),
    }


def peer_model(method: str) -> Any:
    """The model as HF Trainer's users load it: float32 to train whole, bfloat16 under LoRA."""
    import peft

    from alpaca_lib import models

    placement = models.Placement("cpu", "float32" if method == "full" else "bfloat16", "")
    model = models.ModelSource.resolve(MODEL).load_model(placement)
    model.train()
    if method == "full":
        return model
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
    )
    return peft.get_peft_model(model, config)


def coded(path: Path) -> list[dict[str, list[int]]]:
    """The rows of a file as ids and labels."""
    from alpaca_lib import models
    from alpaca_lib.records import load_examples
    from alpaca_lib.training.examples import encode_all

    return encode_all(
        load_examples(path), models.ModelSource.resolve(MODEL).load_tokenizer(), TEMPLATE, LENGTH
    )


def common(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What both peers are told."""
    return {
        "output_dir": folder, "use_cpu": True, "bf16": True, "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": STEP // options.batch,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": 0,
        "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused",
    }  # fmt: skip


def trained_by(make: Callable[[Any, Any], Any], options: argparse.Namespace) -> dict[str, Any]:
    """A peer's run: a warm-up, then the measured rows, with the same model."""
    warm, rows, tokens = data(options)
    model = peer_model(options.method)
    make(model, coded(warm)).train()
    trainer = make(model, coded(rows))
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "tokens_per_second": tokens / seconds, "seconds": seconds,
        "loss": statistics.fmean(losses), "peak": peak(),
    }  # fmt: skip


def peak() -> int:
    """This process's peak memory in bytes."""
    from alpaca_lib.training.process import peak_memory

    return peak_memory("cpu")


def trainer(options: argparse.Namespace) -> dict[str, Any]:
    """HF Trainer: bfloat16, padded, grouped by length."""
    import transformers
    from datasets import Dataset

    from alpaca_lib import models

    collator = transformers.DataCollatorForSeq2Seq(
        models.ModelSource.resolve(MODEL).load_tokenizer(), pad_to_multiple_of=8
    )

    def make(model: Any, rows: Any) -> Any:
        arguments = transformers.TrainingArguments(**common(options, tempfile.mkdtemp()))
        return transformers.Trainer(
            model, arguments, data_collator=collator, train_dataset=Dataset.from_list(rows)
        )

    return trained_by(make, options)


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer on the same ids, grouped by length, without packing (which its
    documentation ties to FlashAttention)."""
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
        arguments = SFTConfig(
            **common(options, tempfile.mkdtemp()),
            max_length=LENGTH, gradient_checkpointing=False, completion_only_loss=True,
        )  # fmt: skip
        return SFTTrainer(
            model, args=arguments, train_dataset=Dataset.from_list(masks),
            processing_class=models.ModelSource.resolve(MODEL).load_tokenizer(),
        )  # fmt: skip

    return trained_by(make, options)


WORKERS = {"ours": ours, "two": launched, "one": launched, "trainer": trainer, "trl": trl}


# --- the tables -------------------------------------------------------------------------


def measure(
    options: argparse.Namespace, lines: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, float]]:
    """The medians of what each line's worker found; lines take turns, --runs times."""
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
    """One worker's result; None, with the reason printed, if it failed."""
    command = [sys.executable, __file__, "--worker", worker, "--data", str(options.data)]
    command += ["--rows", str(options.rows), "--step", str(options.step)]
    command += [word for key, value in more.items() for word in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as folder:  # all that the worker makes goes with it
        environment = os.environ | {"TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"  {worker} {more}: {last[:150]}")
        return None
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def against_peers(options: argparse.Namespace, method: str) -> None:
    """Ours, HF Trainer at its best batch size, TRL at the same."""
    tried = {
        b: work(options, "trainer", {"method": method, "batch": b}) for b in (2, 4, 8)
    }  # its best setting
    speeds = {b: r["tokens_per_second"] for b, r in tried.items() if r}
    best = max(speeds, key=lambda b: speeds[b])
    print("  HF Trainer by rows a micro-batch: ", end="")
    print(", ".join(f"{b}: {s:.0f} tokens/s" for b, s in speeds.items()))
    found = measure(
        options,
        {
            "alpaca_lib": ("ours", {"method": method}),
            "HF Trainer": ("trainer", {"method": method, "batch": best}),
            "TRL SFTTrainer": ("trl", {"method": method, "batch": best}),
        },
    )
    mine = found["alpaca_lib"]
    print(f"  {'':16}{'tokens/s':>10}{'times Trainer':>15}{'mean loss':>11}{'peak GB':>9}")
    for name, r in found.items():
        times = r["tokens_per_second"] / found["HF Trainer"]["tokens_per_second"]
        print(
            f"  {name:16}{r['tokens_per_second']:10.0f}{times:15.2f}{r['loss']:11.3f}"
            f"{r['peak'] / 1e9:9.2f}"
        )
    print(
        f"  alpaca_lib does {mine['gemm_share']:.0%} of the bfloat16 GEMM rate measured in its run,"
        f" {mine['gemm'] / 1e9:.0f} GFLOP/s"
    )


def ladder(options: argparse.Namespace) -> None:
    """Each rung's speed, what was predicted, and what it was."""
    rungs = RUNGS if options.compile else RUNGS[:-1]
    found = measure(options, {rung: ("ours", {"rung": rung}) for rung in rungs})
    guesses = predictions(options, found)
    print(f"  {'':14}{'tokens/s':>10}{'step':>8}{'predicted':>11}{'peak GB':>9}  why")
    before = None
    for rung, r in found.items():
        speed = r["tokens_per_second"]
        step = f"{speed / before:.2f}" if before else ""
        guess, why = guesses.get(rung, (0.0, ""))
        told = f"{guess:.2f}" if guess else ""
        print(f"  {rung:14}{speed:10.0f}{step:>8}{told:>11}{r['peak'] / 1e9:9.2f}  {why}")
        before = speed


def predictions(
    options: argparse.Namespace, found: dict[str, dict[str, float]]
) -> dict[str, tuple[float, str]]:
    """By rung: (times faster than the rung before, why), from counts, not from its own time."""
    from alpaca_lib import models
    from alpaca_lib.training.examples import count_labels
    from alpaca_lib.training.packing import group_rows, step_order

    _, path, tokens = data(options)
    rows = coded(path)
    lengths = [len(row["input_ids"]) for row in rows]
    labels = sum(count_labels(row) for row in rows)
    config = (
        models.ModelSource.resolve(MODEL).empty_model(models.Placement("cpu", "float32", "")).config
    )
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

    wide, narrow = padded(False), padded(True)
    seconds = {rung: r["seconds"] for rung, r in found.items()}
    steps = -(-len(rows) // STEP)
    bandwidth, fault = copy_bandwidth(), fault_seconds()
    # Unfused, each of AdamW's operations reads and writes its tensors: 14 passes, not 7.
    adam = (14 - 7) * 4 * 134_515_008 * steps / bandwidth
    kept = found["fused Adam"]["faults"] - found["memory kept"]["faults"]

    def less(rung: str, saved: float) -> float:
        return seconds[rung] / max(seconds[rung] - saved, 1e-9)

    return {
        "label logits": (
            (wide * (body + head)) / (wide * body + labels * head),
            f"logits of {labels:,} labels, not of {wide:,} tokens",
        ),
        "fused Adam": (less("label logits", adam), f"7 passes less at {bandwidth / 1e9:.0f} GB/s"),
        "memory kept": (
            less("fused Adam", kept * fault),
            f"{kept / 1e6:.1f} M page faults less, {fault * 1e6:.1f} µs each",
        ),
        "buckets": (
            (wide * body + labels * head) / (narrow * body + labels * head),
            f"{narrow:,} tokens with padding, not {wide:,}",
        ),
        "packed": (
            (narrow * body + labels * head) / (tokens * body + labels * head),
            f"{tokens:,} tokens, no padding",
        ),
        "compiled": (0.0, "element-wise operations of a layer in one pass"),
    }


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of copying a large tensor."""
    import torch

    source = torch.zeros(64 * 2**20)
    target = torch.zeros_like(source)
    best = min(timed(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.numel() * 4 / best


def fault_seconds() -> float:
    """Seconds that the first touch of a page of 4 KB costs."""
    import mmap

    size = 2**28
    with mmap.mmap(-1, size) as memory:
        seconds = timed(lambda: [memory.__setitem__(at, 1) for at in range(0, size, 4096)])
        again = timed(lambda: [memory.__setitem__(at, 1) for at in range(0, size, 4096)])
    return (seconds - again) / (size / 4096)


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fsdp(options: argparse.Namespace) -> None:
    """Two processes beside one, with what staying gathered costs."""
    found = measure(
        options,
        {
            "1 process x 2 threads": ("one", {}),
            "2 x 1, gathered once a step": ("two", {"gather": "step"}),
            "2 x 1, gathered by layer": ("two", {"gather": "layer"}),
        },
    )
    print(f"  {'':30}{'tokens/s':>10}{'of one':>9}{'peak GB a process':>20}{'mean loss':>11}")
    single = found["1 process x 2 threads"]["tokens_per_second"]
    for name, r in found.items():
        speed = r["tokens_per_second"]
        print(
            f"  {name:30}{speed:10.0f}{speed / single:9.0%}{r['peak'] / 1e9:20.2f}{r['loss']:11.3f}"
        )


def stanford(examples: list[Any], tokenizer: Any) -> int:
    """What train.py of 2023 does to every text: one call each, as a tensor, padded to its own
    longest, twice (whole and prompt alone); then copies with the prompt masked."""
    import copy

    from alpaca_lib.prompts import render_prompt

    sources = [render_prompt(example, "alpaca") for example in examples]
    whole = [s + e.output + tokenizer.eos_token for s, e in zip(sources, examples, strict=True)]

    def ids(texts: list[str]) -> list[Any]:
        return [
            tokenizer(
                text, return_tensors="pt", padding="longest", max_length=LENGTH, truncation=True
            ).input_ids[0]
            for text in texts
        ]

    inputs, prompts = ids(whole), ids(sources)
    labels = copy.deepcopy(inputs)
    for label, prompt in zip(labels, prompts, strict=True):
        label[: len(prompt)] = -100
    return sum(len(i) for i in inputs)


def preprocessing(options: argparse.Namespace) -> None:
    """Tokenised, masked and packed, beside Stanford's, which packs nothing."""
    from alpaca_lib import models
    from alpaca_lib.records import load_examples
    from alpaca_lib.training.examples import encode_all
    from alpaca_lib.training.packing import pack

    examples = load_examples(options.data)
    while len(examples) < ALPACA:  # the shipped data are a hundredth of Alpaca
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
    print(f"  alpaca_lib   {ours_median:8.1f} s  (packing {statistics.median(packed):.1f} s of it)")
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
