"""How the weights move: AdamW in groups, schedules of the learning rate, and the average that is shipped.

Source: Loshchilov & Hutter 2019, AdamW; Liu et al. 2026, PathChat-SegR1, §3.4 and App. (α_k = α₀ / (1 + η k)).
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

SCHEDULES = ("linear", "cosine", "adaptive", "constant")
FLOOR = 0.02
"""The share of the peak that linear and cosine decay end at."""


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str, decay: int = 0, eta: float = 0.0):
    """The learning rate of a step, after a linear warm-up.

    Args:
        step: from 0.
        steps: of the whole run.
        peak: α₀.
        warmup: steps until the peak.
        schedule: `linear` (plateau, then a decay over the last `decay` steps), `cosine` (over the whole run),
            `adaptive` (α₀ / (1 + η k), the Robbins-Monro schedule of SO-GRPO) or `constant`.
        decay: steps of the linear decay.
        eta: η of `adaptive`.

    Raises:
        ValueError: no such schedule.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    if schedule == "linear":
        return peak * warm * max(FLOOR, min(1.0, (steps - step) / max(1, decay)))
    if schedule == "cosine":
        return peak * warm * max(FLOOR, 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))))
    if schedule == "adaptive":
        return peak * warm / (1 + eta * step)
    if schedule == "constant":
        return peak * warm
    raise ValueError(f"schedule={schedule!r}: accepted are {list(SCHEDULES)}")


def build_optimiser(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float, faster: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW in groups by pace, and by whether they are matrices, which alone decay.

    Args:
        named: what is trained.
        lr: peak learning rate; a group's is `pace` times that of the schedule.
        weight_decay: of matrices.
        faster: beginnings of names → pace; the first that fits counts.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        pace = next((times for begin, times in faster.items() if name.startswith(begin)), 1.0)
        decays = parameter.ndim >= 2 and not getattr(parameter, "rows_only", False)
        groups.setdefault((pace, weight_decay if decays else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parts, "pace": pace, "weight_decay": decay} for (pace, decay), parts in groups.items()],
        lr=lr, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip


class Average:
    """Exponential moving average of what is trained; the rest does not change.

    Attributes:
        weights: name → average.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in named}

    @torch.no_grad()
    def update(self, named: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
        """Move towards the weights; faster at the start of a run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in named:
            self.weights[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> dict[str, Tensor]:
        """Put the averages into a model; returns what they replaced."""
        own = dict(model.named_parameters())
        replaced = {name: own[name].detach().clone() for name in self.weights}
        for name, weight in self.weights.items():
            own[name].copy_(weight)
        return replaced
