"""Ranks and shards: which process this is, and which part of each parameter it holds.

FSDP2 (``fully_shard``) splits every parameter over the ranks, all-gathers a layer just before
it computes, and frees it afterwards. It is the same on two gloo processes on a laptop and on
NCCL across nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alpaca_lib.errors import ModelError, SettingsError
from alpaca_lib.models import Placement


@dataclass(frozen=True)
class Distributed:
    """This process among all processes of the run: rank 0 writes files and prints.

    >>> with distributed("cpu") as dist:
    ...     assert dist.sum(1.0) == dist.size
    """

    rank: int  # 0 to size - 1
    size: int  # processes in all, the "world size"
    local_rank: int  # this process's number on its node
    local_size: int = 1  # processes on this node

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """The number of nodes, if all have as many processes as this one."""
        return max(self.size // max(self.local_size, 1), 1)

    def any_rank(self, flag: bool) -> bool:
        """Returns True on every rank if the flag is true on at least one."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """Returns the sum of a number over all ranks, in float64."""
        return self._reduced(value, "SUM")

    def largest(self, value: float) -> float:
        """Returns the largest of a number over all ranks."""
        return self._reduced(value, "MAX")

    def _reduced(self, value: float, how: str) -> float:
        if self.size == 1:
            return value
        import torch
        import torch.distributed as c10d

        # With two backends (cuda: nccl, cpu: gloo) numbers go over NCCL, ordered with the rest.
        device = f"cuda:{self.local_rank}" if "nccl" in c10d.get_backend() else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        c10d.all_reduce(total, op=getattr(c10d.ReduceOp, how))
        return float(total)

    def barrier(self) -> None:
        """Blocks until every rank has called it."""
        self.sum(0.0)


@contextmanager
def distributed(device: str) -> Iterator[Distributed]:
    """Yields the process group that torchrun's environment describes, or a single process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if size == 1:
        yield Distributed(0, 1, 0)
        return
    import torch
    import torch.distributed as c10d

    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(local)
    # gloo beside NCCL: checkpoints are written from main memory, in the background.
    c10d.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield Distributed(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        c10d.destroy_process_group()


def layers_of(model: Any) -> list[Any]:
    """The decoder layers, found by what they are: the longest list of like modules."""
    from torch import nn

    lists: list[Any] = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ModelError(f"{type(model).__name__}: no list of layers found to shard")
    return list(max(lists, key=lambda modules: len(list(modules))))


def mesh_shape(mode: str, ranks: int, per_node: int) -> tuple[int, int]:
    """Returns (replicas, ranks that share one copy of the weights) of a run on several nodes.

    Hybrid sharding (HSDP) keeps the all-gathers within a node, where links are fast; only
    gradients cross between nodes. "auto" is hybrid as soon as there are several nodes.
    Raises SettingsError if the nodes do not have the same number of ranks.
    """
    if mode == "full" or ranks // max(per_node, 1) <= 1:
        return 1, ranks
    if ranks % per_node:
        raise SettingsError(
            f"sharding {mode!r}: {ranks} processes are not nodes of {per_node} each; "
            'start as many on every node, or set sharding to "full"'
        )
    return ranks // per_node, per_node


def gathers_once(gather: str, parameters: int, free_bytes: float) -> bool:
    """Returns whether parameters stay gathered for a whole step: as asked, or if it is cheap.

    It costs 6 bytes per parameter on every rank, 2 for the parameter and 4 for its unreduced
    gradient; "auto" spends at most a quarter of a rank's free memory on that.
    """
    if gather != "auto":
        return gather == "step"
    return 6 * parameters < free_bytes / 4


def mesh_of(device: str, mode: str, dist: Distributed) -> Any:
    """Returns the device mesh: one row of all ranks, or (nodes, ranks per node) for hybrid."""
    from torch.distributed.device_mesh import init_device_mesh

    replicas, ranks = mesh_shape(mode, dist.size, dist.local_size)
    if replicas == 1:
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (replicas, ranks), mesh_dim_names=("replicate", "shard"))


def shard(
    module: Any, model: Any, placement: Placement, dist: Distributed, mode: str = "auto"
) -> None:
    """Splits the parameters of ``module`` (which holds ``model``) over ranks, in place.

    Computes in placement's dtype; the shards, the gradients' sum and the optimizer
    stay in the parameters' dtype. Every layer is a unit of its own, the rest is the last
    unit. Adapters stay whole on every rank: they are small, and the frozen rest is not.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = mesh_of(placement.device.split(":")[0], mode, dist)
    policy = MixedPrecisionPolicy(
        param_dtype=placement.torch_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    whole = {p for name, p in module.named_parameters() if "lora_" in name}
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)


def fill(module: Any, source: Any, device: str, dist: Distributed) -> None:
    """Gives an empty sharded module the values of ``source``, which rank 0 alone has.

    One tensor at a time goes over, so no other rank ever holds more than the largest.
    """
    import torch
    import torch.distributed as c10d
    from torch.distributed.tensor import DTensor, distribute_tensor

    module.to_empty(device=device)
    values = (
        dict(source.named_parameters()) | dict(source.named_buffers()) if source is not None else {}
    )
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, target in tensors.items():
        dtype = target.dtype
        if dist.is_rank_zero:
            value = values[name].detach().to(device=device, dtype=dtype)
        else:
            value = torch.empty(target.shape, device=device, dtype=dtype)
        with torch.no_grad():
            if isinstance(target, DTensor):
                spread = distribute_tensor(value, target.device_mesh, target.placements)
                target.to_local().copy_(spread.to_local())
            else:
                c10d.broadcast(value, 0)
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
