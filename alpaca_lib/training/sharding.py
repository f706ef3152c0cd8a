"""Ranks and shards: which process this is, and which part of each parameter it holds.

FSDP2 (``fully_shard``) splits every parameter over the ranks, all-gathers a layer's parameters
just before the layer computes, and frees them afterwards.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor, nn

from alpaca_lib.errors import ModelError, SettingsError
from alpaca_lib.models import Placement
from alpaca_lib.training import shared_memory


@dataclass(frozen=True)
class Distributed:
    """This process among all processes of the run: rank 0 writes files and prints.

    >>> with distributed("cpu") as dist:
    ...     assert dist.sum(1.0) == dist.size
    """

    rank: int  # 0 to size - 1
    size: int  # number of processes, the "world size"
    local_rank: int  # this process's number on its node
    local_size: int = 1  # processes on this node

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """Returns True on every rank if the flag is true on at least one."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """Returns the sum of a number over all ranks, in float64."""
        return self._all_reduce(value, "SUM")

    def largest(self, value: float) -> float:
        """Returns the largest of a number over all ranks."""
        return self._all_reduce(value, "MAX")

    def _all_reduce(self, value: float, operation: str) -> float:
        if self.size == 1:
            return value
        # With two backends (cuda: nccl, cpu: gloo) numbers go over NCCL, ordered with the rest.
        device = f"cuda:{self.local_rank}" if "nccl" in c10d.get_backend() else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        c10d.all_reduce(total, op=getattr(c10d.ReduceOp, operation))
        return float(total)

    def barrier(self) -> None:
        """Blocks until every rank has called it."""
        self.sum(0.0)


@contextmanager
def distributed(device: str) -> Iterator[Distributed]:
    """Yields the process group that torchrun's environment describes, or a single process.

    Raises SettingsError for several processes on an Apple GPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if size == 1:
        yield Distributed(rank=0, size=1, local_rank=0)
        return
    if device == "mps":
        raise SettingsError(
            f'device "mps": torch.distributed has no backend for Apple GPUs; {size} processes '
            'need device "cpu", or train in one process'
        )
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(local)
    # gloo as well as NCCL: checkpoints are written from main memory, in the background.
    c10d.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield Distributed(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        c10d.destroy_process_group()
        # gloo's threads live on. One that drops its last tensor only after Python has begun to
        # end asks for Python's lock, and aborts a run that was complete.
        time.sleep(0.5)


def layers_of(model: Any) -> list[Any]:
    """Returns the decoder layers: the longest ModuleList. Raises ModelError if there is none."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ModelError(f"{type(model).__name__}: no list of layers found to shard")
    return max(lists, key=len)


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


def splits_weights(quantization: str, ranks: int) -> bool:
    """Returns whether each rank holds a shard: quantised weights are small and cannot be split."""
    return ranks > 1 and quantization == "none"


def gathers_once(gather: str, parameters: int, free_bytes: float) -> bool:
    """Returns whether parameters stay gathered for a full step: as asked, or if it is cheap.

    It costs 6 bytes per parameter on every rank, 2 for the parameter and 4 for its unreduced
    gradient; "auto" spends at most a quarter of a rank's free memory on that.
    """
    if gather != "auto":
        return gather == "step"
    return 6 * parameters < free_bytes / 4


def shard(
    module: Any, model: Any, placement: Placement, dist: Distributed, mode: str = "auto"
) -> None:
    """Shards the parameters of ``module`` (which holds ``model``) over the ranks, in place.

    Layers compute in placement's dtype; shards and optimizer keep the parameters' dtype. Each
    decoder layer is an FSDP unit, and so is the rest. LoRA adapters stay unsharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # One row of all ranks, or (nodes, ranks per node) for hybrid sharding.
    replicas, ranks = mesh_shape(mode, dist.size, dist.local_size)
    mesh = init_device_mesh(
        placement.device.split(":")[0],
        (ranks,) if replicas == 1 else (replicas, ranks),
        mesh_dim_names=("shard",) if replicas == 1 else ("replicate", "shard"),
    )
    policy = MixedPrecisionPolicy(
        param_dtype=placement.torch_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    replicated = {p for name, p in module.named_parameters() if "lora_" in name}
    units = [*layers_of(model), module]
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=replicated)
    if placement.device == "cpu" and dist.local_size == dist.size:
        shared_memory.attach(units, mesh.get_group())


def load_into_shards(module: Any, source: Any, device: str, dist: Distributed) -> None:
    """Fills an empty sharded module with the values of ``source``, which only rank 0 has.

    Tensors are sent one by one: no other rank holds more than its shards and one full tensor.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    module.to_empty(device=device)
    values = _tensors(source) if dist.is_rank_zero else {}
    for name, target in _tensors(module).items():
        if dist.is_rank_zero:
            value = values[name].detach().to(device=device, dtype=target.dtype)
        else:
            value = torch.empty(target.shape, device=device, dtype=target.dtype)
        with torch.no_grad():
            if isinstance(target, DTensor):
                scattered = distribute_tensor(value, target.device_mesh, target.placements)
                target.to_local().copy_(scattered.to_local())
            else:
                c10d.broadcast(value, 0)
                target.copy_(value)


def _tensors(module: Any) -> dict[str, Any]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def keep_gathered(module: Any, last: bool) -> None:
    """Keeps parameters gathered, and gradients unreduced, until the step's last micro-batch.

    Called before each: one all-gather and one reduce-scatter per step, not per micro-batch.
    """
    module.set_requires_gradient_sync(last)
    module.set_reshard_after_forward(False)
    module.set_reshard_after_backward(last)


def is_sharded(parameter: Tensor) -> bool:
    """Returns whether FSDP has sharded a parameter: it is a DTensor then."""
    return hasattr(parameter, "to_local")


def local_shard(tensor: Any) -> Tensor:
    """Returns this rank's shard of a DTensor, or a plain tensor, in the same memory."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return local.detach()


def describe_shards(model: Any) -> list[dict[str, Any]]:
    """Returns each parameter's name, full shape ("whole") and shape on this rank ("mine")."""
    return [
        {"name": name, "whole": list(p.shape), "mine": list(local_shard(p).shape)}
        for name, p in model.named_parameters()
    ]
