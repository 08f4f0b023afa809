"""Several trainings of one model, averaged: no slower than one of them, and often better than each.

Source: Wortsman et al., Model soups (ICML 2022). It holds for trainings that began at the same weights; the mean of
strangers is noise.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint import CARD, TOKENIZER, open_checkpoint, revision_of, shapes, write_checkpoint
from model.config import PathChatConfig
from model.stored import CheckpointError, Stored, compare, read_json


def average_checkpoints(folders: Sequence[Path], out: Path, parts: Sequence[float] | None = None) -> str:
    """Write the weighted mean of checkpoints; tensors are read one at a time.

    A calibration of the confidence is not carried over: it holds for the weights that it was fitted to.

    Args:
        folders: two or more of the same model and tokenizer. Types, and what is no float, are those of the first.
        out: a new or empty folder.
        parts: of each in the mean, positive; None for equal ones.

    Returns:
        The revision.

    Raises:
        CheckpointError: one cannot be read, or is of another model than the first; the message names it.
        ValueError: fewer than two, or parts that make no mean.
    """
    parts = [1.0] * len(folders) if parts is None else list(parts)
    if len(folders) < 2 or len(parts) != len(folders) or not all(0 < part < float("inf") for part in parts):
        raise ValueError("accepted are two or more checkpoints, and a positive part for each of them or for none")
    opened = [open_checkpoint(folder) for folder in folders]
    config, tokenizer, first = opened[0]
    words = (folders[0] / TOKENIZER).read_bytes()
    for folder, (other, _, tensors) in zip(folders[1:], opened[1:], strict=True):
        if _uncalibrated(other) != _uncalibrated(config) or (folder / TOKENIZER).read_bytes() != words:
            raise CheckpointError(f"checkpoint {folder}: of another configuration or tokenizer than {folders[0]}")
        compare(f"checkpoint {folder}", shapes(tensors), shapes(first))
    shares = [part / sum(parts) for part in parts]
    tensors = {name: _mean([tensors[name] for _, _, tensors in opened], shares) for name in first}
    made_of = [{"revision": revision_of(one), "part": share} for one, share in zip(folders, shares, strict=True)]
    card = read_json(folders[0] / CARD) if (folders[0] / CARD).is_file() else {}
    return write_checkpoint(out, _uncalibrated(config), tokenizer, tensors, {**card, "mean_of": made_of})


def _uncalibrated(config: PathChatConfig) -> PathChatConfig:
    return replace(config, calibration=None, calibration_by_exemplar=None)


def _mean(rivals: Sequence[Stored], shares: Sequence[float]) -> Stored:
    """The weighted mean of one tensor, computed in fp32 when it is read."""
    first = rivals[0]
    if not first.dtype.is_floating_point:
        return first

    def read() -> torch.Tensor:
        total = torch.zeros(first.shape)
        for rival, share in zip(rivals, shares, strict=True):
            total += share * rival.read().float()
        return total.to(first.dtype)

    return Stored(first.shape, first.dtype, read)
