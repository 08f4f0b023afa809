"""One loop for every stage: accumulation, mixed precision, schedule, several devices, checkpoints, resume, metrics.

A stage is deterministic from its seed: micro-batch i depends on (seed, i) alone and torch's generators are seeded anew
at every step, so a run that was killed at any moment goes on as if nothing had happened, to the same bits.
"""

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model.training.devices import PRECISIONS, Devices
from model.training.journal import Journal
from model.training.optimiser import SCHEDULES, Average, build_optimiser, learning_rate
from model.training.snapshot import Snapshot


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast.

    Attributes:
        steps: optimiser steps in all; may be changed when a run is resumed.
        lr: peak learning rate.
        schedule: `linear`, `cosine`, `adaptive` or `constant`, see `learning_rate`; warmup_steps: linear warm-up;
            decay_steps: of `linear`; eta: of `adaptive`.
        accumulation: micro-batches a step, on each device.
        precision: `fp32`, or autocast to `bf16` or `fp16` (with a scaled loss).
        weight_decay: of matrices only; clip: gradient norm.
        ema: decay of the averaged weights that are evaluated and shipped.
        checkpoint_s: seconds between checkpoints; log_every: steps between lines of the journal.
        workers: processes that make batches.
        seed: of everything.
        faster: beginnings of names → how many times faster these parts learn, as what starts from nothing must.

    Raises:
        ValueError: a word or number that is not accepted; the message names its field.
    """

    steps: int
    lr: float = 1e-3
    schedule: str = "linear"
    warmup_steps: int = 100
    decay_steps: int = 500
    eta: float = 1e-4
    accumulation: int = 1
    precision: str = "fp32"
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    checkpoint_s: float = 180.0
    log_every: int = 20
    workers: int = 1
    seed: int = 0
    tensorboard: bool = True
    faster: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for name, accepted in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted are {list(accepted)}")
        for name in ("steps", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is accepted")

    @property
    def fingerprint(self) -> str:
        """Of all that changes the result of a step, but for the number of steps in all."""
        kept = {k: v for k, v in asdict(self).items() if k not in _MAY_CHANGE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


_MAY_CHANGE = {"steps", "checkpoint_s", "log_every", "workers", "tensorboard"}


class Stage(Protocol):
    """What a stage supplies: the micro-batch of a number, and its loss.

    It may also have `modules()`, an `nn.Module` of what only training needs (it trains too, and is never shipped), and
    `settled(step)`, False where a step depends on what earlier ones left behind, so that no snapshot is due before it.
    """

    name: str

    def batch(self, index: int) -> Any:
        """Micro-batch `index`; a pure function of the stage's seed and `index`."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures to log."""

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """What is trained, but for what is frozen."""


class _MicroBatches(Dataset):
    def __init__(self, stage: Stage, start: int, config: LoopConfig, devices: Devices):
        self.stage, self.start, self.config, self.devices = stage, start, config, devices

    def __len__(self) -> int:
        return (self.config.steps - self.start) * self.config.accumulation

    def __getitem__(self, place: int) -> Any:
        torch.set_num_threads(1)
        step, micro = divmod(place, self.config.accumulation)
        return self.stage.batch(self.devices.micro_batch(self.start + step, micro, self.config.accumulation))


def _outlive_sigterm(_: int) -> None:
    """A signal to the whole group must not take the batches from a step that is to end.

    Its own group, and not an ignored signal: by that very signal a parent that failed ends its workers.
    """
    os.setpgrp()


class Run:
    """One stage on its way.

    Args:
        stage: batches and loss.
        model: changed in place.
        config: how long and how fast.
        folder: holds `last.pt`, `metrics.jsonl` and `tensorboard/`; created when missing.
        devices: this process among others; None is this one alone, where the model lies.
    """

    def __init__(
        self, stage: Stage, model: nn.Module, config: LoopConfig, folder: Path, devices: Devices | None = None
    ):
        self.stage, self.model, self.config, self.folder = stage, model, config, folder
        self.devices = devices or Devices(next(model.parameters()).device)
        self.extras: nn.Module | None = stage.modules() if hasattr(stage, "modules") else None
        if self.extras is not None:
            self.extras.to(self.devices.device)
        wanted = {id(p) for p in stage.parameters(model) if p.requires_grad}
        self.named = [(name, p) for name, p in model.named_parameters() if id(p) in wanted]
        own = [] if self.extras is None else [(f"extras.{n}", p) for n, p in self.extras.named_parameters()]
        self.trained = [p for _, p in (*self.named, *own)]
        self.optimiser = build_optimiser((*self.named, *own), config.lr, config.weight_decay, config.faster)
        self.average = Average(self.named, config.ema)
        self.scaler = torch.amp.GradScaler(self.devices.device.type, enabled=config.precision == "fp16")
        self.snapshot = Snapshot(
            model, self.extras, self.optimiser, self.average, self.scaler, f"{stage.name}-{config.fingerprint}"
        )
        self.stopped = False

    def go(self, evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None, every: int = 0) -> Average:
        """Train to the end, from `folder/last.pt` where it is there.

        Args:
            evaluate: called with a model that holds the averaged weights; its figures are written.
            every: steps between evaluations; 0 never.

        Returns:
            The averaged weights.

        Raises:
            ResumeError: `last.pt` does not fit.
            InterruptedError: SIGTERM came; the run was saved.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.config.seed)
        step = first = self.snapshot.restore(self.folder)
        self.model.train()
        if step >= self.config.steps:
            return self.average
        journal = Journal(self.folder, self.stage.name, step, self.config.tensorboard) if self.devices.first else None
        batches = self._batches(step)
        saved = begun = time.monotonic()
        with self._stop_on_sigterm():
            while step < self.config.steps:
                figures = self._step(step, batches)
                step += 1
                if journal:
                    journal.add(figures)
                last = step == self.config.steps
                if journal and (step % self.config.log_every == 0 or last):
                    pace = (time.monotonic() - begun) / (step - first)
                    journal.write(step, pace * (self.config.steps - step), s_per_step=pace)
                if journal and evaluate and every and (step % every == 0 or last):
                    journal.write(step, **self._evaluated(evaluate, step))
                if not last and not self._settled(step):
                    continue
                stop = self.devices.agree(self.stopped)
                if last or stop or self.devices.agree(time.monotonic() - saved > self.config.checkpoint_s):
                    if self.devices.first:
                        self.snapshot.save(self.folder, step)
                    self.devices.wait()
                    saved = time.monotonic()
                if stop and not last:
                    raise InterruptedError(f"stopped by SIGTERM at step {step}; run the same command to go on")
        if journal:
            journal.close()
        return self.average

    def _step(self, step: int, batches: Iterator[Any]) -> dict[str, float]:
        """One step of the optimiser; its figures, averaged over the micro-batches."""
        config, device = self.config, self.devices.device.type
        # Other processes drop other things out, else they would see the same noise.
        torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + self.devices.rank)
        rate = learning_rate(
            step, config.steps, config.lr, config.warmup_steps, config.schedule, config.decay_steps, config.eta
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["pace"]
        dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
        totals: dict[str, float] = {}
        for _ in range(config.accumulation):
            batch = self.devices.put(next(batches))
            with torch.autocast(device, dtype, enabled=config.precision != "fp32"):
                loss, figures = self.stage.loss(self.model, batch, step)
            self.scaler.scale(loss / config.accumulation).backward()
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + float(value) / config.accumulation
        self.devices.average(self.trained)
        self.scaler.unscale_(self.optimiser)
        norm = float(nn.utils.clip_grad_norm_(self.trained, config.clip))
        if self.scaler.is_enabled() or math.isfinite(norm):
            self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(self.named, step)
        if not math.isfinite(norm):
            return totals | {"lr": rate, "skipped": 1.0}
        return totals | {"lr": rate, "norm": norm, "skipped": 0.0}

    def _settled(self, step: int) -> bool:
        """Whether a snapshot may be taken before this step."""
        return not hasattr(self.stage, "settled") or self.stage.settled(step)

    def _batches(self, start: int) -> Iterator[Any]:
        workers = self.config.workers
        yield from DataLoader(
            _MicroBatches(self.stage, start, self.config, self.devices),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_outlive_sigterm,
            generator=torch.Generator(),  # its own: the steps' generator must not be drawn from where a run goes on
            prefetch_factor=4 if workers else None,
        )

    def _evaluated(self, evaluate: Callable, step: int) -> dict[str, float]:
        own = self.average.apply(self.model)
        self.model.eval()
        try:
            return evaluate(self.model, step)
        finally:
            with torch.no_grad():
                for name, weight in self.named:
                    weight.copy_(own[name])
            self.model.train()

    @contextmanager
    def _stop_on_sigterm(self) -> Iterator[None]:
        """A first SIGTERM lets the step end and be saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> None:
            self.stopped = True

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def train(
    stage: Stage,
    model: nn.Module,
    config: LoopConfig,
    folder: Path,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    devices: Devices | None = None,
) -> Average:
    """Train a stage, resuming from `folder/last.pt` when it is there; see `Run`."""
    return Run(stage, model, config, folder, devices).go(evaluate, evaluate_every)
