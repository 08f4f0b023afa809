"""Pictures of a report: the slide with its outlines, and crops of regions and tiles, as data URIs."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from worker.colors import query_color
from worker.pyramid import open_level

if TYPE_CHECKING:
    from worker.slides import Slide

JPEG_QUALITY = 86
FILL = 0.13
NAME_SIZE = 0.7
MARKER_PX = 7
"""Regions that would be smaller than this in the overview get a ring instead of an outline."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Canvas:
    """A picture of a frame of the slide.

    Attributes:
        image: (h, w, 3) uint8 RGB; drawn upon.
        box_px0: (x0, y0, x1, y1) of the frame in level-0 pixels.
    """

    image: np.ndarray
    box_px0: Box

    def place(self, x_px0: float, y_px0: float) -> tuple[int, int]:
        """Where a level-0 point lies on the picture, (x, y)."""
        x0, y0, x1, y1 = self.box_px0
        height, width = self.image.shape[:2]
        return round((x_px0 - x0) / (x1 - x0) * width), round((y_px0 - y0) / (y1 - y0) * height)


@dataclass(frozen=True)
class LabelFrame:
    """The labels of an overlay, read in level-0 frames.

    Attributes:
        root: the overlay's folder.
        scale: level-0 pixels per overlay pixel, (x, y).
        levels: number of levels.
    """

    root: Path
    scale: tuple[float, float]
    levels: int

    def read(self, query_index: int, box_px0: Box, width: int, height: int) -> np.ndarray:
        """The labels of a frame, by the nearest pixel of the nearest finer level.

        Args:
            query_index: which query.
            box_px0: the frame; what lies outside the overlay is 0.
            width, height: size of the result.

        Returns:
            (height, width) uint32.
        """
        x0, y0, x1, y1 = box_px0
        step = min((x1 - x0) / self.scale[0] / width, (y1 - y0) / self.scale[1] / height)
        level = int(np.clip(np.floor(np.log2(max(step, 1.0))), 0, self.levels - 1))
        array = open_level(self.root, f"labels/{query_index}", level)
        xs = _centres(x0, x1, width, self.scale[0] * 2**level)
        ys = _centres(y0, y1, height, self.scale[1] * 2**level)
        inside_x = (xs >= 0) & (xs < array.shape[1])
        inside_y = (ys >= 0) & (ys < array.shape[0])
        labels = np.zeros((height, width), np.uint32)
        if inside_x.any() and inside_y.any():
            cols, rows = xs[inside_x], ys[inside_y]
            part = array[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
            labels[np.ix_(inside_y, inside_x)] = part[np.ix_(rows - rows[0], cols - cols[0])]
        return labels


def _centres(start_px0: float, end_px0: float, count: int, factor: float) -> np.ndarray:
    """Indices of the array's pixels under the centres of `count` pixels between two level-0 coordinates."""
    return np.floor((start_px0 + (np.arange(count) + 0.5) * (end_px0 - start_px0) / count) / factor).astype(np.int64)


def fit(box_px0: Box, max_px: int) -> tuple[int, int]:
    """(width, height) of a picture of a frame whose long side is `max_px`."""
    width, height = box_px0[2] - box_px0[0], box_px0[3] - box_px0[1]
    scale = max_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def padded_box(box_px0: Box, margin: float, min_side_px0: float) -> Box:
    """A frame with room around it, no thinner than two to one."""
    x0, y0, x1, y1 = box_px0
    side = max(x1 - x0, y1 - y0)
    width = max((x1 - x0) + 2 * margin * side, side / 1.5, min_side_px0)
    height = max((y1 - y0) + 2 * margin * side, side / 1.5, min_side_px0)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def take_picture(slide: "Slide", box_px0: Box, max_px: int) -> Canvas:
    """A picture of a frame of the slide, to draw upon."""
    x0, y0, x1, y1 = box_px0
    return Canvas(np.array(slide.read_px0(x0, y0, x1 - x0, y1 - y0, *fit(box_px0, max_px))), box_px0)


def draw_labels(
    canvas: Canvas, frame: LabelFrame, query_index: int, only: int | None = None, fill: float = FILL, width: int = 2
) -> None:
    """Outline the regions of a query on a picture: a dark line under the query's colour, readable on any stain.

    Args:
        canvas: drawn upon.
        frame: where the labels are.
        query_index: which query.
        only: a label to stress: the others get a thin line and no fill.
        fill: opacity of the colour inside.
        width: of the line, in pixels.
    """
    height, breadth = canvas.image.shape[:2]
    labels = frame.read(query_index, canvas.box_px0, breadth, height)
    color = query_color(query_index)
    # Regions do not touch but at corners, so all that are drawn alike can be drawn as one mask.
    stressed = labels > 0 if only is None else labels == only
    if fill:
        canvas.image[stressed] = (canvas.image[stressed] * (1 - fill) + np.array(color) * fill).astype(np.uint8)
    cv2.drawContours(canvas.image, _contours((labels > 0) & ~stressed), -1, color, 1, cv2.LINE_AA)
    outlines = _contours(stressed)
    cv2.drawContours(canvas.image, outlines, -1, (20, 20, 24), width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas.image, outlines, -1, color, width, cv2.LINE_AA)


def _contours(mask: np.ndarray) -> Sequence[np.ndarray]:
    """Outer and inner outlines of a (h, w) bool mask."""
    return cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]


def draw_frame(canvas: Canvas, box_px0: Box, color: tuple[int, int, int] = (20, 20, 24)) -> None:
    """Draw a dashed rectangle around a frame."""
    left, top = canvas.place(box_px0[0], box_px0[1])
    right, bottom = canvas.place(box_px0[2], box_px0[3])
    for x in range(left, right, 10):
        for y in (top, bottom):
            cv2.line(canvas.image, (x, y), (min(x + 5, right), y), color, 1, cv2.LINE_AA)
    for y in range(top, bottom, 10):
        for x in (left, right):
            cv2.line(canvas.image, (x, y), (x, min(y + 5, bottom)), color, 1, cv2.LINE_AA)


def draw_markers(canvas: Canvas, regions: Sequence[Mapping]) -> None:
    """Ring the regions too small to see.

    Args:
        canvas: drawn upon.
        regions: report entries with `bbox_px0`, `centroid_px0` and `query_index`.
    """
    for region in regions:
        x0, y0, x1, y1 = region["bbox_px0"]
        (left, top), (right, bottom) = canvas.place(x0, y0), canvas.place(x1, y1)
        if max(right - left, bottom - top) < MARKER_PX:
            centre = canvas.place(*region["centroid_px0"])
            cv2.circle(canvas.image, centre, MARKER_PX, (20, 20, 24), 3, cv2.LINE_AA)
            cv2.circle(canvas.image, centre, MARKER_PX, query_color(region["query_index"]), 2, cv2.LINE_AA)


def write_names(canvas: Canvas, frame: LabelFrame, regions: Sequence[Mapping], names: Mapping[str, str]) -> None:
    """Write names on regions, each where its region is thickest.

    Args:
        canvas: drawn upon.
        frame: where the labels are.
        regions: report entries with `label`, `centroid_px0`, `query_index` and `region_id`.
        names: the words, by region id.
    """
    height, width = canvas.image.shape[:2]
    for query_index in sorted({region["query_index"] for region in regions}):
        labels = frame.read(query_index, canvas.box_px0, width, height)
        for region in regions:
            if region["query_index"] == query_index and region["region_id"] in names:
                # The picture's edge is an edge of the region too.
                mask = np.pad((labels == region["label"]).astype(np.uint8), 1)
                depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[1:-1, 1:-1]
                row, col = np.unravel_index(int(depth.argmax()), depth.shape)
                place = (int(col), int(row)) if depth[row, col] > 0 else canvas.place(*region["centroid_px0"])
                _write_name(canvas, place, names[region["region_id"]], query_color(query_index))


def _write_name(canvas: Canvas, place: tuple[int, int], name: str, color: tuple[int, int, int]) -> None:
    """Write a name in a filled plate around a point of the picture."""
    (width, height), baseline = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, NAME_SIZE, 1)
    x, y = place
    rows, cols = canvas.image.shape[:2]
    x = int(np.clip(x - width // 2, 5, max(5, cols - width - 5)))
    y = int(np.clip(y + height // 2, height + 5, max(height + 5, rows - baseline - 3)))
    corner, opposite = (x - 5, y - height - 5), (x + width + 5, y + baseline + 2)
    cv2.rectangle(canvas.image, corner, opposite, color, -1, cv2.LINE_AA)
    cv2.putText(canvas.image, name, (x, y), cv2.FONT_HERSHEY_SIMPLEX, NAME_SIZE, (255, 255, 255), 1, cv2.LINE_AA)


def data_uri(image: np.ndarray) -> str:
    """A picture as a JPEG data URI.

    Args:
        image: (h, w, 3) uint8 RGB.

    Returns:
        `data:image/jpeg;base64,…`.
    """
    done, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"a picture of shape {image.shape} could not be encoded as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
