"""Measures training and decoding on one GPU, at the shapes of 7B and 8B models.

python benchmarks/gpu.py [--only NAME ...] [--steps N] [--tiny]

Weights are random: the speed does not depend on them, and nothing is downloaded. The parts are
the library's own (attention, loss, masters, optimizer), without its data and files. It prints
one table with device, versions and date; a case that fails shows its error there. --tiny runs
the same cases at toy shapes on a CPU, to test this script.

  lora-2048, lora-4096, lora-8b    LoRA (q,v, r=8) at 2,048 and 4,096 tokens per document
  full                             all parameters, bfloat16 alone, recomputed activations
  ladder                           Alpaca's mixture of lengths and headers: padded, packed with
                                   a mask, varlen, its headers computed once per row, compiled
  int8, nf4                        LoRA on a quantised base (needs bitsandbytes)
  decode                           tokens/s of one answer, and its share of the bandwidth limit
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
from alpaca_lib.training.micro_batches import plan_step
from alpaca_lib.training.packing import collate, join
from alpaca_lib.training.precision import MasterWeights, create_optimizer
from alpaca_lib.training.prefixes import Segment, attention_context
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed, layers_of

SHAPES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
ALPACA_MEAN = 130  # tokens per row of Alpaca, prompt included
# Tokens of Alpaca's two headers with a 49,152-token vocabulary, how many both begin with,
# and the share of its rows that have the first.
HEADERS, COMMON, FIRST_HEADER = (33, 24), 8, 0.4
WARM_UP = 2  # steps that compile and allocate


@dataclass(frozen=True)
class Case:
    """One line of the table.

    >>> Case("lora-4096 compiled", length=4096, compile=True)
    """

    name: str
    shape: str = "7b"  # of SHAPES
    method: str = "lora"  # or "full"
    length: int = 2048  # tokens per document; 0: Alpaca's distribution of lengths
    tokens: int = 8192  # tokens per micro-batch
    batching: str = "pack"  # or "pad": one document per row
    varlen: bool = True  # variable-length attention; False: transformers' own
    share: bool = False  # compute a common prefix once per row
    compile: bool = False  # torch.compile each layer
    dynamic: bool | None = None  # of torch.compile; None: it decides, and recompiles
    checkpointing: bool = False  # recompute activations
    quantization: str = "none"  # or "int8", "nf4"


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
    # Lengths differ from batch to batch: without dynamic=True, torch reaches its recompile limit.
    Case("ladder compiled", length=0, compile=True, dynamic=True),
    Case("ladder shared", length=0, share=True),
    Case("ladder shared compiled", length=0, share=True, compile=True, dynamic=True),
    Case("int8", quantization="int8"),
    Case("nf4", quantization="nf4"),
)


def main() -> None:
    """Measures the chosen cases, then prints the table."""
    options = build_parser().parse_args()
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
        lines.append(measure(case.name, lambda case=case: train(case, device, options.steps)))
        print(lines[-1], flush=True)
    if not options.only or "decode" in options.only:
        shape = "tiny" if options.tiny else "7b"
        lines.append(measure("decode", lambda: decode(shape, device)))
    print("\n" + "\n".join(lines))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="first words of the cases to measure")
    parser.add_argument("--tiny", action="store_true", help="toy shapes on a CPU")
    parser.add_argument("--steps", type=int, default=8, help="measured steps (default 8)")
    return parser


def heading(device: str) -> str:
    """Returns device, versions and date as a line."""
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy shapes: no result"
    return (
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{datetime.date.today()}"
    )


def measure(name: str, work: Callable[[], str]) -> str:
    """Returns a line of the table, with the error if the work fails; frees the memory."""
    try:
        text = work()
    except Exception as error:  # a case that fails must not lose the others
        text = f"not measured: {str(error).strip().splitlines()[0][:90]}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return f"{name:22}{text}"


def build_model(case: Case, device: str) -> Any:
    """Returns a LLaMA with random weights in bfloat16, quantised if the case asks for it."""
    import transformers

    config = transformers.LlamaConfig(**SHAPES[case.shape], max_position_embeddings=8192)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if case.quantization != "none":
        quantize(model, case.quantization, device)
    return model


def quantize(model: Any, kind: str, device: str) -> None:
    """Replaces a model's linear layers, except the head, by bitsandbytes' in place."""
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
                    layer.in_features,
                    layer.out_features,
                    bias=False,
                    quant_type="nf4",
                    compute_dtype=torch.bfloat16,
                )
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            setattr(parent, name, new.to(device))


def train(case: Case, device: str, steps: int) -> str:
    """Returns tokens/s, shares of both peaks and memory of a training step, as text."""
    torch.manual_seed(0)
    settings = Settings(
        data_path="-",
        output_dir="-",
        method=case.method,
        lora_dropout=0.0,
        lora_rank=8,
        lora_targets="q_proj,v_proj",
    )
    model = build_model(case, device)
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
            layer.compile(dynamic=case.dynamic)
    module = LabelLoss(model)
    model.train()
    trained = MasterWeights(module, Distributed(0, 1, 0), masters=case.method == "lora")
    optimizer = create_optimizer(trained, "adamw", 1e-5, 0.0)
    if case.share and not attention.shares_keys(device, torch.bfloat16):
        raise RuntimeError("the varlen kernel's mask, or its gradients, are not the reference's")
    batches, tokens, segments = build_batches(case, device, causal)
    placement = Placement(device, "bfloat16", "")
    seconds = []
    for number in range(WARM_UP + steps):
        synchronize(device)
        start = time.perf_counter()
        for batch in batches:
            (module(**batch) / tokens).backward()
        trained.clip(trained.reduce_gradients(), 1.0)
        optimizer.step()
        trained.copy_to_model()
        synchronize(device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    speed = tokens / statistics.median(seconds)
    computed = sum(segment.tokens for segment in segments)
    per_token = flops.flops_per_token(model, case.method, attention_context(segments))
    rate = speed * per_token * computed / tokens
    peak = flops.peak_rate(placement.device)
    used = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    share = f"{rate / peak:9.1%}" if peak else f"{'-':>9}"
    gemm = flops.gemm_rate(device, torch.bfloat16)
    return f"{speed:10,.0f}{share}{rate / gemm:9.1%}{used:9.1f}"


def build_batches(
    case: Case, device: str, causal: Any
) -> tuple[list[dict[str, Any]], int, list[Segment]]:
    """Returns (the micro-batches of a step, their tokens without padding, what is computed).

    The second half of each document has labels; Alpaca's begin with one of its two headers.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size = causal.config.vocab_size

    def draw(tokens: int) -> list[int]:
        return torch.randint(vocab_size, (tokens,), generator=generator).tolist()

    headers: list[list[int]] = [[]]
    if case.length:
        lengths = [case.length] * max(case.tokens // case.length, 1)
    else:  # as in Alpaca: most documents are short, a few are long
        spread = torch.empty(2 * case.tokens // ALPACA_MEAN).exponential_(generator=generator)
        lengths = [min(int(48 + n * (ALPACA_MEAN - 48)), 512) for n in spread.tolist()]
        lengths = [min(n, case.tokens // 2) for n in lengths]
        both = draw(COMMON)
        headers = [both + draw(tokens - COMMON) for tokens in HEADERS]
    examples = []
    for number, n in enumerate(lengths):
        header = headers[0] if number % 5 < 5 * FIRST_HEADER else headers[-1]
        ids = header + draw(n - len(header))
        begin = max(n // 2, len(header) + 1)
        examples.append({"input_ids": ids, "labels": [-100] * begin + ids[begin:]})
    settings = Settings(
        data_path="-",
        output_dir="-",
        max_length=max(lengths),
        row_length=case.tokens,
        rows_per_micro_batch=1,
    )
    if case.batching == "pad":
        rows = max(case.tokens // max(lengths), 1)
        settings = settings.replace(batching="pad", rows_per_micro_batch=rows)
    plan = plan_step(settings, examples, 1, True, case.share)
    batches = []
    for (group,) in plan.groups:
        if case.batching == "pack":
            joined = [join(examples, group, plan.prefixes)]
        else:
            joined = [join(examples, [i]) for i in group]
        batch: dict[str, Any] = collate(joined, 0, 128 if device == "cuda" else 8)
        size = batch["input_ids"].shape
        if case.batching == "pad":
            batch["position_ids"] = torch.arange(size[1]).expand(size)
        if case.batching == "pack" and attention.is_attached(causal):
            edges = [*joined[0].boundaries[:-1], size[1]]
            batch["documents"] = attention.Documents.of(edges, device, joined[0].parents)
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        batches.append(moved)
    return batches, sum(lengths), plan.segments


def decode(shape: str, device: str) -> str:
    """Returns greedy tokens/s of one answer, and the share that the bandwidth allows, as text."""
    model = build_model(Case("decode", shape=shape), device).eval()
    ids = torch.arange(1, 17, device=device)[None]
    wanted = 128
    model.generation_config.eos_token_id = None

    def run(tokens: int) -> None:
        model.generate(
            ids,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
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
    bandwidth = 10 * 2 * 2**30 / (time.perf_counter() - start)  # read and written
    limit = bandwidth / weights
    return (
        f"{speed:10,.1f}   {speed / limit:.0%} of the {limit:.0f} that "
        f"{bandwidth / 1e9:.0f} GB/s allow"
    )


def synchronize(device: str) -> None:
    """Waits until the GPU has finished all work."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
