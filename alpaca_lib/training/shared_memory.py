"""FSDP's collectives through memory that all ranks of one machine share, for CPUs on Linux.

gloo sends every byte through the loopback network, and makes a reduce-scatter from an all-reduce.
Here each rank has a region of memory that the others can read:

    all-gather       write my shard             | barrier | copy every rank's shard   | barrier
    reduce-scatter   write the others' gradient | barrier | add up mine from everyone | barrier

The first barrier says that everything is written, the second that everything is read. Both are
gloo's, so a rank that has died is noticed as before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor

REGION = 16 * 2**20  # bytes per rank; what is longer goes in several rounds


class Regions:
    """One region of memory for each rank of a process group, readable by all.

    >>> regions = Regions.open(group)  # on every rank; None if one rank has none
    >>> regions.all_gather(output, shard)
    """

    def __init__(self, regions: list[Tensor], group: Any) -> None:
        self.regions = regions  # bytes, by rank
        self.group = group
        self.rank, self.size = c10d.get_rank(group), len(regions)

    @classmethod
    def open(cls, group: Any, size: int = REGION) -> Regions | None:
        """Returns the regions of all ranks of a group, or None if one of them has none.

        Every rank of the group calls it. A region has no name in the file system, and ends with
        the processes that use it.
        """
        path, mapped = "", []
        try:
            descriptor = os.memfd_create("alpaca_lib")
            os.posix_fallocate(descriptor, 0, size)
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        except (AttributeError, OSError):  # not Linux, or no memory
            descriptor = -1
        paths: list[str] = [""] * c10d.get_world_size(group)
        c10d.all_gather_object(paths, path, group=group)
        try:
            if all(paths):
                mapped = [torch.from_file(p, True, size, dtype=torch.uint8) for p in paths]
        except RuntimeError:  # of another machine or container, or not ours to read
            mapped = []
        everywhere: list[bool] = [False] * len(paths)
        c10d.all_gather_object(everywhere, bool(mapped), group=group)
        if descriptor >= 0:
            os.close(descriptor)  # the memory stays while it is mapped
        return cls(mapped, group) if all(everywhere) else None

    def all_gather(self, output: Tensor, shard: Tensor) -> None:
        """Fills ``output``, of shape (ranks * n,), with every rank's ``shard``, of shape (n,)."""
        rows = output.view(self.size, -1)
        for start, end in self._rounds(shard.numel(), shard.element_size()):
            self._region(self.rank, shard.dtype, end - start).copy_(shard[start:end])
            self._barrier()
            for rank in range(self.size):
                rows[rank, start:end].copy_(self._region(rank, shard.dtype, end - start))
            self._barrier()

    def reduce_scatter(self, output: Tensor, gradient: Tensor, average: bool) -> None:
        """Fills ``output``, of shape (n,), with this rank's row of the sum over all ranks.

        ``gradient`` has the shape (ranks * n,). The sum begins with rank 0's on every rank.
        ``average``: divided by the number of ranks.
        """
        rows, dtype = gradient.view(self.size, -1), gradient.dtype
        per_row = gradient.element_size() * self.size
        for start, end in self._rounds(output.numel(), per_row):
            shape = (self.size, end - start)
            mine = self._region(self.rank, dtype, shape[0] * shape[1]).view(shape)
            for rank in range(self.size):
                if rank != self.rank:
                    mine[rank].copy_(rows[rank, start:end])
            self._barrier()
            total = output[start:end]
            for rank in range(self.size):
                theirs = self._region(rank, dtype, shape[0] * shape[1]).view(shape)[self.rank]
                part = rows[rank, start:end] if rank == self.rank else theirs
                if rank:
                    total.add_(part)
                else:
                    total.copy_(part)
            self._barrier()
        if average:
            output.div_(self.size)

    def _rounds(self, count: int, bytes_each: int) -> list[tuple[int, int]]:
        """Returns (start, end) of the elements of each round that fits into a region."""
        most = self.regions[0].numel() // bytes_each
        return [(start, min(start + most, count)) for start in range(0, count, most)]

    def _region(self, rank: int, dtype: torch.dtype, count: int) -> Tensor:
        return self.regions[rank][: count * dtype.itemsize].view(dtype)

    def _barrier(self) -> None:
        c10d.barrier(self.group)


class _Collective:
    """What FSDP2 asks of a collective of one's own: how its buffers are allocated."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns an uninitialised tensor."""
        return torch.empty(*size, dtype=dtype, device=device)


class AllGather(_Collective):
    """Gathers shards, called as ``FSDPModule.set_custom_all_gather`` says."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> None:
        """Fills output_tensor."""
        # FSDP has put the shard into its place in the output.
        self.regions.all_gather(output_tensor, input_tensor)


class ReduceScatter(_Collective):
    """Reduces gradients, called as ``FSDPModule.set_custom_reduce_scatter`` says."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Fills output_tensor. Raises ValueError for a reduction other than SUM and AVG."""
        if op not in (c10d.ReduceOp.SUM, c10d.ReduceOp.AVG):
            raise ValueError(f"reduction {op}: only SUM and AVG")
        self.regions.reduce_scatter(output_tensor, input_tensor, op == c10d.ReduceOp.AVG)


def attach(units: Sequence[Any], group: Any) -> bool:
    """Makes FSDP units exchange shards through shared memory; returns whether they do.

    ``units``: what fully_shard was applied to. All ranks of the group call it, and must be on
    one machine.
    """
    regions = Regions.open(group)
    if regions is None:
        return False
    for unit in units:
        unit.set_custom_all_gather(AllGather(regions))
        unit.set_custom_reduce_scatter(ReduceScatter(regions))
    return True
