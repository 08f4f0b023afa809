"""A stage small enough to look into, fit a line, and a program that trains it, to be killed."""

import sys
from pathlib import Path

import torch
from torch import nn

from model.training.devices import Devices
from model.training.loop import LoopConfig, train


class Line:
    """Fit 3 x + 1; `parts` makes micro-batches that together are one batch; `bad` has no finite gradient."""

    name = "line"

    def __init__(self, rows=8, parts=1, extra=False, bad=False):
        self.rows, self.parts, self.bad = rows, parts, bad
        torch.manual_seed(5)
        self.extra = nn.Linear(1, 1) if extra else None

    def modules(self):
        return self.extra

    def batch(self, index):
        number, part = divmod(index, self.parts)
        generator = torch.Generator().manual_seed(number)
        x = torch.rand(self.rows * self.parts, 1, generator=generator)[part * self.rows : (part + 1) * self.rows]
        return x, 3 * x + 1

    def loss(self, model, batch, step):
        out = model(batch[0]) if self.extra is None else self.extra(model(batch[0]))
        loss = (out - batch[1]).square().mean() * (float("nan") if self.bad else 1)
        return loss, {"loss": float(loss.detach())}

    def parameters(self, model):
        return list(model.parameters())


class Noisy(Line):
    """Its loss depends on torch's generator, as dropout does."""

    def loss(self, model, batch, step):
        loss, figures = super().loss(model, batch, step)
        return loss * (1 + torch.rand(())), figures


def line_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(1, 1)


def main(folder: Path, steps: int | None) -> None:
    """Train slowly enough to be killed, saving at every step; with a number of steps, among `torchrun`'s processes."""
    devices = Devices.join("cpu")
    if steps is not None:
        config = LoopConfig(steps=steps, workers=0, decay_steps=1, tensorboard=False, warmup_steps=5)
        train(Line(), line_model(), config, folder, devices=devices)
        devices.leave()
        return
    config = LoopConfig(
        steps=400, workers=1, decay_steps=10, checkpoint_s=0.0, log_every=5, accumulation=2, tensorboard=False
    )
    try:
        train(Noisy(), line_model(), config, folder, devices=devices)
    except InterruptedError:
        sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
