"""Where a run computes and with whom: one process a device, as `torchrun` or `accelerate launch` start them.

Every process draws other micro-batches of the same numbered sequence and the gradients are averaged, so that n
processes with k micro-batches each take the same step as one process with n·k of them.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Devices:
    """This process among all.

    Attributes:
        device: where this one computes.
        rank: its number; 0 writes checkpoints and metrics.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: str | None = None) -> "Devices":
        """Find this process' place from the environment that `torchrun` sets, and meet the others.

        Args:
            device: `cpu`, `cuda` or `cuda:1`; None takes a GPU where there is one.
        """
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world)
        return cls(chosen, rank, world)

    def leave(self) -> None:
        """Part from the others."""
        if self.world > 1:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def micro_batch(self, step: int, micro: int, accumulation: int) -> int:
        """The number of a micro-batch in the sequence that all processes share."""
        return (step * accumulation + micro) * self.world + self.rank

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients over the processes; a part that had none here counts as zero."""
        if self.world == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.float().flatten() for parameter in parameters])
        distributed.all_reduce(flat)
        parts = flat.div_(self.world).split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes so; all get the same answer."""
        if self.world == 1:
            return wish
        flag = torch.tensor([float(wish)], device=self.device)
        distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    def wait(self) -> None:
        """Until all have come so far."""
        if self.world > 1:
            distributed.barrier()

    def put(self, batch: object) -> object:
        """A batch with its tensors on this device: a tensor, a tuple, list or dict of them, or a dataclass."""
        return _to(batch, self.device)


def _to(value: object, device: torch.device) -> object:
    if device.type == "cpu":
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (tuple, list)):
        return type(value)(_to(part, device) for part in value)
    if isinstance(value, dict):
        return {key: _to(part, device) for key, part in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        moved = object.__new__(type(value))
        for name in value.__dataclass_fields__:
            object.__setattr__(moved, name, _to(getattr(value, name), device))
        return moved
    return value
