"""The pixels an export draws upon: the slide itself where it still is what it was, and the overlay's reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr

from worker.exports.job_results import JobResults
from worker.pyramid import open_level


@contextmanager
def slide_of(results: JobResults) -> Iterator[tuple[Any | None, str]]:
    """The job's slide, open, if it still has the content that the job looked at.

    Args:
        results: of the job.

    Yields:
        The open `worker.slides.Slide` and an empty text; or None, and why in words that name no path.
    """
    slide, why = results.open_slide()
    try:
        yield slide, why
    finally:
        if slide is not None:
            slide.close()


class Reference:
    """The overlay's own picture of the slide; coarse, but always there. Reads frames as a slide does.

    Args:
        root: the overlay.
    """

    def __init__(self, root: Path):
        about = zarr.open_group(store=str(root), mode="r", zarr_format=3).attrs["slidereason"]
        level = min(about["reference_levels"])
        self.image = np.moveaxis(np.asarray(open_level(root, "", level)[...]), 0, 2)  # (h, w, 3)
        self.scale = (about["scale_x"] * 2**level, about["scale_y"] * 2**level)

    def read_px0(
        self, x_px0: float, y_px0: float, width_px0: float, height_px0: float, out_width: int, out_height: int
    ) -> np.ndarray:
        """(out_height, out_width, 3) uint8 RGB of a frame in level-0 pixels; white outside."""
        scale_x, scale_y = self.scale
        rows, cols = self.image.shape[:2]
        x0, x1 = _clipped(x_px0 / scale_x, (x_px0 + width_px0) / scale_x, cols)
        y0, y1 = _clipped(y_px0 / scale_y, (y_px0 + height_px0) / scale_y, rows)
        out = np.full((out_height, out_width, 3), 255, np.uint8)
        if x1 <= x0 or y1 <= y0:
            return out
        # where the part that is there lies in the result
        left, right = (round((x * scale_x - x_px0) / width_px0 * out_width) for x in (x0, x1))
        top, bottom = (round((y * scale_y - y_px0) / height_px0 * out_height) for y in (y0, y1))
        left, top, right, bottom = max(0, left), max(0, top), min(out_width, right), min(out_height, bottom)
        if right > left and bottom > top:
            part = self.image[y0:y1, x0:x1]
            out[top:bottom, left:right] = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        return out


def _clipped(start: float, end: float, size: int) -> tuple[int, int]:
    """The whole pixels of [0, size) that a frame touches: first, and one past the last."""
    return max(0, int(np.floor(start))), min(size, int(np.ceil(end)))
