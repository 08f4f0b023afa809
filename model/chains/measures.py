"""More of what can be measured than the template speaks of: single nuclei, colours, where each piece lies.

`measure` and `location_words` of `model/data/morphology.py` stay the source of every fact they know; sizes in pixels
unless the name says otherwise, positions as shares of the picture's width and height.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from model.data.morphology import count_pieces, location_words, lumen_mask, measure, nuclei_mask

_COLOURS = {
    "dark purple": (72, 40, 105), "purple": (125, 80, 155), "pale purple": (185, 155, 200), "blue": (90, 95, 165),
    "magenta": (190, 75, 145), "pink": (225, 150, 190), "pale pink": (240, 205, 220), "red": (190, 50, 60),
    "brown": (130, 85, 55), "white": (245, 244, 246), "grey": (150, 150, 150),
}  # fmt: skip
SPOT_SHARE = 0.2
"""A piece with this share of the mask may be spoken of on its own."""


@dataclass(frozen=True)
class Seen:
    """One structure of a picture, measured.

    Attributes:
        key: its concept.
        where: `location_words` of it.
        facts: `measure`'s, and those of `more_facts`; without a picture only what the mask says.
        spots: (x, y) of the whole and of each larger piece, as shares of width and height.
        colour, colour_around: the name of the mean colour inside, and outside where there is tissue; "" if unknown.
    """

    key: str
    where: str
    facts: Mapping[str, float]
    spots: tuple[tuple[float, float], ...]
    colour: str = ""
    colour_around: str = ""


def see(
    key: str, mask: np.ndarray, image: np.ndarray | None = None, mpp: float | None = None,
    facts: Mapping[str, float] | None = None,
) -> Seen:  # fmt: skip
    """Measure one structure (about 15 ms at 224 px).

    Args:
        key: its concept.
        mask: (H, W) bool, not empty.
        image: (H, W, 3) uint8 RGB; None leaves out what only a picture says.
        mpp: µm/px, None when unknown.
        facts: known facts, which count instead of measured ones.
    """
    pieces = count_pieces(mask)
    share = float(mask.mean())
    known = {"share": share, "pieces": float(pieces), "piece_share": share / pieces, "touched": _touched(mask)}
    colour = colour_around = ""
    if image is not None:
        known = measure(image, mask, mpp) | more_facts(image, mask, mpp) | {"touched": known["touched"]}
        empty = lumen_mask(image)
        colour, colour_around = (_colour(image, side & ~empty) for side in (mask, ~mask))
    return Seen(key, location_words(mask), {**known, **(facts or {})}, _spots(mask), colour, colour_around)


def more_facts(image: np.ndarray, mask: np.ndarray, mpp: float | None = None) -> dict[str, float]:
    """Single nuclei and lumens.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        mpp: µm/px, None when unknown.

    Returns:
        `nuclei_count`; `diameter_px`, their median; `diameter_spread`, half of its interquartile range over the
        median; `diameter_px_around`, the median outside; `lumen_count`, empty places of at least 0.05 % of the picture
        inside the mask, or enclosed by it; with a known mpp also `nuclei_per_mm2` and `diameter_um`.
    """
    diameters = nucleus_diameters(nuclei_mask(image))  # [H, W], 0 where no nucleus has its centre
    inside, outside = diameters[mask & (diameters > 0)], diameters[~mask & (diameters > 0)]
    quarter, median, three = np.percentile(inside, (25, 50, 75)) if len(inside) else (0.0, 0.0, 0.0)
    _, _, stats, _ = cv2.connectedComponentsWithStats((lumen_mask(image) & _filled(mask)).astype(np.uint8))
    facts = {
        "nuclei_count": float(len(inside)),
        "diameter_px": float(median),
        "diameter_spread": float((three - quarter) / 2 / median) if median else 0.0,
        "diameter_px_around": float(np.median(outside)) if len(outside) else 0.0,
        "lumen_count": float((stats[1:, cv2.CC_STAT_AREA] >= 0.0005 * mask.size).sum()),
    }
    if mpp:
        facts["diameter_um"] = facts["diameter_px"] * mpp
        facts["nuclei_per_mm2"] = len(inside) / (float(mask.sum()) * mpp**2 / 1e6)
    return {name: round(value, 4) for name, value in facts.items()}


def nucleus_diameters(nuclei: np.ndarray) -> np.ndarray:
    """Diameters of single nuclei at their centres.

    A centre is a peak of the distance to the rim, so that nuclei which touch are told apart where they are waisted.

    Args:
        nuclei: (H, W) bool.

    Returns:
        (H, W) float32; 0 everywhere else.
    """
    distance = cv2.distanceTransform(np.pad(nuclei.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    smooth = cv2.GaussianBlur(distance, (0, 0), 1.0)
    peaks = (smooth == cv2.dilate(smooth, np.ones((7, 7), np.uint8))) & (distance > 1.2)
    _, _, _, centres = cv2.connectedComponentsWithStats(peaks.astype(np.uint8), connectivity=8)
    found = np.zeros(nuclei.shape, np.float32)
    columns, rows = np.rint(centres[1:]).astype(int).T
    found[rows, columns] = 2 * distance[rows, columns]
    return found


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes, (H, W) bool."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0


def _touched(mask: np.ndarray) -> float:
    """How many of the picture's ninths hold a share worth speaking of (as `location_words` counts them)."""
    ninths = cv2.resize(mask.astype(np.float32), (3, 3), interpolation=cv2.INTER_AREA)
    return float((ninths > max(0.1, float(mask.mean()) / 3)).sum())


def _spots(mask: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Centroids of the whole and of every larger piece."""
    height, width = mask.shape
    count, _, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = [n for n in range(1, count) if stats[n, cv2.CC_STAT_AREA] >= SPOT_SHARE * mask.sum()]
    rows, columns = np.nonzero(mask)
    points = [(columns.mean(), rows.mean()), *(tuple(centres[n]) for n in large)]
    return tuple((float(x) / width, float(y) / height) for x, y in points)


def _colour(image: np.ndarray, where: np.ndarray) -> str:
    """The nearest named colour to the mean of some pixels; "" without any."""
    if not where.any():
        return ""
    colours = np.array([image[where].mean(0), *_COLOURS.values()], np.uint8)[None]
    lab = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0].astype(float)
    return list(_COLOURS)[int(np.argmin(((lab[1:] - lab[0]) ** 2).sum(1)))]
