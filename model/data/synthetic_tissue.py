"""The renderer of the synthetic tissue: structures in, dye and labels out. Scenes and slides are both made here."""

from collections.abc import Sequence

import cv2
import numpy as np

from model.data.synthetic_glands import PAINT, Structure
from model.data.synthetic_shapes import SHIFT, Frame, draw_cells, scattered_points
from model.data.synthetic_style import (
    LABEL,
    TEXTURE_PX,
    Style,
    fibre_coordinates,
    fibre_direction,
    fibre_texture,
    grain_texture,
)

COARSE_PX = 8
"""Slow fields (direction of the collagen, unevenness of the section) are worked out once per so many pixels."""


def paint_tissue(
    frame: Frame,
    structures: Sequence[Structure],
    style: Style,
    outlines: Sequence[np.ndarray] | None = None,
    tears: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a window of the world.

    Args:
        frame: the window.
        structures: what lies in stroma, sheets before glands and vessels: a later one covers an earlier one.
        style: how the tissue looks.
        outlines: pieces of tissue on the glass, each (N, 2) µm; None: tissue everywhere.
        tears: clefts through everything, each (N, 2) µm.

    Returns:
        Dye map (H, W, 3) uint8 (haematoxylin, eosin, grain applied) and labels (H, W) uint8 (0 glass, see LABEL).
        A band of about 10 µm along the window's edge lacks cells whose centres lie outside: crop it away.
    """
    structures = [structure for structure in structures if frame.meets(structure.box_um)]
    labels = np.full((frame.height_px, frame.width_px), LABEL["stroma"], np.uint8)
    for structure in structures:
        for polygon in structure.polygons:
            cv2.fillPoly(labels, [frame.fixed(polygon)], LABEL[structure.kind], cv2.LINE_8, SHIFT)
    dye = style.base[labels]
    for kind, paint in SHEETS.items():
        if (labels == LABEL[kind]).any():
            untouched = dye.copy()
            paint(dye, labels, frame, style)
            cv2.copyTo(untouched, (labels != LABEL[kind]).view(np.uint8), dye)
    for structure in structures:
        if structure.kind in PAINT:
            _paint_within(dye, labels, frame, structure, style)
    glass = _glass(frame, outlines, tears)
    labels[glass] = 0
    dye[glass] = 0
    return _roughen(dye, frame, style), labels


def _paint_within(dye: np.ndarray, labels: np.ndarray, frame: Frame, structure: Structure, style: Style) -> None:
    """Draw a structure's architecture, on its own label only."""
    x0, y0, x1, y1 = (int(edge / frame.mpp) for edge in structure.box_um)
    rows = slice(max(y0 - frame.y_px - 9, 0), max(y1 - frame.y_px + 9, 0))
    columns = slice(max(x0 - frame.x_px - 9, 0), max(x1 - frame.x_px + 9, 0))
    window = dye[rows, columns]
    before = window.copy()
    PAINT[structure.kind](dye, frame, structure, style)
    np.copyto(window, before, where=(labels[rows, columns] != LABEL[structure.kind])[..., None])


def _glass(frame: Frame, outlines: Sequence[np.ndarray] | None, tears: Sequence[np.ndarray]) -> np.ndarray:
    glass = np.zeros((frame.height_px, frame.width_px), np.uint8)
    if outlines is not None:
        glass[:] = 1
        for outline in outlines:
            cv2.fillPoly(glass, [frame.fixed(outline)], 0, cv2.LINE_8, SHIFT)
    for tear in tears:
        cv2.fillPoly(glass, [frame.fixed(tear)], 1, cv2.LINE_8, SHIFT)
    return glass.view(bool)


def _coarse_grid(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """World coordinates (µm) of every COARSE_PX-th pixel's centre of area, as cv2.resize will spread them."""
    columns = np.arange(-(-frame.width_px // COARSE_PX)) * COARSE_PX + frame.x_px + COARSE_PX / 2
    rows = np.arange(-(-frame.height_px // COARSE_PX)) * COARSE_PX + frame.y_px + COARSE_PX / 2
    return np.meshgrid(columns * frame.mpp, rows * frame.mpp)


def _spread(coarse: np.ndarray, frame: Frame) -> np.ndarray:
    height, width = coarse.shape
    full = cv2.resize(
        coarse.astype(np.float32), (width * COARSE_PX, height * COARSE_PX), interpolation=cv2.INTER_LINEAR
    )
    return full[: frame.height_px, : frame.width_px]


def _all_of(labels: np.ndarray, frame: Frame, points_um: np.ndarray, kind: str, reach_um: float) -> np.ndarray:
    """Which points (N, 2) lie in `kind` with room for a nucleus of radius `reach_um`."""
    value = LABEL[kind]
    row, column, keep = frame.pixels(points_um)
    keep &= labels[row, column] == value
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        row, column, _ = frame.pixels(points_um + (dx * reach_um, dy * reach_um))
        keep &= labels[row, column] == value
    return keep


def _cells_in(
    labels: np.ndarray, frame: Frame, kind: str, spacing_um: float, seed: int, reach_um: float, jitter: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Points that fill a sheet, with 8 uniform numbers each."""
    where = np.flatnonzero((labels == LABEL[kind]).any(axis=1))
    if not len(where):
        return np.zeros((0, 2)), np.zeros((0, 8))
    x0, _, x1, _ = frame.bounds_um
    top, bottom = frame.y_px + where[0], frame.y_px + where[-1] + 1
    box = (x0, top * frame.mpp, x1, bottom * frame.mpp)
    points, noise = scattered_points(box, spacing_um, seed, jitter)
    keep = _all_of(labels, frame, points, kind, reach_um)
    return points[keep], noise[keep]


def _wobble(noise: np.ndarray, amount: float, k: int = 9) -> np.ndarray:
    """(N, k) factors around 1 from 8 uniform numbers each."""
    return 1 + amount * (noise[:, np.arange(k) * 3 % 8] - 0.5)


def _paint_stroma(dye: np.ndarray, labels: np.ndarray, frame: Frame, style: Style) -> None:
    """Wavy collagen with clefts, spindle nuclei along it, a few round cells."""
    stroma = labels == LABEL["stroma"]
    along, across = fibre_coordinates(*_coarse_grid(frame), style)
    strands = cv2.remap(
        fibre_texture(style.seed & 0xFFFF),
        np.mod(_spread(along, frame), TEXTURE_PX),
        np.mod(_spread(across, frame), TEXTURE_PX),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    level = np.arange(256) / 255
    eosin = style.fibre_low + (style.fibre_high - style.fibre_low) * level
    eosin *= np.clip((level - style.gap) * 9 + 0.1, 0.06, 1) if style.gap else 1
    for channel, amount in ((0, style.base[LABEL["stroma"], 0] * eosin / max(style.fibre_high, 1)), (1, eosin)):
        table = amount.clip(0, 255).astype(np.uint8)
        np.copyto(dye[..., channel], cv2.LUT(strands, table), where=stroma)
    points, noise = _cells_in(labels, frame, "stroma", 17 / np.sqrt(style.cellularity), style.seed, 2.0, 0.95)
    points, noise = points[noise[:, 0] < 0.85], noise[noise[:, 0] < 0.85]
    n = len(points)
    round_cell = noise[:, 1] < style.inflammation
    long_um = np.where(round_cell, 2.7, 3.5 + 3.5 * noise[:, 2])
    thin_um = np.where(round_cell, 2.5, 0.9 + 0.7 * noise[:, 3])
    angle = fibre_direction(points, style) + 0.5 * (noise[:, 4] - 0.5)
    colour = np.stack([style.nucleus * (0.8 + 0.35 * noise[:, 5]), np.full(n, 60), np.full(n, 45)], axis=1)
    draw_cells(dye, frame, points, long_um, thin_um, angle, colour, k=8)


def _paint_tumour(dye: np.ndarray, labels: np.ndarray, frame: Frame, style: Style) -> None:
    """A solid sheet of large cells: uneven, dark or open nuclei with a nucleolus, cell borders, mitoses."""
    size_um = style.nucleus_um * (1.12 + 0.22 * style.atypia)
    spacing_um = max(style.tumour_spacing_um, 2.05 * size_um)
    points, noise = _cells_in(labels, frame, "tumour_nest", spacing_um, style.seed ^ 0x70, size_um * 0.8, 0.6)
    if not len(points):
        return
    n = len(points)
    base = style.base[LABEL["tumour_nest"]].astype(float)
    body = base * (0.85 + 0.3 * noise[:, 7:8]) + (0, 6, 0)
    draw_cells(
        dye, frame, points, np.full(n, 0.5 * spacing_um), np.full(n, 0.45 * spacing_um), 6 * noise[:, 6], body, k=7
    )
    growth = 0.8 + 0.6 * noise[:, 0] ** 2 * style.atypia
    long_um, ratio, angle = size_um * growth, 0.62 + 0.35 * noise[:, 1], 2 * np.pi * noise[:, 2]
    dark = style.nucleus * (0.8 + 0.4 * noise[:, 3] * style.atypia)
    wobble = _wobble(noise, 0.22 * style.atypia)
    colour = np.stack([dark, 60 + 30 * noise[:, 4], np.full(n, 95)], axis=1)
    draw_cells(dye, frame, points, long_um, long_um * ratio, angle, colour, wobble)
    if frame.mpp > 1.1 or not style.vesicular:
        return
    open_one = noise[:, 5] < style.vesicular
    points, noise, wobble = points[open_one], noise[open_one], wobble[open_one]
    inner = np.maximum(long_um[open_one] - 0.9, 1)
    pale = colour[open_one] * (0.62, 0.9, 1.1)
    draw_cells(dye, frame, points, inner, inner * ratio[open_one], angle[open_one], pale, wobble)
    offset = points + 0.3 * inner[:, None] * (noise[:, 3:5] - 0.5) * 2
    dot = np.full(len(points), 0.95)
    draw_cells(dye, frame, offset, dot, dot, dot, colour[open_one] * (1.2, 1.4, 0.5), k=6)


def _paint_lymphocytes(dye: np.ndarray, labels: np.ndarray, frame: Frame, style: Style) -> None:
    """Packed small round dark nuclei with hardly any cytoplasm."""
    points, noise = _cells_in(labels, frame, "lymphocytes", style.lymph_spacing_um, style.seed ^ 0x1F, 1.8, 0.6)
    keep = noise[:, 0] < 0.93
    points, noise = points[keep], noise[keep]
    n = len(points)
    radius = 2.5 + 0.8 * noise[:, 1]
    colour = np.stack([style.nucleus * (0.95 + 0.3 * noise[:, 2]), 50 + 20 * noise[:, 3], np.full(n, 70)], axis=1)
    draw_cells(dye, frame, points, radius, radius * (0.85 + 0.15 * noise[:, 4]), 6 * noise[:, 5], colour, k=8)


def _paint_necrosis(dye: np.ndarray, labels: np.ndarray, frame: Frame, style: Style) -> None:
    """Granular eosinophilic debris: ghosts of cells, shreds, clefts, pyknotic dust in drifts; no whole nucleus."""
    points, noise = _cells_in(labels, frame, "necrosis", 11, style.seed ^ 0xDEAD, 4.0, 0.9)
    if not len(points):
        return
    base = style.base[LABEL["necrosis"]].astype(float)
    n = len(points)
    tone = base * (1, 1, 1) * (0.7 + 0.6 * noise[:, 0:1])
    tone[:, 2] = base[2]
    tone[noise[:, 1] < 0.07] = (2, 12, 20)
    size_um = 2.5 + 3.5 * noise[:, 2]
    draw_cells(
        dye, frame, points, size_um, size_um * (0.5 + 0.4 * noise[:, 3]), 6.3 * noise[:, 4], tone, _wobble(noise, 0.5)
    )
    points, noise = _cells_in(labels, frame, "necrosis", 5.5, style.seed ^ 0xD057, 1.5, 0.95)
    drift = 0.5 + 0.5 * np.sin(fibre_coordinates(points[:, 1], points[:, 0], style)[1] * (2 * np.pi / 110))
    keep = noise[:, 0] < style.debris * (0.04 + 0.34 * drift**3)
    points, noise = points[keep], noise[keep]
    n = len(points)
    size_um = 0.6 + 1.2 * noise[:, 1] ** 2
    colour = np.stack([style.nucleus * (0.6 + 0.7 * noise[:, 2]), 60 + 50 * noise[:, 3], np.full(n, 120)], axis=1)
    draw_cells(dye, frame, points, size_um * 1.3, size_um, 6.3 * noise[:, 4], colour, k=6)


SHEETS = {
    "stroma": _paint_stroma,
    "tumour_nest": _paint_tumour,
    "lymphocytes": _paint_lymphocytes,
    "necrosis": _paint_necrosis,
}
"""Kind → painter(dye, labels, frame, style) of what fills all ground of that kind."""


def _roughen(dye: np.ndarray, frame: Frame, style: Style) -> np.ndarray:
    """Modulate both dyes by grain (as deep as the third channel says) and by the section's uneven thickness."""
    rows = (np.arange(frame.height_px) + frame.y_px) % TEXTURE_PX
    columns = (np.arange(frame.width_px) + frame.x_px) % TEXTURE_PX
    grain = grain_texture(style.seed & 0xFFFF, frame.mpp)
    x, y = _coarse_grid(frame)
    bent = fibre_coordinates(y, x, style)[1]
    thickness = _spread(1 + 0.06 * np.sin(bent / 61) + 0.05 * np.sin((x + y) / 143 + bent / 97), frame)
    depth = cv2.extractChannel(dye, 2).astype(np.float32) * np.float32(0.62 / 255)
    out = np.empty_like(dye)
    for channel, roll in ((0, 0), (1, 197)):
        noise = np.take(np.take(grain, (rows + roll) % TEXTURE_PX, axis=0), (columns + roll) % TEXTURE_PX, axis=1)
        factor = (depth * noise + 1) * thickness
        out[..., channel] = cv2.multiply(cv2.extractChannel(dye, channel), factor, dtype=cv2.CV_8U)
    out[..., 2] = dye[..., 2]
    return out
