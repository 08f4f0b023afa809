"""Pictures that are nearly the same: a 64-bit difference hash, compared over the eight ways to turn and mirror one.

Measured on EBHI-SEG: a copy that was turned, mirrored, halved in size, recoloured, or saved as JPEG of quality 50 lies
at most 3 bits away, a blurred one (σ 2 px) at most 6; of 1.6 million pairs of different patients the nearest lies
10 bits away, and does not look alike. So `DISTANCE` is 6. Crops and shifts are not found: 3 % off each edge is enough
to hide.
"""

from collections.abc import Iterator

import cv2
import numpy as np

DISTANCE = 6
"""Hamming distance, of 64 bits, up to which two pictures count as one."""
FLAT = 3.0
"""Standard deviation of brightness under which a picture has nothing to compare: its hash would be noise."""
_COLUMNS, _ROWS = 9, 8
_PAIRS_AT_ONCE = 1 << 22


def difference_hashes(image: np.ndarray) -> np.ndarray | None:
    """The hashes of the eight orientations, as stored first.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (8,) uint64; each bit says whether brightness rises from one cell of a 9 × 8 raster to the next on its right.
        None for a flat picture.
    """
    edge = _COLUMNS * _ROWS
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (edge, edge), interpolation=cv2.INTER_AREA)
    if grey.std() < FLAT:
        return None
    turned = [np.rot90(grey.astype(np.float32), quarter) for quarter in range(4)]
    return np.array([_hash(way) for one in turned for way in (one, one[:, ::-1])], np.uint64)


def _hash(grey: np.ndarray) -> int:
    cells = cv2.resize(np.ascontiguousarray(grey), (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def alike(first: np.ndarray, second: np.ndarray, distance: int = DISTANCE) -> Iterator[tuple[int, int, int]]:
    """The pairs, one of each side, that count as one picture in some orientation.

    Args:
        first: (N, 8) uint64 of `difference_hashes`.
        second: (M, 8) uint64.
        distance: the largest Hamming distance.

    Yields:
        (n, m, their distance).
    """
    if not len(first) or not len(second):
        return
    step = max(_PAIRS_AT_ONCE // (8 * len(second)), 1)
    for start in range(0, len(first), step):
        bits = np.bitwise_count(first[start : start + step, None, :] ^ second[None, :, :1])  # [n, M, 8]
        nearest = bits.min(axis=2)
        for n, m in zip(*np.nonzero(nearest <= distance), strict=True):
            yield start + int(n), int(m), int(nearest[n, m])
