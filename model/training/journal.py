"""The metrics of a run: one JSON line a look into `metrics.jsonl`, the same for TensorBoard, and a line to read."""

import json
import time
from collections import defaultdict
from pathlib import Path


class Journal:
    """Collects figures of steps and writes their means.

    Args:
        folder: of the run.
        stage: its name.
        step: where the run goes on; what was written of later steps is dropped, as those steps come again.
        tensorboard: whether curves are written too, into `folder/tensorboard`.
    """

    def __init__(self, folder: Path, stage: str, step: int, tensorboard: bool = True):
        self.path, self.stage = folder / "metrics.jsonl", stage
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._drop_later(step)
        self._curves = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def _drop_later(self, step: int) -> None:
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
            part = self.path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in kept))
            part.replace(self.path)

    def add(self, figures: dict[str, float]) -> None:
        """Figures of one step."""
        for name, value in figures.items():
            self._sums[name].append(float(value))

    def write(self, step: int, left_s: float | None = None, **more: float) -> dict[str, float]:
        """The means since the last time, and single figures; returns what was written."""
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums.clear()
        figures = {name: float(f"{value:.6g}") for name, value in (means | more).items()}
        row = {"stage": self.stage, "step": step, "time": round(time.time(), 1), **figures}
        with self.path.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        if self._curves is not None:
            for name, value in figures.items():
                self._curves.add_scalar(f"{self.stage}/{name}", value, step)
        left = "" if left_s is None else f"  {left_s / 60:.0f} min left"
        told = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        print(f"{self.stage} {step} {told}{left}", flush=True)
        return figures

    def close(self) -> None:
        """Flush the curves."""
        if self._curves is not None:
            self._curves.close()


def _step_of(line: str) -> float:
    """The step of a line; a torn last line counts as after everything."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
