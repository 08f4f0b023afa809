"""How one block of tissue looks before it is stained: darkness of nuclei, density of cells, kind of collagen, grain."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

LEAVES = (
    "stroma", "normal_gland", "malignant_gland", "tumour_nest", "lymphocytes", "necrosis", "vessel", "fat",
)  # fmt: skip
"""Concept of each label value: LEAVES[value - 1]; 0 is glass."""

LABEL = {concept: value for value, concept in enumerate(LEAVES, start=1)}

TEXTURE_PX = 512
"""Period of the noise textures."""


@dataclass(frozen=True)
class Style:
    """Amounts are dye units (see synthetic_stain), lengths µm, shares 0 to 1.

    Attributes:
        seed: of everything that fills sheets: nuclei, fibres, grain.
        base: (9, 3) dye of each label before anything is drawn on it.
        nucleus: haematoxylin of a normal nucleus.
        atypia: how much darker, larger and more varied malignant nuclei are.
        nucleus_um: semi-axis of a normal nucleus.
        cellularity: spindle cells of the stroma, relative to the usual.
        inflammation: share of stroma's cells that are round.
        fibre_low, fibre_high: eosin of thin and thick collagen; gap: share of clear clefts.
        fibre_angle: main direction, radians; fibre_swirl: how far it turns.
        mucin: dye (H, E) of goblet cells; goblet: how much of the crypt they take.
        flattened: whether crypt nuclei lie flat (basal) rather than stand.
        tumour_spacing_um, lymph_spacing_um: between nuclei.
        vesicular: whether tumour nuclei are open, with a nucleolus.
        debris: fragments in necrosis, relative to the usual.
        septum_um: half the wall between two adipocytes.
        red_cell: eosin of red blood cells.
    """

    seed: int
    base: np.ndarray
    nucleus: float
    atypia: float
    nucleus_um: float
    cellularity: float
    inflammation: float
    fibre_low: float
    fibre_high: float
    gap: float
    fibre_angle: float
    fibre_swirl: float
    mucin: tuple[float, float]
    goblet: float
    flattened: bool
    tumour_spacing_um: float
    lymph_spacing_um: float
    vesicular: float
    debris: float
    septum_um: float
    red_cell: float


def random_style(rng: np.random.Generator) -> Style:
    """A style drawn at random; which concept is darkest or pinkest differs from style to style."""
    base = np.zeros((len(LEAVES) + 1, 3))
    base[LABEL["stroma"]] = rng.uniform(4, 14), 70, rng.uniform(30, 60)
    base[LABEL["normal_gland"]] = rng.uniform(30, 60), rng.uniform(45, 85), 30
    base[LABEL["malignant_gland"]] = rng.uniform(40, 85), rng.uniform(55, 105), 45
    base[LABEL["tumour_nest"]] = rng.uniform(25, 75), rng.uniform(50, 100), rng.uniform(30, 60)
    base[LABEL["lymphocytes"]] = rng.uniform(18, 45), rng.uniform(25, 60), 40
    base[LABEL["necrosis"]] = rng.uniform(8, 30), rng.uniform(75, 125), rng.uniform(110, 190)
    base[LABEL["vessel"]] = rng.uniform(8, 22), rng.uniform(80, 130), 30
    base[LABEL["fat"]] = rng.uniform(6, 16), rng.uniform(45, 95), 20
    low = rng.uniform(25, 70)
    return Style(
        seed=int(rng.integers(1 << 62)),
        base=base.clip(0, 255).astype(np.uint8),
        nucleus=rng.uniform(105, 175),
        atypia=rng.uniform(0.6, 1.4),
        nucleus_um=rng.uniform(3.1, 4.3),
        cellularity=float(np.exp(rng.uniform(-0.9, 0.8))),
        inflammation=rng.uniform(0.0, 0.35) ** 1.5 * 2,
        fibre_low=low,
        fibre_high=low + rng.uniform(30, 85),
        gap=rng.choice([0.0, rng.uniform(0.03, 0.25)]),
        fibre_angle=rng.uniform(0, np.pi),
        fibre_swirl=rng.uniform(0.3, 1.3),
        mucin=(rng.uniform(4, 32), rng.uniform(4, 28)),
        goblet=rng.uniform(0.35, 1.0),
        flattened=bool(rng.random() < 0.25),
        tumour_spacing_um=rng.uniform(9.0, 13.0),
        lymph_spacing_um=rng.uniform(5.8, 7.4),
        vesicular=float(rng.random() < 0.55) * rng.uniform(0.4, 0.9),
        debris=float(np.exp(rng.uniform(-0.8, 0.6))),
        septum_um=rng.uniform(0.8, 1.9),
        red_cell=rng.uniform(120, 200),
    )


def plain_style(seed: int) -> Style:
    """A textbook style, for the demonstration slide; only the places of things depend on the seed."""
    base = np.zeros((len(LEAVES) + 1, 3))
    base[LABEL["stroma"]] = 8, 70, 40
    base[LABEL["normal_gland"]] = 42, 62, 30
    base[LABEL["malignant_gland"]] = 62, 80, 45
    base[LABEL["tumour_nest"]] = 52, 75, 45
    base[LABEL["lymphocytes"]] = 32, 42, 40
    base[LABEL["necrosis"]] = 18, 100, 150
    base[LABEL["vessel"]] = 14, 105, 30
    base[LABEL["fat"]] = 10, 70, 20
    return Style(
        seed=seed, base=base.astype(np.uint8), nucleus=140, atypia=1.0, nucleus_um=3.6, cellularity=1.0,
        inflammation=0.12, fibre_low=42, fibre_high=88, gap=0.04, fibre_angle=0.4, fibre_swirl=0.9, mucin=(16, 14),
        goblet=0.8, flattened=False, tumour_spacing_um=10.5, lymph_spacing_um=6.4, vesicular=0.6, debris=1.0,
        septum_um=1.1, red_cell=165,
    )  # fmt: skip


def _periodic_blur(noise: np.ndarray, sigma_x: float, sigma_y: float, widen: int = 1) -> np.ndarray:
    """Blurred periodic noise, mean 0, deviation 1, stretched `widen` times along x."""
    pad = int(3 * max(sigma_x, sigma_y)) + 2
    blurred = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    blurred = blurred[pad:-pad]
    if widen > 1:
        size = (blurred.shape[1] * widen, blurred.shape[0])
        blurred = cv2.resize(blurred, size, interpolation=cv2.INTER_CUBIC)
    blurred = blurred[:, pad * widen : -pad * widen]
    return (blurred - blurred.mean()) / blurred.std()


@lru_cache(maxsize=8)
def grain_texture(seed: int, mpp: float) -> np.ndarray:
    """Periodic grain (512, 512) float32, mean 0, deviation about 1: granules of 1 to 2 µm under a finer noise."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, TEXTURE_PX, TEXTURE_PX), dtype=np.float32)
    granule = _periodic_blur(noise[0], max(0.5, 1.3 / mpp), max(0.5, 1.3 / mpp))
    return np.clip(0.75 * granule + 0.45 * _periodic_blur(noise[1], 0.6, 0.6), -2.2, 2.2).astype(np.float32)


@lru_cache(maxsize=8)
def fibre_texture(seed: int) -> np.ndarray:
    """Periodic strands along x, (512, 512) uint8 with flat histogram; one texel is 1 µm."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((3, TEXTURE_PX, TEXTURE_PX // 8), dtype=np.float32)
    strands = _periodic_blur(noise[0], 2.0, 0.9, 8) + 1.1 * _periodic_blur(noise[1], 3.3, 2.6, 8)
    strands += 0.8 * _periodic_blur(noise[2], 5.0, 9.0, 8)
    strands /= strands.std()
    flat = 1 / (1 + np.exp(-1.7 * strands))
    return (flat * 255).astype(np.uint8)


def fibre_coordinates(x_um: np.ndarray, y_um: np.ndarray, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """(along, across) the collagen at world points, µm: a turned frame bent by a few long waves."""
    rng = np.random.default_rng(style.seed ^ 0xF1B2E)
    cos, sin = np.cos(style.fibre_angle), np.sin(style.fibre_angle)
    along, across = cos * x_um + sin * y_um, cos * y_um - sin * x_um
    bent = across.copy()
    for length, depth in ((1130, 0.14), (710, 0.12), (410, 0.08), (270, 0.06), (147, 0.04), (53, 0.02)):
        direction, phase = rng.uniform(-0.9, 0.9), rng.uniform(0, 2 * np.pi)
        wave = (along * np.cos(direction) + across * np.sin(direction)) * (2 * np.pi / length) + phase
        bent = bent + depth * style.fibre_swirl * length * np.sin(wave)
    return along, bent


def fibre_direction(points_um: np.ndarray, style: Style) -> np.ndarray:
    """Direction of the collagen at points (N, 2), radians."""
    x, y = points_um[:, 0], points_um[:, 1]
    across = fibre_coordinates(x, y, style)[1]
    slope_x = fibre_coordinates(x + 1, y, style)[1] - across
    slope_y = fibre_coordinates(x, y + 1, style)[1] - across
    return np.arctan2(-slope_x, slope_y)
