"""The levels of an overlay: their shapes, their shards, and how one follows from the finer one."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from worker.types import TilePlan

CHUNK_PX = 512
OVERLAY = "overlay.zarr"


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes:
        index: 0 is the finest.
        height_px, width_px: shape; halved and rounded up per level.
        shard_px: edge of its shards.
        owned: whether a block owns whole shards of this level (then the block writes them; else finish does).
    """

    index: int
    height_px: int
    width_px: int
    shard_px: int
    owned: bool


def levels_of(plan: TilePlan) -> tuple[Level, ...]:
    """The levels of every pyramid of a job, finest first.

    Args:
        plan: size of the overlay and of its blocks; `block_px` is a multiple of 512.

    Returns:
        Levels down to the first whose long side is at most one chunk. The shard edge is the block's at level 0 and
        halved per level while it stays a multiple of the chunk; coarser levels have shards of one chunk, built by
        finish.
    """
    levels = []
    height_px, width_px, shard_px, owned = plan.height_px, plan.width_px, plan.block_px, True
    while True:
        levels.append(Level(len(levels), height_px, width_px, shard_px if owned else CHUNK_PX, owned))
        if max(height_px, width_px) <= CHUNK_PX:
            return tuple(levels)
        height_px, width_px = (height_px + 1) // 2, (width_px + 1) // 2
        owned = owned and shard_px % (2 * CHUNK_PX) == 0
        shard_px //= 2


def open_level(root: Path, name: str, level: int, mode: str = "r") -> zarr.Array:
    """Open one level of a pyramid.

    Args:
        root: the overlay's folder.
        name: `probability/0`, `labels/0` or `""` for the image.
        level: its index.
        mode: `r` or `r+`.

    Returns:
        The Zarr array.
    """
    path = root / name / str(level)
    return zarr.open_array(store=str(path), mode=mode, zarr_format=3, config={"write_empty_chunks": False})


def has_shard(root: Path, name: str, level: int, row: int, col: int) -> bool:
    """Whether a shard of a (y, x) array was ever written; an empty one is not."""
    return (root / name / str(level) / "c" / str(row) / str(col)).exists()


def block_places(plan: TilePlan) -> list[tuple[int, int]]:
    """(row, col) of the plan's blocks in raster order."""
    return sorted(tuple(int(part) for part in key.split("_")) for key in plan.block_keys)


def block_slices(plan: TilePlan, row: int, col: int) -> tuple[slice, slice]:
    """(rows, columns) of a block in the overlay, clipped to it."""
    top, left = row * plan.block_px, col * plan.block_px
    return (
        slice(top, min(top + plan.block_px, plan.height_px)),
        slice(left, min(left + plan.block_px, plan.width_px)),
    )


def level_metadata(root: Path, name: str, level: Level) -> Path:
    """Where the metadata of one level lies under a job's root or an attempt's folder."""
    return root / OVERLAY / name / str(level.index) / "zarr.json"


def borrow_level(job_root: Path, folder: Path, name: str, level: Level) -> zarr.Array:
    """One level in an attempt's folder, writable, with the metadata of the published overlay.

    Args:
        job_root: the job's folder, its overlay created.
        folder: the attempt's folder.
        name: `probability/{i}` or `labels/{i}`.
        level: the level.

    Returns:
        The array; it holds only what the attempt wrote.
    """
    metadata = level_metadata(folder, name, level)
    if not metadata.exists():
        metadata.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(level_metadata(job_root, name, level), metadata)
    return open_level(folder / OVERLAY, name, level.index, "r+")


def write_shard(job_root: Path, folder: Path, name: str, level: Level, row: int, col: int, values: np.ndarray) -> None:
    """Write one whole shard into an attempt; an empty one is left unwritten.

    Args:
        job_root: the job's folder; the array's metadata is taken from its overlay.
        folder: the attempt's folder.
        name: `probability/{i}` or `labels/{i}`.
        level: the level.
        row, col: the shard's place.
        values: its pixels, clipped to the array.
    """
    if not values.any():
        return
    array = borrow_level(job_root, folder, name, level)
    top, left = row * level.shard_px, col * level.shard_px
    array[top : top + values.shape[0], left : left + values.shape[1]] = values


def _padded(values: np.ndarray) -> np.ndarray:
    """Repeat the last row and column where the size is odd."""
    height, width = values.shape[:2]
    padding = ((0, height % 2), (0, width % 2)) + ((0, 0),) * (values.ndim - 2)
    return np.pad(values, padding, mode="edge") if height % 2 or width % 2 else values


def halve_mean(values: np.ndarray) -> np.ndarray:
    """Halve an array of intensities or probabilities by the rounded mean of 2×2 pixels.

    Args:
        values: (h, w[, c]) uint8.

    Returns:
        (ceil(h/2), ceil(w/2)[, c]) uint8.
    """
    values = _padded(values).astype(np.uint16)
    total = values[0::2, 0::2] + values[0::2, 1::2] + values[1::2, 0::2] + values[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def halve_mode(labels: np.ndarray) -> np.ndarray:
    """Halve an array of labels by the most frequent of 2×2 pixels, so that no label is invented.

    Args:
        labels: (h, w) of any integer dtype.

    Returns:
        (ceil(h/2), ceil(w/2)) of the same dtype; a tie goes to a label rather than to the background, then to the pixel
        that comes first.
    """
    labels = _padded(labels)
    corners = [labels[0::2, 0::2], labels[0::2, 1::2], labels[1::2, 0::2], labels[1::2, 1::2]]
    halved = corners[0].copy()
    # Inside and outside of regions all four agree; only their rims are worth a vote.
    rim = (corners[1] != halved) | (corners[2] != halved) | (corners[3] != halved)
    halved[rim] = _most_frequent([corner[rim] for corner in corners])
    return halved


def _most_frequent(corners: list[np.ndarray]) -> np.ndarray:
    """The most frequent of four (n,) arrays, element by element; ties as `halve_mode` says."""
    best = corners[0].copy()
    best_score = np.zeros(len(best), np.uint8)
    for corner in corners:
        votes = sum((other == corner).astype(np.uint8) for other in corners)
        score = votes * 2 + (corner != 0)
        better = score > best_score
        best[better] = corner[better]
        best_score[better] = score[better]
    return best
