"""Small slides made on the spot, in the shapes that real scanners write."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import tifffile

UM_PER_CM = 10_000


def tissue_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """An ellipse of stained, grainy tissue on clean glass: (height, width, 3) uint8 RGB."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), (243, 243, 245), np.float32)
    inside = np.zeros((height, width), np.uint8)
    cv2.ellipse(inside, (width // 2, height // 2), (width // 4, height // 3), 20, 0, 360, 1, -1)
    grain = cv2.GaussianBlur(rng.normal(0, 60, (height, width)).astype(np.float32), (0, 0), 2)[..., None]
    picture = np.where(inside[..., None] > 0, np.float32((205, 120, 170)) + grain * (0.6, 1.0, 0.5), picture)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_pyramid(
    path: Path,
    picture: np.ndarray,
    mpp: float | tuple[float, float] | None = 0.5,
    levels: int = 3,
    tile: int = 256,
    **packing: object,
) -> Path:
    """Write a picture as a tiled pyramidal TIFF.

    Args:
        path: of the new file.
        picture: (H, W, 3) uint8 RGB, level 0.
        mpp: µm/px, or (x, y) of them; None leaves the resolution out.
        levels: each half the size of the one before.
        tile: edge of the TIFF's tiles.
        packing: for `tifffile`; JPEG as YCbCr by default.
    """
    packing = {"compression": "jpeg", "photometric": "rgb", **packing}
    if mpp is not None:
        per_cm = [UM_PER_CM / value for value in (mpp if isinstance(mpp, tuple) else (mpp, mpp))]
        packing |= {"resolution": tuple(per_cm), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            if level:
                h, w = picture.shape[:2]
                picture = cv2.resize(
                    picture[: h // 2 * 2, : w // 2 * 2], (w // 2, h // 2), interpolation=cv2.INTER_AREA
                )
            writer.write(picture, tile=(tile, tile), subfiletype=int(level > 0), metadata=None, **packing)
    return path


def write_sparse(
    path: Path,
    size_px0: int = 100_000,
    islands_px0: tuple[tuple[int, int, int, int], ...] = ((40_000, 40_000, 44_000, 44_000),),
    mpp: float = 0.25,
    levels: int = 4,
    tile: int = 512,
) -> Path:
    """Write a huge square slide of which only islands are stored; the rest of its tiles are left out.

    Args:
        path: of the new file.
        size_px0: edge of level 0.
        islands_px0: (x0, y0, x1, y1) of the stained squares.
        mpp: µm/px of level 0.
        levels: each a quarter of the size of the one before.
        tile: edge of the TIFF's tiles.
    """
    rng = np.random.default_rng(7)
    stained = np.clip(rng.normal((200, 115, 165), 12, (tile, tile, 3)), 0, 255).astype(np.uint8)
    packed = zlib.compress(stained.tobytes(), 1)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(levels):
            factor = 4**level
            size = -(-size_px0 // factor)
            writer.write(
                _sparse_tiles(size, tile, tuple(tuple(v / factor for v in box) for box in islands_px0), packed),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
                resolution=(UM_PER_CM / mpp, UM_PER_CM / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def _sparse_tiles(size: int, tile: int, islands, packed: bytes):
    for y in range(0, size, tile):
        for x in range(0, size, tile):
            stored = any(x < x1 and x + tile > x0 and y < y1 and y + tile > y0 for x0, y0, x1, y1 in islands)
            yield packed if stored else b""
