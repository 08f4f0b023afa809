"""Geometry of the synthetic tissue: frames, blobs, rings and the points that fill a sheet. Pure functions of arrays.

World coordinates are µm, (x, y). The same world drawn in two overlapping frames gives the same pixels: so a
slide can be rendered strip by strip.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import Voronoi

SHIFT = 4
"""Fractional bits of OpenCV's fixed-point vertices: 1/16 px."""


@dataclass(frozen=True)
class Frame:
    """A window on the world: which pixels are drawn.

    Attributes:
        x_px, y_px: the first pixel, in pixels of the world at this mpp.
        width_px, height_px: size of the window.
        mpp: µm/px.
    """

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    mpp: float

    @property
    def bounds_um(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of the window, µm."""
        return (
            self.x_px * self.mpp,
            self.y_px * self.mpp,
            (self.x_px + self.width_px) * self.mpp,
            (self.y_px + self.height_px) * self.mpp,
        )

    def fixed(self, points_um: np.ndarray) -> np.ndarray:
        """Points (…, 2) in µm as OpenCV's fixed-point pixel-centre coordinates, int32.

        The window's origin is subtracted after rounding, so that every frame rounds a point alike.
        """
        world = np.rint(points_um * ((1 << SHIFT) / self.mpp) - (1 << (SHIFT - 1)))
        origin = np.array([self.x_px << SHIFT, self.y_px << SHIFT])
        return np.clip(world - origin, -(1 << 28), 1 << 28).astype(np.int32)

    def pixels(self, points_um: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, columns, inside) of points (N, 2): the pixel that holds each, clipped to the window."""
        column = np.floor(points_um[:, 0] / self.mpp).astype(np.int64) - self.x_px
        row = np.floor(points_um[:, 1] / self.mpp).astype(np.int64) - self.y_px
        inside = (column >= 0) & (column < self.width_px) & (row >= 0) & (row < self.height_px)
        return row.clip(0, self.height_px - 1), column.clip(0, self.width_px - 1), inside

    def meets(self, box_um: tuple[float, float, float, float], margin_um: float = 0.0) -> bool:
        """Whether a box (x0, y0, x1, y1) touches the window."""
        x0, y0, x1, y1 = self.bounds_um
        return (
            box_um[0] - margin_um < x1
            and box_um[2] + margin_um > x0
            and box_um[1] - margin_um < y1
            and box_um[3] + margin_um > y0
        )


@dataclass(frozen=True)
class Blob:
    """A closed curve around a centre: an ellipse, bent by harmonics.

    Points are addressed by (rho, theta), rho = 1 on the curve.

    Attributes:
        x_um, y_um: centre.
        a_um, b_um: semi-axes before bending.
        angle: of the first axis, radians.
        amplitude, phase: of the harmonics 2, 3, …
    """

    x_um: float
    y_um: float
    a_um: float
    b_um: float
    angle: float
    amplitude: tuple[float, ...] = ()
    phase: tuple[float, ...] = ()

    def bend(self, theta: np.ndarray) -> np.ndarray:
        """Radius at theta relative to the ellipse."""
        bend = np.ones_like(theta)
        for order, (amplitude, phase) in enumerate(zip(self.amplitude, self.phase, strict=True), start=2):
            bend = bend + amplitude * np.cos(order * theta + phase)
        return np.maximum(bend, 0.25)

    def at(self, rho: np.ndarray | float, theta: np.ndarray) -> np.ndarray:
        """World points (N, 2) at (rho, theta)."""
        radius = rho * self.bend(theta)
        x, y = self.a_um * radius * np.cos(theta), self.b_um * radius * np.sin(theta)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([self.x_um + cos * x - sin * y, self.y_um + sin * x + cos * y], axis=-1)

    def locate(self, points_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rho, theta) of world points (N, 2): the inverse of `at`."""
        dx, dy = points_um[:, 0] - self.x_um, points_um[:, 1] - self.y_um
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x, y = (cos * dx + sin * dy) / self.a_um, (cos * dy - sin * dx) / self.b_um
        theta = np.arctan2(y, x)
        return np.hypot(x, y) / self.bend(theta), theta

    def outline(self, rho: float = 1.0, n: int = 72) -> np.ndarray:
        """The curve at rho as a polygon (n, 2)."""
        return self.at(rho, np.linspace(0, 2 * np.pi, n, endpoint=False))

    def ring(self, rho: float, spacing_um: float, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Points about `spacing_um` apart along the curve at rho: (theta (N,), points (N, 2))."""
        theta = np.linspace(0, 2 * np.pi, 181)
        length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(self.at(rho, theta), axis=0).T))])
        n = max(3, round(length[-1] / spacing_um))
        at = np.interp((np.arange(n) + start % 1) / n * length[-1], length, theta)
        return at, self.at(rho, at)

    def radial_angle(self, theta: np.ndarray) -> np.ndarray:
        """Direction of the curve's inward normal at theta, radians: along it stand the cells of an epithelium."""
        step = self.at(1.0, theta + 0.02) - self.at(1.0, theta - 0.02)
        return np.arctan2(step[:, 1], step[:, 0]) + np.pi / 2

    @property
    def inner_um(self) -> float:
        """The shorter semi-axis: a bound for how thick an epithelium can be."""
        return min(self.a_um, self.b_um)


def random_blob(
    rng: np.random.Generator,
    x_um: float,
    y_um: float,
    radius_um: float,
    aspect: float = 1.0,
    rough: float = 0.0,
    orders: int = 4,
    angle: float | None = None,
) -> Blob:
    """A blob of about this radius; `rough` is the second harmonic's size, higher ones fall off as order^-0.85."""
    stretch = np.sqrt(aspect)
    order = np.arange(2, 2 + orders)
    amplitude = rough * rng.uniform(0.3, 1.0, orders) * (2 / order) ** 0.85
    return Blob(
        float(x_um),
        float(y_um),
        float(radius_um * stretch),
        float(radius_um / stretch),
        float(rng.uniform(0, 2 * np.pi) if angle is None else angle),
        tuple(amplitude.tolist()),
        tuple(rng.uniform(0, 2 * np.pi, orders).tolist()),
    )


def box_of(polygon_um: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a polygon (N, 2)."""
    (x0, y0), (x1, y1) = polygon_um.min(0), polygon_um.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def cell_noise(column: np.ndarray, row: np.ndarray, seed: int, n: int) -> np.ndarray:
    """(N, n) numbers in [0, 1) that depend only on cell and seed (splitmix64)."""
    with np.errstate(over="ignore"):
        key = column.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        key ^= row.astype(np.int64).view(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        key ^= np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x165667B19E3779F9)
        word = key[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    return (word >> np.uint64(40)).astype(np.float64) / (1 << 24)


def scattered_points(
    box_um: tuple[float, float, float, float], spacing_um: float, seed: int, jitter: float = 0.7, n: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """One jittered point in every cell of a staggered world grid that meets the box.

    Returns:
        Points (N, 2) µm, in raster order of the grid whatever the box, and n uniform numbers (N, n) for each.
    """
    pitch = spacing_um * 0.93
    columns = np.arange(np.floor(box_um[0] / spacing_um) - 1, np.ceil(box_um[2] / spacing_um) + 1)
    rows = np.arange(np.floor(box_um[1] / pitch) - 1, np.ceil(box_um[3] / pitch) + 1)
    column, row = (grid.ravel().astype(np.int64) for grid in np.meshgrid(columns, rows))
    noise = cell_noise(column, row, seed, n + 2)
    x = (column + 0.5 * (row % 2) + 0.5 + jitter * (noise[:, 0] - 0.5)) * spacing_um
    y = (row + 0.5 + jitter * (noise[:, 1] - 0.5)) * pitch
    return np.stack([x, y], axis=-1), noise[:, 2:]


def cell_polygons(
    centres_um: np.ndarray, a_um: np.ndarray, b_um: np.ndarray, angle: np.ndarray, wobble: np.ndarray | None, k: int
) -> np.ndarray:
    """Outlines (N, k, 2) of cells or nuclei: ellipses with semi-axes a, b, bent by wobble (N, k) around 1."""
    theta = np.linspace(0, 2 * np.pi, k, endpoint=False)
    x, y = a_um[:, None] * np.cos(theta), b_um[:, None] * np.sin(theta)
    if wobble is not None:
        x, y = x * wobble, y * wobble
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([centres_um[:, :1] + cos * x - sin * y, centres_um[:, 1:] + sin * x + cos * y], axis=-1)


def packed_cells(blob: Blob, spacing_um: float, seed: int) -> list[np.ndarray]:
    """Voronoi cells, about `spacing_um` across, whose seeds lie in the blob: how adipocytes fill a lobule.

    The diagram is the world's (of this seed): blobs that overlap share whole cells.
    """
    x0, y0, x1, y1 = box_of(blob.outline())
    pad = 3 * spacing_um
    points, _ = scattered_points((x0 - pad, y0 - pad, x1 + pad, y1 + pad), spacing_um, seed, jitter=0.75, n=1)
    wanted = blob.locate(points)[0] < 1
    diagram = Voronoi(points)
    cells = []
    for index in np.flatnonzero(wanted):
        region = diagram.regions[diagram.point_region[index]]
        if region and -1 not in region:
            cells.append(diagram.vertices[region])
    return cells


def shrunk_rounded(polygon_um: np.ndarray, gap_um: float) -> np.ndarray:
    """A convex polygon drawn in by about `gap_um` with its corners cut twice (Chaikin)."""
    centre = polygon_um.mean(0)
    away = polygon_um - centre
    reach = np.linalg.norm(away, axis=1, keepdims=True)
    polygon = centre + away * np.maximum(1 - 1.25 * gap_um / np.maximum(reach, 1e-6), 0.2)
    for _ in range(2):
        following = np.roll(polygon, -1, axis=0)
        polygon = np.stack([0.75 * polygon + 0.25 * following, 0.25 * polygon + 0.75 * following], 1).reshape(-1, 2)
    return polygon


def draw_cells(
    dye: np.ndarray,
    frame: Frame,
    centres_um: np.ndarray,
    a_um: np.ndarray,
    b_um: np.ndarray,
    angle: np.ndarray,
    colours: np.ndarray,
    wobble: np.ndarray | None = None,
    k: int = 9,
) -> None:
    """Fill cells or nuclei, anti-aliased, into the dye map (H, W, 3) uint8; colours (N, 3) are dye amounts."""
    if not len(centres_um):
        return
    vertices = frame.fixed(cell_polygons(centres_um, a_um, b_um, angle, wobble, k))
    for polygon, colour in zip(vertices, np.clip(colours, 0, 255).astype(int).tolist(), strict=True):
        cv2.fillConvexPoly(dye, polygon, colour, cv2.LINE_AA, SHIFT)
