"""Connected components: inside a block by cv2, across blocks by union of the ids that touch at the edges.

Components are 4-connected: a region is then always one polygon, and two blocks can only join along the pixels that face
each other at their common edge.
"""

import math

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from worker.blend import block_part, block_window
from worker.types import Block, Tile

CONNECTIVITY = 4
MIN_SEEN_PX = 64
"""A silent tile counts as having seen a component when it holds at least this many of its pixels."""


def quantised_threshold(threshold: float) -> int:
    """The smallest uint8 probability that counts as positive; at least 1, so that an unwritten pixel never does."""
    return max(1, min(255, math.ceil(round(threshold * 255, 6))))


def local_components(probability: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """The components of one block.

    Args:
        probability: (h, w) uint8, probability · 255.
        threshold: in [0, 1].

    Returns:
        (h, w) int32 with 0 for background and 1..n numbered by their first pixel in raster order, and n. The numbering
        does not depend on how cv2 split the work.
    """
    mask = (probability >= quantised_threshold(threshold)).astype(np.uint8)
    count, labels = cv2.connectedComponents(mask, connectivity=CONNECTIVITY, ltype=cv2.CV_32S)
    if count <= 2:
        return labels, count - 1
    order = np.argsort(first_pixels(labels, count - 1), kind="stable")
    if np.array_equal(order, np.arange(count - 1)):
        return labels, count - 1
    renumbered = np.zeros(count, np.int32)
    renumbered[order + 1] = np.arange(1, count, dtype=np.int32)
    return renumbered[labels], count - 1


def first_pixels(labels: np.ndarray, count: int) -> np.ndarray:
    """The first pixel of each component in raster order.

    Args:
        labels: (h, w) int32, 0 for background, each of 1..count present.
        count: number of components.

    Returns:
        (count,) int64 flat indices; -1 for a component without pixels.
    """
    starts = labels > 0
    starts[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    pixels = np.flatnonzero(starts)[::-1]
    first = np.full(count + 1, -1, np.int64)
    first[labels.ravel()[pixels]] = pixels
    return first[1:]


def component_shares(
    labels: np.ndarray, block: Block, tile: Tile, probability: np.ndarray | None, confidence: float
) -> dict[str, float]:
    """How much of each component of a block one tile made.

    Args:
        labels: (h, w) int32 from `local_components` of the block.
        block: the block.
        tile: a tile that touches it.
        probability: (T, T) in [0, 1]; None when the tile was silent.
        confidence: how sure the tile was, in [0, 1].

    Returns:
        `"{block_key}/{label}"` → confidence-weighted pixels: the sum of window · probability over the component's
        pixels, times confidence. 0.0 for a component that the tile saw without marking any of it.
    """
    part = block_part(block, tile)
    if part is None:
        return {}
    in_block, in_tile = part
    here = labels[in_block]
    if not here.any():
        return {}
    seen = np.bincount(here.ravel())
    seen[0] = 0
    made = np.zeros(len(seen))
    if probability is not None:
        weight = block_window(tile.size_px)[in_tile] * (probability[in_tile] * (probability[in_tile] >= 1 / 255))
        made = np.bincount(here.ravel(), weights=weight.ravel(), minlength=len(seen)) * confidence
    shares = {}
    for label in np.flatnonzero(seen):
        share = round(float(made[label]), 3)
        if share > 0 or seen[label] >= MIN_SEEN_PX:
            shares[f"{block.key}/{label}"] = share
    return shares


def touching_pairs(first_edge: np.ndarray, second_edge: np.ndarray) -> np.ndarray:
    """Which ids face each other across the common edge of two blocks.

    Args:
        first_edge: (n,) ids along the edge of one block, 0 for background.
        second_edge: (n,) ids along the facing edge of the other.

    Returns:
        (k, 2) unique pairs of ids.
    """
    both = (first_edge > 0) & (second_edge > 0)
    if not both.any():
        return np.zeros((0, 2), np.int64)
    return np.unique(np.stack([first_edge[both], second_edge[both]], axis=1).astype(np.int64), axis=0)


def unite(count: int, pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """Union-find over the ids of all blocks.

    Args:
        count: ids are 1..count.
        pairs: (k, 2) ids that are one.

    Returns:
        (count,) int32 group of each id, 0-based, and the number of groups.
    """
    if count == 0:
        return np.zeros(0, np.int32), 0
    ones = np.ones(len(pairs), np.uint8)
    graph = coo_array((ones, (pairs[:, 0] - 1, pairs[:, 1] - 1)), shape=(count, count))
    groups, group_of = connected_components(graph, directed=False)
    return group_of.astype(np.int32), int(groups)
