"""How a slide is cut: one global grid of overlapping tiles, and square blocks that own the overlay. Pure functions."""

import base64
import math
from functools import lru_cache

import numpy as np
import shapely

from worker.errors import BadRequest, MppUnknown, TooLarge
from worker.types import Block, ExemplarSpec, JobSpec, Ring, SlideInfo, Tile, TilePlan

MIN_TISSUE_SHARE = 0.02
"""Part of a tile (of what lies on the slide) that must be tissue for the tile to be looked at."""

MAX_TILES = 4_000_000
MAX_OVERLAY_PX = 2**21
BLOCK_STEP_PX = 512
MIN_TILE_PX = 16


def plan_tiles(info: SlideInfo, spec: JobSpec, tissue: np.ndarray | None, tile_px: int, default_mpp: float) -> TilePlan:
    """Cut a slide into tiles and blocks.

    Args:
        info: the slide; its mpp may be unknown only when `spec.mpp_override` is given.
        spec: what was asked: mpp, overlap, ROI, shift of the grid, edge of a block.
        tissue: (h, w) bool over the whole of level 0 at any scale; None looks everywhere.
        tile_px: the model's tile edge, used where `spec.tile_size_px` is None.
        default_mpp: µm/px used where `spec.mpp` is None, but never finer than half the slide's own.

    Returns:
        The plan. `offset_px` is where tile (0, 0) starts: in (-stride, 0], so that the grid covers the overlay.

    Raises:
        MppUnknown: neither the slide nor `mpp_override` says how large a pixel is.
        BadRequest: a field's value is not accepted (`field` names it).
        TooLarge: more than `MAX_TILES` tiles, or an overlay edge beyond `MAX_OVERLAY_PX`.
    """
    mpp_x, mpp_y = slide_mpp(info, spec)
    mpp = job_mpp(info, spec, default_mpp)
    tile_px = spec.tile_size_px or tile_px
    if tile_px < MIN_TILE_PX:
        raise BadRequest(f"tile_size_px must be at least {MIN_TILE_PX}", field="tile_size_px")
    if not 0 <= spec.overlap <= 0.75:
        raise BadRequest("overlap must be in [0, 0.75]", field="overlap")
    stride_px = max(1, round(tile_px * (1 - spec.overlap)))
    scale_x, scale_y = mpp / mpp_x, mpp / mpp_y
    width_px, height_px = _overlay_size(info.width_px0, scale_x), _overlay_size(info.height_px0, scale_y)
    if max(width_px, height_px) > MAX_OVERLAY_PX:
        raise TooLarge(f"an overlay of {width_px} x {height_px} px is too large; ask for a coarser mpp", field="mpp")
    start_x, cols = _axis(width_px, tile_px, stride_px, spec.grid_offset_px[0])
    start_y, rows = _axis(height_px, tile_px, stride_px, spec.grid_offset_px[1])
    if rows * cols > MAX_TILES:
        raise TooLarge(f"{rows * cols} tiles are more than {MAX_TILES}; ask for a coarser mpp", field="mpp")
    edges_x = _edges(start_x, cols, stride_px, tile_px, width_px)
    edges_y = _edges(start_y, rows, stride_px, tile_px, height_px)
    wanted = np.ones((rows, cols), bool)
    if tissue is not None:
        # edges as parts of the tissue picture, which shows exactly level 0
        wanted &= _tissue_share(tissue, edges_x * scale_x / info.width_px0, edges_y * scale_y / info.height_px0)
    if spec.roi:
        wanted &= _in_roi(_roi_shape(spec.roi, info), edges_x * scale_x, edges_y * scale_y)
    block_px = _block_edge(spec.block_px, max(width_px, height_px))
    n_tiles = int(wanted.sum())
    return TilePlan(
        width_px=width_px,
        height_px=height_px,
        mpp=mpp,
        scale_x=scale_x,
        scale_y=scale_y,
        tile_px=tile_px,
        stride_px=stride_px,
        offset_px=(start_x, start_y),
        rows=rows,
        cols=cols,
        block_px=block_px,
        block_keys=_busy_blocks(wanted, edges_x, edges_y, block_px, width_px, height_px),
        wanted=base64.b64encode(np.packbits(wanted).tobytes()).decode("ascii"),
        n_tiles=n_tiles,
        n_skipped=rows * cols - n_tiles,
    )


def block_of(plan: TilePlan, key: str) -> Block:
    """Derive one block of a plan.

    Args:
        plan: from `plan_tiles`.
        key: `row_col` of the block.

    Returns:
        Its part of the overlay; every wanted tile that touches it; the wanted neighbours of those (halo), where tiles
        overlap at all, since else they could say nothing about them; and the keys of the tiles it owns.

    Raises:
        BadRequest: the overlay has no such block.
    """
    row, col = _parse_key(plan, key)
    x_px, y_px = col * plan.block_px, row * plan.block_px
    width_px, height_px = min(plan.block_px, plan.width_px - x_px), min(plan.block_px, plan.height_px - y_px)
    wanted = wanted_tiles(plan)
    col0, col1 = _touching(x_px, width_px, plan.offset_px[0], plan.stride_px, plan.tile_px, plan.cols)
    row0, row1 = _touching(y_px, height_px, plan.offset_px[1], plan.stride_px, plan.tile_px, plan.rows)
    mine = np.zeros((row1 - row0 + 2, col1 - col0 + 2), bool)
    mine[1:-1, 1:-1] = wanted[row0:row1, col0:col1]
    around = np.zeros_like(mine)
    top, left = max(0, row0 - 1), max(0, col0 - 1)
    window = wanted[top : row1 + 1, left : col1 + 1]
    dy, dx = top - (row0 - 1), left - (col0 - 1)
    around[dy : dy + window.shape[0], dx : dx + window.shape[1]] = window
    halo = around & _grow(mine) & ~mine if plan.stride_px < plan.tile_px else np.zeros_like(mine)
    tiles = _tiles_at(plan, mine, row0 - 1, col0 - 1)
    return Block(
        row=row,
        col=col,
        x_px=x_px,
        y_px=y_px,
        width_px=width_px,
        height_px=height_px,
        tiles=tiles,
        halo=_tiles_at(plan, halo, row0 - 1, col0 - 1),
        owned=frozenset(tile.key for tile in tiles if _owner(plan, tile) == (row, col)),
    )


def wanted_tiles(plan: TilePlan) -> np.ndarray:
    """The (rows, cols) bool array of a plan's tiles that are looked at; do not write to it."""
    return _unpack_wanted(plan.wanted, plan.rows, plan.cols)


def tile_at(plan: TilePlan, row: int, col: int) -> Tile:
    """The tile of one cell of the grid, wanted or not."""
    return Tile(
        row=row,
        col=col,
        x_px=plan.offset_px[0] + col * plan.stride_px,
        y_px=plan.offset_px[1] + row * plan.stride_px,
        size_px=plan.tile_px,
    )


def slide_mpp(info: SlideInfo, spec: JobSpec | ExemplarSpec) -> tuple[float, float]:
    """µm per level-0 pixel, (x, y), of the slide that a spec names.

    Raises:
        MppUnknown: neither the slide nor the spec says it.
        BadRequest: `mpp_override` is not a positive number.
    """
    if spec.mpp_override is not None:
        if not (math.isfinite(spec.mpp_override) and spec.mpp_override > 0):
            raise BadRequest("mpp_override must be a positive number of µm/px", field="mpp_override")
        return spec.mpp_override, spec.mpp_override
    if info.mpp_x is None or info.mpp_y is None:
        raise MppUnknown(
            "the slide does not say how many µm a pixel is; give mpp_override, e.g. 0.25 for a 40x scan or 0.5 for 20x",
            field="mpp_override",
            subject=spec.slide_id,
        )
    return info.mpp_x, info.mpp_y


def job_mpp(info: SlideInfo, spec: JobSpec, default_mpp: float) -> float:
    """µm/px that a job's tiles and overlay have; arguments and errors are `plan_tiles`'s."""
    coarser = max(slide_mpp(info, spec))
    if spec.mpp is None:
        # nobody asked for it: do not blow up an overview picture to a scale it holds nothing at
        return default_mpp if default_mpp >= coarser / 2 else coarser
    if not (math.isfinite(spec.mpp) and spec.mpp > 0):
        raise BadRequest("mpp must be a positive number of µm/px", field="mpp")
    return spec.mpp


def _overlay_size(size_px0: int, scale: float) -> int:
    return max(1, math.ceil(size_px0 / scale - 1e-6))


def _axis(size_px: int, tile_px: int, stride_px: int, shift_px: int) -> tuple[int, int]:
    """Start of the first tile, in (-stride, 0], and how many tiles cover [0, size)."""
    start = -((-shift_px) % stride_px)
    count = 1 + max(0, -(-(size_px - tile_px - start) // stride_px))
    return start, count


def _edges(start_px: int, count: int, stride_px: int, tile_px: int, size_px: int) -> np.ndarray:
    """(count, 2): where each tile begins and ends, clipped to the overlay."""
    first = start_px + np.arange(count, dtype=np.int64) * stride_px
    return np.clip(np.stack([first, first + tile_px], axis=1), 0, size_px)


def _tissue_share(tissue: np.ndarray, parts_x: np.ndarray, parts_y: np.ndarray) -> np.ndarray:
    """Which tiles hold enough tissue: box sums of a summed-area table with fractional corners.

    Args:
        tissue: (h, w) bool.
        parts_x, parts_y: (cols, 2), (rows, 2) tile edges as parts of the picture's width and height.
    """
    if tissue.ndim != 2 or tissue.size == 0:
        raise ValueError(f"a tissue mask is (h, w) bool, not {tissue.shape}")
    h, w = tissue.shape
    table = np.zeros((h + 1, w + 1))
    np.cumsum(np.cumsum(tissue, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    x, y = np.clip(parts_x * w, 0, w), np.clip(parts_y * h, 0, h)
    bands = _interpolate(table, y[:, 1]) - _interpolate(table, y[:, 0])  # (rows, w + 1)
    sums = (_interpolate(bands.T, x[:, 1]) - _interpolate(bands.T, x[:, 0])).T  # (rows, cols)
    area = np.outer(y[:, 1] - y[:, 0], x[:, 1] - x[:, 0])
    return (sums > 0) & (sums >= MIN_TISSUE_SHARE * area - 1e-9)


def _interpolate(table: np.ndarray, at: np.ndarray) -> np.ndarray:
    low = np.minimum(at.astype(np.int64), len(table) - 2)
    part = (at - low)[:, None]
    return table[low] * (1 - part) + table[low + 1] * part


def _roi_shape(rings: tuple[Ring, ...], info: SlideInfo) -> shapely.Geometry:
    """The union of the ROI's polygons, within the slide."""
    shapes = []
    for ring in rings:
        points = np.asarray(ring, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise BadRequest("each ring of roi must have at least 3 points (x, y) in level-0 pixels", field="roi")
        shapes.append(shapely.make_valid(shapely.Polygon(points)))
    frame = shapely.box(0, 0, info.width_px0, info.height_px0)
    roi = shapely.intersection(shapely.union_all(shapes), frame)
    if roi.area <= 0:
        raise BadRequest(
            f"roi covers nothing of the slide; give polygons in level-0 pixels within "
            f"{info.width_px0} x {info.height_px0}",
            field="roi",
        )
    return roi


def _in_roi(roi: shapely.Geometry, edges_x: np.ndarray, edges_y: np.ndarray) -> np.ndarray:
    """Which tiles share area with the ROI."""
    x0, y0, x1, y1 = roi.bounds
    cols = np.flatnonzero((edges_x[:, 1] > x0) & (edges_x[:, 0] < x1))
    rows = np.flatnonzero((edges_y[:, 1] > y0) & (edges_y[:, 0] < y1))
    near_x, near_y = edges_x[cols], edges_y[rows]
    # a hair smaller, so that touching at an edge is not sharing
    hair = 1e-7 * max(x1, y1, 1.0)
    boxes = shapely.box(
        near_x[None, :, 0] + hair, near_y[:, None, 0] + hair, near_x[None, :, 1] - hair, near_y[:, None, 1] - hair
    )
    shapely.prepare(roi)
    found = np.zeros((len(edges_y), len(edges_x)), bool)
    found[np.ix_(rows, cols)] = shapely.intersects(roi, boxes)
    return found


def _block_edge(asked_px: int | None, long_side_px: int) -> int:
    if asked_px is not None:
        if asked_px < BLOCK_STEP_PX or asked_px % BLOCK_STEP_PX:
            raise BadRequest(f"block_px must be a multiple of {BLOCK_STEP_PX}", field="block_px")
        return asked_px
    if long_side_px > 16384:
        return 4096
    return 2048 if long_side_px > 4096 else 1024


def _busy_blocks(
    wanted: np.ndarray, edges_x: np.ndarray, edges_y: np.ndarray, block_px: int, width_px: int, height_px: int
) -> tuple[str, ...]:
    """Keys of the blocks that a wanted tile touches, in raster order."""
    touch_y = _incidence(edges_y, block_px, -(-height_px // block_px))  # (block rows, tile rows)
    touch_x = _incidence(edges_x, block_px, -(-width_px // block_px))
    counts = touch_y @ wanted.astype(np.float32) @ touch_x.T
    return tuple(f"{row}_{col}" for row, col in np.argwhere(counts > 0))


def _incidence(edges: np.ndarray, block_px: int, blocks: int) -> np.ndarray:
    start = np.arange(blocks)[:, None] * block_px
    return ((edges[None, :, 1] > start) & (edges[None, :, 0] < start + block_px)).astype(np.float32)


def _parse_key(plan: TilePlan, key: str) -> tuple[int, int]:
    rows, cols = -(-plan.height_px // plan.block_px), -(-plan.width_px // plan.block_px)
    row_text, _, col_text = key.partition("_")
    if not (row_text.isdecimal() and col_text.isdecimal() and int(row_text) < rows and int(col_text) < cols):
        raise BadRequest(f"there is no block {key!r}; keys run from 0_0 to {rows - 1}_{cols - 1}", field="block")
    return int(row_text), int(col_text)


def _touching(start_px: int, size_px: int, offset_px: int, stride_px: int, tile_px: int, count: int) -> tuple[int, int]:
    """First and one past the last tile along an axis that shares a pixel with [start, start + size)."""
    first = (start_px - offset_px - tile_px) // stride_px + 1
    last = -(-(start_px + size_px - offset_px) // stride_px)
    return max(0, first), min(count, last)


def _grow(mask: np.ndarray) -> np.ndarray:
    """Each cell and its eight neighbours."""
    padded = np.pad(mask, 1)
    h, w = mask.shape
    return np.logical_or.reduce([padded[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)])


def _tiles_at(plan: TilePlan, mask: np.ndarray, row0: int, col0: int) -> tuple[Tile, ...]:
    return tuple(tile_at(plan, row0 + int(row), col0 + int(col)) for row, col in np.argwhere(mask))


def _owner(plan: TilePlan, tile: Tile) -> tuple[int, int]:
    """(row, col) of the block that holds the tile's centre, clamped to the overlay."""
    x, y = tile.centre_px
    x, y = min(max(x, 0), plan.width_px - 1), min(max(y, 0), plan.height_px - 1)
    return int(y // plan.block_px), int(x // plan.block_px)


@lru_cache(maxsize=4)
def _unpack_wanted(packed: str, rows: int, cols: int) -> np.ndarray:
    bits = np.frombuffer(base64.b64decode(packed), np.uint8)
    wanted = np.unpackbits(bits, count=rows * cols).astype(bool).reshape(rows, cols)
    wanted.setflags(write=False)
    return wanted
