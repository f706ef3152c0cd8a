"""Small models need neither two threads nor a long measurement of the machine."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick():
    """One torch thread (two wait for each other more than they compute), and a twentieth
    of a second for the measured FLOP/s that every run begins with."""
    import torch

    from alpaca_lib.training.flops import gemm_rate

    threads, defaults = torch.get_num_threads(), gemm_rate.__defaults__
    torch.set_num_threads(1)
    gemm_rate.__defaults__ = (0.05,)
    yield
    torch.set_num_threads(threads)
    gemm_rate.__defaults__ = defaults
