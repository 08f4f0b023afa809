"""What the machine can do at most, measured: multiply matrices, and copy memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """Measured on this machine: `flops` per second of a large matrix product, `bytes` per second read and written."""

    dtype: str
    flops: float
    bytes: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of several sizes of matrix product in `dtype`, and of several copies of a large buffer."""
    cuda = device.type == "cuda"
    flops = 0.0
    for edge in (4096, 8192, 16384) if cuda else (512, 1024, 2048):
        a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        flops = max(flops, 2 * edge**3 / _best_seconds(lambda: a @ b, device))  # noqa: B023
    source = torch.empty((2 << 30) if cuda else (128 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device)
    return Ceilings(str(dtype).removeprefix("torch."), flops, 2 * source.numel() / seconds)


def _best_seconds(work: Callable[[], object], device: torch.device, budget_s: float = 1.0) -> float:
    """Least seconds of one call among those that fit the budget, at least five."""
    work()
    best, started, calls = float("inf"), time.perf_counter(), 0
    while calls < 5 or time.perf_counter() - started < budget_s:
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        best, calls = min(best, time.perf_counter() - began), calls + 1
    return best


def wait(device: torch.device) -> None:
    """Until everything that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
