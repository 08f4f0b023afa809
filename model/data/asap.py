"""ASAP annotations: polygons in the pixels of a slide's level 0, and their raster in any window.

Source: Litjens et al. 2018, GigaScience 7 (CAMELYON16 and 17), whose own conversion to masks this follows: tumour is
painted first and exclusions over it.
"""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from rasterio.features import rasterize

from model.data.layout import LayoutError

LAYOUT = "ASAP_Annotations/Annotations/Annotation (Type Polygon, PartOfGroup) /Coordinates/Coordinate (X, Y)"
TUMOUR_GROUPS = frozenset({"_0", "_1", "tumor", "tumour", "metastases", "none"})
EXCLUDED_GROUPS = frozenset({"_2", "exclusion", "normal"})
"""CAMELYON16 writes `_0`, `_1`, `_2` in training and `Tumor`, `Exclusion`, `None` in testing, CAMELYON17 the others."""
_AREAS = frozenset({"polygon", "spline", "rectangle"})


@dataclass(frozen=True)
class Lesions:
    """The outlined metastases of one slide.

    Attributes:
        tumour: polygons, each (N, 2) float64 of (x, y) in level-0 pixels, corners of pixels being whole numbers.
        excluded: polygons of what lies inside but is no tumour.
    """

    tumour: tuple[np.ndarray, ...]
    excluded: tuple[np.ndarray, ...] = ()

    def window(
        self, x0: float, y0: float, size: tuple[int, int], downsample: float, all_touched: bool = False
    ) -> np.ndarray:
        """The tumour in a window of the slide.

        Args:
            x0, y0: the window's corner in level-0 pixels.
            size: (height, width) of the result.
            downsample: level-0 pixels per pixel of the result.
            all_touched: mark every pixel that a tumour touches, exclusions left aside, rather than those whose centre
                lies in it.

        Returns:
            `size` bool.
        """
        shapes = [(polygon, 1) for polygon in self.tumour]
        if not all_touched:
            shapes += [(polygon, 0) for polygon in self.excluded]
        inside = []
        for polygon, value in shapes:
            placed = (polygon - (x0, y0)) / downsample
            if (placed.max(axis=0) > 0).all() and (placed.min(axis=0) < size[::-1]).all():
                inside.append(({"type": "Polygon", "coordinates": [[*placed.tolist(), placed[0].tolist()]]}, value))
        if not inside:
            return np.zeros(size, bool)
        return rasterize(inside, out_shape=size, fill=0, dtype=np.uint8, all_touched=all_touched) > 0


def read_lesions(path: Path) -> Lesions:
    """The polygons of an ASAP file; dots, lines and polygons of fewer than three corners enclose nothing.

    Raises:
        LayoutError: the file is no ASAP annotation, a group is unknown, or a corner is not a number.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise LayoutError(path, f"is not readable XML ({error})", LAYOUT) from error
    if root.tag != "ASAP_Annotations":
        raise LayoutError(path, f"begins with <{root.tag}>", LAYOUT)
    parts: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for annotation in root.iter("Annotation"):
        if annotation.get("Type", "").lower() not in _AREAS:
            continue
        group = annotation.get("PartOfGroup", "None").lower()
        if group not in TUMOUR_GROUPS | EXCLUDED_GROUPS:
            groups = ", ".join(sorted(TUMOUR_GROUPS | EXCLUDED_GROUPS))
            raise LayoutError(path, f"has the group {annotation.get('PartOfGroup')!r}", f"the groups {groups}")
        corners = _corners(annotation, path)
        if len(corners) >= 3:
            parts[group in TUMOUR_GROUPS].append(corners)
    return Lesions(tuple(parts[True]), tuple(parts[False]))


def _corners(annotation: ElementTree.Element, path: Path) -> np.ndarray:
    """(N, 2) float64, in the order that the file states."""
    try:
        rows = [
            (int(float(corner.get("Order", number))), _number(corner.get("X")), _number(corner.get("Y")))
            for number, corner in enumerate(annotation.iter("Coordinate"))
        ]
    except (TypeError, ValueError) as error:
        name = annotation.get("Name")
        raise LayoutError(path, f"annotation {name!r} has a corner that is no number ({error})", LAYOUT) from error
    return np.array([(x, y) for _, x, y in sorted(rows)], np.float64).reshape(-1, 2)


def _number(text: str | None) -> float:
    """A coordinate, whose decimal point may be a comma."""
    value = float((text or "").replace(",", "."))
    if not np.isfinite(value):
        raise ValueError(text)
    return value
