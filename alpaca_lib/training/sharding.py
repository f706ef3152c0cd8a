"""Processes and shards: who am I, and which part of each parameter is mine.

FSDP2 (``fully_shard``) splits every parameter over the ranks, gathers a layer
just before it computes, and lets it go after. It is the same on two gloo
processes on a laptop and on NCCL across nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alpaca_lib.models import Placement


@dataclass(frozen=True)
class World:
    """This process among all: rank 0 writes files and prints."""

    rank: int
    size: int
    local_rank: int

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def agree(self, flag: bool) -> bool:
        """True on every rank as soon as it is true on one."""
        if self.size == 1:
            return flag
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """The sum over ranks of a number, in float64."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        device = f"cuda:{self.local_rank}" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.sum(0.0)


@contextmanager
def world(device: str) -> Iterator[World]:
    """The World that torchrun's environment describes, or one process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if size == 1:
        yield World(0, 1, 0)
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield World(rank, size, local)
    finally:
        dist.destroy_process_group()


def layers_of(model: Any) -> list[Any]:
    """The decoder layers, found by what they are: the longest list of like modules."""
    from torch import nn

    lists: list[Any] = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError(f"{type(model).__name__}: no list of layers found to shard")
    return list(max(lists, key=lambda modules: len(list(modules))))


def shard(module: Any, model: Any, placement: Placement, here: World) -> None:
    """Splits the parameters of ``module`` (which holds ``model``) over all ranks, in place.

    Computes in placement's dtype; the shards, the gradients' sum and the optimizer
    stay float32. Every layer is a unit of its own, the rest is the last unit.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = placement.device.split(":")[0]
    mesh = init_device_mesh(device, (here.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=placement.torch_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def shares(model: Any) -> list[dict[str, Any]]:
    """For each parameter its name, whole shape and this rank's share of it."""
    rows = []
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        rows.append({"name": name, "whole": list(parameter.shape), "mine": list(local.shape)})
    return rows
