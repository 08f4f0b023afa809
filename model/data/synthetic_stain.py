"""Stain and camera of the synthetic tissue: how amounts of dye become a picture.

A dye map is (H, W, 3) uint8: haematoxylin and eosin in hundredths of a unit concentration, and the depth of the grain
that modulates both.
"""

from dataclasses import dataclass

import cv2
import numpy as np

HAEMATOXYLIN = ((0.650, 0.704, 0.286), (0.563, 0.720, 0.406))
EOSIN = ((0.072, 0.990, 0.105), (0.216, 0.801, 0.558))
"""Optical densities per unit of dye, RGB, in two laboratories. Source: Ruifrok & Johnston 2001; Macenko et al. 2009."""


@dataclass(frozen=True)
class Stain:
    """One laboratory's stain on one scanner.

    Attributes:
        haematoxylin, eosin: optical density (RGB) of one unit of dye, strength included.
        glass: RGB of the empty slide, in [0, 255].
        gamma: of the camera.
    """

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[float, float, float]
    gamma: float = 1.0

    def table(self) -> np.ndarray:
        """RGB of every pair of dye amounts: (256, 256, 3) uint8, first axis haematoxylin."""
        amount = np.arange(256, dtype=np.float32) / 100
        density = amount[:, None, None] * np.array(self.haematoxylin, np.float32) + amount[None, :, None] * np.array(
            self.eosin, np.float32
        )
        light = np.exp(-density * 1.25) ** self.gamma * np.array(self.glass, np.float32)
        return np.clip(light + 0.5, 0, 255).astype(np.uint8)

    def develop(self, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
        """Dye amounts (H, W) uint8 each → RGB (H, W, 3) uint8."""
        index = haematoxylin.astype(np.uint16)
        index <<= 8
        index |= eosin
        return self.table().reshape(-1, 3)[index]


def random_stain(rng: np.random.Generator, spread: float = 1.0) -> Stain:
    """A stain between and around the two known ones, from pale and pink to violet; spread 0 gives a plain one."""
    between = 0.5 + spread * rng.uniform(-0.5, 0.5)

    def vector(known: tuple[tuple[float, ...], tuple[float, ...]], turn: float) -> tuple[float, float, float]:
        mixed = (1 - between) * np.array(known[0]) + between * np.array(known[1])
        bent = np.clip(mixed + spread * rng.normal(0, turn, 3), 0.02, None)
        bent = bent / np.linalg.norm(bent) * np.exp(spread * rng.uniform(-0.4, 0.3))
        return tuple(float(value) for value in bent)

    haematoxylin, eosin = vector(HAEMATOXYLIN, 0.07), vector(EOSIN, 0.06)
    grey = rng.uniform(0.86, 1.0)
    glass = 255 * np.clip(1 - spread * ((1 - grey) + rng.uniform(0, 0.06, 3)), 0.7, 0.985)
    gamma = np.exp(spread * rng.uniform(-0.35, 0.15))
    return Stain(haematoxylin, eosin, tuple(float(value) for value in glass), float(gamma))


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What optics, sensor and JPEG do to an RGB uint8 picture: blur, unsharp edges, noise, block artefacts."""
    draw = rng.random()
    if draw < 0.45:
        sigma = rng.uniform(0.35, 1.1)
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    elif draw < 0.6:
        image = cv2.addWeighted(image, 1.6, cv2.GaussianBlur(image, (0, 0), 1.0), -0.6, 0)
    if rng.random() < 0.6:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.5, 6))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = int(rng.integers(45, 96))
        _, packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(image)
