"""Foreign matter: structures that have no name, painted into pictures so that only an exemplar can ask for them.

Each draw is a class of its own, so a model cannot learn the classes; it can only learn to compare. What is painted once
is painted again in another picture, in another stain, in other shapes; a second class that is not asked for often lies
beside it. Three families of texture are kept for measuring and never train.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from model.data.synthetic import synthetic_scenes

CONCEPT = "foreign"
"""Key under which the asked class stands among a picture's masks."""

MIN_SHARE, MAX_SHARE = 0.01, 0.4
"""What of a picture a class may cover."""


@dataclass(frozen=True)
class Matter:
    """How one class looks.

    Attributes:
        family: of the texture.
        ground, grain: RGB in [0, 255] of its lightest and darkest places.
        size_px: of its grain; density in [0, 1]; turn: direction in radians.
        softness_px: blur of its edge; opacity: how little shines through.
        scattered: many small pieces instead of a few large ones.
    """

    family: str
    ground: tuple[float, float, float]
    grain: tuple[float, float, float]
    size_px: float
    density: float
    turn: float
    softness_px: float
    opacity: float
    scattered: bool

    def paint(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(H, W, 3) uint8 with this matter where (H, W) bool is True; size and colour vary a little each time."""
        varied = replace(self, size_px=self.size_px * float(np.exp(rng.normal(0, 0.1))))
        texture = FAMILIES[self.family](varied, mask.shape, rng)[..., None]  # [H, W, 1] in [0, 1]
        ground, grain = (np.asarray(c) + rng.normal(0, 5, 3) for c in (self.ground, self.grain))
        colour = ground + (grain - ground) * texture
        edge = mask.astype(np.float32)
        if self.softness_px > 0.3:
            edge = cv2.GaussianBlur(edge, (0, 0), self.softness_px)
        share = (self.opacity * edge)[..., None]
        return np.clip(image * (1 - share) + colour * share, 0, 255).astype(np.uint8)


def random_matter(rng: np.random.Generator, heldout: bool = False) -> Matter:
    """One class.

    Args:
        rng: the only source of chance.
        heldout: from the families that never train.
    """
    names = [name for name in FAMILIES if (name in HELDOUT) == heldout]
    family = names[int(rng.integers(len(names)))]
    ground = _dye(rng)
    grain = _dye(rng)
    if heldout:
        ground, grain = (tuple(np.asarray(c) + rng.normal(0, 12, 3)) for c in HELDOUT[family])
    return Matter(
        family=family, ground=tuple(ground), grain=tuple(grain), size_px=float(np.exp(rng.uniform(0.7, 2.6))),
        density=float(rng.uniform(0.2, 0.75)), turn=float(rng.uniform(0, np.pi)),
        softness_px=float(rng.choice((0.0, 0.8, 2.0))), opacity=float(rng.uniform(0.75, 1.0)),
        scattered=bool(rng.random() < 0.3),
    )  # fmt: skip


def _dye(rng: np.random.Generator) -> tuple[float, float, float]:
    """A colour: mostly what haematoxylin, eosin and their absence give, now and then any."""
    if rng.random() < 0.3:
        return tuple(rng.uniform(20, 245, 3))
    blue, pink = rng.uniform(0, 1.3), rng.uniform(0, 1.1)
    absorbed = blue * np.array([0.65, 0.70, 0.29]) + pink * np.array([0.07, 0.99, 0.11])
    return tuple(245 * np.exp(-absorbed))


def random_shape(matter: Matter, size_px: int, rng: np.random.Generator, free: np.ndarray) -> np.ndarray:
    """(S, S) bool: where a class lies in a picture, inside `free` (S, S) bool; may be empty when there is no room."""
    mask = np.zeros((size_px, size_px), np.uint8)
    if matter.scattered:
        for _ in range(int(rng.integers(8, 40))):
            x, y = (int(v) for v in rng.integers(0, size_px, 2))
            axes = tuple(int(v) for v in rng.integers(4, max(6, size_px // 18), 2))
            cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    else:
        share = float(np.exp(rng.uniform(np.log(0.03), np.log(0.35))))
        field = _noise((size_px, size_px), size_px * float(rng.uniform(0.12, 0.4)), rng)
        mask = (field > np.quantile(field, 1 - share)).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    mask = (mask > 0) & free
    return mask if MIN_SHARE <= mask.mean() <= MAX_SHARE else np.zeros_like(mask)


def add_matter(
    image: np.ndarray, wanted: list[Matter], rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Paint classes into a picture, none over another.

    Args:
        image: (S, S, 3) uint8.
        wanted: classes, in order of painting.
        rng: the only source of chance.

    Returns:
        The painted picture, and one mask (S, S) bool a class; empty where no room was found in a few tries.
    """
    free = np.ones(image.shape[:2], bool)
    masks = []
    for matter in wanted:
        mask = np.zeros_like(free)
        for _ in range(6):
            mask = random_shape(matter, image.shape[0], rng, free)
            if mask.any():
                break
        image = matter.paint(image, mask, rng) if mask.any() else image
        free &= cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
        masks.append(mask)
    return image, masks


def _noise(shape: tuple[int, int], size_px: float, rng: np.random.Generator, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise of a grain size, (H, W) float32, mean 0 and spread 1."""
    h, w = (max(2, int(side / max(size_px, 1.0)) + 2) for side in shape)
    small = rng.normal(0, 1, (h, max(2, int(w / stretch) + 2))).astype(np.float32)
    field = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-6)


def _turned(field: Callable[[tuple[int, int]], np.ndarray], shape: tuple[int, int], turn: float) -> np.ndarray:
    """A field made larger, turned, and cut to shape."""
    large = field((int(shape[0] * 1.5), int(shape[1] * 1.5)))
    h, w = large.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), np.degrees(turn), 1.0)
    out = cv2.warpAffine(large, matrix, (w, h), borderMode=cv2.BORDER_REFLECT_101)
    y, x = (h - shape[0]) // 2, (w - shape[1]) // 2
    return out[y : y + shape[0], x : x + shape[1]]


def _cut(field: np.ndarray, density: float, sharpness: float = 4.0) -> np.ndarray:
    """The `density` highest of a field towards 1, the others towards 0."""
    return 1 / (1 + np.exp(-sharpness * (field - np.quantile(field, 1 - density))))


def _granules(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return _cut(_noise(shape, m.size_px, rng), m.density)


def _fibres(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return _cut(_turned(lambda s: _noise(s, m.size_px, rng, stretch=8.0), shape, m.turn), m.density)


def _weave(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    def stripes(s: tuple[int, int]) -> np.ndarray:
        y, x = np.indices(s).astype(np.float32)
        bend = 2 * _noise(s, 8 * m.size_px, rng)
        period = 2 + 1.5 * m.size_px
        return np.sin(2 * np.pi * (x + bend) / period) * np.sin(2 * np.pi * (y + bend) / period)

    return _cut(_turned(stripes, shape, m.turn), m.density)


def _stripes(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    def bands(s: tuple[int, int]) -> np.ndarray:
        x = np.indices(s)[1].astype(np.float32)
        return np.sin(2 * np.pi * (x + 3 * _noise(s, 10 * m.size_px, rng)) / (2 + 2 * m.size_px))

    return _cut(_turned(bands, shape, m.turn), m.density)


def _rings(m: Matter, shape: tuple[int, int], rng: np.random.Generator, filled: bool = False) -> np.ndarray:
    out = np.zeros(shape, np.float32)
    radius = max(2.0, m.size_px)
    count = int(m.density * shape[0] * shape[1] / (6 * radius**2))
    for x, y, r in zip(
        rng.integers(0, shape[1], count), rng.integers(0, shape[0], count), rng.normal(radius, 0.2 * radius, count),
        strict=True,
    ):  # fmt: skip
        cv2.circle(out, (int(x), int(y)), max(1, int(r)), 1.0, -1 if filled else max(1, int(radius / 4)))
    return cv2.GaussianBlur(out, (0, 0), 0.6)


def _discs(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return _rings(m, shape, rng, filled=True)


def _smooth(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.25 * np.clip(_noise(shape, 12 * m.size_px, rng), -2, 2)


def _cracks(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return np.exp(-6 * np.abs(_noise(shape, 2 * m.size_px, rng)) / (0.3 + m.density))


def _shards(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Angular chips, as of calcium."""
    out = np.zeros(shape, np.float32)
    radius = max(3.0, 1.6 * m.size_px)
    for _ in range(int(m.density * shape[0] * shape[1] / (2 * radius**2))):
        centre = rng.uniform(0, shape[::-1], 2)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
        corners = centre + radius * rng.uniform(0.5, 1.2, (len(angles), 1)) * np.c_[np.cos(angles), np.sin(angles)]
        cv2.fillPoly(out, [corners.astype(np.int32)], float(rng.uniform(0.6, 1.0)))
    return out


def _strands(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A pale pool with thin strands, as of mucin."""
    wavy = _turned(lambda s: _noise(s, 2 * m.size_px, rng, stretch=4.0), shape, m.turn)
    return 0.6 * np.exp(-8 * np.abs(wavy)) + 0.2 * (_noise(shape, 10 * m.size_px, rng) > 0)


def _clumps(m: Matter, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Grains that lie in heaps, as pigment does."""
    grains = _cut(_noise(shape, max(1.5, 0.6 * m.size_px), rng), 0.5, 6.0)
    return grains * _cut(_noise(shape, 4 * m.size_px, rng), 0.6, 3.0)


FAMILIES: dict[str, Callable[[Matter, tuple[int, int], np.random.Generator], np.ndarray]] = {
    "granules": _granules, "fibres": _fibres, "weave": _weave, "stripes": _stripes, "rings": _rings, "discs": _discs,
    "smooth": _smooth, "cracks": _cracks, "calcium": _shards, "mucin": _strands, "pigment": _clumps,
}  # fmt: skip
"""Texture by family: (matter, shape, rng) → (H, W) in [0, 1]."""

HELDOUT: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "calcium": ((150, 110, 190), (70, 30, 110)),
    "mucin": ((205, 215, 235), (150, 160, 205)),
    "pigment": ((205, 165, 120), (90, 55, 25)),
}
"""Families that never train, with the colours of ground and grain they are known by."""


@dataclass(frozen=True)
class Pair:
    """A picture and an exemplar of what to look for in it.

    Attributes:
        image: (S, S, 3) uint8; mask: (S, S) bool of what the exemplar shows, None where it is absent.
        reference, reference_mask: another picture, (S, S, 3) uint8, and what to look for in it, (S, S) bool.
        kind: family of what is asked for.
    """

    image: np.ndarray
    mask: np.ndarray | None
    reference: np.ndarray
    reference_mask: np.ndarray
    kind: str


def heldout_pairs(count: int, seed: int, size_px: int = 224, absent_share: float = 0.45) -> Iterator[Pair]:
    """Pairs of families that never trained, in synthetic tissue, each picture in a stain of its own.

    Args:
        count: how many.
        seed: of everything.
        size_px: edge of the pictures.
        absent_share: of the pictures that show only another class than the exemplar's.
    """
    rng = np.random.default_rng([seed, 911])
    scenes = synthetic_scenes(rng, 2 * count, size_px)
    absent = rng.permutation(np.arange(count) < round(absent_share * count))
    for i in range(count):
        asked, other = random_matter(rng, heldout=True), random_matter(rng, heldout=True)
        while other.family == asked.family:
            other = random_matter(rng, heldout=True)
        reference, shown = np.zeros(0), [np.zeros(0)]
        while not shown[0].any():
            reference, shown = add_matter(scenes[2 * i].image, [asked, other], rng)
        here = [other] if absent[i] else [asked, other]
        image, masks = add_matter(scenes[2 * i + 1].image, here, rng)
        while not masks[0].any():
            image, masks = add_matter(scenes[2 * i + 1].image, here, rng)
        yield Pair(image, None if absent[i] else masks[0], reference, shown[0], asked.family)
