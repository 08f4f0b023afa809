"""Slides of every size for jobs under fire: islands of stained tissue, one to a block, so that the blocks are quick."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile

EDGE = 512
"""Edge of the TIFF's tiles; an island lies in the middle of one."""

ISLAND = slice(96, 416)
GREEN = slice(300, 308)
"""Where the fatal colour is; away from the middle, so that of tiles of 256 px without overlap one holds it."""

GLASS = (243, 243, 245)
MPP = 1.0
UM_PER_CM = 10_000
LEVELS = 3


def write_islands(
    path: Path,
    columns: int,
    rows: int,
    block_px: int,
    seed: int = 0,
    green: tuple[int, int] | None = None,
    different: int | None = None,
) -> Path:
    """Write a slide of 1 µm/px that a job at this resolution cuts into `columns` x `rows` blocks, each with an island.

    Args:
        path: of the TIFF.
        columns, rows: blocks.
        block_px: edge of a block, a multiple of 512: what `worker.plan` takes for a slide so large.
        seed: of the islands.
        different: islands; fewer than blocks repeat, and a worker answers a tile that it has seen from memory. None
            gives each block its own, so that blocks that change places show.
        green: (row, column) of a block whose island holds the colour that `CrashingSegmenter` dies of.
    """
    width, height = columns * block_px, rows * block_px
    step, different = block_px // EDGE, different or columns * rows
    pictures = [_island(seed * different + number) for number in range(different)]
    pictures.append(_with_green(pictures[0]))
    glass = np.full((EDGE, EDGE, 3), GLASS, np.uint8)

    def tile_of(row: int, col: int) -> int | None:
        """Which island lies in a tile of level 0."""
        if row % step != step // 2 or col % step != step // 2 or row * EDGE >= height or col * EDGE >= width:
            return None
        if (row // step, col // step) == green:
            return different
        return (row // step * columns + col // step) % different

    packed: dict[tuple, bytes] = {}

    def tiles(factor: int) -> Iterator[bytes]:
        for top in range(0, -(-height // (EDGE * factor))):
            for left in range(0, -(-width // (EDGE * factor))):
                parts = tuple(
                    tile_of(top * factor + dy, left * factor + dx) for dy in range(factor) for dx in range(factor)
                )
                if (factor, parts) not in packed:
                    shown = [glass if part is None else pictures[part] for part in parts]
                    packed[factor, parts] = zlib.compress(_tile(shown, factor).tobytes(), 1)
                yield packed[factor, parts]

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(LEVELS):
            factor = 2**level
            writer.write(
                tiles(factor), shape=(-(-height // factor), -(-width // factor), 3), dtype=np.uint8,
                tile=(EDGE, EDGE), photometric="rgb", compression="zlib", subfiletype=int(level > 0),
                resolution=(UM_PER_CM / MPP, UM_PER_CM / MPP), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def write_sluggish(path: Path, edge_px: int = 2048, seed: int = 0) -> Path:
    """Write a slide that is slow to read: each level is one tile, so that whoever wants a corner unpacks it all."""
    picture = np.full((edge_px, edge_px, 3), GLASS, np.uint8)
    for row in range(edge_px // 1024):
        for col in range(edge_px // 1024):
            y, x = row * 1024 + EDGE, col * 1024 + EDGE
            picture[y : y + EDGE, x : x + EDGE] = _island(seed + row * 2 + col)
    with tifffile.TiffWriter(path) as writer:
        for level in range(2):
            shown = picture if not level else cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            writer.write(
                shown, tile=shown.shape[:2], photometric="rgb", compression="zlib", compressionargs={"level": 9},
                predictor=True, subfiletype=int(level > 0), resolution=(UM_PER_CM / MPP, UM_PER_CM / MPP),
                resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def write_damaged(path: Path, seed: int = 0) -> Path:
    """Write a slide that opens and shows its overview, and whose full resolution cannot be read."""
    write_islands(path, 2, 2, 1024, seed)
    with tifffile.TiffFile(path) as slide:
        page = slide.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\xff" * count)
    return path


def _tile(parts: list[np.ndarray], factor: int) -> np.ndarray:
    edge = EDGE // factor
    small = [cv2.resize(part, (edge, edge), interpolation=cv2.INTER_AREA) for part in parts]
    return np.vstack([np.hstack(small[row * factor : (row + 1) * factor]) for row in range(factor)])


def _island(seed: int) -> np.ndarray:
    """Pink tissue with dark purple nuclei in the middle of glass: (512, 512, 3) uint8 RGB."""
    rng = np.random.default_rng(seed)
    picture = np.full((EDGE, EDGE, 3), GLASS, np.float32)
    edge = ISLAND.stop - ISLAND.start
    grain = cv2.GaussianBlur(rng.normal(0, 60, (edge, edge)).astype(np.float32), (0, 0), 2)[..., None]
    tissue = np.float32((205, 120, 170)) + grain * (0.6, 1.0, 0.5)
    nuclei = np.zeros((edge, edge), np.uint8)
    for x, y, r in zip(*rng.integers(20, edge - 20, (2, 30)), rng.integers(6, 14, 30), strict=True):
        cv2.circle(nuclei, (int(x), int(y)), int(r), 1, -1)
    tissue[nuclei > 0] = (92, 52, 138)
    picture[ISLAND, ISLAND] = tissue
    return np.clip(picture, 0, 255).astype(np.uint8)


def _with_green(picture: np.ndarray) -> np.ndarray:
    picture = picture.copy()
    picture[GREEN, GREEN] = (0, 255, 0)
    return picture
