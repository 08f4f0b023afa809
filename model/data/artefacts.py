"""What goes wrong with a section, painted into a good picture at five strengths: the tissue, and its mask, stay.

Ice crystals of a frozen section, folds, a microscope out of focus, air under the cover slip, a pen on it. Sizes follow
the picture: at strength 3 they are what a poor slide of a routine archive shows, at 5 what a reader would send back.
Source: the catalogue of Taqi et al. 2018, "A review of artifacts in histopathology".
"""

from collections.abc import Callable

import cv2
import numpy as np

STRENGTHS = (1, 2, 3, 4, 5)
BASE_PX = 224.0
"""Edge of the picture that sizes below are told for."""
INKS = {"blue": (38, 66, 170), "green": (22, 132, 92), "black": (34, 34, 40)}
"""RGB of a pen's thick ink on glass."""


def add_artefact(image: np.ndarray, name: str, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Paint one artefact.

    Args:
        image: (H, W, 3) uint8 RGB.
        name: a key of `ARTEFACTS`.
        strength: 1 to 5.
        rng: the only source of chance.

    Returns:
        (H, W, 3) uint8 RGB, another array.

    Raises:
        ValueError: no such artefact or strength.
    """
    if name not in ARTEFACTS:
        raise ValueError(f"artefact {name!r}; accepted: {', '.join(ARTEFACTS)}")
    if strength not in STRENGTHS:
        raise ValueError(f"strength {strength!r}; accepted: 1 to 5")
    return ARTEFACTS[name](image, strength, rng)


def ice_crystals(image: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Clefts that ice left in a section frozen too slowly: white slits along the tissue's grain, crowding in places.

    Ice grows where water is, so that they part stroma and cytoplasm rather than nuclei.
    """
    unit = _unit(image)
    length, breadth = ((5, 0.9), (6, 1.1), (7, 1.35), (8, 1.7), (9, 2.1))[strength - 1]
    grain = 2 * np.pi * _noise(image.shape[:2], 80 * unit, rng)
    slits = _streaks(image.shape[:2], grain, length * unit, breadth * unit, rng)
    crowded = _noise(image.shape[:2], 55 * unit, rng)
    density = cv2.GaussianBlur(_density(image, glass_of(image)).mean(axis=2), (0, 0), 1.5 * unit)
    wet = slits + 1.3 * (crowded - 0.5) - 0.5 * (density - density.mean()) / (density.std() + 1e-3)
    edge = np.quantile(wet, 1 - (0.03, 0.07, 0.13, 0.21, 0.30)[strength - 1])
    alpha = np.clip((wet - edge) / 0.25, 0, 1)
    rim = np.clip(cv2.GaussianBlur(alpha, (0, 0), 1.5 * unit) - alpha, 0, 1) * _present(image)
    pressed = image * (1 - 0.5 * rim[..., None])  # the tissue is pushed aside and lies denser around a hole
    return _over(pressed, glass_of(image), 0.93 * alpha)


def _streaks(
    shape: tuple[int, int], angle: np.ndarray, length_px: float, breadth_px: float, rng: np.random.Generator
) -> np.ndarray:
    """(H, W) float32 noise of deviation 1, drawn out along a field of directions (line integral convolution)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    total = noise.copy()
    step = max(1.0, length_px / 8)
    for way in (-step, step):
        x, y = columns.copy(), rows.copy()
        for _ in range(8):
            here = cv2.remap(angle.astype(np.float32), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
            x, y = x + way * np.cos(here), y + way * np.sin(here)
            total += cv2.remap(noise, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    total = cv2.GaussianBlur(total, (0, 0), breadth_px)
    return (total - total.mean()) / total.std()


def folds(image: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Bands where the section lies over itself: two layers' densities add up, one edge is sharp, focus is lost."""
    out = image
    for _ in range((1, 1, 2, 2, 3)[strength - 1]):
        out = _fold(out, strength, rng)
    return out


def _fold(image: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """One fold across the picture."""
    unit = _unit(image)
    height, width = image.shape[:2]
    angle = rng.uniform(0, np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)])
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    middle = np.array([width, height]) * rng.uniform(0.25, 0.75, 2)
    across = (columns - middle[0]) * normal[0] + (rows - middle[1]) * normal[1]
    across += (_noise(image.shape[:2], 95 * unit, rng) - 0.5) * 40 * unit  # the line wanders
    breadth = (5, 8, 12, 17, 23)[strength - 1] * unit * (0.5 + _noise(image.shape[:2], 50 * unit, rng))
    inside = np.clip(across / (0.8 * unit), 0, 1) * np.clip((breadth - across) / (0.35 * breadth + 1), 0, 1)
    # the layer above is the neighbouring strip, turned over the sharp edge
    source = np.stack([columns - 2 * across * normal[0], rows - 2 * across * normal[1]], -1).astype(np.float32)
    turned = cv2.remap(image, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    layer = _density(cv2.GaussianBlur(turned, (0, 0), 1.2 * unit), glass_of(image))
    crease = np.exp(-(((across - 1.2 * unit) / (1.3 * unit)) ** 2)) * 0.22
    soft = cv2.GaussianBlur(image, (0, 0), 0.9 * unit)
    below = image * (1 - inside[..., None]) + soft * inside[..., None]
    added = layer * inside[..., None] + (crease * _present(image))[..., None]
    return _clip(below * np.exp(-added))


def defocus(image: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Every point as a small disc, larger on one side of the picture where the slide lies askew."""
    unit = _unit(image)
    radius = (1.0, 1.7, 2.6, 3.8, 5.4)[strength - 1] * unit
    near, far = (_disc_blur(image, radius * factor) for factor in (0.75, 1.25))
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    slope = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5)
    return _over(near, far, np.clip(slope + 0.5, 0, 1))


def bubbles(image: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Air under the cover slip: a black refracting rim with a bright line inside, and pale blurred tissue."""
    unit = _unit(image)
    height, width = image.shape[:2]
    out = image
    taken: list[tuple[float, float, float]] = []
    for _ in range((1, 1, 2, 3, 4)[strength - 1]):
        radius = (14, 24, 32, 44, 56)[strength - 1] * unit * rng.lognormal(-0.1, 0.35)
        for _ in range(20):  # bubbles that touch run into one; where there is no room for another, there is none
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            if all(np.hypot(x - other[0], y - other[1]) > radius + other[2] + 5 * unit for other in taken):
                taken.append((x, y, radius))
                out = _bubble(out, x, y, radius, rng)
                break
    return out


def _bubble(image: np.ndarray, x: float, y: float, radius: float, rng: np.random.Generator) -> np.ndarray:
    """One bubble; not quite round."""
    unit = _unit(image)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    dx, dy = columns - x, rows - y
    angle = np.arctan2(dy, dx)
    bulge = 1 + sum(rng.normal(0, 0.018) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in (2, 3))
    depth = radius * bulge - np.hypot(dx, dy)  # px from the rim inwards
    inside = np.clip(depth / unit + 0.5, 0, 1)
    lens = 1 - 0.10 * np.clip(depth / radius, 0, 1)
    seen = cv2.remap(
        image, (x + dx * lens).astype(np.float32), (y + dy * lens).astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    hazy = _over(cv2.GaussianBlur(seen, (0, 0), 1.6 * unit).astype(np.float32), glass_of(image), 0.22)
    lit = 0.75 + 0.25 * np.cos(angle - rng.uniform(0, 2 * np.pi))  # the condenser is never quite centred
    thick = (1.2 + 0.035 * radius / unit) * unit
    dark = 0.88 * lit * np.exp(-(((depth - 0.8 * thick) / thick) ** 2))
    bright = 0.7 * lit * np.exp(-(((depth - 2.8 * thick) / (0.6 * thick)) ** 2)) * inside
    halo = 0.25 * np.exp(-(((depth + 1.5 * thick) / (1.2 * thick)) ** 2))
    out = _over(_over(image, hazy, inside), np.array([255.0, 255, 255]), bright)
    return _over(_over(out, glass_of(image), halo), np.array([30.0, 26, 36]), dark)


def pen(image: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Marker on the cover slip: broad translucent strokes, streaky along their way, darker at edges and crossings."""
    unit = _unit(image)
    ink = -np.log(np.array(INKS[tuple(INKS)[int(rng.integers(len(INKS)))]], np.float32) / 255)
    breadth = (18, 30, 44, 62, 84)[strength - 1] * unit
    amount = np.zeros(image.shape[:2], np.float32)
    for _ in range((1, 1, 1, 2, 2)[strength - 1]):
        amount += _stroke(image.shape[:2], breadth * rng.uniform(0.8, 1.2), unit, rng)
    thin = (0.35, 0.42, 0.5, 0.6, 0.75)[strength - 1]
    hidden = cv2.GaussianBlur(image, (0, 0), 0.5 * unit)  # the pen lies above the plane of focus
    cover = np.clip(amount, 0, 1)[..., None]
    return _clip((image * (1 - cover) + hidden * cover) * np.exp(-ink * thin * amount[..., None]))


def _stroke(shape: tuple[int, int], breadth: float, unit: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 amount of ink of one curved stroke from edge to edge, or ending inside."""
    height, width = shape
    turn = rng.uniform(0, 2 * np.pi)
    reach = 0.75 * np.hypot(height, width)
    middle = np.array([width, height]) * rng.uniform(0.2, 0.8, 2)
    along = np.linspace(-reach, reach * rng.choice((1.0, 0.25)), 80)
    bend = rng.normal(0, 0.5) / reach
    path = np.stack([along, bend * along**2], 1)
    turning = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    line = np.full(shape, 255, np.uint8)
    cv2.polylines(line, [np.round(path @ turning + middle).astype(np.int32)], False, 0, 1)
    distance = cv2.distanceTransform(line, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    local = np.stack([columns - middle[0], rows - middle[1]], -1) @ turning.T.astype(np.float32)  # [H, W, 2]
    side = np.sign(local[..., 1] - bend * local[..., 0] ** 2)
    ragged = distance + 2.5 * unit * (_noise(shape, 9 * unit, rng) - 0.5)
    body = np.clip((breadth / 2 - ragged) / (2.5 * unit) + 0.5, 0, 1)
    edge = np.exp(-(((breadth / 2 - 3 * unit - ragged) / (2.5 * unit)) ** 2))
    fibres = np.convolve(rng.normal(0, 1, 64), [0.25, 0.5, 0.25], "same")  # of the pen's tip, side by side
    lanes = np.interp(side * distance / (1.5 * unit), np.arange(-32, 32), fibres)
    streaks = 0.85 + 0.12 * lanes + 0.4 * (_noise(shape, 40 * unit, rng) - 0.5)
    return (body * np.clip(streaks, 0.3, 1.4) + 0.3 * edge * body).astype(np.float32)


ARTEFACTS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "ice_crystals": ice_crystals, "folds": folds, "defocus": defocus, "bubbles": bubbles, "pen": pen,
}  # fmt: skip


def glass_of(image: np.ndarray) -> np.ndarray:
    """(3,) float32 RGB of the empty slide: the brightest of the picture, never darker than a lamp's usual grey."""
    brightest = np.percentile(image[::2, ::2].reshape(-1, 3), 99.5, axis=0)
    return np.maximum(brightest, 228).astype(np.float32)


def _unit(image: np.ndarray) -> float:
    """Pixels of this picture for one of a 224-px picture."""
    return min(image.shape[:2]) / BASE_PX


def _density(image: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Optical density (H, W, 3) float32 against glass, natural logarithm."""
    return np.maximum(np.log(glass / np.maximum(image.astype(np.float32), 1)), 0)


def _present(image: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: where there is tissue that could crease."""
    return np.clip(cv2.GaussianBlur(_density(image, glass_of(image)).mean(axis=2), (0, 0), 3) / 0.15, 0, 1)


def _noise(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 smooth noise in [0, 1], as coarse as the scale."""
    height, width = (max(2, int(np.ceil(side / scale_px)) + 1) for side in shape)
    coarse = rng.random((height, width), dtype=np.float32)
    return np.clip(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)


def _disc_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Blur by a disc of a fractional radius in pixels."""
    half = int(np.ceil(radius))
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _over(below: np.ndarray, above: np.ndarray, alpha: np.ndarray | float) -> np.ndarray:
    """One picture or colour over another: (H, W, 3) uint8."""
    alpha = np.asarray(alpha, np.float32)
    alpha = alpha[..., None] if alpha.ndim == 2 else alpha
    return _clip(below * (1 - alpha) + np.asarray(above, np.float32) * alpha)


def _clip(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 255)).astype(np.uint8)
