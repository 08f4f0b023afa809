"""One loop for every stage: optimiser, schedule, checkpoints, resume, metrics.

A stage is deterministic from its seed: the batch of step k depends on (seed, k) alone, so a run that was killed goes on
as if nothing had happened.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast.

    Attributes:
        steps: optimiser steps in all; may be changed when a run is resumed.
        lr: peak learning rate; warmup_steps: linear warm-up; decay_steps: linear decay to a fiftieth at the end.
        weight_decay: of matrices only; clip: gradient norm.
        ema: decay of the averaged weights that are evaluated and shipped.
        checkpoint_s: seconds between checkpoints.
        workers: processes that make batches.
        seed: of everything.
        bf16: autocast to bfloat16.
        faster: beginnings of names → how many times faster these parts learn, as what starts from nothing must.
    """

    steps: int
    lr: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 500
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    checkpoint_s: float = 180.0
    workers: int = 1
    seed: int = 0
    bf16: bool = True
    faster: Mapping[str, float] = field(default_factory=dict)


class Stage(Protocol):
    """What a stage supplies: the batch of a step, and its loss."""

    name: str

    def batch(self, step: int) -> Any:
        """The batch of one step; a pure function of the stage's seed and `step`."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures to log."""

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """What is trained."""


class _Steps(Dataset):
    def __init__(self, stage: Stage, start: int, stop: int):
        self.stage, self.start, self.stop = stage, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Any:
        torch.set_num_threads(1)
        return self.stage.batch(self.start + index)


def learning_rate(step: int, config: LoopConfig) -> float:
    """Warm-up, plateau, linear decay."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (config.steps - step) / max(1, config.decay_steps)
    return config.lr * warm * max(0.02, min(1.0, left))


def _optimiser(stage: Stage, model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over what a stage trains, in groups by pace, and by whether they are matrices, which alone decay."""
    wanted = {id(p) for p in stage.parameters(model) if p.requires_grad}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in wanted:
            pace = next((times for begin, times in config.faster.items() if name.startswith(begin)), 1.0)
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((pace, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parts, "pace": pace, "weight_decay": decay} for (pace, decay), parts in groups.items()],
        lr=config.lr, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip


class Average:
    """Exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights; faster at the start of a run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[key].lerp_(value, 1 - decay)
            else:
                self.weights[key].copy_(value)


def train(
    stage: Stage,
    model: nn.Module,
    config: LoopConfig,
    folder: Path,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
) -> Average:
    """Train a stage, resuming from `folder/last.pt` when it is there.

    Args:
        stage: batches and loss.
        model: changed in place.
        config: how long and how fast.
        folder: holds `last.pt` and `metrics.jsonl`; created when missing.
        evaluate: called with a model that holds the averaged weights; its figures are logged.
        evaluate_every: steps between evaluations; 0 never.

    Returns:
        The averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    optimiser, average = _optimiser(stage, model, config), Average(model, config.ema)
    step = _resume(folder / "last.pt", model, optimiser, average)
    model.train()
    saved, begun, first = time.monotonic(), time.monotonic(), step
    for batch in _batches(stage, step, config):
        torch.manual_seed(config.seed * 1_000_003 + step)
        rate = learning_rate(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["pace"]
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            loss, figures = stage.loss(model, batch, step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(stage.parameters(model), config.clip)
        if math.isfinite(float(norm)):
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(model, step)
        step += 1
        if step % 20 == 0 or step == config.steps:
            pace = (time.monotonic() - begun) / (step - first)
            figures |= {"step": step, "lr": rate, "norm": float(norm), "s_per_step": pace}
            _log(folder, stage.name, figures, left_s=pace * (config.steps - step))
        if evaluate and evaluate_every and step % evaluate_every == 0:
            _log(folder, stage.name, {"step": step} | _with_average(model, average, evaluate, step))
        if time.monotonic() - saved > config.checkpoint_s or step == config.steps:
            _save(folder / "last.pt", model, optimiser, average, step)
            saved = time.monotonic()
    return average


def _batches(stage: Stage, start: int, config: LoopConfig) -> Iterator[Any]:
    if start >= config.steps:
        return
    loader = DataLoader(
        _Steps(stage, start, config.steps),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
    )
    yield from loader


def _with_average(model: nn.Module, average: Average, evaluate: Callable, step: int) -> dict[str, float]:
    own = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(average.weights)
    model.eval()
    try:
        return evaluate(model, step)
    finally:
        model.load_state_dict(own)
        model.train()


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average, step: int) -> None:
    state = {
        "model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average.weights, "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    average.weights = state["average"]
    return state["step"]


def _log(folder: Path, name: str, figures: dict[str, float], left_s: float | None = None) -> None:
    figures = {k: round(float(v), 5) for k, v in figures.items()}
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"stage": name, "time": round(time.time(), 1), **figures}) + "\n")
    left = "" if left_s is None else f"  {left_s / 60:.0f} min left"
    print(name, " ".join(f"{k}={v:g}" for k, v in figures.items()), left, flush=True)
