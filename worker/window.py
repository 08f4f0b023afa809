"""Where the exemplar of a job is looked at: a tile's worth of its slide, around the outline. Pure functions.

Neither pixels nor a model are needed, so the gateway asks here whether an exemplar can be used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from worker.errors import BadRequest, fields_of
from worker.plan import slide_mpp
from worker.types import ExemplarSpec, Ring, SlideInfo

MIN_SHARE = 0.002
"""Of the window, that the outline must hold; `model.exemplar` asks for the same."""

CELLS, MOST_CELLS = 16, 512
"""Where the densest part of a large outline is sought: cells along a window's edge, and at most along the outline's."""

Frame = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """What of a slide an exemplar shows.

    Attributes:
        frame_px0: (x, y, width, height) in level-0 pixels; may reach beyond the slide.
        outline: polygons inside the frame, in level-0 pixels.
        whole_px0: area of everything that was outlined within slide and roi, in level-0 pixels.
        roi: polygons outside which nothing is shown; None shows the whole frame.
        mpp_x, mpp_y: µm per level-0 pixel.
    """

    frame_px0: Frame
    outline: shapely.MultiPolygon
    whole_px0: float
    roi: shapely.MultiPolygon | None
    mpp_x: float
    mpp_y: float

    @property
    def share(self) -> float:
        """The part of the frame under the outline."""
        return self.outline.area / (self.frame_px0[2] * self.frame_px0[3])


def place_window(exemplar: ExemplarSpec, info: SlideInfo, mpp: float, tile_px: int) -> Window:
    """Find the window of an exemplar: as large as a tile, around the outline, within the slide and the roi if it fits.

    Of an outline that is larger than a tile the part is shown where most of it lies inside.

    Args:
        exemplar: what was outlined where.
        info: the exemplar's slide.
        mpp: µm/px of the job's tiles.
        tile_px: edge of the job's tiles.

    Returns:
        The window.

    Raises:
        MppUnknown: neither the slide nor `mpp_override` says how large a pixel is.
        BadRequest: the outline lies outside the slide or the roi, or shows too little; `field` says which of them.
    """
    mpp_x, mpp_y = check_place(exemplar, info)
    width, height = tile_px * mpp / mpp_x, tile_px * mpp / mpp_y
    slide = shapely.box(0, 0, info.width_px0, info.height_px0)
    roi = _areas(shapely.intersection(_union([(ring,) for ring in exemplar.roi]), slide)) if exemplar.roi else None
    outline = _areas(shapely.intersection(_union(exemplar.mask), slide if roi is None else roi))
    if outline.area <= 0 and roi is None:
        raise _outside("exemplar.mask", info)
    if outline.area <= 0:
        raise BadRequest("nothing of exemplar.mask lies within exemplar.roi; let the roi hold it", field="exemplar.roi")
    x, y = _corner(outline, (slide if roi is None else roi).bounds, width, height)
    shown = _areas(shapely.intersection(outline, shapely.box(x, y, x + width, y + height)))
    window = Window((x, y, width, height), shown, outline.area, roi, mpp_x, mpp_y)
    if window.share < MIN_SHARE:
        raise BadRequest(
            f"exemplar.mask holds {window.share:.2%} of a tile of {tile_px} px at {mpp:g} µm/px; at least "
            f"{MIN_SHARE:.1%} is due: outline more, or ask at a finer mpp",
            field="exemplar.mask",
        )
    return window


def check_place(exemplar: ExemplarSpec, info: SlideInfo) -> tuple[float, float]:
    """What can be said of an exemplar whatever the scale of the job; returns its slide's µm/px, (x, y).

    Raises:
        MppUnknown: neither the slide nor `mpp_override` says how large a pixel is.
        BadRequest: a polygon lies outside the slide.
    """
    _require_inside([shell for shell, *_ in exemplar.mask], info, "exemplar.mask")
    _require_inside(exemplar.roi, info, "exemplar.roi")
    with fields_of("exemplar"):
        return slide_mpp(info, exemplar)


def _require_inside(rings: Iterable[Ring], info: SlideInfo, field: str) -> None:
    """A polygon wholly outside the slide was drawn in another frame."""
    for ring in rings:
        xs, ys = [x for x, _ in ring], [y for _, y in ring]
        if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= info.width_px0 or min(ys) >= info.height_px0:
            raise _outside(field, info)


def _outside(field: str, info: SlideInfo) -> BadRequest:
    return BadRequest(
        f"a polygon of {field} lies outside the exemplar's slide; accepted are its level-0 pixels "
        f"with 0 <= x <= {info.width_px0} and 0 <= y <= {info.height_px0}",
        field=field,
    )


def _union(polygons: Iterable[Sequence[Ring]]) -> shapely.Geometry:
    """One geometry of polygons that may cross themselves (even-odd) and each other (joined)."""
    return shapely.union_all([shapely.make_valid(shapely.Polygon(shell, holes)) for shell, *holes in polygons])


def _areas(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """What of a geometry has an area."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.MultiPolygon([part for part in parts if isinstance(part, shapely.Polygon) and part.area > 0])


def _corner(outline: shapely.MultiPolygon, bounds: Frame, width: float, height: float) -> tuple[int, int]:
    """Top-left of the window, on a whole pixel, within `bounds`: around the outline, or its densest part."""
    x0, y0, x1, y1 = outline.bounds
    left, top, right, bottom = bounds
    x, y = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    if x1 - x0 > width or y1 - y0 > height:
        x, y = _densest(outline, width, height)
    return _held(x, width, left, right), _held(y, height, top, bottom)


def _densest(outline: shapely.MultiPolygon, width: float, height: float) -> tuple[float, float]:
    """Top-left of the window that holds most of an outline; of equal ones the nearest to its middle.

    Along a side that is not longer than the window it is centred. The outline is sampled at the centres of cells, and
    the sums over all windows come from one table of running sums (Crow 1984).
    """
    x0, y0, x1, y1 = outline.bounds
    xs, across = _cells(x0, x1, width)
    ys, down = _cells(y0, y1, height)
    shapely.prepare(outline)
    inside = shapely.contains_xy(outline, *np.meshgrid(xs, ys))  # [rows, columns]
    sums = np.pad(inside.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    held = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    middle = (np.array(held.shape) - 1) / 2
    rows, columns = np.nonzero(held == held.max())
    best = np.argmin((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2)
    return _start(x0, x1, width, columns[best], held.shape[1]), _start(y0, y1, height, rows[best], held.shape[0])


def _cells(low: float, high: float, size: float) -> tuple[np.ndarray, int]:
    """Centres of the cells along one side of an outline, and how many of them a window spans."""
    count = int(min(MOST_CELLS, np.ceil(CELLS * (high - low) / size)))
    edge = (high - low) / count
    return low + edge * (np.arange(count) + 0.5), min(count, max(1, round(size / edge)))


def _start(low: float, high: float, size: float, place: int, places: int) -> float:
    """Where the window at one of several places starts along a side."""
    if places == 1:
        return (low + high - size) / 2
    return low + (high - size - low) * place / (places - 1)


def _held(start: float, size: float, low: float, high: float) -> int:
    """Where a stretch starts that is moved into [low, high], or centred on it where it is longer."""
    return round((low + high - size) / 2 if size > high - low else min(max(start, low), high - size))
