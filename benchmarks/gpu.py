"""python benchmarks/gpu.py [--only NAME ...] [--tiny]: one GPU at the shapes of 7B and 8B.

Random weights: the speed does not depend on them, and nothing has to be downloaded. The
parts are the library's own (attention, loss, masters, optimizer), without its data and
files. One table at the end, with device, versions and date; every line that could not run
says why. --tiny runs the same lines at toy shapes on a CPU, to test this script.

  lora-2048, lora-4096, lora-8b    LoRA (q,v, r=8) at 2,048 and 4,096 tokens a document
  full                             all parameters, bfloat16 alone, recomputed activations
  ladder                           Alpaca's lengths: padded, packed with a mask, varlen, compiled
  int8, nf4                        LoRA on a quantised base (needs bitsandbytes)
  decode                           tokens a second of one answer, beside the bandwidth's limit
"""

from __future__ import annotations

import argparse
import datetime
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from alpaca_lib.models import Placement
from alpaca_lib.training import adapters, attention, flops
from alpaca_lib.training.loss import LabelLoss, unwrap_peft
from alpaca_lib.training.packing import balance_micro_batches, collate, join
from alpaca_lib.training.precision import MasterWeights, create_optimizer
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed, layers_of

SHAPES = {  # hidden size, intermediate size, layers, heads, key-value heads, words
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "tiny": (64, 128, 2, 4, 2, 512),
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NAMES += ("num_key_value_heads", "vocab_size")
ALPACA_MEAN = 130  # tokens of a row of Alpaca with its prompt


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    shape: str = "7b"
    method: str = "lora"
    length: int = 2048  # tokens of a document; 0: Alpaca's mixture
    tokens: int = 8192  # of a micro-batch
    batching: str = "pack"
    varlen: bool = True
    compile: bool = False
    checkpointing: bool = False
    quantization: str = "none"


CASES = (
    Case("lora-2048", length=2048),
    Case("lora-2048 compiled", length=2048, compile=True),
    Case("lora-4096", length=4096),
    Case("lora-4096 compiled", length=4096, compile=True),
    Case("lora-8b", shape="8b", length=4096),
    Case("lora-8b compiled", shape="8b", length=4096, compile=True),
    Case("full", method="full", checkpointing=True),
    Case("full compiled", method="full", checkpointing=True, compile=True),
    Case("ladder padded", length=0, batching="pad", varlen=False),
    Case("ladder masked", length=0, varlen=False),
    Case("ladder varlen", length=0),
    Case("ladder compiled", length=0, compile=True),
    Case("int8", quantization="int8"),
    Case("nf4", quantization="nf4"),
)


def main() -> None:
    """Measures every case, then prints the table."""
    options = parser().parse_args()
    device = "cpu" if options.tiny or not torch.cuda.is_available() else "cuda"
    if device == "cpu" and not options.tiny:
        raise SystemExit("error: torch sees no CUDA GPU; --tiny tests the script on a CPU")
    lines = [heading(device)]
    if not options.only or "gemm" in options.only:
        lines.append(
            f"bfloat16 GEMM rate {flops.gemm_rate(device, torch.bfloat16) / 1e12:.1f} TFLOP/s"
        )
    lines.append(f"{'':22}{'tokens/s':>10}{'of peak':>9}{'of GEMM':>9}{'peak GB':>9}")
    for case in CASES:
        if options.only and case.name.split()[0] not in options.only:
            continue
        if options.tiny:
            case = replace(case, shape="tiny", tokens=256, length=min(case.length, 64))
        lines.append(told(case.name, lambda case=case: train(case, device, options.steps)))
        print(lines[-1], flush=True)
    if not options.only or "decode" in options.only:
        shape = "tiny" if options.tiny else "7b"
        lines.append(told("decode", lambda: decode(shape, device)))
    print("\n" + "\n".join(lines))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="*", help="first words of the lines to measure")
    made.add_argument("--tiny", action="store_true", help="toy shapes on a CPU")
    made.add_argument("--steps", type=int, default=8, help="measured steps (default 8)")
    return made


def heading(device: str) -> str:
    """Device, versions and date."""
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy shapes: no result"
    return (
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{datetime.date.today()}"
    )


def told(name: str, measure: Callable[[], str]) -> str:
    """A line of the table, or why there is none; memory is free again after it."""
    try:
        text = measure()
    except Exception as error:  # one line that fails must not lose the others
        text = f"not measured: {str(error).strip().splitlines()[0][:90]}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return f"{name:22}{text}"


def model_of(case: Case, device: str) -> Any:
    """A LLaMA of that shape with random weights in bfloat16, quantised if the case says so."""
    import transformers

    config = transformers.LlamaConfig(
        **dict(zip(NAMES, SHAPES[case.shape], strict=True)), max_position_embeddings=8192
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if case.quantization != "none":
        quantize(model, case.quantization, device)
    return model


def quantize(model: Any, kind: str, device: str) -> None:
    """Replaces a model's linear layers, but for the head, by bitsandbytes' in place."""
    import bitsandbytes as bnb
    from torch import nn

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear) or name == "lm_head":
                continue
            weight = layer.weight.data.cpu()
            if kind == "int8":
                new = bnb.nn.Linear8bitLt(
                    layer.in_features, layer.out_features, bias=False, has_fp16_weights=False
                )
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            else:
                new = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=False, quant_type="nf4",
                    compute_dtype=torch.bfloat16,
                )  # fmt: skip
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            setattr(parent, name, new.to(device))


def train(case: Case, device: str, steps: int) -> str:
    """Tokens a second, shares of both peaks and memory of a training step."""
    torch.manual_seed(0)
    settings = Settings(
        data_path="-", output_dir="-", method=case.method, lora_dropout=0.0, lora_rank=8,
        lora_targets="q_proj,v_proj",
    )  # fmt: skip
    model = model_of(case, device)
    if case.method == "lora":
        model = adapters.add_lora(model, settings)
    causal = unwrap_peft(model)
    if case.varlen:
        attention.attach(causal, device, case.length or 512)
    if case.checkpointing:
        enable = getattr(causal, "activation_checkpointing_enable", None)
        (enable or causal.gradient_checkpointing_enable)({"use_reentrant": False})
    if case.compile:
        for layer in layers_of(model):
            layer.compile()
    module = LabelLoss(model)
    model.train()
    trained = MasterWeights(module, Distributed(0, 1, 0), masters=case.method == "lora")
    optimizer = create_optimizer(trained, "adamw", 1e-5, 0.0)
    batches, tokens = batches_of(case, device, causal)
    placement = Placement(device, "bfloat16", "")
    seconds = []
    for number in range(steps + 2):
        synchronize(device)
        start = time.perf_counter()
        for batch in batches:
            (module(**batch) / tokens).backward()
        trained.clip(trained.reduce_gradients(), 1.0)
        optimizer.step()
        trained.copy_to_model()
        synchronize(device)
        if number >= 2:  # the first compile and allocate
            seconds.append(time.perf_counter() - start)
    speed = tokens / statistics.median(seconds)
    lengths = [b - a for batch in batches for a, b in borders(batch)]
    context = sum(n * n for n in lengths) / sum(lengths)
    rate = speed * flops.flops_per_token(model, case.method, context)
    peak = flops.peak_rate(placement.device)
    used = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    share = f"{rate / peak:9.1%}" if peak else f"{'-':>9}"
    gemm = flops.gemm_rate(device, torch.bfloat16)
    return f"{speed:10,.0f}{share}{rate / gemm:9.1%}{used:9.1f}"


def borders(batch: dict[str, Any]) -> list[tuple[int, int]]:
    """The real documents of a batch, padding left out."""
    found = []
    for row in batch["position_ids"].tolist():
        starts = [i for i, position in enumerate(row) if position == 0]
        found += [(a, b) for a, b in zip(starts, [*starts[1:], len(row)], strict=True) if b - a > 1]
    return found


def batches_of(case: Case, device: str, causal: Any) -> tuple[list[dict[str, Any]], int]:
    """(the micro-batches of a step, their real tokens); half of a document has labels."""
    generator = torch.Generator().manual_seed(0)
    words = causal.config.vocab_size
    if case.length:
        lengths = [case.length] * max(case.tokens // case.length, 1)
    else:  # lengths spread as Alpaca's are: most short, a few long
        spread = torch.empty(2 * case.tokens // ALPACA_MEAN).exponential_(generator=generator)
        lengths = [min(int(48 + n * (ALPACA_MEAN - 48)), 512) for n in spread.tolist()]
        lengths = [min(n, case.tokens // 2) for n in lengths]
    examples = []
    for n in lengths:
        ids = torch.randint(words, (n,), generator=generator).tolist()
        examples.append({"input_ids": ids, "labels": [-100] * (n // 2) + ids[n // 2 :]})
    if case.batching == "pad":
        rows = max(case.tokens // max(lengths), 1)
        groups = [
            list(range(at, min(at + rows, len(lengths)))) for at in range(0, len(lengths), rows)
        ]
    else:
        groups = [micro[0] for micro in balance_micro_batches(lengths, case.tokens, 1)]
    batches = []
    for group in groups:
        joined = [join(examples, group)] if case.batching == "pack" else [
            join(examples, [i]) for i in group
        ]  # fmt: skip
        batch: dict[str, Any] = collate(joined, 0, 128 if device == "cuda" else 8)
        size = batch["input_ids"].shape
        if case.batching == "pad":
            batch["position_ids"] = torch.arange(size[1]).expand(size)
        if case.batching == "pack" and attention.is_attached(causal):
            ends = [*joined[0].boundaries[:-1], size[1]]
            batch["documents"] = attention.Documents.of(ends, device)
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        batches.append(moved)
    return batches, sum(lengths)


def decode(shape: str, device: str) -> str:
    """Greedy tokens a second of one answer, and the share of what the bandwidth allows."""
    model = model_of(Case("decode", shape=shape), device).eval()
    ids = torch.arange(1, 17, device=device)[None]
    wanted = 128
    model.generation_config.eos_token_id = None
    run: Callable[[int], Any] = lambda n: model.generate(  # noqa: E731
        ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
    )
    run(8)
    synchronize(device)
    start = time.perf_counter()
    run(wanted)
    synchronize(device)
    speed = wanted / (time.perf_counter() - start)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if device != "cuda":
        return f"{speed:10,.1f}"
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    synchronize(device)
    bandwidth = 10 * 2 * 2**30 / (time.perf_counter() - start)
    limit = bandwidth / weights
    return (
        f"{speed:10,.1f}   {speed / limit:.0%} of the {limit:.0f} that "
        f"{bandwidth / 1e9:.0f} GB/s allow"
    )


def synchronize(device: str) -> None:
    """Waits until the GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
