"""FLOPs of training per token, and the FLOP/s of a device: measured, and by its maker."""

from __future__ import annotations

import math
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from alpaca_lib.models import place
from alpaca_lib.optional import require

GPUS = Path(__file__).resolve().parents[2] / "data" / "gpus.yaml"


def matmul_parameters(model: Any) -> int:
    """Returns the number of parameters that a token is multiplied with, without adapters.

    An input embedding is only looked up: it counts if it is also the output head (tied).
    """
    # A 4-bit weight is stored packed; its quant_state knows the original shape.
    total = sum(
        math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel()
        for n, p in model.named_parameters()
        if "lora_" not in n
    )
    if getattr(model.config, "tie_word_embeddings", False):
        return total
    return total - model.get_input_embeddings().weight.numel()


def flops_per_token(model: Any, method: str, context: float) -> float:
    """Returns the FLOPs of training per token, for examples of ``context`` tokens.

    Per parameter 2 in the forward pass, 2 for the gradient of the input and 2 for that of the
    weight, which a frozen one does not need. Causal attention adds 6 * layers * hidden_size *
    context: PaLM's formula (arXiv:2204.02311, appendix B), halved for the mask.
    """
    config = model.config
    attention = 6 * config.num_hidden_layers * config.hidden_size * context
    return (4 if method == "lora" else 6) * matmul_parameters(model) + attention


def gemm_rate(device: str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measures the FLOP/s of square matrix products in a dtype; returns the median of ten windows.

    Not the best: of processes that share a core, one may be alone in a window. The matrices are
    smaller in a dtype that a CPU only emulates: one product of 1,024 rows can take four seconds.
    """
    size = 8192 if device.startswith("cuda") else 1024
    if device == "cpu" and dtype not in (torch.float32, place("cpu").torch_dtype):
        size = 256
    a = torch.randn(size, size, device=device).to(dtype)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.split(":")[0])
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start, products, passed = time.perf_counter(), 0, 0.0
        while passed < seconds / 10:
            for _ in range(3):
                a @ a
            if wait is not None:
                wait()
            products += 3
            passed = time.perf_counter() - start
        rates.append(products * 2 * size**3 / passed)
    return statistics.median(rates)


@cache
def gpus() -> dict[str, dict[str, Any]]:
    """Returns data/gpus.yaml: the maker's figures of each GPU, by name."""
    table: dict[str, dict[str, Any]] = require("yaml").safe_load(GPUS.read_text(encoding="utf-8"))
    return table["gpus"]


def peak_rate(device: str) -> float | None:
    """Returns the maker's dense bfloat16 FLOP/s of this GPU; None if it is not in the table."""
    if not device.startswith("cuda") or not GPUS.is_file():
        return None
    name = torch.cuda.get_device_name(device).lower()
    for gpu in gpus().values():
        if all(word in name for word in gpu["words"]):
            return float(gpu["bf16_tflops"]) * 1e12
    return None
