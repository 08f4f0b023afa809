"""Pixels of a plan's tiles, read ahead on threads and handed out in order."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from worker.errors import TileFailed
from worker.types import Tile, TilePlan

if TYPE_CHECKING:
    from worker.slides import Slide


def read_tile(slide: "Slide", plan: TilePlan, tile: Tile) -> np.ndarray:
    """Pixels of one tile at the plan's mpp.

    Returns:
        (size_px, size_px, 3) uint8 RGB; white outside the slide.

    Raises:
        SlideUnreadable: the slide's data there is broken.
    """
    return slide.read_px0(
        tile.x_px * plan.scale_x,
        tile.y_px * plan.scale_y,
        tile.size_px * plan.scale_x,
        tile.size_px * plan.scale_y,
        tile.size_px,
        tile.size_px,
    )


def read_tiles(
    slide: "Slide", plan: TilePlan, tiles: Sequence[Tile], threads: int = 2, ahead: int = 32
) -> Iterator[tuple[Tile, np.ndarray | TileFailed]]:
    """Read tiles in order, some ahead of the consumer.

    Args:
        slide: an open slide; it must stay open until the iterator is exhausted or closed.
        plan: gives the scale.
        tiles: what to read.
        threads: readers at work at once.
        ahead: tiles kept ready at most; bounds memory.

    Yields:
        Each tile with its pixels (size_px, size_px, 3) uint8 RGB, or with the reason why it could not be read.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="read-tiles")
    pending: deque[tuple[Tile, Future[np.ndarray]]] = deque()
    upcoming = iter(tiles)
    try:
        for tile in upcoming:
            pending.append((tile, pool.submit(read_tile, slide, plan, tile)))
            if len(pending) >= max(1, ahead):
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        # a consumer that stops early waits only for the reads already begun
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(tile: Tile, future: "Future[np.ndarray]") -> tuple[Tile, np.ndarray | TileFailed]:
    try:
        return tile, future.result()
    except Exception as error:  # a decoder may raise anything; the job goes on without this tile
        return tile, TileFailed(f"tile {tile.key} could not be read: {error}", field="slide", subject=tile.key)
