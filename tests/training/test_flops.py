"""The measured FLOP/s of a machine."""

from __future__ import annotations

import pytest
import torch

from alpaca_lib.models import Placement
from alpaca_lib.training import flops

EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("dtype", "native", "rows"),
    [
        ("float32", "float32", 1024),
        ("float32", "bfloat16", 1024),
        ("bfloat16", "bfloat16", 1024),
        ("bfloat16", "float32", 256),
        ("float16", "float32", 256),
    ],
)
def test_an_emulated_dtype_is_measured_with_smaller_matrices(monkeypatch, dtype, native, rows):
    """Of 1,024 rows, one product in emulated bfloat16 took four seconds."""
    sizes = []
    monkeypatch.setattr(flops, "place", lambda device: Placement(device, native, ""))
    monkeypatch.setattr(flops.torch, "randn", lambda *size, device: sizes.append(size) or EYE)
    assert flops.gemm_rate("cpu", getattr(torch, dtype), 0.01) > 0
    assert sizes == [(rows, rows)]


def test_the_rate_is_that_of_the_products(monkeypatch):
    """Two FLOPs per number that a product adds up, by a clock that the products alone move."""
    clock = [0.0]

    class Matrix:
        def to(self, dtype):
            return self

        def __matmul__(self, other):
            clock[0] += 2e-3

    monkeypatch.setattr(flops.torch, "randn", lambda *size, device: Matrix())
    monkeypatch.setattr(flops.time, "perf_counter", lambda: clock[0])
    assert flops.gemm_rate("cpu", torch.float32, 0.1) == pytest.approx(2 * 1024**3 / 2e-3)
