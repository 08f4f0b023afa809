"""The pictures that every face of a report shows: the slide with its outlines, a region, the tile that speaks of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worker.pictures import (
    MARKER_PX,
    Canvas,
    LabelFrame,
    draw_frame,
    draw_labels,
    draw_markers,
    padded_box,
    take_picture,
    write_names,
)

OVERVIEW_PX = 1400
CROP_PX = 520
RINGS = 300
"""Of the regions too small to outline, the largest that get a ring; more would hide the slide."""

FAILED = (205, 30, 45)


class Pixels(Protocol):
    """What pictures are taken of: a slide, or a reference of one."""

    def read_px0(
        self, x_px0: float, y_px0: float, width_px0: float, height_px0: float, out_width: int, out_height: int
    ) -> np.ndarray:
        """(out_height, out_width, 3) uint8 RGB of a frame in level-0 pixels."""


def label_frame(report: Mapping[str, Any], overlay_root: Path) -> LabelFrame:
    """The labels of a report's job."""
    levels = sum((overlay_root / "labels" / "0" / str(level)).is_dir() for level in range(32))
    return LabelFrame(overlay_root, tuple(report["parameters"]["scale"]), levels)


def draw_overview(
    report: Mapping[str, Any],
    frame: LabelFrame,
    pixels: Pixels,
    sized: Sequence[Mapping[str, Any]],
    named: Sequence[Mapping[str, Any]],
) -> Canvas:
    """The scanned area with every region outlined, failed tiles dashed in red, and some regions numbered.

    Args:
        report: from `build_report`.
        frame: the labels.
        pixels: the slide.
        sized: all regions, largest first.
        named: the regions whose labels are written on them.

    Returns:
        A picture of at most `OVERVIEW_PX` a side.
    """
    bounds = report["slide"]["bounds_px0"]
    x, y, width, height = bounds or (0, 0, report["slide"]["width_px0"], report["slide"]["height_px0"])
    canvas = take_picture(pixels, (x, y, x + width, y + height), OVERVIEW_PX)
    for query in report["queries"]:
        draw_labels(canvas, frame, query["query_index"])
    for tile in report["coverage"]["failed_tiles"]:
        draw_frame(canvas, tuple(tile["bbox_px0"]), FAILED)
    draw_markers(canvas, [region for region in sized if _is_small(canvas, region)][:RINGS])
    write_names(canvas, frame, named, {region["region_id"]: str(region["label"]) for region in named})
    return canvas


def _is_small(canvas: Canvas, region: Mapping[str, Any]) -> bool:
    x0, y0, x1, y1 = region["bbox_px0"]
    (left, top), (right, bottom) = canvas.place(x0, y0), canvas.place(x1, y1)
    return max(right - left, bottom - top) < MARKER_PX


def draw_region(region: Mapping[str, Any], frame: LabelFrame, pixels: Pixels) -> Canvas:
    """A region outlined, with room around it; dashed: the tile whose chain is quoted."""
    box = padded_box(tuple(region["bbox_px0"]), 0.15, 128 * max(frame.scale))
    canvas = take_picture(pixels, box, CROP_PX)
    draw_labels(canvas, frame, region["query_index"], only=region["label"])
    if region["chain_tile"]:
        draw_frame(canvas, tuple(region["chain_tile"]["bbox_px0"]))
    return canvas


def draw_tile(region: Mapping[str, Any], frame: LabelFrame, pixels: Pixels) -> Canvas | None:
    """The tile whose chain is a region's, outlined and not filled; None when no tile is on record."""
    if not region["chain_tile"]:
        return None
    canvas = take_picture(pixels, tuple(region["chain_tile"]["bbox_px0"]), CROP_PX)
    draw_labels(canvas, frame, region["query_index"], only=region["label"], fill=0.0)
    return canvas
