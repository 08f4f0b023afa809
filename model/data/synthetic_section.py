"""Where things lie on the synthetic slide: a section through a colon cancer with its neighbourhood."""

import numpy as np

from model.data.synthetic_glands import Structure
from model.data.synthetic_layout import Ground, fill_with_glands, place_sheet, place_vessel
from model.data.synthetic_shapes import Blob, random_blob

Layout = tuple[list[Structure], list[np.ndarray], list[np.ndarray]]


def lay_out_section(rng: np.random.Generator, width_um: float, height_um: float) -> Layout:
    """Structures of a section that fills a slide of this size but for a margin of glass.

    Normal mucosa on one side, the tumour on the other (malignant glands at its rim, solid nests that die in the
    middle), lymphoid aggregates where the two meet and along the invasive margin, fat below, vessels and stroma
    between.

    Returns:
        Structures in painting order, outlines of the tissue, tears.
    """
    mirrored, reach = bool(rng.random() < 0.5), min(width_um, height_um)

    def at(x: float, y: float) -> tuple[float, float]:
        shift = rng.normal(0, 0.012, 2)
        return (1 - x if mirrored else x) * width_um + shift[0] * reach, (y + shift[1]) * height_um

    outline = random_blob(rng, *at(0.5, 0.5), 1, 1, 0.02, 16, angle=0.0)
    outline = Blob(
        outline.x_um, outline.y_um, 0.452 * width_um, 0.435 * height_um, 0.0, outline.amplitude, outline.phase
    )
    squared = _squared(outline.outline(n=600), outline)
    tumour = random_blob(rng, *at(0.64, 0.42), 0.27 * reach, 1.25, 0.06, 5, angle=0.0)
    ground = Ground((0, 0, width_um, height_um))
    fat = [
        place_sheet(rng, "fat", random_blob(rng, *at(x, y), size * reach, 1.9, 0.1, 6, angle=0.0))
        for x, y, size in ((0.33, 0.80, 0.11), (0.52, 0.84, 0.12), (0.72, 0.83, 0.09))
    ]
    nests = _nests(rng, tumour)
    lymphoid = _margin_aggregates(rng, tumour, reach) + [
        place_sheet(rng, "lymphocytes", random_blob(rng, *at(0.2, 0.66), 0.075 * reach, 1.6, 0.08, 5))
    ]
    vessels = _vessels(rng, ground, outline)
    sheets = [sheet for sheet in fat + lymphoid + nests if sheet]
    for sheet in sheets:
        ground.mark(sheet)
    density = 1 / 350
    malignant = fill_with_glands(rng, ground, "malignant_gland", tumour, _darts(tumour, density), 4.0)
    mucosa = random_blob(rng, *at(0.235, 0.36), 0.21 * reach, 1.35, 0.05, 4, angle=np.pi / 2)
    normal = fill_with_glands(rng, ground, "normal_gland", mucosa, _darts(mucosa, 2 * density), 5.0)
    tears = [random_blob(rng, *at(*rng.uniform(0.2, 0.8, 2)), 0.008 * reach, 9, 0.1).outline() for _ in range(2)]
    return sheets + malignant + normal + vessels, [squared], tears


def _squared(polygon_um: np.ndarray, blob: Blob) -> np.ndarray:
    """An ellipse pressed towards a rectangle, as a block of tissue is cut."""
    offset = (polygon_um - (blob.x_um, blob.y_um)) / (blob.a_um, blob.b_um)
    stretch = 1 / np.maximum((np.abs(offset) ** 4).sum(1) ** 0.25, 1e-6) * np.linalg.norm(offset, axis=1)
    return (blob.x_um, blob.y_um) + offset * (0.35 + 0.65 * stretch)[:, None] * (blob.a_um, blob.b_um)


def _darts(blob: Blob, per_um2: float) -> int:
    return int(np.clip(4 * blob.a_um * blob.b_um * per_um2, 20, 9000))


def _nests(rng: np.random.Generator, tumour: Blob) -> list[Structure]:
    """Solid tumour in the middle, small cords towards the rim, necrosis inside the large ones."""
    sheets: list[Structure] = []
    for index in range(26):
        rho = 0.0 if index == 0 else rng.uniform(0.35, 1.12)
        x, y = tumour.at(rho, np.array(rng.uniform(0, 2 * np.pi)))
        size = tumour.inner_um * (0.42 if index == 0 else 0.04 + 0.2 * rng.random() ** 2)
        blob = random_blob(rng, x, y, size, rng.uniform(1, 2.2), rng.uniform(0.1, 0.16), 15)
        sheets.append(place_sheet(rng, "tumour_nest", blob))
        if size > 100:
            core = random_blob(rng, x, y, 0.5 * size, min(blob.a_um / blob.b_um, 2), 0.14, 7, blob.angle)
            sheets.append(place_sheet(rng, "necrosis", core))
    return sorted(sheets, key=lambda sheet: sheet.kind == "necrosis")


def _margin_aggregates(rng: np.random.Generator, tumour: Blob, reach: float) -> list[Structure]:
    """Lymphoid aggregates along the invasive margin."""
    aggregates = []
    for theta in np.arange(9) / 9 * 2 * np.pi + rng.uniform(-0.2, 0.2, 9):
        x, y = tumour.at(rng.uniform(1.12, 1.24), np.array(theta))
        along = tumour.radial_angle(np.array([theta]))[0] + np.pi / 2
        size = reach * rng.uniform(0.022, 0.05)
        aggregates.append(
            place_sheet(rng, "lymphocytes", random_blob(rng, x, y, size, rng.uniform(1.2, 2.4), 0.1, 12, along))
        )
    return aggregates


def _vessels(rng: np.random.Generator, ground: Ground, outline: Blob) -> list[Structure]:
    """Vessels strewn over the section, one for about 0.12 mm²."""
    vessels = []
    for _ in range(int(3.1 * outline.a_um * outline.b_um / 120_000)):
        x, y = outline.at(0.93 * np.sqrt(rng.random()), np.array(rng.uniform(0, 2 * np.pi)))
        vessel = place_vessel(rng, x, y)
        if ground.claim(vessel.polygons[0]):
            vessels.append(vessel)
    return vessels
