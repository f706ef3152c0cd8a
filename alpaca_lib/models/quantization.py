"""Tries whether bitsandbytes can store a model's linear layers in 8 or 4 bits on a device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from alpaca_lib.errors import MissingPackageError
from alpaca_lib.models.device import Placement
from alpaca_lib.optional import require

# On import it recommends a package that downloads code at run time, and it reports every
# product of 8-bit weights whose input is cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

QUANTIZATIONS = ("none", "int8", "nf4")


def usable_quantizations(placement: Placement, say: Callable[[str], None] = print) -> list[str]:
    """Returns those of int8 and nf4 that work here, and says in one sentence why one does not.

    >>> usable_quantizations(place())
    ['int8', 'nf4']
    """
    faults = {
        kind: find_quantization_fault(kind, placement.device, placement.dtype)
        for kind in QUANTIZATIONS[1:]
    }
    for fault in dict.fromkeys(filter(None, faults.values())):
        kinds = " and ".join(kind for kind in faults if faults[kind] == fault)
        say(f"{kinds} left out: {fault}")
    return [kind for kind, fault in faults.items() if not fault]


@cache
def find_quantization_fault(kind: str, device: str, dtype: str) -> str:
    """Returns why a base in ``kind`` (int8, nf4) cannot be used on a device; empty if it can.

    A layer of 64 x 64 is tried, once per process: stored, multiplied, and its input's gradient.
    """
    try:
        nn = require("bitsandbytes").nn
    except MissingPackageError as error:
        return str(error)
    except Exception as error:  # a library that it loads does not fit this system
        return f"bitsandbytes cannot be imported ({_first_line(error)})"
    try:
        is_finite = _try_layer(nn, kind, device, dtype)
    except Exception as error:
        return f"bitsandbytes fails on {device} ({_first_line(error)})"
    return "" if is_finite else f"bitsandbytes computes no gradient on {device}"


def _try_layer(nn: Any, kind: str, device: str, dtype: str) -> bool:
    """Returns whether a small quantised layer gives its input a gradient."""
    import torch

    computed = getattr(torch, dtype)
    with torch.random.fork_rng(devices=[]):  # its weights are drawn; a run's numbers stay
        if kind == "int8":
            layer = nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        else:
            layer = nn.Linear4bit(64, 64, bias=False, compute_dtype=computed, quant_type="nf4")
    layer = layer.to(device)
    inputs = torch.ones(2, 64, device=device, dtype=computed).requires_grad_()
    layer(inputs).sum().backward()
    return inputs.grad is not None and bool(inputs.grad.isfinite().all() and inputs.grad.any())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__
