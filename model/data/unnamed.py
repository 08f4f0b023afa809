"""Parts of a real picture that have no name: what has one colour in it, nuclei or fibres or glass, whichever it is.

Shown in one view of the picture and sought in another, in another stain, turned and zoomed, they teach to compare real
tissue without a single label: nothing is said of what they are, and no two pictures have the same ones.
"""

import cv2
import numpy as np

from model.data.foreign import MAX_SHARE, MIN_SHARE


def unnamed_part(image: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """One part of a picture, by the colours in it.

    Args:
        image: (H, W, 3) uint8.
        rng: the only source of chance.

    Returns:
        (H, W) bool, or None where the colours leave no part of a size that could be shown.
    """
    blurred = cv2.GaussianBlur(image, (0, 0), float(np.exp(rng.uniform(np.log(1.5), np.log(6.0)))))
    lab = cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB).astype(np.float32)
    pixels = lab.reshape(-1, 3)
    some = pixels[rng.integers(len(pixels), size=2000)]
    centres = _centres(some, int(rng.integers(3, 6)), rng)
    nearest = np.argmin(((lab[..., None, :] - centres) ** 2).sum(-1), -1)  # [H, W]
    for wanted in rng.permutation(len(centres)):
        mask = cv2.morphologyEx((nearest == wanted).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        if MIN_SHARE <= mask.mean() <= MAX_SHARE:
            return mask > 0
    return None


def _centres(pixels: np.ndarray, count: int, rng: np.random.Generator, rounds: int = 6) -> np.ndarray:
    """k-means: (N, 3) float32 → (count, 3)."""
    centres = pixels[rng.choice(len(pixels), count, replace=False)]
    for _ in range(rounds):
        nearest = np.argmin(((pixels[:, None] - centres) ** 2).sum(-1), -1)
        centres = np.stack([
            pixels[nearest == c].mean(0) if (nearest == c).any() else centres[c] for c in range(count)
        ])  # fmt: skip
    return centres
