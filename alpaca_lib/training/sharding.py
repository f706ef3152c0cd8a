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
    local_size: int = 1  # processes on this node

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """The number of nodes, if all have as many processes as this one."""
        return max(self.size // max(self.local_size, 1), 1)

    def agree(self, flag: bool) -> bool:
        """True on every rank as soon as it is true on one."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """The sum over ranks of a number, in float64."""
        return self._reduced(value, "SUM")

    def largest(self, value: float) -> float:
        """The largest over ranks of a number."""
        return self._reduced(value, "MAX")

    def _reduced(self, value: float, how: str) -> float:
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        # With two backends (cuda: nccl, cpu: gloo) numbers go over NCCL, ordered with the rest.
        device = f"cuda:{self.local_rank}" if "nccl" in dist.get_backend() else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total, op=getattr(dist.ReduceOp, how))
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

    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(local)
    # gloo beside NCCL: checkpoints are written from main memory, in the background.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield World(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        dist.destroy_process_group()


def layers_of(model: Any) -> list[Any]:
    """The decoder layers, found by what they are: the longest list of like modules."""
    from torch import nn

    lists: list[Any] = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError(f"{type(model).__name__}: no list of layers found to shard")
    return list(max(lists, key=lambda modules: len(list(modules))))


def mesh_of(device: str, mode: str, here: World) -> Any:
    """How ranks lie: one row of all, or (nodes, ranks of a node) for hybrid sharding.

    Hybrid (HSDP) keeps the gathering of layers within a node, where links are fast;
    between nodes only gradients go. "auto" is hybrid as soon as there are several nodes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if mode == "full" or here.nodes == 1:
        return init_device_mesh(device, (here.size,), mesh_dim_names=("shard",))
    if here.nodes * here.local_size != here.size:
        raise ValueError(
            f"sharding {mode!r}: {here.size} processes are not nodes of {here.local_size} each; "
            'start as many on every node, or set sharding to "full"'
        )
    return init_device_mesh(
        device, (here.nodes, here.local_size), mesh_dim_names=("replicate", "shard")
    )


def shard(module: Any, model: Any, placement: Placement, here: World, mode: str = "auto") -> None:
    """Splits the parameters of ``module`` (which holds ``model``) over ranks, in place.

    Computes in placement's dtype; the shards, the gradients' sum and the optimizer
    stay in the parameters' dtype. Every layer is a unit of its own, the rest is the last
    unit. Adapters stay whole on every rank: they are small, and the frozen rest is not.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = mesh_of(placement.device.split(":")[0], mode, here)
    policy = MixedPrecisionPolicy(
        param_dtype=placement.torch_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    whole = {p for name, p in module.named_parameters() if "lora_" in name}
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)


def fill(module: Any, source: Any, device: str, here: World) -> None:
    """Gives an empty sharded module the values of ``source``, which rank 0 alone has.

    One tensor at a time goes over, so no other rank ever holds more than the largest.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    module.to_empty(device=device)
    values = (
        dict(source.named_parameters()) | dict(source.named_buffers()) if source is not None else {}
    )
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, target in tensors.items():
        dtype = target.dtype
        if here.first:
            value = values[name].detach().to(device=device, dtype=dtype)
        else:
            value = torch.empty(target.shape, device=device, dtype=dtype)
        with torch.no_grad():
            if isinstance(target, DTensor):
                spread = distribute_tensor(value, target.device_mesh, target.placements)
                target.to_local().copy_(spread.to_local())
            else:
                dist.broadcast(value, 0)
                target.copy_(value)


def gather_once(module: Any, last: bool) -> None:
    """Before a micro-batch: parameters stay gathered, and gradients on this rank, until
    the step's last one. It saves traffic, and costs 6 bytes a parameter on every rank."""
    module.set_requires_gradient_sync(last)
    module.set_reshard_after_forward(False)
    module.set_reshard_after_backward(last)


def shares(model: Any) -> list[dict[str, Any]]:
    """For each parameter its name, whole shape and this rank's share of it."""
    rows = []
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        rows.append({"name": name, "whole": list(parameter.shape), "mine": list(local.shape)})
    return rows
