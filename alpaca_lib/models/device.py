"""Chooses the device and the dtype to compute with, each with its reason."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alpaca_lib.errors import ModelError


@dataclass(frozen=True)
class Placement:
    """Device and dtype to compute with.

    >>> place("cpu", "float32").torch_dtype
    torch.float32
    """

    device: str  # cpu, cuda, cuda:1, mps
    dtype: str  # float32, bfloat16, float16
    reason: str  # why these, for people

    @property
    def torch_dtype(self) -> Any:
        """The torch.dtype of that name."""
        import torch

        return getattr(torch, self.dtype)


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Returns the best device and dtype of this machine, or those that were asked for.

    The environment variable ALPACA_DEVICE (cpu, cuda, mps) takes the place of "auto". Raises
    ModelError if a device is not there or a dtype is unknown.
    """
    named = device if device != "auto" else os.environ.get("ALPACA_DEVICE") or "auto"
    if named == "auto":
        device, why = _best_device()
        reasons = [why]
    else:
        _check_device(named)
        reasons = ["ALPACA_DEVICE names it"] if device == "auto" else []
        device = named
    if dtype == "auto":
        dtype, why = _best_dtype(device)
        reasons.append(why)
    elif dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f'dtype "{dtype}": use "auto", "float32", "bfloat16" or "float16"')
    return Placement(device, dtype, "; ".join(reasons) or "as asked for")


def _best_device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return "cuda", f"{torch.cuda.get_device_name()} is there"
    if not torch.backends.mps.is_available():
        return "cpu", "no CUDA GPU here"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "cpu", "torch.distributed has no backend for the Apple GPU that is there"
    if fault := find_mps_fault():
        return "cpu", f"the Apple GPU that is there is not used: {fault}"
    return "mps", "an Apple GPU is there, and attention on it was compared with the CPU's"


@cache
def find_mps_fault() -> str:
    """Returns why the Apple GPU cannot be used; empty if it can. It is tried, once per process.

    A virtual machine may show a GPU on which nothing can be allocated, and kernels of attention
    have been silently wrong on MPS for some layouts and dtypes (PyTorch issues 181133, 195910).
    """
    try:
        expected, found = _attention_sample("cpu"), _attention_sample("mps")
    except Exception as error:
        return f"it fails ({' '.join(str(error).split())[:120] or type(error).__name__})"
    if float((found - expected).norm()) > 1e-3 * float(expected.norm()):
        return "its attention differs from the CPU's"
    return ""


def _attention_sample(device: str) -> Any:
    """Returns causal attention of fixed inputs, with gradients, without, and the gradients.

    The layout is a model's: views of (batch, tokens, heads, size), two queries per key head.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, 40, heads, 64, generator=draw).to(device).requires_grad_()
        for heads in (4, 2, 2)
    ]
    query, key, value = (x.transpose(1, 2) for x in inputs)

    def attend() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    out = attend()
    out.square().sum().backward()
    with torch.no_grad():  # another kernel
        alone = attend()
    gradients = [x.grad for x in inputs if x.grad is not None]
    return torch.cat([x.detach().flatten().cpu() for x in (out, alone, *gradients)])


def _check_device(device: str) -> None:
    """Checks that a device named by the user is there."""
    import torch

    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ModelError(f'device "{device}": use "auto", "cpu", "cuda", "cuda:0" ... or "mps"')
    if device.startswith("cuda"):
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= there:
            raise ModelError(
                f'device "{device}": torch sees {there or "no"} CUDA GPUs; '
                'use device "auto" or "cpu"'
            )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ModelError('device "mps": torch sees no Apple GPU; use device "auto" or "cpu"')


def _best_dtype(device: str) -> tuple[str, str]:
    import torch

    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return "bfloat16", "it computes bfloat16 natively"
        return "float32", (
            f"compute capability {major}.{minor} has no bfloat16, and float16 training overflows"
        )
    if device == "mps":
        return "float32", (
            "float32, since causal attention in half precision has been wrong on Apple GPUs"
        )
    return _best_on_cpu(
        getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)(),
        getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)(),
        made_by_intel(),
    )


def _best_on_cpu(amx: bool, avx512_bf16: bool, intel: bool) -> tuple[str, str]:
    """Chooses by the CPU's features, not by a measurement: all processes of a run must agree."""
    if amx:
        return "bfloat16", "this CPU multiplies bfloat16 natively (AMX)"
    if avx512_bf16 and intel:
        # Measured with 2 cores of an Emerald Rapids: 155 GFLOP/s, and 300 in float32.
        return "float32", (
            "without AMX, which it lacks or which is hidden from us, an Intel CPU multiplies "
            "bfloat16 at half the speed of float32"
        )
    if avx512_bf16:
        return "bfloat16", "this CPU multiplies bfloat16 natively (AVX-512 BF16)"
    return "float32", "this CPU would only emulate bfloat16"


@cache
def made_by_intel() -> bool:
    """Returns whether this machine's processor is one of Intel's."""
    with contextlib.suppress(OSError):
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "GenuineIntel" in platform.processor()  # as Windows says it
