"""Crypts, malignant glands, vessels and fat lobules of the synthetic tissue: structures with an inner architecture."""

from dataclasses import dataclass

import cv2
import numpy as np

from model.data.synthetic_shapes import (
    SHIFT,
    Blob,
    Frame,
    box_of,
    cell_noise,
    draw_cells,
    random_blob,
    scattered_points,
    shrunk_rounded,
)
from model.data.synthetic_style import Style


@dataclass(frozen=True, eq=False)
class Structure:
    """One thing in the world.

    Attributes:
        kind: leaf concept key.
        polygons: what of the world belongs to it, each (N, 2) µm; a fat lobule has one for each cell.
        blob: the curve the architecture follows; the whole outline for glands and vessels.
        seed: of its inner architecture.
        box_um: (x0, y0, x1, y1).
    """

    kind: str
    polygons: tuple[np.ndarray, ...]
    blob: Blob
    seed: int
    box_um: tuple[float, float, float, float]


def structure_of(kind: str, polygons: list[np.ndarray], blob: Blob, seed: int) -> Structure:
    """A structure with its box worked out."""
    return Structure(kind, tuple(polygons), blob, int(seed), box_of(np.concatenate(polygons)))


def _fill(dye: np.ndarray, frame: Frame, polygon_um: np.ndarray, colour: tuple[float, ...]) -> None:
    cv2.fillPoly(dye, [frame.fixed(polygon_um)], [int(c) for c in colour], cv2.LINE_AA, SHIFT)


def _lines(
    dye: np.ndarray, frame: Frame, lines: np.ndarray, colour: tuple[float, ...], width_um: float, closed: bool
) -> None:
    width = max(1, round(width_um / frame.mpp))
    cv2.polylines(dye, list(frame.fixed(lines)), closed, [int(c) for c in colour], width, cv2.LINE_AA, SHIFT)


def paint_normal_gland(dye: np.ndarray, frame: Frame, gland: Structure, style: Style) -> None:
    """A crypt: one row of regular nuclei at the base, goblet cells like petals around a small clear lumen."""
    rng = np.random.default_rng(gland.seed)
    blob, size = gland.blob, gland.blob.inner_um
    nucleus_um = style.nucleus_um * (0.8 if style.flattened else 1.0)
    ring_rho = max(0.6, 1 - (nucleus_um + 1.8) / size)
    inner_rho = max(0.5, 1 - (2 * nucleus_um + 3.2) / size)
    lumen_rho = min(inner_rho - 0.12, rng.uniform(0.12, 0.34))
    cytoplasm = style.base[2].astype(float)
    mucin = np.array([*style.mucin, 14.0])
    petals = cytoplasm + (mucin - cytoplasm) * style.goblet
    _fill(dye, frame, blob.outline(inner_rho), petals)
    theta, _ = blob.ring(inner_rho, rng.uniform(8, 11), rng.random())
    rho = np.linspace(inner_rho + 0.03, lumen_rho, 4)
    walls = np.stack([blob.at(r, theta + 0.05 * np.sin(7 * r + theta)) for r in rho], axis=1)
    _lines(dye, frame, walls, 0.65 * cytoplasm + 0.35 * petals + (8, 4, 0), 0.9, closed=False)
    goblets = blob.at(rng.uniform(0.55, 0.72, len(theta)) * inner_rho / 0.75, theta + np.pi / max(len(theta), 3))
    long_um = np.full(len(theta), 0.17 * size) * rng.uniform(0.7, 1.2, len(theta))
    draw_cells(
        dye,
        frame,
        goblets,
        long_um,
        np.minimum(long_um, 3.4),
        blob.radial_angle(theta),
        np.tile(mucin, (len(theta), 1)),
    )
    _fill(dye, frame, blob.outline(lumen_rho * 1.25), 0.5 * cytoplasm + 0.5 * petals)
    _fill(dye, frame, blob.outline(lumen_rho), (rng.uniform(0, 6), rng.uniform(0, 8), 8))
    _lines(dye, frame, blob.outline()[None], 1.15 * cytoplasm, 0.8, closed=True)
    theta, _ = blob.ring(ring_rho, (2.3 if style.flattened else 1.25) * nucleus_um, rng.random())
    n = len(theta)
    centres = blob.at(ring_rho + rng.uniform(-1.2, 0.7, n) / size, theta)
    standing = blob.radial_angle(theta) + rng.normal(0, 0.15, n)
    long_um = nucleus_um * rng.uniform(0.95, 1.3, n)
    angle = standing + (np.pi / 2 if style.flattened else 0)
    colour = np.stack([style.nucleus * rng.uniform(0.9, 1.1, n), np.full(n, 55), np.full(n, 50)], axis=1)
    draw_cells(dye, frame, centres, long_um, 0.58 * long_um, angle, colour)


def _holes(rng: np.random.Generator, blob: Blob, kind: str) -> list[Blob]:
    """Lumens of a malignant gland: one slit, one ragged space, or the many round holes of a cribriform one."""
    size = blob.inner_um
    if kind == "cribriform":
        holes: list[Blob] = []
        for _ in range(40):
            radius = size * rng.uniform(0.1, 0.22)
            x, y = blob.at(rng.uniform(0, 0.68), np.array(rng.uniform(0, 2 * np.pi)))
            if all(np.hypot(x - h.x_um, y - h.y_um) > radius + h.inner_um + 9 for h in holes):
                holes.append(random_blob(rng, x, y, radius, 1.2, 0.08))
            if len(holes) >= 8:
                break
        return holes
    x, y = blob.at(rng.uniform(0, 0.12), np.array(rng.uniform(0, 2 * np.pi)))
    along = blob.angle if blob.a_um > blob.b_um else blob.angle + np.pi / 2
    ratio = max(blob.a_um, blob.b_um) / size
    if kind == "slit":
        return [random_blob(rng, x, y, size * rng.uniform(0.2, 0.3), rng.uniform(3, 5) * ratio, 0.12, 4, along)]
    return [random_blob(rng, x, y, size * rng.uniform(0.25, 0.5), ratio * rng.uniform(1.0, 1.5), 0.22, 4, along)]


def paint_malignant_gland(dye: np.ndarray, frame: Frame, gland: Structure, style: Style) -> None:
    """Crowded, stratified, dark and uneven nuclei around slit, ragged or cribriform lumens."""
    rng = np.random.default_rng(gland.seed)
    blob, size = gland.blob, gland.blob.inner_um
    kind = "cribriform" if size > 48 and rng.random() < 0.5 else rng.choice(["slit", "ragged"])
    holes = _holes(rng, blob, kind)
    cytoplasm = style.base[3].astype(float)
    for hole in holes:
        _fill(dye, frame, hole.outline(1 + 3.0 / hole.inner_um), 0.75 * cytoplasm)
        _fill(dye, frame, hole.outline(), (rng.uniform(0, 6), rng.uniform(0, 12), 10))
    nucleus_um = style.nucleus_um * (1.0 + 0.18 * style.atypia)
    points, noise = scattered_points(gland.box_um, 1.45 * nucleus_um, gland.seed, jitter=0.75)
    rho, theta = blob.locate(points)
    keep = rho < 1 - (0.85 * nucleus_um + 0.6) / size
    for hole in holes:
        keep &= hole.locate(points)[0] > 1 + (0.8 * nucleus_um + 1.0 + 2.0 * noise[:, 7]) / hole.inner_um
    keep &= noise[:, 6] > 0.06
    points, noise, theta = points[keep], noise[keep], theta[keep]
    angle = blob.radial_angle(theta) + (noise[:, 0] - 0.5) * 1.2
    long_um = nucleus_um * (0.8 + 0.65 * noise[:, 1] ** (1.6 / max(style.atypia, 0.3)) * style.atypia)
    dark = style.nucleus * (0.95 + 0.35 * style.atypia * noise[:, 2])
    colour = np.stack([dark, 55 + 40 * noise[:, 3], 60 + 50 * noise[:, 4]], axis=1)
    wobble = 1 + 0.28 * (np.stack([np.roll(noise, k, axis=1)[:, 5] for k in range(9)], axis=1) - 0.5)
    draw_cells(dye, frame, points, long_um, long_um * (0.5 + 0.25 * noise[:, 5]), angle, colour, wobble)
    if holes and rng.random() < 0.5:
        _dirty(dye, frame, holes[0], rng, style)


def _dirty(dye: np.ndarray, frame: Frame, hole: Blob, rng: np.random.Generator, style: Style) -> None:
    """A few pyknotic fragments and eosinophilic shreds inside a lumen."""
    n = int(rng.integers(4, 14))
    centres = np.stack([hole.at(rng.uniform(0, 0.7), np.array(t)) for t in rng.uniform(0, 2 * np.pi, n)])
    size_um = rng.uniform(0.8, 2.4, n)
    colour = np.stack([rng.choice([10, style.nucleus], n), rng.uniform(50, 110, n), np.full(n, 90)], axis=1)
    draw_cells(dye, frame, centres, size_um * 1.4, size_um, rng.uniform(0, 3, n), colour, k=7)


def paint_vessel(dye: np.ndarray, frame: Frame, vessel: Structure, style: Style) -> None:
    """A muscular wall with concentric spindle nuclei, flat endothelium, and red blood cells in the lumen."""
    rng = np.random.default_rng(vessel.seed)
    blob, size = vessel.blob, vessel.blob.inner_um
    wall_um = min(rng.uniform(0.14, 0.38) * size, 26.0)
    inner = max(0.35, 1 - max(wall_um, 3.0) / size)
    wall = style.base[7].astype(float)
    for rho in np.arange(1 - 2.5 / size, inner, -5.0 / size):
        _lines(dye, frame, blob.outline(rho)[None], wall * (1.0, rng.uniform(0.72, 0.95), 1.0), 0.9, closed=True)
    _fill(dye, frame, blob.outline(inner), (2, rng.uniform(3, 26), 10))
    _red_cells(dye, frame, blob, inner, rng, style)
    _lines(dye, frame, blob.outline(inner)[None], wall * (1.3, 1.1, 1), 0.9, closed=True)
    rings = [(inner + 0.6 / size, 13.0, 0.9, 1.0)] + [
        (rho, 22.0, 0.85, 0.8) for rho in np.arange(inner + 5.5 / size, 1 - 3.0 / size, 5.0 / size)
    ]
    for rho, spacing_um, thin_um, dark in rings:
        theta, centres = blob.ring(rho, spacing_um, rng.random())
        n = len(theta)
        colour = np.stack([style.nucleus * dark * rng.uniform(0.9, 1.1, n), np.full(n, 70), np.full(n, 30)], axis=1)
        long_um = rng.uniform(3.6, 5.4, n)
        draw_cells(
            dye, frame, centres, long_um, np.full(n, thin_um * 1.25), blob.radial_angle(theta) + np.pi / 2, colour, k=8
        )


def _red_cells(dye: np.ndarray, frame: Frame, blob: Blob, inner: float, rng: np.random.Generator, style: Style) -> None:
    """Discs 6 to 7 µm across that settle in one part of the lumen, or fill it."""
    x0, y0, x1, y1 = box_of(blob.outline(inner))
    points, noise = scattered_points((x0, y0, x1, y1), 5.6, int(rng.integers(1 << 31)), jitter=0.6)
    fill, toward = rng.uniform(0.35, 1.15), rng.uniform(0, 2 * np.pi)
    rho, theta = blob.locate(points)
    level = rho / inner * np.cos(theta - toward)
    keep = (rho < inner - 3.2 / blob.inner_um) & (level > 1 - 2 * fill) & (noise[:, 0] > 0.1)
    points, noise = points[keep], noise[keep]
    n = len(points)
    radius = 2.8 + 0.7 * noise[:, 1]
    eosin = style.red_cell * (0.85 + 0.3 * noise[:, 2])
    zero = np.zeros(n)
    draw_cells(
        dye,
        frame,
        points,
        radius,
        radius * (0.8 + 0.2 * noise[:, 3]),
        6 * noise[:, 4],
        np.stack([zero, eosin, zero + 8], 1),
        k=8,
    )
    if frame.mpp <= 0.8:
        draw_cells(
            dye, frame, points, 0.4 * radius, 0.4 * radius, zero, np.stack([zero, 0.72 * eosin, zero + 8], 1), k=7
        )


def paint_fat(dye: np.ndarray, frame: Frame, lobule: Structure, style: Style) -> None:
    """Large clear cells with thin walls; now and then a flat nucleus pressed into a corner."""
    cells = [polygon for polygon in lobule.polygons if frame.meets(box_of(polygon), 8)]
    if not cells:
        return
    centres = np.array([polygon.mean(0) for polygon in cells])
    noise = cell_noise(*np.rint(centres.T * 4).astype(np.int64), style.seed ^ 0xFA7, 5)
    for polygon, clear in zip(cells, noise[:, 0], strict=True):
        _fill(dye, frame, shrunk_rounded(polygon, style.septum_um), (0, 2 + 4 * clear, 0))
    corners = np.array([polygon[0] for polygon in cells])
    corners += 0.06 * (centres - corners)
    chosen = noise[:, 1] < 0.4
    corners, noise = corners[chosen], noise[chosen]
    n = len(noise)
    colour = np.stack([style.nucleus * (0.9 + 0.2 * noise[:, 2]), np.full(n, 60), np.full(n, 20)], axis=1)
    draw_cells(dye, frame, corners, 3.0 + 1.5 * noise[:, 3], np.full(n, 1.4), 6.3 * noise[:, 4], colour, k=8)


PAINT = {
    "normal_gland": paint_normal_gland,
    "malignant_gland": paint_malignant_gland,
    "vessel": paint_vessel,
    "fat": paint_fat,
}
"""Kind → painter(dye, frame, structure, style); the other kinds are sheets."""
