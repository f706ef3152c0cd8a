"""Measures the speed of answers and the parity of exported files.

python benchmarks/inference.py [--only SECTION ...]

On this machine's CPU, with a 135M LLaMA and the tasks of eval_60.json, greedy.

  speed      transformers' generate one by one and in padded batches, its continuous batching,
             alpaca_lib, llama.cpp with one stream and with 8 slots, in the machine's dtype:
             tokens/s, memory, answers that equal those of generate one by one, and the
             largest difference of two logits where an answer departs. The lines alternate,
             each in a separate process; medians of --runs
  first      time to the first token: generate, alpaca_lib's stream, llama.cpp
  forms      float32, bfloat16, int8, NF4 and GGUF kinds: size, memory, speed, bytes per second
  batches    greedy answers in batches and one by one, in float32: equal texts
  files      GGUF files and PyTorch: equal greedy tokens; KL of llama.cpp's probabilities, and
             of the file's weights alone (read back by transformers); an adapter's file
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("speed", "first", "forms", "batches", "files")
KINDS = ["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"]
MODEL, TEMPLATE = "smollm2-135m", "chat"
PADDED = (8, 16, 32, 64)  # batch sizes of transformers' generate; the fastest one is shown
SLOTS = 8  # of llama.cpp


def main() -> None:
    """Prints the tables of the chosen sections; with --worker, measures one line."""
    options = build_parser().parse_args()
    if options.worker:
        with contextlib.redirect_stdout(sys.stderr):
            found = WORKERS[options.worker](options)
        print(json.dumps(found))
        return
    import torch
    import transformers

    print(
        f"{MODEL}, at most {options.tokens} tokens per answer, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; "
        f"medians of {options.runs} runs"
    )
    for section in options.only or SECTIONS:
        print(f"\n{section}", flush=True)
        TABLES[section](options)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=SECTIONS)
    parser.add_argument(
        "--tasks", type=int, default=0, help="tasks of eval_60 (default: 16; speed: all)"
    )
    parser.add_argument("--dtype", default="auto", help="of PyTorch in `speed` (default: auto)")
    parser.add_argument(
        "--tokens", type=int, default=64, help="tokens per answer, at most (default 64)"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=KINDS, help="kinds of files (all)")
    parser.add_argument(
        "--adapter", default="", help="a LoRA folder for `files` (a random adapter)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--form", default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    return parser


def tasks(count: int = 0) -> list[Any]:
    """Returns tasks of eval_60.json at equal distances, or all."""
    from alpaca_lib.records import load_examples

    every = load_examples(ROOT / "data" / "eval_60.json")
    return every[:: len(every) // count][:count] if count else every


# --- workers: one line each, in a separate process ---------------------------------------------


def load_form(form: str) -> tuple[Any, Any]:
    """Returns (model, tokenizer) in a dtype or a quantisation."""
    from alpaca_lib import models

    dtype = form if form in ("float32", "bfloat16") else "bfloat16"
    quantization = form if form in ("int8", "nf4") else "none"
    return models.load(MODEL, models.place("cpu", dtype), quantization)


def prompts_of(options: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """Returns the prompts' token ids."""
    from alpaca_lib.tokenization import PromptEncoder

    return PromptEncoder(tokenizer, TEMPLATE).prompts(tasks(options.tasks))


def result(seconds: float, rows: list[list[int]], ends: set[int]) -> dict[str, Any]:
    """Returns what a line of `speed` shows, of answers that hold their end tokens."""
    return {
        "tokens_per_second": sum(map(len, rows)) / seconds,
        "peak": peak(),
        "answers": [[token for token in row if token not in ends] for row in rows],
    }


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """Measures transformers' generate on padded batches of similar lengths."""
    import torch

    model, tokenizer = load_form(options.form)
    prompts, pad, end = prompts_of(options, tokenizer), tokenizer.pad_token_id, {end_of(tokenizer)}

    def run(batch: list[list[int]], most: int) -> list[list[int]]:
        longest = max(map(len, batch))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        new = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=most, pad_token_id=pad
        )[:, longest:]
        rows = []
        for row in new.tolist():
            stop = next((place for place, token in enumerate(row) if token in end), len(row))
            rows.append(row[: stop + 1])
        return rows

    run(prompts[:1], 4)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, list[int]] = {}
    began = time.perf_counter()
    for start in range(0, len(order), options.batch):
        batch = order[start : start + options.batch]
        found |= zip(batch, run([prompts[i] for i in batch], options.tokens), strict=True)
    seconds = time.perf_counter() - began
    return result(seconds, [found[i] for i in range(len(prompts))], end)


def paged(options: argparse.Namespace) -> dict[str, Any]:
    """Measures transformers' own continuous batching."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model, tokenizer = load_form(options.form)
    prompts, end = prompts_of(options, tokenizer), end_of(tokenizer)

    def run(some: list[list[int]], most: int) -> list[list[int]]:
        how = GenerationConfig(
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
        # 32 rows at a time, as alpaca_lib; pages for 512 tokens each.
        config = ContinuousBatchingConfig(
            num_blocks=64, max_batch_tokens=2048, max_requests_per_batch=32
        )
        done = model.generate_batch(
            some, generation_config=how, continuous_batching_config=config, progress_bar=False
        )
        return [one.generated_tokens for one in done.values()]

    run(prompts[:1], 4)
    seconds, rows = timed(lambda: run(prompts, options.tokens))
    return result(seconds, rows, {end})


def batched(options: argparse.Namespace) -> dict[str, Any]:
    """Measures alpaca_lib's answers."""
    from alpaca_lib.inference.decoding import Decoding, generate_tokens

    model, tokenizer = load_form(options.form)
    prompts, end = prompts_of(options, tokenizer), end_of(tokenizer)

    def run(some: list[list[int]], most: int) -> list[list[int]]:
        how = Decoding(max_new_tokens=most)
        rows = generate_tokens(model, tokenizer, some, how, {end})
        return [[*tokens, end] if ended else tokens for tokens, ended in rows]

    run(prompts[:1], 4)
    seconds, rows = timed(lambda: run(prompts, options.tokens))
    return result(seconds, rows, {end})


def end_of(tokenizer: Any) -> int:
    """Returns the id of the token that ends an answer."""
    return int(tokenizer.eos_token_id)


@contextlib.contextmanager
def llama_server(kind: str, slots: int) -> Any:
    """Yields (the address of a llama.cpp server's completions, bytes of its file)."""
    from alpaca_lib import models
    from alpaca_lib.models.llama_server import serve

    with tempfile.TemporaryDirectory() as folder:
        file = models.gguf_file(MODEL)
        if kind != "embedded":
            # Exported by another process, whose memory does not count.
            file = Path(folder) / "model.gguf"
            export = [sys.executable, "-m", "alpaca_lib.inference", "export", MODEL, str(file)]
            subprocess.run([*export, "--kind", kind], check=True, capture_output=True)
        with serve(file, slots=slots, context=2048, threads=os.cpu_count() or 1) as address:
            yield address.removesuffix("/v1") + "/completion", file.stat().st_size


def llama(options: argparse.Namespace) -> dict[str, Any]:
    """Measures llama.cpp through its server, with --batch concurrent requests."""
    from alpaca_lib import models
    from alpaca_lib.export.parity import post

    tokenizer = models.ModelSource.resolve(MODEL).load_tokenizer()
    prompts, end = prompts_of(options, tokenizer), end_of(tokenizer)
    with llama_server(options.form, options.batch) as (url, size):

        def run(prompt: list[int]) -> list[int]:
            body = {"prompt": prompt, "temperature": 0, "n_predict": options.tokens}
            reply = post(url, body | {"cache_prompt": options.batch > 1, "return_tokens": True})
            tokens: list[int] = reply["tokens"]
            stopped = reply["tokens_predicted"] > len(tokens)
            return [*tokens, end] if stopped else tokens

        run(prompts[0])
        with ThreadPoolExecutor(options.batch) as pool:
            seconds, rows = timed(lambda: list(pool.map(run, prompts)))
    return result(seconds, rows, {end}) | {"size": size}


def first_token(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the time to the first token of generate, of a stream, or of llama.cpp."""
    import torch

    from alpaca_lib import models
    from alpaca_lib.export.parity import post
    from alpaca_lib.inference.decoding import Decoding, stream

    chosen = tasks(options.tasks)
    with contextlib.ExitStack() as stack:
        if options.form == "llama":
            tokenizer = models.ModelSource.resolve(MODEL).load_tokenizer()
            url, _ = stack.enter_context(llama_server("embedded", 1))
            body = {"temperature": 0, "cache_prompt": False, "n_predict": 1}
            rows = [body | {"prompt": ids} for ids in prompts_of(options, tokenizer)]
            calls = [lambda row=row: post(url, row) for row in rows]
        else:
            model, tokenizer = load_form(options.form.split()[1])
            calls = []
            for task, ids in zip(chosen, prompts_of(options, tokenizer), strict=True):
                row = torch.tensor([ids])
                asked = {"attention_mask": torch.ones_like(row), "do_sample": False}
                asked |= {"max_new_tokens": 1, "pad_token_id": tokenizer.pad_token_id}
                if options.form.startswith("generate"):
                    calls.append(lambda row=row, asked=asked: model.generate(row, **asked))
                else:
                    one = Decoding(max_new_tokens=1)
                    calls.append(
                        lambda task=task, one=one: list(
                            stream(model, tokenizer, task, one, TEMPLATE)
                        )
                    )
        calls[0]()
        return {"first": statistics.median(timed(call)[0] for call in calls), "peak": peak()}


WORKERS = {
    "generate": generate,
    "paged": paged,
    "batched": batched,
    "llama": llama,
    "first_token": first_token,
}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns (seconds of a call, its result)."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def peak() -> int:
    """Returns the peak memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(options: argparse.Namespace, worker: str, form: str, batch: int) -> dict[str, Any]:
    """Runs a worker in a new process and returns its result."""
    command = [sys.executable, __file__, "--worker", worker, "--form", form]
    command += ["--tasks", str(options.tasks), "--tokens", str(options.tokens)]
    command += ["--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{worker} {form}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(
    options: argparse.Namespace, lines: dict[str, tuple[str, str, int]]
) -> dict[str, dict[str, Any]]:
    """Returns the medians of each line's results; the lines alternate, --runs times.

    Answers are those of the last run.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in lines}
    for _ in range(options.runs):
        for name, line in lines.items():
            found[name].append(work(options, *line))
    return {
        name: {
            key: value if key == "answers" else statistics.median(r[key] for r in results)
            for key, value in results[-1].items()
        }
        for name, results in found.items()
    }


# --- the tables -------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> None:
    """Prints the speeds of transformers, alpaca_lib and llama.cpp, and how equal they answer."""
    from alpaca_lib import models

    dtype = models.place("cpu", options.dtype).dtype
    lines = {"transformers, one by one": ("generate", dtype, 1)}
    lines |= {f"transformers, padded, {size}": ("generate", dtype, size) for size in PADDED}
    lines |= {
        "transformers, continuous": ("paged", dtype, 0),
        "alpaca_lib": ("batched", dtype, 0),
        "llama.cpp F16, one stream": ("llama", "f16", 1),
        f"llama.cpp F16, {SLOTS} slots": ("llama", "f16", SLOTS),
        "llama.cpp Q4_1, one stream": ("llama", "embedded", 1),
        f"llama.cpp Q4_1, {SLOTS} slots": ("llama", "embedded", SLOTS),
    }
    found = measure(options, lines)
    padded = [name for name in found if "padded" in name]
    best = max(padded, key=lambda name: found[name]["tokens_per_second"])
    found = {name: r for name, r in found.items() if name == best or name not in padded}
    base = next(iter(found.values()))
    rate, reference = base["tokens_per_second"], base["answers"]
    model, tokenizer = load_form(dtype)
    prompts = prompts_of(options, tokenizer)
    print(f"  {len(prompts)} tasks, {sum(map(len, reference))} tokens, PyTorch in {dtype}")
    print(
        f"  {'':28}{'tokens/s':>10}{'times':>8}{'padded':>8}{'peak GB':>9}{'same answers':>14}"
        f"{'logits apart':>14}"
    )
    for name, r in found.items():
        gaps = [
            logit_gap(model, prompt, mine, other, end_of(tokenizer))
            for prompt, mine, other in zip(prompts, reference, r["answers"], strict=True)
            if mine != other
        ]
        same = f"{len(prompts) - len(gaps)} of {len(prompts)}"
        print(
            f"  {name:28}{r['tokens_per_second']:10.1f}{r['tokens_per_second'] / rate:8.2f}"
            f"{r['tokens_per_second'] / found[best]['tokens_per_second']:8.2f}"
            f"{r['peak'] / 1e9:9.2f}{same:>14}{max(gaps, default=0.0):14.2g}"
        )


def logit_gap(model: Any, prompt: list[int], mine: list[int], other: list[int], end: int) -> float:
    """Returns how far apart the model's logits of two answers' first different tokens are.

    Where it is not above the dtype's rounding, the two tokens are tied.
    """
    import torch

    mine, other = [*mine, end], [*other, end]
    place = next(
        (i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b),
        min(len(mine), len(other)) - 1,
    )
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + mine[:place]]), logits_to_keep=1).logits[0, -1]
    return float((logits[mine[place]] - logits[other[place]]).abs())


def first(options: argparse.Namespace) -> None:
    """Prints the time to the first token."""
    from alpaca_lib import models

    options = argparse.Namespace(**{**vars(options), "tasks": options.tasks or 16})
    dtype = models.place("cpu", options.dtype).dtype
    found = measure(
        options,
        {
            "transformers": ("first_token", f"generate {dtype}", 1),
            "alpaca_lib's stream": ("first_token", f"stream {dtype}", 1),
            "llama.cpp Q4_1": ("first_token", "llama", 1),
        },
    )
    print(f"  {'':28}{'first token ms':>16}")
    for name, r in found.items():
        print(f"  {name:28}{r['first'] * 1e3:16.0f}")


def forms(options: argparse.Namespace) -> None:
    """Prints the speed of one stream of each form, whose bytes are read for every token."""
    options = argparse.Namespace(**{**vars(options), "tasks": options.tasks or 16})
    lines = {f: ("generate", f, 1) for f in ("float32", "bfloat16", "int8", "nf4")}
    lines |= {f"GGUF {k}": ("llama", k, 1) for k in ("f16", "bf16", "q8_0", "q4_0", "q4_1")}
    found = measure(options, lines)
    print(f"  {'':12}{'MB':>8}{'tokens/s':>10}{'GB/s':>7}{'peak GB':>9}")
    for name, r in found.items():
        size = r.get("size")
        if not size:
            model, _ = load_form(name)
            size = model.get_memory_footprint()
            del model
        print(
            f"  {name:12}{size / 1e6:8.0f}{r['tokens_per_second']:10.1f}"
            f"{size * r['tokens_per_second'] / 1e9:7.1f}{r['peak'] / 1e9:9.2f}"
        )


def batches(options: argparse.Namespace) -> None:
    """Prints how many answers to eval_60 together equal the single ones, in float32."""
    from alpaca_lib.inference.decoding import Decoding, answer

    model, tokenizer = load_form("float32")
    how = Decoding(max_new_tokens=options.tokens)
    single = answer(model, tokenizer, tasks(), how, TEMPLATE, batch_size=1)
    together = answer(model, tokenizer, tasks(), how, TEMPLATE)
    same = sum(a == b for a, b in zip(single, together, strict=True))
    print(f"  equal answers: {same} of {len(single)}, {sum(a.tokens for a in single)} tokens")


def files(options: argparse.Namespace) -> None:
    """Prints the parity of GGUF kinds and an adapter with PyTorch in float32, on eval_60."""
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
    """Returns the KL in nats of a file's weights alone, computed in float32 by PyTorch."""
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
    """Saves a LoRA adapter whose B is not zero and returns its folder."""
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
    "first": first,
    "forms": forms,
    "batches": batches,
    "files": files,
}

if __name__ == "__main__":
    main()
