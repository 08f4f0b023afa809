"""Which part of a slide was looked at, and why the rest was not: areas in µm², exact to the overlay's pixel."""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely

from worker.types import JobSpec, SlideInfo, TilePlan, TileRecord

FAILED_SHOWN = 200


@dataclass
class Failures:
    """Tiles that failed, and why; each is counted once, however many questions were asked of it.

    Attributes:
        reasons: tiles by reason.
        tiles: records by tile key.
    """

    reasons: Counter = field(default_factory=Counter)
    tiles: dict[str, TileRecord] = field(default_factory=dict)

    def add(self, record: TileRecord) -> None:
        """Count a record that has an error."""
        if record.key not in self.tiles:
            self.reasons[record.error] += 1
            self.tiles[record.key] = record


def measure_coverage(plan: TilePlan, info: SlideInfo, spec: JobSpec, failures: Failures) -> dict[str, Any]:
    """What was looked at, and what was not, with reasons.

    Args:
        plan: how the slide was cut.
        info: its frame.
        spec: its regions of interest.
        failures: the tiles that failed.

    Returns:
        The report's `coverage`. `looked_at_um2`, `glass_um2`, `outside_roi_um2` and `failed_um2` part the slide: an
        area that a failed tile shares with one that was looked at is looked at.
    """
    failed = len(failures.tiles)
    shown = list(failures.tiles.values())[:FAILED_SHOWN]
    px0_um2 = plan.mpp**2 / (plan.scale_x * plan.scale_y)
    slide_um2 = info.width_px0 * info.height_px0 * px0_um2
    looked_um2 = looked_at_px(plan, failures.tiles) * plan.mpp**2
    planned_um2 = looked_at_px(plan) * plan.mpp**2
    # The overlay's last row and column may reach a fraction of a pixel beyond the slide.
    skipped_um2 = max(0.0, slide_um2 - planned_um2)
    outside_um2 = min(skipped_um2, _outside_px0(plan, info, spec) * px0_um2) if spec.roi else 0.0
    return {
        "tiles": plan.n_tiles,
        "looked_at": plan.n_tiles - failed,
        "failed": failed,
        "skipped": plan.n_skipped,
        "coverage": round((plan.n_tiles - failed) / plan.n_tiles, 6) if plan.n_tiles else 1.0,
        "looked_at_um2": round(looked_um2, 3),
        "slide_um2": round(slide_um2, 3),
        "not_looked_at_um2": round(skipped_um2 + planned_um2 - looked_um2, 3),
        "glass_um2": round(skipped_um2 - outside_um2, 3),
        "outside_roi_um2": round(outside_um2, 3),
        "failed_um2": round(planned_um2 - looked_um2, 3),
        "failed_reasons": [{"reason": reason, "tiles": count} for reason, count in failures.reasons.most_common()],
        "failed_tiles": [{"key": tile.key, "reason": tile.error, "bbox_px0": _tile_box(tile, plan)} for tile in shown],
    }


def looked_at_px(plan: TilePlan, failed: Iterable[str] = ()) -> int:
    """Overlay pixels that at least one tile has seen.

    Args:
        plan: the grid and which of its tiles were wanted.
        failed: keys of the tiles that failed.

    Returns:
        The area of the union of the tiles, clipped to the overlay; exact.
    """
    seen, xs, ys = looked_at_cells(plan, failed)
    return int((seen * np.outer(np.diff(ys), np.diff(xs))).sum())


def looked_at_cells(plan: TilePlan, failed: Iterable[str] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where tiles have looked, as cells between the edges of the grid's tiles.

    Args:
        plan: the grid and which of its tiles were wanted.
        failed: keys of the tiles that failed.

    Returns:
        (m, n) bool cells, (n + 1,) x edges and (m + 1,) y edges in overlay pixels.
    """
    bits = np.frombuffer(base64.b64decode(plan.wanted), np.uint8)
    seen = np.unpackbits(bits, count=plan.rows * plan.cols).astype(np.float32).reshape(plan.rows, plan.cols)
    for key in failed:
        row, col = (int(part) for part in key.split("_"))
        seen[row, col] = 0
    xs, across = _cells(plan.cols, plan.offset_px[0], plan, plan.width_px)
    ys, down = _cells(plan.rows, plan.offset_px[1], plan, plan.height_px)
    return (down.T @ seen @ across) > 0, xs, ys


def _cells(count: int, offset_px: int, plan: TilePlan, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the cells along an axis, and (count, cells) which cells each tile covers."""
    starts = np.clip(offset_px + np.arange(count) * plan.stride_px, 0, size_px)
    ends = np.clip(offset_px + np.arange(count) * plan.stride_px + plan.tile_px, 0, size_px)
    edges = np.unique(np.concatenate([starts, ends]))
    covers = (edges[:-1][None] >= starts[:, None]) & (edges[:-1][None] < ends[:, None])
    return edges, covers.astype(np.float32)


def _outside_px0(plan: TilePlan, info: SlideInfo, spec: JobSpec) -> float:
    """Level-0 pixels outside the regions of interest that no tile was to look at."""
    frame = shapely.box(0, 0, info.width_px0, info.height_px0)
    polygons = [shapely.make_valid(shapely.Polygon(ring)) for ring in spec.roi]
    roi = shapely.intersection(shapely.union_all(polygons), frame)
    seen = list(_runs(plan, info))
    shapely.prepare(roi)
    boxes = shapely.box(*np.array(seen, float).reshape(-1, 4).T)
    whole = shapely.contains(roi, boxes)
    inside = float(shapely.area(boxes[whole]).sum())
    inside += sum(shapely.clip_by_rect(roi, *box).area for box, done in zip(seen, whole, strict=True) if not done)
    seen_px0 = float(shapely.area(boxes).sum())
    return max(0.0, frame.area - roi.area - (seen_px0 - inside))


def _runs(plan: TilePlan, info: SlideInfo) -> Iterator[tuple[float, float, float, float]]:
    """What tiles were to look at as boxes (x0, y0, x1, y1) in level-0 pixels, side by side along rows of cells."""
    seen, xs, ys = looked_at_cells(plan)
    xs, ys = np.minimum(xs * plan.scale_x, info.width_px0), np.minimum(ys * plan.scale_y, info.height_px0)
    for row, top, bottom in zip(seen, ys[:-1], ys[1:], strict=True):
        changes = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for first, last in zip(changes[::2], changes[1::2], strict=True):
            yield float(xs[first]), float(top), float(xs[last]), float(bottom)


def _tile_box(tile: TileRecord, plan: TilePlan) -> list[float]:
    """The tile's frame in level-0 pixels."""
    x1, y1 = tile.x_px + tile.size_px, tile.y_px + tile.size_px
    corners = (tile.x_px * plan.scale_x, tile.y_px * plan.scale_y, x1 * plan.scale_x, y1 * plan.scale_y)
    return [round(value, 2) for value in corners]
