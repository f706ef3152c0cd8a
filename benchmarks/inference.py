"""python benchmarks/inference.py [--only SECTION ...]: answers, their speed and their agreement.

On this machine's CPU, a 135M LLaMA, the tasks of eval_60.json; greedy, the same tokens.

  speed      one by one with transformers' generate, in batches with ours, one stream of
             llama.cpp: tokens/s, time to the first token, memory. The lines take turns,
             each in a process of its own; medians of --runs
  forms      float32, bfloat16, int8, NF4, and GGUF kinds: size, memory, speed, bytes a token
  batches    greedy answers in batches beside one by one, in float32: equal texts
  files      GGUF files beside PyTorch: equal greedy tokens; KL of llama.cpp's probabilities,
             and of the file's weights alone (read back by transformers); an adapter's file
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
SECTIONS = ("speed", "forms", "batches", "files")
KINDS = ["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"]
MODEL, TEMPLATE, BATCH = "smollm2-135m", "chat", 16


def main() -> None:
    """Runs the sections asked for and prints their tables; with --worker, one line's work."""
    options = parser().parse_args()
    if options.worker:
        with contextlib.redirect_stdout(sys.stderr):
            found = WORKERS[options.worker](options)
        print(json.dumps(found))
        return
    import torch
    import transformers

    print(
        f"{MODEL}, {options.tasks} tasks, {options.tokens} tokens at most, {os.cpu_count()} ",
        end="",
    )
    print(f"cores, torch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"medians of {options.runs} runs")
    for section in options.only or SECTIONS:
        print(f"\n{section}", flush=True)
        TABLES[section](options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="*", choices=SECTIONS)
    made.add_argument("--tasks", type=int, default=16, help="of eval_60 for speeds (default 16)")
    made.add_argument("--tokens", type=int, default=64, help="longest answer (default 64)")
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--kinds", nargs="*", default=KINDS, help="of files (all)")
    made.add_argument("--adapter", default="", help="a LoRA folder for `files`; else a random one")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    made.add_argument("--form", default="bfloat16", help=argparse.SUPPRESS)
    return made


def tasks(count: int = 0) -> list[Any]:
    """The tasks of eval_60.json, spread over the file."""
    from alpaca_lib.records import load_examples

    every = load_examples(ROOT / "data" / "eval_60.json")
    return every[:: len(every) // count][:count] if count else every


# --- one line each, in a process of its own ---------------------------------------------


def loaded(form: str) -> tuple[Any, Any]:
    """(model, tokenizer) in a dtype or a quantisation."""
    from alpaca_lib import models

    dtype = form if form in ("float32", "bfloat16") else "bfloat16"
    quantization = form if form in ("int8", "nf4") else "none"
    return models.load(MODEL, models.place("cpu", dtype), quantization)


def generate(options: argparse.Namespace) -> dict[str, float]:
    """transformers' generate, one prompt at a time, as its documentation has it."""
    import torch

    from alpaca_lib.inference.decoding import prompt_ids

    model, tokenizer = loaded(options.form)
    prompts = [
        torch.tensor([prompt_ids(task, tokenizer, TEMPLATE)]) for task in tasks(options.tasks)
    ]

    def run(ids: Any, most: int) -> int:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return int(out.shape[1] - ids.shape[1])

    run(prompts[0], 4)
    first = [timed(lambda ids=ids: run(ids, 1))[0] for ids in prompts]
    new, seconds = 0, 0.0
    for ids in prompts:
        took, count = timed(lambda ids=ids: run(ids, options.tokens))
        new, seconds = new + count, seconds + took
    return {"tokens_per_second": new / seconds, "first": statistics.median(first), "peak": peak()}


def batched(options: argparse.Namespace) -> dict[str, float]:
    """This library's answers, BATCH prompts at a time."""
    from alpaca_lib.inference.decoding import Decoding, answer, stream

    model, tokenizer = loaded(options.form)
    chosen = tasks(options.tasks)
    answer(model, tokenizer, chosen[:2], Decoding(max_new_tokens=4), TEMPLATE)
    how = Decoding(max_new_tokens=options.tokens)
    seconds, answers = timed(
        lambda: answer(model, tokenizer, chosen, how, TEMPLATE, batch_size=BATCH)
    )
    first = []
    for task in chosen:
        began = time.perf_counter()
        pieces = stream(model, tokenizer, task, how, TEMPLATE)
        next(pieces, None)
        first.append(time.perf_counter() - began)
        pieces.close()
    # An end token was computed as well, as the peer's count has it.
    new = sum(a.tokens + a.ended for a in answers)
    return {"tokens_per_second": new / seconds, "first": statistics.median(first), "peak": peak()}


def llama(options: argparse.Namespace) -> dict[str, float]:
    """llama.cpp behind its address, one stream."""
    from alpaca_lib import models
    from alpaca_lib.export.parity import post
    from alpaca_lib.inference.decoding import prompt_ids
    from alpaca_lib.models.llama_server import serve

    tokenizer = models.ModelSource.resolve(MODEL).load_tokenizer()
    kind = options.form
    with tempfile.TemporaryDirectory() as folder:
        file = models.gguf_file(MODEL)
        if kind != "embedded":
            file = Path(folder) / "model.gguf"  # made elsewhere: its memory is not llama.cpp's
            export = [sys.executable, "-m", "alpaca_lib.inference", "export", MODEL, str(file)]
            subprocess.run([*export, "--kind", kind], check=True, capture_output=True)
        size = file.stat().st_size
        with serve(file, slots=1, context=2048, threads=os.cpu_count() or 1) as address:
            url = address.removesuffix("/v1") + "/completion"
            new, seconds, first = 0, 0.0, []
            for place, task in enumerate([tasks(options.tasks)[0], *tasks(options.tasks)]):
                body = {"prompt": prompt_ids(task, tokenizer, TEMPLATE), "temperature": 0}
                body |= {"cache_prompt": False, "return_tokens": True}
                took, _ = timed(lambda body=body: post(url, body | {"n_predict": 1}))
                whole, reply = timed(
                    lambda body=body: post(url, body | {"n_predict": options.tokens})
                )
                if place:  # the first is a warm-up
                    first.append(took)
                    new, seconds = new + reply["tokens_predicted"], seconds + whole
    return {
        "tokens_per_second": new / seconds, "first": statistics.median(first), "peak": peak(),
        "size": size,
    }  # fmt: skip


WORKERS = {"generate": generate, "batched": batched, "llama": llama}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what a call returns)."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def peak() -> int:
    """This process's peak memory in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(options: argparse.Namespace, worker: str, form: str) -> dict[str, float]:
    """One worker's result."""
    command = [sys.executable, __file__, "--worker", worker, "--form", form]
    command += ["--tasks", str(options.tasks), "--tokens", str(options.tokens)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{worker} {form}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(
    options: argparse.Namespace, lines: dict[str, tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """The medians of what each line's worker found; lines take turns, --runs times."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in lines}
    for _ in range(options.runs):
        for name, (worker, form) in lines.items():
            found[name].append(work(options, worker, form))
    return {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in found.items()
    }


# --- the tables -------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> None:
    """Ours and llama.cpp beside transformers, one by one."""
    found = measure(
        options,
        {
            "transformers, one by one": ("generate", "bfloat16"),
            f"batches of {BATCH}": ("batched", "bfloat16"),
            "llama.cpp Q4_1, one stream": ("llama", "embedded"),
        },
    )
    base = next(iter(found.values()))["tokens_per_second"]
    print(f"  {'':28}{'tokens/s':>10}{'times':>8}{'first token ms':>16}{'peak GB':>9}")
    for name, r in found.items():
        print(
            f"  {name:28}{r['tokens_per_second']:10.1f}{r['tokens_per_second'] / base:8.2f}"
            f"{r['first'] * 1e3:16.0f}{r['peak'] / 1e9:9.2f}"
        )


def forms(options: argparse.Namespace) -> None:
    """One stream of each form: what is read for a token decides."""
    lines = {f: ("generate", f) for f in ("float32", "bfloat16", "int8", "nf4")}
    lines |= {f"GGUF {k}": ("llama", k) for k in ("f16", "bf16", "q8_0", "q4_0", "q4_1")}
    found = measure(options, lines)
    print(f"  {'':12}{'MB':>8}{'tokens/s':>10}{'GB/s':>7}{'first token ms':>16}{'peak GB':>9}")
    for name, r in found.items():
        size = r.get("size")
        if not size:
            model, _ = loaded(name)
            size = model.get_memory_footprint()
            del model
        print(
            f"  {name:12}{size / 1e6:8.0f}{r['tokens_per_second']:10.1f}"
            f"{size * r['tokens_per_second'] / 1e9:7.1f}{r['first'] * 1e3:16.0f}"
            f"{r['peak'] / 1e9:9.2f}"
        )


def batches(options: argparse.Namespace) -> None:
    """All of eval_60, in float32."""
    from alpaca_lib.inference.decoding import Decoding, answer

    model, tokenizer = loaded("float32")
    how = Decoding(max_new_tokens=options.tokens)
    single = answer(model, tokenizer, tasks(), how, TEMPLATE, batch_size=1)
    together = answer(model, tokenizer, tasks(), how, TEMPLATE, batch_size=BATCH)
    same = sum(a == b for a, b in zip(single, together, strict=True))
    print(f"  equal answers: {same} of {len(single)}, {sum(a.tokens for a in single)} tokens")


def files(options: argparse.Namespace) -> None:
    """GGUF kinds and an adapter beside PyTorch in float32, on all of eval_60."""
    from alpaca_lib import models
    from alpaca_lib.export.gguf import export_adapter, export_gguf
    from alpaca_lib.export.parity import Reference, compare_file, compute_reference

    exact = models.Placement("cpu", "float32", "to compare")
    model, tokenizer = models.load(MODEL, exact)
    print(
        f"  {'':24}{'MB':>8}{'equal tokens':>14}{'of':>7}{'KL, nats':>12}{'weights alone':>15}"
        f"{'tokenized alike':>17}"
    )

    def line(name: str, of: Reference, file: Path, adapters: tuple[Path, ...] = ()) -> None:
        found = compare_file(of, tokenizer, file, adapters)
        alone = "" if adapters else f"{divergence(of, file):.2g}"
        size = (adapters or (file,))[0].stat().st_size
        alike = f"{found.tokenized_alike} of {found.texts}"
        print(
            f"  {name:24}{size / 1e6:8.0f}{found.same:14.2%}{found.tokens:7}{found.kl:12.2g}"
            f"{alone:>15}{alike:>17}",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = compute_reference(model, tokenizer, tasks(), TEMPLATE)
        for kind in dict.fromkeys(["f16", *options.kinds]):
            line(kind, plain, export_gguf(MODEL, folder / f"{kind}.gguf", kind))
        adapter = options.adapter or random_adapter(model, folder / "adapter")
        adapted = compute_reference(
            models.ModelSource.resolve(str(adapter)).load_model(exact), tokenizer, tasks(), TEMPLATE
        )
        lora = export_adapter(str(adapter), folder / "lora.gguf")
        line("f16 + adapter's file", adapted, folder / "f16.gguf", (lora,))
        line("f16, merged", adapted, export_gguf(str(adapter), folder / "m.gguf", "f16"))


def divergence(of: Any, file: Path) -> float:
    """KL of a file's weights in float32 PyTorch, where nothing else is rounded, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    found = []
    with torch.inference_mode():
        for context, mine in zip(of.contexts, of.logprobs, strict=True):
            logits = model(torch.tensor([context]), logits_to_keep=1).logits[0, -1]
            theirs = logits.double().log_softmax(-1)
            found.append(float((mine.exp() * (mine - theirs)).sum()))
    return statistics.fmean(found)


def random_adapter(model: Any, folder: Path) -> str:
    """A LoRA adapter whose B is not zero, saved."""
    import peft
    import torch

    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder)
    adapted.unload()
    return str(folder)


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "speed": speed,
    "forms": forms,
    "batches": batches,
    "files": files,
}

if __name__ == "__main__":
    main()
