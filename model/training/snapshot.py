"""A run on disk: all that the next step depends on, so that a killed run goes on to the very same bits.

Frozen weights are not in it, as they come from the same starting point again. `last.pt` is replaced at once or not at
all.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.training.optimiser import Average

NAME = "last.pt"


class ResumeError(ValueError):
    """A run that cannot be resumed; the message says what does not fit."""


@dataclass
class Snapshot:
    """What is saved and restored together.

    Attributes:
        model: its trained parameters and buffers count.
        extras: what only the stage needs, or None.
        optimiser, average, scaler: their states count.
        fingerprint: of the settings that must not change between parts of a run.
    """

    model: nn.Module
    extras: nn.Module | None
    optimiser: torch.optim.Optimizer
    average: Average
    scaler: torch.amp.GradScaler
    fingerprint: str

    def save(self, folder: Path, step: int) -> None:
        """Write `folder/last.pt`, synced and renamed."""
        state = {
            "step": step,
            "fingerprint": self.fingerprint,
            "model": _trained(self.model),
            "extras": None if self.extras is None else self.extras.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.weights,
            "scaler": self.scaler.state_dict(),
        }
        part = folder / f".{NAME}.part"
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / NAME)

    def restore(self, folder: Path) -> int:
        """Read `folder/last.pt` when it is there.

        Returns:
            The step to go on with; 0 without a snapshot.

        Raises:
            ResumeError: the file is damaged, or of a run with other settings or parts.
        """
        path = folder / NAME
        if not path.is_file():
            return 0
        try:
            device = next(self.model.parameters()).device
            state = torch.load(path, weights_only=True, map_location=device)
        except Exception as error:
            raise ResumeError(f"{path}: cannot be read ({error}); remove it to begin anew") from error
        if state.get("fingerprint") != self.fingerprint:
            raise ResumeError(
                f"{path}: of a run with other settings ({state.get('fingerprint')}, now {self.fingerprint}); "
                "resume it with its own, or choose another --out"
            )
        expected = _trained(self.model).keys()
        if state["model"].keys() != expected:
            odd = sorted(state["model"].keys() ^ expected)
            raise ResumeError(f"{path}: other parts are trained now: {odd[:8]}")
        self.model.load_state_dict(state["model"], strict=False)
        if self.extras is not None:
            self.extras.load_state_dict(state["extras"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.weights = state["average"]
        self.scaler.load_state_dict(state["scaler"])
        return state["step"]


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained parameters and buffers by name."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
