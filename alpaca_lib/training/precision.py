"""Mixed precision: an optimizer over float32 masters of parameters that compute in bfloat16.

bfloat16 has 8 significant bits: adding less than 1/512 of a weight changes nothing, and at a
learning rate of 2e-5 most updates are smaller. So the optimizer steps on float32 masters, the
model holds bfloat16 copies, and gradients accumulate in float32 (arXiv:1710.03740). With FSDP the
shards are the masters, and FSDP makes the copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor, nn

from alpaca_lib.errors import SettingsError
from alpaca_lib.optional import require
from alpaca_lib.training.sharding import Distributed, is_sharded, local_shard


class MasterWeights:
    """The trained parameters of this rank: their masters, gradients, norm and clipping.

    ``parameters``: name -> parameter of the model, a DTensor where FSDP shards it.
    ``masters``: name -> plain tensor with the parameter's shape on this rank. It is the
    parameter's own memory where that is float32 (or with ``masters=False``), else a float32
    copy, whose ``.grad`` accumulates the gradients of the step's micro-batches.
    ``exact``: initial values of masters by name, where the parameters are rounded already.

    >>> weights = MasterWeights(module, dist)
    >>> optimizer = create_optimizer(weights, "adamw", lr=2e-5, weight_decay=0.0)
    """

    def __init__(
        self,
        module: nn.Module,
        dist: Distributed,
        masters: bool = True,
        exact: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.dist = dist
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {}
        self._copied: dict[str, tuple[nn.Parameter, Tensor]] = {}  # masters with own memory
        for name, parameter in self.parameters.items():
            master = local_shard(parameter)
            if masters and master.dtype != torch.float32:
                initial = (exact or {}).get(name)
                master = master.float() if initial is None else initial
                self._copied[name] = parameter, master
            self.masters[name] = master
        longest = max((m.numel() for _, m in self._copied.values()), default=0)
        self._scratch = torch.empty(longest, device=next(module.parameters()).device)
        for parameter, master in self._copied.values():
            master.grad = torch.zeros_like(master)
            parameter.register_post_accumulate_grad_hook(_accumulate_in(master, self._scratch))

    def reduce_gradients(self) -> float:
        """Gives the masters the step's gradients, averaged over ranks; returns their L2 norm.

        FSDP has reduce-scattered its shards' in the backward pass; the rest is all-reduced here.
        """
        for name, parameter in self.parameters.items():
            if name not in self._copied:
                grad = parameter.grad
                self.masters[name].grad = None if grad is None else local_shard(grad)
        sharded = [name for name, p in self.parameters.items() if is_sharded(p)]
        replicated = [name for name, p in self.parameters.items() if not is_sharded(p)]
        self._average_over_ranks([self.masters[name] for name in replicated])
        # |g|^2 = sum of squares of what every rank has, once, + of all ranks' shards.
        squares = self._sum_of_squares(replicated)
        if sharded:
            mesh: Any = self.parameters[sharded[0]].device_mesh  # type: ignore[attr-defined]
            replicas = mesh.size(0) if mesh.ndim == 2 else 1  # hybrid: ranks with the same shard
            squares += self.dist.sum(self._sum_of_squares(sharded)) / replicas
        return math.sqrt(squares)

    def _average_over_ranks(self, masters: list[Tensor]) -> None:
        """Replaces the gradients of replicated masters by their mean, in one all-reduce."""
        if self.dist.size == 1 or not masters:
            return
        for master in masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        grads = [m.grad for m in masters if m.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        c10d.all_reduce(flat)
        flat /= self.dist.size
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _sum_of_squares(self, names: Iterable[str]) -> float:
        grads = [g for n in names if (g := self.masters[n].grad) is not None and g.numel()]
        if not grads:
            return 0.0
        norms = torch.stack(torch._foreach_norm(grads, 2.0, dtype=torch.float32))
        return float(norms.cpu().double().square().sum())  # MPS has no float64

    def clip(self, norm: float, most: float) -> None:
        """Scales gradients whose norm is ``norm`` so that it is at most ``most``."""
        if norm > most:
            grads = [m.grad for m in self.masters.values() if m.grad is not None]
            torch._foreach_mul_(grads, most / (norm + 1e-6))

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Rounds the masters into the model's parameters and clears all gradients."""
        for parameter, master in self._copied.values():
            parameter.copy_(master)
            if master.grad is not None:
                master.grad.zero_()
        for name, parameter in self.parameters.items():
            if name not in self._copied:
                parameter.grad = self.masters[name].grad = None

    def full_state_dict(self, model: Any) -> dict[str, Tensor]:
        """Returns the trained tensors by their names in ``model``, unsharded, in main memory.

        All ranks must call it; where the model is sharded only rank 0 gets the tensors. Of a
        model with adapters these are the adapters' alone.
        """
        masters = {name.removeprefix("model."): m for name, m in self.masters.items()}
        if hasattr(model, "peft_config"):
            return masters
        if not any(is_sharded(p) for p in self.parameters.values()):
            return model.state_dict() | masters
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        gathered: dict[str, Any] = get_model_state_dict(model, options=options)
        return gathered

    def state(self, optimizer: Any) -> dict[str, Any]:
        """Returns what a checkpoint holds, or is loaded into: masters and moments, by name.

        Shards are DTensors, so that another number of ranks can load them. 8-bit moments have
        one entry per rank: a block of 256 shares one scale, and small shards have 32 bits.
        """
        _initialize_moments(optimizer)
        moments: dict[str, Any] = {}
        for name, values in self._moments(optimizer):
            if hasattr(optimizer, "init_state") and self.dist.size > 1:  # bitsandbytes
                moments[self._of_this_rank(name)] = dict(values)
                continue
            moments[name] = {
                key: self._as_global(name, value) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }
        model = {name: self._as_global(name, master) for name, master in self.masters.items()}
        return {"model": model, "optimizer": moments}

    def restore(self, state: dict[str, Any], optimizer: Any) -> None:
        """Restores the optimizer's plain numbers and the model from a loaded ``state``."""
        for name, values in self._moments(optimizer):
            saved = state["optimizer"].get(name) or state["optimizer"][self._of_this_rank(name)]
            for key, value in values.items():
                if not isinstance(value, Tensor):
                    values[key] = saved[key]
        self.copy_to_model()

    def _moments(self, optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
        names = {id(master): name for name, master in self.masters.items()}
        return [(names[id(master)], values) for master, values in optimizer.state.items()]

    def _of_this_rank(self, name: str) -> str:
        return f"{name} of rank {self.dist.rank} of {self.dist.size}"

    def _as_global(self, name: str, local: Tensor) -> Tensor:
        """Returns the DTensor that this rank's tensor is a shard of, if its parameter is one."""
        parameter: Any = self.parameters[name]
        if not is_sharded(parameter) or local.shape != self.masters[name].shape:
            return local
        from torch.distributed.tensor import DTensor

        full: Tensor = DTensor.from_local(
            local,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return full


def _accumulate_in(master: Tensor, scratch: Tensor) -> Any:
    """Returns a hook that adds a parameter's gradient to its master's, through ``scratch``."""

    def accumulate(parameter: Tensor) -> None:
        assert parameter.grad is not None and master.grad is not None
        # Converted in one reused buffer: allocating a float32 copy per gradient costs more
        # time than the addition.
        gradient = scratch[: master.numel()].view_as(master)
        gradient.copy_(parameter.grad)
        master.grad.add_(gradient)
        parameter.grad = None

    return accumulate


def _initialize_moments(optimizer: Any) -> None:
    """Creates the moments that an optimizer creates at its first step: zeros."""
    bitsandbytes = hasattr(optimizer, "init_state")
    if bitsandbytes and not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.to_gpu()
        optimizer.initialized = True
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            if optimizer.state[parameter]:
                continue
            if bitsandbytes:
                optimizer.init_state(group, parameter, g, i)
            else:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def create_optimizer(weights: MasterWeights, name: str, lr: float, weight_decay: float) -> Any:
    """Returns AdamW over the masters: torch's ("adamw"), or "adamw8bit" (arXiv:2110.02861).

    The second stores the moments of tensors with 4,096 or more values in 8 bits. Raises
    SettingsError on an Apple GPU, for which bitsandbytes has none.
    """
    masters = [m for m in weights.masters.values() if m.numel()]
    if name == "adamw8bit" and masters and masters[0].device.type == "mps":
        raise SettingsError(
            "optimizer 'adamw8bit': bitsandbytes has no 8-bit optimizer for Apple GPUs; set "
            'optimizer to "adamw", or device to "cpu"'
        )
    if name == "adamw8bit":
        optimizer = require("bitsandbytes").optim.AdamW8bit
        return optimizer(masters, lr=lr, weight_decay=weight_decay)
    return torch.optim.AdamW(masters, lr=lr, weight_decay=weight_decay, fused=True)
