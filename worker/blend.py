"""Overlapping tiles become one probability: a smooth window, and sums that do not depend on who came first.

The sums are integers (window in 1/8192, probability in 1/65535), so a block's bytes are the same in whatever order its
tiles arrive, on any worker, after any number of deaths.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from worker.types import Block, Tile

if TYPE_CHECKING:
    from model.segmenter import TileAnswer

WINDOW_FLOOR = 0.05
WINDOW_STEPS = 8192
"""At an overlap of 0.75 the windows over a pixel sum to at most 4.5, so that the votes stay below 2^32."""

PROBABILITY_STEPS = 65535
REACH = 3
"""Neighbours looked at on each side: an overlap of at most 0.75 leaves a stride of a quarter of a tile."""

_STRIPE_ROWS = 256


def block_window(tile_px: int) -> np.ndarray:
    """The blending window of a tile: a raised cosine on a floor, in both directions.

    Args:
        tile_px: edge of the tile.

    Returns:
        (tile_px, tile_px) float32 in (0, 1], symmetrical, largest in the middle. The floor keeps pixels that only one
        tile has seen, at the rim of the looked-at area, defined.
    """
    position = (np.arange(tile_px) + 0.5) / tile_px
    line = WINDOW_FLOOR + (1 - WINDOW_FLOOR) * (0.5 - 0.5 * np.cos(2 * np.pi * position))
    line = (line + line[::-1]) / 2
    return np.outer(line, line).astype(np.float32)


def tile_probability(answer: "TileAnswer") -> np.ndarray | None:
    """The probability map of one answer: the union of its masks.

    Args:
        answer: what the segmenter said of a tile; masks (K, T, T).

    Returns:
        (T, T) float32 in [0, 1]; None when the tile stays silent. Every mask is weighted by P(`<SEG>`): how much the
        model believed that there is anything to outline. So a tile just above and one just below the decision vote
        nearly the same, and the grid does not show.
    """
    if len(answer.masks) == 0:
        return None
    return np.clip(answer.masks.max(axis=0).astype(np.float32), 0, 1) * np.float32(answer.p_seg)


def overlap_of(first: Tile, second: Tile) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Where two tiles share pixels.

    Args:
        first: a tile.
        second: another tile of the same overlay.

    Returns:
        The (rows, columns) slices of the shared area in each tile's own frame; None when they share nothing.
    """
    x0, x1 = max(first.x_px, second.x_px), min(first.x_px + first.size_px, second.x_px + second.size_px)
    y0, y1 = max(first.y_px, second.y_px), min(first.y_px + first.size_px, second.y_px + second.size_px)
    if x0 >= x1 or y0 >= y1:
        return None
    return (
        (slice(y0 - first.y_px, y1 - first.y_px), slice(x0 - first.x_px, x1 - first.x_px)),
        (slice(y0 - second.y_px, y1 - second.y_px), slice(x0 - second.x_px, x1 - second.x_px)),
    )


def _neighbour_ids(tile: Tile) -> Iterator[tuple[int, int]]:
    """(row, col) of every tile that could overlap `tile`."""
    for row in range(tile.row - REACH, tile.row + REACH + 1):
        for col in range(tile.col - REACH, tile.col + REACH + 1):
            if (row, col) != (tile.row, tile.col):
                yield row, col


def needs_second_look(
    tile: Tile,
    answers: Mapping[str, np.ndarray | None],
    stride_px: int,
    threshold: float = 0.5,
    min_share: float = 0.02,
) -> bool:
    """Whether a neighbour's mask crosses into a silent tile.

    Args:
        tile: the silent tile.
        answers: first-look probabilities (T, T) by tile key; None where silent, absent where not looked at or failed.
        stride_px: step of the tile grid.
        threshold: probability from which a pixel counts as mask.
        min_share: share of the shared area that must be mask.

    Returns:
        True when at least one neighbour marks at least `min_share` of what it shares with the tile.
    """
    for row, col in _neighbour_ids(tile):
        probability = answers.get(f"{row}_{col}")
        if probability is None:
            continue
        neighbour = Tile(
            row=row,
            col=col,
            x_px=tile.x_px + (col - tile.col) * stride_px,
            y_px=tile.y_px + (row - tile.row) * stride_px,
            size_px=tile.size_px,
        )
        shared = overlap_of(neighbour, tile)
        if shared is not None and float(np.mean(probability[shared[0]] >= threshold)) >= min_share:
            return True
    return False


class BlockBlend:
    """The blended probability of one block for one query.

    A silent tile votes zero with full weight; a failed tile does not vote. Tiles of the halo may be added as well: they
    share no pixel with the block, but testify in `agreement`.
    """

    def __init__(self, block: Block, tile_px: int, threshold: float = 0.5):
        self._block = block
        self._tile_px = tile_px
        self._threshold = threshold
        self._window = np.rint(block_window(tile_px) * WINDOW_STEPS).astype(np.uint32)
        self._votes = np.zeros((block.height_px, block.width_px), np.uint32)
        self._weights = np.zeros((block.height_px, block.width_px), np.uint32)
        self._seen: dict[tuple[int, int], tuple[Tile, np.ndarray | None]] = {}

    def add(self, tile: Tile, probability: np.ndarray | None, weight: float = 1.0) -> None:
        """Let a tile vote.

        Args:
            tile: its frame.
            probability: (T, T) in [0, 1]; None for a silent tile: probability 0 with full weight.
            weight: in [0, 1], scales the vote against other tiles'.

        Raises:
            ValueError: the tile voted before, its size or the probability's shape is not `tile_px`, or the weight
                lies outside [0, 1].
        """
        expected = (self._tile_px, self._tile_px)
        if tile.size_px != self._tile_px or (probability is not None and probability.shape != expected):
            raise ValueError(f"tile {tile.key}: expected a tile and a probability of {expected} pixels")
        if not 0 <= weight <= 1:
            raise ValueError(f"tile {tile.key}: weight {weight} is not in [0, 1]")
        if (tile.row, tile.col) in self._seen:
            raise ValueError(f"tile {tile.key} voted before in block {self._block.key}")
        mask = None if probability is None else np.packbits(probability >= self._threshold)
        self._seen[tile.row, tile.col] = (tile, mask)

        part = block_part(self._block, tile)
        if part is None:
            return
        in_block, in_tile = part
        window = self._window[in_tile]
        if weight != 1.0:
            window = np.rint(window * weight).astype(np.uint32)
        self._weights[in_block] += window
        if probability is not None:
            votes = np.rint(np.clip(probability[in_tile], 0, 1).astype(np.float32) * PROBABILITY_STEPS)
            self._votes[in_block] += votes.astype(np.uint32) * window

    def result(self) -> np.ndarray:
        """The blended probability: votes over weights, rounded once.

        Returns:
            (height_px, width_px) uint8, probability · 255; 0 where no tile voted.
        """
        blended = np.zeros(self._votes.shape, np.uint8)
        step = PROBABILITY_STEPS // 255
        for top in range(0, len(blended), _STRIPE_ROWS):
            rows = slice(top, top + _STRIPE_ROWS)
            votes = self._votes[rows].astype(np.uint64)
            weights = np.maximum(self._weights[rows], 1).astype(np.uint64)
            blended[rows] = (2 * votes + weights * step) // (2 * weights * step)
        return blended

    def agreement(self, tile: Tile) -> float | None:
        """How far the neighbours agree with a tile where they overlap.

        Args:
            tile: a tile that voted.

        Returns:
            Intersection over union of the thresholded masks, over all its overlaps together, in [0, 1]; 1.0 when
            nobody marks anything there; None when the tile overlaps no tile that voted.
        """
        own = self._mask(tile.row, tile.col)
        intersection = union = 0
        neighbours = 0
        for row, col in _neighbour_ids(tile):
            if (row, col) not in self._seen:
                continue
            shared = overlap_of(tile, self._seen[row, col][0])
            if shared is None:
                continue
            neighbours += 1
            theirs = self._mask(row, col)
            if own is None and theirs is None:
                continue
            ours_here = np.zeros(1, bool) if own is None else own[shared[0]]
            theirs_here = np.zeros(1, bool) if theirs is None else theirs[shared[1]]
            intersection += int(np.count_nonzero(ours_here & theirs_here))
            union += int(np.count_nonzero(ours_here | theirs_here))
        if neighbours == 0:
            return None
        return 1.0 if union == 0 else intersection / union

    def _mask(self, row: int, col: int) -> np.ndarray | None:
        """The thresholded mask (T, T) of a tile that voted; None when it was silent."""
        packed = self._seen[row, col][1]
        if packed is None:
            return None
        bits = np.unpackbits(packed, count=self._tile_px**2)
        return bits.reshape(self._tile_px, self._tile_px).astype(bool)


def block_part(block: Block, tile: Tile) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Where a tile lies in a block.

    Args:
        block: the block, clipped to the overlay.
        tile: any tile of the grid.

    Returns:
        (rows, columns) slices of the shared area in the block's frame and in the tile's; None when they share nothing.
    """
    x0, x1 = max(block.x_px, tile.x_px), min(block.x_px + block.width_px, tile.x_px + tile.size_px)
    y0, y1 = max(block.y_px, tile.y_px), min(block.y_px + block.height_px, tile.y_px + tile.size_px)
    if x0 >= x1 or y0 >= y1:
        return None
    return (
        (slice(y0 - block.y_px, y1 - block.y_px), slice(x0 - block.x_px, x1 - block.x_px)),
        (slice(y0 - tile.y_px, y1 - tile.y_px), slice(x0 - tile.x_px, x1 - tile.x_px)),
    )
