"""What an optimizer steps on: float32 masters of parameters that compute in bfloat16.

An update of lr 2e-5 is below bfloat16's resolution, so it is made on float32 masters;
the model itself holds bfloat16 copies, and their gradients are added up in float32.
With FSDP the shards are the masters, and it makes the copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alpaca_lib.training.sharding import Distributed


class Trained:
    """The trained parameters of this process: masters, their gradients, their norm.

    ``masters`` are plain tensors by name: shards of this rank where FSDP shards, the
    parameters themselves where they are float32 (or where no masters are wanted).
    ``exact``: what masters begin as, by name, where the parameters are rounded already.
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
        self._copied: dict[str, tuple[nn.Parameter, Tensor]] = {}
        for name, parameter in self.parameters.items():
            local = _local(parameter)
            self.masters[name] = local.detach()
            if masters and local.dtype != torch.float32:
                begin = (exact or {}).get(name)
                self.masters[name] = local.detach().float() if begin is None else begin
                self._copied[name] = parameter, self.masters[name]
        longest = max((m.numel() for _, m in self._copied.values()), default=0)
        self._scratch = torch.empty(longest) if longest else None
        for parameter, master in self._copied.values():
            master.grad = torch.zeros_like(master)
            if self._scratch is not None and self._scratch.device != master.device:
                self._scratch = self._scratch.to(master.device)
            parameter.register_post_accumulate_grad_hook(self._adder(master))

    def _adder(self, master: Tensor) -> Any:
        def add(parameter: Tensor) -> None:
            # Through one buffer: a float32 copy of each gradient costs more than adding it.
            assert parameter.grad is not None and self._scratch is not None
            assert master.grad is not None
            copy = self._scratch[: master.numel()].view_as(master)
            copy.copy_(parameter.grad)
            master.grad.add_(copy)
            parameter.grad = None

        return add

    def reduce_gradients(self) -> float:
        """Puts the step's gradients beside the masters; returns their norm over all ranks."""
        for name, parameter in self.parameters.items():
            if name not in self._copied:
                grad = parameter.grad
                self.masters[name].grad = None if grad is None else _local(grad)
        shared = [n for n, p in self.parameters.items() if not _sharded(p)]
        self._add_up([self.masters[name] for name in shared])
        split = [name for name in self.masters if _sharded(self.parameters[name])]
        squares = self._square(shared)
        if split:
            mesh: Any = self.parameters[split[0]].device_mesh  # type: ignore[attr-defined]
            copies = mesh.size(0) if mesh.ndim == 2 else 1  # hybrid: each shard is there so often
            squares += self.dist.sum(self._square(split)) / copies
        return math.sqrt(squares)

    def _add_up(self, masters: list[Tensor]) -> None:
        """The mean over ranks, as FSDP's, of the gradients of what every rank has whole."""
        if self.dist.size == 1 or not masters:
            return
        import torch.distributed as c10d

        for master in masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        grads = [m.grad for m in masters if m.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        c10d.all_reduce(flat)
        flat /= self.dist.size
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _square(self, names: Any) -> float:
        grads = [g for n in names if (g := self.masters[n].grad) is not None and g.numel()]
        if not grads:
            return 0.0
        norms = torch.stack(torch._foreach_norm(grads, 2.0, dtype=torch.float32))
        return float(norms.double().square().sum())

    def clip(self, norm: float, most: float) -> None:
        """Scales the gradients so that their norm is at most ``most``."""
        if norm > most:
            grads = [m.grad for m in self.masters.values() if m.grad is not None]
            torch._foreach_mul_(grads, most / (norm + 1e-6))

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Gives the stepped masters back to the model, and begins new gradients."""
        for parameter, master in self._copied.values():
            parameter.copy_(master)
            if master.grad is not None:
                master.grad.zero_()
        for name, parameter in self.parameters.items():
            if name not in self._copied:
                parameter.grad = self.masters[name].grad = None

    def full_state_dict(self, model: Any) -> dict[str, Tensor]:
        """The trained model's tensors under their names in ``model``, gathered on rank 0 in
        main memory (all ranks must call it); of a model with adapters only these."""
        masters = {name.removeprefix("model."): m for name, m in self.masters.items()}
        if hasattr(model, "peft_config"):
            return masters
        if not any(_sharded(p) for p in self.parameters.values()):
            return model.state_dict() | masters
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        gathered: dict[str, Any] = get_model_state_dict(model, options=options)
        return gathered

    def state(self, optimizer: Any) -> dict[str, Any]:
        """What a checkpoint holds, as tensors that it can be loaded into: masters and the
        optimizer's averages by name; shards as DTensors, so another number of ranks can
        load them."""
        _begin(optimizer)
        names = {id(master): name for name, master in self.masters.items()}
        averages: dict[str, Any] = {}
        # Blocks of 8-bit values have a scale each: they do not cut anew. And of one parameter
        # the part of one rank may be large enough for 8 bits, and that of another not.
        by_rank = hasattr(optimizer, "init_state") and self.dist.size > 1
        for master, values in optimizer.state.items():
            name = names[id(master)]
            if by_rank:
                averages[f"{name} of rank {self.dist.rank} of {self.dist.size}"] = dict(values)
                continue
            averages[name] = {
                key: self._of_all(name, value) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }
        model = {name: self._of_all(name, master) for name, master in self.masters.items()}
        return {"model": model, "optimizer": averages}

    def _of_all(self, name: str, local: Tensor) -> Tensor:
        """The DTensor of which ``local`` is this rank's part, if the parameter is one."""
        parameter: Any = self.parameters[name]
        if not _sharded(parameter) or local.shape != self.masters[name].shape:
            return local
        from torch.distributed.tensor import DTensor

        whole: Tensor = DTensor.from_local(
            local, parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip
        return whole

    def loaded(self, state: dict[str, Any], optimizer: Any) -> None:
        """After a checkpoint was loaded into ``state``: numbers that are not tensors go back
        to the optimizer, and the masters' values to the model."""
        names = {id(master): name for name, master in self.masters.items()}
        for master, values in optimizer.state.items():
            name = names[id(master)]
            rank = f"{name} of rank {self.dist.rank} of {self.dist.size}"
            found = state["optimizer"].get(name) or state["optimizer"][rank]
            for key, value in values.items():
                if not isinstance(value, Tensor):
                    values[key] = found[key]
        self.copy_to_model()


def _begin(optimizer: Any) -> None:
    """Makes the averages that an optimizer would make at its first step: zeros."""
    if hasattr(optimizer, "init_state"):  # bitsandbytes
        if not optimizer.initialized:
            optimizer.check_overrides()
            optimizer.to_gpu()
            optimizer.initialized = True
        for g, group in enumerate(optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                if not optimizer.state[parameter]:
                    optimizer.init_state(group, parameter, g, i)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def _sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "to_local")


def _local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; another tensor is its own."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach() if not isinstance(local, nn.Parameter) else local


def optimizer_of(trained: Trained, name: str, lr: float, weight_decay: float) -> Any:
    """AdamW over the masters: torch's fused one, or with averages in 8 bits."""
    masters = [m for m in trained.masters.values() if m.numel()]
    if name == "adamw8bit":
        from alpaca_lib.optional import require

        # Small tensors keep float32 averages, as bitsandbytes advises.
        optimizer = require("bitsandbytes").optim.AdamW8bit
        return optimizer(masters, lr=lr, weight_decay=weight_decay)
    return torch.optim.AdamW(masters, lr=lr, weight_decay=weight_decay, fused=True)
