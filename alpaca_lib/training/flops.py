"""FLOPs of a training token, and how many a device makes a second."""

from __future__ import annotations

import math
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from alpaca_lib.optional import require

GPUS = Path(__file__).resolve().parents[2] / "data" / "gpus.yaml"


def matmul_parameters(model: Any) -> int:
    """The parameters that a token is multiplied with: all but the input embedding,
    which counts after all where it is also the output head."""
    # A 4-bit weight is stored packed; its quant_state knows the true shape.
    total = sum(
        math.prod(p.quant_state.shape) if hasattr(p, "quant_state") else p.numel()
        for n, p in model.named_parameters()
        if "lora_" not in n
    )
    if getattr(model.config, "tie_word_embeddings", False):
        return total
    return total - model.get_input_embeddings().weight.numel()


def flops_per_token(model: Any, method: str, context: float) -> float:
    """FLOPs that training needs for one token of an example ``context`` tokens long:
    6 a parameter, or 4 with frozen weights (they have no gradient), and causal attention."""
    config = model.config
    attention = 6 * config.num_hidden_layers * config.hidden_size * context
    return (4 if method == "lora" else 6) * matmul_parameters(model) + attention


def gemm_rate(device: str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of matrix products here, in this dtype: the best of several, measured."""
    size = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(3):
            a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = max(best, 3 * 2 * size**3 / (time.perf_counter() - start))
    return best


@cache
def gpus() -> dict[str, dict[str, Any]]:
    """data/gpus.yaml: by name, what a GPU's maker says of it."""
    table: dict[str, dict[str, Any]] = require("yaml").safe_load(GPUS.read_text(encoding="utf-8"))
    return table["gpus"]


def peak_rate(device: str) -> float | None:
    """The maker's dense bfloat16 FLOP/s of this GPU; None if it is not in the table."""
    if not device.startswith("cuda") or not GPUS.is_file():
        return None
    name = torch.cuda.get_device_name(device).lower()
    for gpu in gpus().values():
        if all(word in name for word in gpu["words"]):
            return float(gpu["bf16_tflops"]) * 1e12
    return None
