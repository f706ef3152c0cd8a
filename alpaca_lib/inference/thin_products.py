"""A linear layer of a few rows, with the factors the other way round.

A step of decoding multiplies each weight by a few rows, one per answer. torch gives MKL the
product x W^T, and on processors that Intel did not make MKL then takes up to three times as long
as for the same product as (W x^T)^T. In its code for Intel's the two are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alpaca_lib.models.device import made_by_intel

# With 2 cores of an EPYC, all products of SmolLM2-135M: 163 to 56 ms for 4 rows, 212 to 130 for
# 24, 258 to 223 for 60, 456 to 348 for 128; no gain from 256 on.
MOST_ROWS = 128


@contextmanager
def swap_factors(model: nn.Module) -> Iterator[None]:
    """Makes the float32 linear layers of a model on such a CPU multiply that way in the block."""
    swapped = []
    if torch.backends.mkl.is_available() and not made_by_intel():
        swapped = [module for module in model.modules() if _is_plain(module)]
    for module in swapped:
        module.forward = MethodType(_forward, module)
    try:
        yield
    finally:
        for module in swapped:
            del module.forward


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _forward(self: Any, x: Tensor) -> Tensor:
    rows = x.shape[:-1].numel()
    if not 1 < rows <= MOST_ROWS or x.dtype != torch.float32:
        return F.linear(x, self.weight, self.bias)
    product = torch.mm(self.weight, x.reshape(rows, -1).t()).t().contiguous()
    if self.bias is not None:
        product += self.bias
    return product.view(*x.shape[:-1], -1)
