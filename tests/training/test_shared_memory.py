"""Collectives through shared memory: gloo's results, several rounds, and where they cannot be."""

from __future__ import annotations

import json
import os

import pytest
import torch
import torch.distributed as c10d
from torch import nn

from alpaca_lib.launch.launcher import free_port
from alpaca_lib.training import shared_memory
from alpaca_lib.training.sharding import distributed
from alpaca_lib.training.shared_memory import Regions

FAULTS = ("no memory", "not Linux", "not readable")


def join_ranks(rank, size, port):
    """Sets what torchrun tells a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def run(rank, size, port, folder):
    """Does all work of this file on one rank, and writes what it returns."""
    torch.set_num_threads(1)
    join_ranks(rank, size, port)
    with distributed("cpu"):
        found = {
            "collectives": compare_with_gloo(rank),
            "weights": train_sharded(rank),
            "faults": [open_with_fault(rank, fault) for fault in FAULTS],
        }
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory):
    """What each of two ranks, or of three, has found."""
    folder, size = tmp_path_factory.mktemp("ranks"), request.param
    torch.multiprocessing.spawn(run, (size, free_port(), folder), nprocs=size)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def compare_with_gloo(rank):
    """Every dtype, length and kind of sum; regions of 96 bytes make many rounds."""
    size, wrong = c10d.get_world_size(), []
    regions = Regions.open(c10d.group.WORLD, 96)
    for dtype in (torch.float32, torch.bfloat16):
        for length in (1, 5, 24, 1001):
            torch.manual_seed(rank)
            shard, full = torch.randn(length).to(dtype), torch.randn(size * length).to(dtype)
            got = torch.empty(size * length, dtype=dtype)
            wanted = [torch.empty_like(shard) for _ in range(size)]
            c10d.all_gather(wanted, shard)
            regions.all_gather(got, shard)
            if not torch.equal(got, torch.cat(wanted)):
                wrong.append(f"all-gather {dtype} {length}")
            everyone = [torch.empty_like(full) for _ in range(size)]
            c10d.all_gather(everyone, full)
            rows = [row.view(size, length)[rank] for row in everyone]
            total = rows[0].clone()
            for row in rows[1:]:
                total += row
            for average in (False, True):
                regions.reduce_scatter(shard, full, average)
                if not torch.equal(shard, total / size if average else total):
                    wrong.append(f"reduce-scatter {dtype} {length} {average}")
    return wrong


def train_sharded(rank):
    """Two steps of a sharded model, with gloo's collectives and through shared memory."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found, used = [], []
    for shared in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 5))
        mesh = init_device_mesh("cpu", (c10d.get_world_size(),))
        units = [model[0], model[2], model]
        for unit in units:
            fully_shard(unit, mesh=mesh)
        if shared:
            used.append(shared_memory.attach(units, mesh.get_group()))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        torch.manual_seed(rank)
        for _ in range(2):
            model(torch.randn(4, 7)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([p.full_tensor().flatten() for p in model.parameters()]))
    # Three ranks' numbers may be added in another order than gloo's.
    return [used, float((found[0] - found[1]).abs().max())]


def open_with_fault(rank, fault):
    """Returns whether no rank has regions where rank 1 has none, or cannot read the others'."""

    def refuse(*_, **__):
        raise RuntimeError("unable to open file") if fault == "not readable" else OSError(28, "")

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1 and fault == "not Linux":
            patch.delattr(os, "memfd_create")
        elif rank == 1 and fault == "no memory":
            patch.setattr(os, "posix_fallocate", refuse)
        elif rank == 1:
            patch.setattr(torch, "from_file", refuse)
        return Regions.open(c10d.group.WORLD) is None


def test_collectives_give_what_gloo_gives(results):
    assert [found["collectives"] for found in results] == [[]] * len(results)


def test_fsdp_trains_to_the_same_weights(results):
    for used, difference in (found["weights"] for found in results):
        assert used == [True]
        assert difference <= (0.0 if len(results) == 2 else 1e-6)


def test_one_rank_that_cannot_makes_all_use_gloo(results):
    assert [found["faults"] for found in results] == [[True] * len(FAULTS)] * len(results)


def leave_work(rank, size, port):
    """Ends while gloo's threads hold the only references to tensors that Python has seen."""
    join_ranks(rank, size, port)
    with distributed("cpu"):
        import torch.distributed.fsdp  # keeps the group, and its threads

        for _ in range(20):
            tensor = torch.ones(100_000)
            tensor.seen = True
            c10d.all_reduce(tensor, async_op=True)


def test_work_that_is_left_does_not_abort_the_end_of_a_rank():
    torch.multiprocessing.spawn(leave_work, (2, free_port()), nprocs=2)
