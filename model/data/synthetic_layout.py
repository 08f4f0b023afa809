"""Where the structures of a synthetic scene lie: territories of one kind each, then what is strewn between them."""

import cv2
import numpy as np

from model.data.synthetic_glands import Structure, structure_of
from model.data.synthetic_shapes import Blob, box_of, packed_cells, random_blob

SHEETS = ("lymphocytes", "tumour_nest", "necrosis", "fat")
GLANDS = ("normal_gland", "malignant_gland")
WEIGHTS = {
    "normal_gland": 1.5, "malignant_gland": 2.8, "tumour_nest": 1.5, "lymphocytes": 1.0, "necrosis": 0.8, "fat": 0.7,
}  # fmt: skip
"""How often a territory is of a kind, so that in the end each kind is seen about as often as the others."""

GRID_UM = 4.0
"""Cell of the map that keeps glands and vessels from overlapping."""


class Ground:
    """A map of what is taken, so that structures with an inner architecture never overlap.

    Args:
        box_um: (x0, y0, x1, y1) of the world it covers.
    """

    def __init__(self, box_um: tuple[float, float, float, float]):
        self.box_um = box_um
        width, height = (box_um[2] - box_um[0]) / GRID_UM, (box_um[3] - box_um[1]) / GRID_UM
        self._taken = np.zeros((int(height) + 2, int(width) + 2), np.uint8)

    def _cells(self, polygon_um: np.ndarray) -> np.ndarray:
        return np.rint((polygon_um - self.box_um[:2]) / GRID_UM).astype(np.int32)

    def mark(self, structure: Structure) -> None:
        """Take all of a structure's ground, whoever has it."""
        for polygon in structure.polygons:
            cv2.fillPoly(self._taken, [self._cells(polygon)], 1)

    def is_free(self, x_um: float, y_um: float) -> bool:
        """Whether the cell of a point is untaken."""
        column, row = (int(edge) for edge in ((x_um - self.box_um[0]) / GRID_UM, (y_um - self.box_um[1]) / GRID_UM))
        height, width = self._taken.shape
        return not (0 <= row < height and 0 <= column < width and self._taken[row, column])

    def claim(self, outline_um: np.ndarray, gap_um: float = 3.0) -> bool:
        """Take the outline's ground; False, and nothing taken, where some of it is taken or out of the map."""
        cells = self._cells(outline_um)
        (x0, y0), (x1, y1) = cells.min(0) - 1, cells.max(0) + 2
        x0, y0 = max(x0, 0), max(y0, 0)
        window = self._taken[y0:y1, x0:x1]
        if not window.size:
            return False
        mask = np.zeros(window.shape, np.uint8)
        cv2.fillPoly(mask, [cells - (x0, y0)], 1)
        cv2.polylines(mask, [cells - (x0, y0)], True, 1, max(1, round(2 * gap_um / GRID_UM)))
        if (mask & window).any():
            return False
        window |= mask
        return True


def place_gland(rng: np.random.Generator, kind: str, x_um: float, y_um: float, lean: float | None = None) -> Structure:
    """A normal crypt (60 to 120 µm across) or a malignant gland (60 to 300 µm) at a point."""
    if kind == "normal_gland":
        blob = random_blob(rng, x_um, y_um, rng.uniform(27, 55), rng.uniform(1.0, 1.9), 0.035, 3, _leaning(rng, lean))
    else:
        radius = float(np.exp(rng.uniform(np.log(34), np.log(115))))
        blob = random_blob(
            rng, x_um, y_um, radius, rng.uniform(1.0, 2.4), rng.uniform(0.05, 0.13), 5, _leaning(rng, lean, 0.6)
        )
    return structure_of(kind, [blob.outline()], blob, rng.integers(1 << 62))


def _leaning(rng: np.random.Generator, lean: float | None, spread: float = 0.25) -> float | None:
    return None if lean is None else lean + rng.normal(0, spread)


def place_vessel(rng: np.random.Generator, x_um: float, y_um: float) -> Structure:
    """A vessel 36 to 150 µm across."""
    radius = float(np.exp(rng.uniform(np.log(18), np.log(75))))
    blob = random_blob(rng, x_um, y_um, radius, rng.uniform(1.0, 1.8), 0.05, 3)
    return structure_of("vessel", [blob.outline()], blob, rng.integers(1 << 62))


def place_sheet(rng: np.random.Generator, kind: str, blob: Blob, adipocyte_um: float = 58.0) -> Structure | None:
    """A sheet that fills a blob; None where it would be empty."""
    seed = rng.integers(1 << 62)
    if kind == "fat":
        cells = packed_cells(blob, adipocyte_um, round(adipocyte_um * 1000))
        return structure_of(kind, cells, blob, seed) if cells else None
    return structure_of(kind, [blob.outline(n=120)], blob, seed)


def fill_with_glands(
    rng: np.random.Generator, ground: Ground, kind: str, blob: Blob, tries: int, gap_um: float
) -> list[Structure]:
    """Glands of one kind set into a blob as densely as `tries` darts find room."""
    x0, y0, x1, y1 = box_of(blob.outline())
    lean = rng.uniform(0, np.pi)
    darts = rng.uniform((x0, y0), (x1, y1), (tries, 2))
    glands = []
    for x, y in darts[blob.locate(darts)[0] < 1]:
        if not ground.is_free(x, y):
            continue
        gland = place_gland(rng, kind, x, y, lean)
        if ground.claim(gland.polygons[0], gap_um):
            glands.append(gland)
    return glands


def random_layout(
    rng: np.random.Generator, box_um: tuple[float, float, float, float]
) -> tuple[list[Structure], list[np.ndarray] | None, list[np.ndarray]]:
    """Structures for a window on the world.

    Returns:
        Structures in painting order, outlines of the tissue (None: everywhere) and tears.
    """
    width, height = box_um[2] - box_um[0], box_um[3] - box_um[1]
    extent = float(np.hypot(width, height)) / 2
    kinds = rng.permutation([*SHEETS, *GLANDS])[: rng.integers(2, 6)]
    weights = np.array([WEIGHTS[str(kind)] for kind in kinds])
    adipocyte_um = rng.uniform(46, 74)
    ground, sheets, territories = Ground(box_um), [], []
    for _ in range(int(rng.integers(5, 16))):
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        centre = rng.uniform(box_um[:2], box_um[2:])
        radius = float(np.clip(extent * rng.uniform(0.15, 0.5), 40, 450))
        if kind in GLANDS:
            aspect = rng.uniform(1, 1.8)
            territories.append((kind, random_blob(rng, *centre, max(1.15 * radius, 110), aspect, 0.1)))
        else:
            sheets += _sheet_territory(rng, kind, centre, radius, adipocyte_um)
    vessels = _strewn_vessels(rng, ground, box_um, width * height)
    for sheet in sheets:
        if sheet.kind != "lymphocytes":
            ground.mark(sheet)
    glands = []
    for kind, blob in territories:
        tries = int(np.clip(blob.a_um * blob.b_um / 60, 30, 700))
        glands += fill_with_glands(rng, ground, kind, blob, tries, rng.uniform(2, 9))
    return sheets + glands + vessels, _outline(rng, box_um), _tears(rng, box_um)


def _strewn_vessels(
    rng: np.random.Generator, ground: Ground, box_um: tuple[float, float, float, float], area_um2: float
) -> list[Structure]:
    vessels = []
    for _ in range(int(rng.integers(0, 3 + area_um2 / 40_000))):
        vessel = place_vessel(rng, *rng.uniform(box_um[:2], box_um[2:]))
        if ground.claim(vessel.polygons[0]):
            vessels.append(vessel)
    return vessels


def _sheet_territory(
    rng: np.random.Generator, kind: str, centre: np.ndarray, radius: float, adipocyte_um: float
) -> list[Structure]:
    """One sheet; tumour grows in ragged nests, often several, and may be dead in the middle."""
    if kind != "tumour_nest":
        rough = {"lymphocytes": 0.12, "necrosis": 0.16, "fat": 0.12}[kind]
        sheet = place_sheet(rng, kind, random_blob(rng, *centre, radius, rng.uniform(1, 1.9), rough, 12), adipocyte_um)
        return [sheet] if sheet else []
    nests = []
    for _ in range(int(rng.integers(1, 5))):
        at = centre + rng.normal(0, 0.6 * radius, 2)
        size = max(radius * rng.uniform(0.3, 1.0), 40)
        blob = random_blob(rng, *at, size, rng.uniform(1, 2.6), rng.uniform(0.1, 0.18), 15)
        nests.append(place_sheet(rng, kind, blob))
        if size > 110 and rng.random() < 0.3:
            core = random_blob(rng, *at, 0.45 * size, blob.a_um / blob.b_um, 0.15, 6, blob.angle)
            nests.append(place_sheet(rng, "necrosis", core))
    return nests


def _outline(rng: np.random.Generator, box_um: tuple[float, float, float, float]) -> list[np.ndarray] | None:
    """In one scene of seven a bare edge of the section crosses the window."""
    if rng.random() > 0.15:
        return None
    x0, y0, x1, y1 = box_um
    reach = np.hypot(x1 - x0, y1 - y0)
    towards = rng.uniform(0, 2 * np.pi)
    shift = reach * rng.uniform(0.6, 1.0)
    centre = ((x0 + x1) / 2 + np.cos(towards) * shift, (y0 + y1) / 2 + np.sin(towards) * shift)
    return [random_blob(rng, *centre, reach * 1.05, 1.1, 0.03, 12).outline(n=300)]


def _tears(rng: np.random.Generator, box_um: tuple[float, float, float, float]) -> list[np.ndarray]:
    if rng.random() > 0.15:
        return []
    return [
        random_blob(rng, *rng.uniform(box_um[:2], box_um[2:]), rng.uniform(8, 40), rng.uniform(1.5, 7), 0.15).outline()
        for _ in range(int(rng.integers(1, 4)))
    ]
