"""Pictures of a slide for a viewer: Deep Zoom tiles and thumbnails as JPEG. Runs in a child that the gateway keeps.

Needs neither OpenCV nor torch, which gateways do not have.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from worker.deep_zoom import USE, Zoom
from worker.slide_info import true_factor
from worker.slides import open_slide
from worker.types import SlideInfo

JPEG_QUALITY = 90
"""Without halving the colours: on dense tissue 2 to 5 grey values off in the mean, 6 with them halved."""

KEPT_PX = 2**23
"""A coarsest level no larger than this is kept decoded (24 MB) once a tile shows much of it."""

KEPT_STEP = 4
WHOLE_LEVEL_PX = 2**25
"""A coarsest level larger than this is not read as a whole for one tile (some 1 s): a sample of it stands in."""

SAMPLED_STEP = 32
SAMPLED_PX = 2**26
"""Source pixels that this sample may cost; the rest of the level is not looked at."""

EVEN = 1.001
"""A level whose pixels are less square than this, by rounding, is passed over."""


@dataclass(frozen=True)
class Source:
    """A level to cut from: (x, y) level-0 pixels per pixel, its size, and how a box (x, y, w, h) of it is read."""

    factor: tuple[float, float]
    width: int
    height: int
    read: Callable[[int, int, int, int], np.ndarray]


class SlideTiles:
    """One open slide.

    Args:
        path: of the slide.

    Raises:
        SlideNotFound, SlideUnreadable: see `worker.slides.open_slide`; every method raises SlideUnreadable where the
            slide's data is broken.
    """

    def __init__(self, path: str):
        self._slide = open_slide(path)
        info = self._slide.info
        self._zoom = Zoom(info.width_px0, info.height_px0)
        self._levels = [source for size in info.level_dimensions if (source := self._source(*size)) is not None]

    def info(self) -> SlideInfo:
        """What the slide says of itself."""
        return self._slide.info

    def tile(self, level: int, col: int, row: int) -> bytes:
        """One Deep Zoom tile, JPEG.

        Raises:
            BadRequest: there is no such tile.
        """
        frame = self._zoom.frame(level, col, row)
        corner, steps = (frame.x_px0, frame.y_px0), (frame.step_px0, frame.step_px0)
        return encode_jpeg(self._picture(corner, steps, frame.width, frame.height))

    def thumbnail(self, max_px: int) -> bytes:
        """The whole slide in one JPEG whose long side is `max_px`, or the slide's where that is smaller."""
        width, height = self._zoom.width_px0, self._zoom.height_px0
        scale = min(1.0, max_px / max(width, height))
        out_width, out_height = max(1, round(width * scale)), max(1, round(height * scale))
        return encode_jpeg(self._picture((0, 0), (width / out_width, height / out_height), out_width, out_height))

    def _source(self, width: int, height: int) -> Source | None:
        """A level of the slide, unless rounding left its pixels far from square."""
        info = self._slide.info
        factor_x, factor_y = true_factor(info.width_px0, width), true_factor(info.height_px0, height)
        if max(factor_x, factor_y) > EVEN * min(factor_x, factor_y):
            return None

        def read(x: int, y: int, w: int, h: int) -> np.ndarray:
            # whole pixels of this very level: the slide crops, and resamples nothing
            return self._slide.read_px0(x * factor_x, y * factor_y, w * factor_x, h * factor_y, w, h)

        return Source((factor_x, factor_y), width, height, read)

    def _picture(
        self, corner_px0: tuple[float, float], steps: tuple[float, float], width: int, height: int
    ) -> Image.Image:
        """A frame of the slide, from the nearest finer level; the slide's edge goes on where the frame reaches over."""
        source = self._nearest_finer(min(steps))
        ratios = [step / factor for step, factor in zip(steps, source.factor, strict=True)]
        lefts = [corner / factor for corner, factor in zip(corner_px0, source.factor, strict=True)]
        spans = [ratio * count for ratio, count in zip(ratios, (width, height), strict=True)]
        whole = all(_is_whole(value) for value in (*ratios, *lefts))
        if whole:
            factors = (round(ratios[0]), round(ratios[1]))
            return _reduced(source, (round(lefts[0]), round(lefts[1])), factors, (width, height))
        margins = [math.ceil(ratio) + 1 for ratio in ratios]  # the filter looks beyond the box
        starts = [math.floor(left) - margin for left, margin in zip(lefts, margins, strict=True)]
        ends = [math.ceil(left + span) + margin for left, span, margin in zip(lefts, spans, margins, strict=True)]
        image = Image.fromarray(_read_over_edges(source, *starts, *ends))
        x, y = lefts[0] - starts[0], lefts[1] - starts[1]
        box = (x, y, x + spans[0], y + spans[1])
        return image.resize((width, height), Image.Resampling.HAMMING, box, reducing_gap=3.0)

    def _nearest_finer(self, step: float) -> Source:
        """The coarsest source that is at least as fine as the step."""
        fitting = [source for source in self._levels if max(source.factor) <= step * EVEN]
        best = max(fitting, key=lambda source: source.factor, default=self._levels[0])
        if best is self._levels[-1] and step * EVEN >= self._overview_from:
            return self._overview
        return best

    @property
    def _overview_from(self) -> float:
        """The step from which tiles are cut from the overview, where there is one."""
        coarsest = self._levels[-1]
        if coarsest.width * coarsest.height <= KEPT_PX:
            return KEPT_STEP * max(coarsest.factor)
        sampled = coarsest.width * coarsest.height > WHOLE_LEVEL_PX
        return SAMPLED_STEP * max(coarsest.factor) if sampled else math.inf

    @cached_property
    def _overview(self) -> Source:
        """The coarsest level in memory, whole where it is small, reduced from a sample where it is huge."""
        coarsest, step = self._levels[-1], 1
        if coarsest.width * coarsest.height <= KEPT_PX:
            picture = coarsest.read(0, 0, coarsest.width, coarsest.height)
        else:
            step = SAMPLED_STEP
            skip = math.ceil(math.sqrt(coarsest.width * coarsest.height / SAMPLED_PX))
            picture = _sampled(coarsest, step, skip)
        height, width = picture.shape[:2]
        factor = (coarsest.factor[0] * step, coarsest.factor[1] * step)
        return Source(factor, width, height, lambda x, y, w, h: picture[y : y + h, x : x + w])


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _reduced(source: Source, corner: tuple[int, int], factors: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A box of a source by whole factors; the last pixel of a row or column is the mean of what there is of it."""
    limits = (source.width, source.height)
    right, bottom = (
        max(min(start + count * factor, limit), start + (count - 1) * factor + 1)
        for start, count, factor, limit in zip(corner, size, factors, limits, strict=True)
    )
    image = Image.fromarray(_read_over_edges(source, *corner, right, bottom))
    return image if factors == (1, 1) else image.reduce(factors)


def _read_over_edges(source: Source, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A box of a source, (h, w, 3) uint8; beyond the edges their last pixels are repeated."""
    x0, x1 = min(max(left, 0), source.width - 1), max(min(right, source.width), 1)
    y0, y1 = min(max(top, 0), source.height - 1), max(min(bottom, source.height), 1)
    inside = source.read(x0, y0, x1 - x0, y1 - y0)
    before_after = ((y0 - top, bottom - y1), (x0 - left, right - x1), (0, 0))
    return np.pad(inside, before_after, mode="edge") if any(map(any, before_after)) else inside


def _sampled(source: Source, step: int, skip: int) -> np.ndarray:
    """A source reduced by a whole number, of which one cell in skip x skip is read and stands for its neighbours."""
    width, height = -(-source.width // step), -(-source.height // step)
    cell = max(1, 256 // step)
    group = cell * skip
    out = np.empty((height, width, 3), np.uint8)
    for row in range(0, height, group):
        for col in range(0, width, group):
            target = out[row : row + group, col : col + group]
            y = min(row + (group - cell) // 2, row + max(0, target.shape[0] - cell))
            x = min(col + (group - cell) // 2, col + max(0, target.shape[1] - cell))
            box = _read_over_edges(source, x * step, y * step, (x + cell) * step, (y + cell) * step)
            part = np.asarray(Image.fromarray(box).reduce(step)).repeat(skip, axis=0).repeat(skip, axis=1)
            target[:] = part[: target.shape[0], : target.shape[1]]
    return out


def encode_jpeg(image: Image.Image) -> bytes:
    """A picture as baseline JPEG of `JPEG_QUALITY` that says what it may be used for."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, comment=USE)
    return stream.getvalue()
