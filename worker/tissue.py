"""Where the tissue is on a thumbnail: stained parts, and the pale ones (fat, mucin) beside them. Pure."""

import cv2
import numpy as np

MIN_GLASS_SHARE = 0.01
"""Less than this of flat, bright, colourless picture is no glass: the picture is all tissue."""

GLASS_MIN_LIGHT = 170
GLASS_MAX_CHROMA = 28
GLASS_MAX_SPREAD = 4.0
TEXTURE_MIN_SPREAD = 2.5
PALE_MIN_DENSITY = 0.025
STAIN_LIMITS = (0.10, 0.22)
"""Optical density over the glass that counts as stained: Otsu's threshold, held within these."""


def find_tissue(thumbnail: np.ndarray) -> np.ndarray:
    """Tell tissue from glass.

    Args:
        thumbnail: (h, w, 3) uint8 RGB of the whole slide, any size.

    Returns:
        (h, w) bool. All True where no glass can be seen; all False on clean glass.
    """
    smooth = cv2.GaussianBlur(thumbnail, (3, 3), 0)
    padding = _find_padding(thumbnail)
    spread = _local_spread(thumbnail)
    glass, colour = _find_glass(smooth, spread, padding)
    if colour is None:
        return ~padding
    density = _density(smooth, colour)
    noise = float(np.percentile(density[glass], 95))
    stained = density > max(_stain_threshold(density[~padding]), 2 * noise)
    stained &= ~padding
    stained = _drop_specks(stained)
    if not stained.any():
        return stained
    # pale collagen is no darker than glass may be, but it is not smooth
    rough = spread > max(TEXTURE_MIN_SPREAD, 2 * float(np.percentile(spread[glass], 90)))
    tissue = _reach_into_pale(stained, ((density > max(PALE_MIN_DENSITY, 1.5 * noise)) | rough) & ~padding)
    return _close(tissue) & ~padding


def _find_padding(thumbnail: np.ndarray) -> np.ndarray:
    """Pure black joined to the picture's edge: what scanners write where they did not scan."""
    black = (thumbnail.max(axis=2) <= 8).astype(np.uint8)
    found = np.zeros(black.shape, bool)
    if not black.any():
        return found
    _, labels = cv2.connectedComponents(black, connectivity=4)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    sizes = np.bincount(labels.ravel())
    for label in np.unique(rim[rim > 0]):
        if sizes[label] >= 0.002 * black.size:
            found |= labels == label
    return found


def _local_spread(thumbnail: np.ndarray) -> np.ndarray:
    """(h, w) standard deviation of the grey values in 5 x 5 px."""
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean, mean_square = cv2.blur(grey, (5, 5)), cv2.blur(grey * grey, (5, 5))
    return np.sqrt(np.maximum(mean_square - mean * mean, 0))


def _find_glass(smooth: np.ndarray, spread: np.ndarray, padding: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Where glass lies for sure, and its colour (3,) float; None when the picture shows none."""
    light = smooth.mean(axis=2)
    chroma = smooth.max(axis=2).astype(np.int16) - smooth.min(axis=2)
    glass = (light >= GLASS_MIN_LIGHT) & (chroma <= GLASS_MAX_CHROMA) & (spread < GLASS_MAX_SPREAD) & ~padding
    if glass.sum() < MIN_GLASS_SHARE * (~padding).sum() or not glass.any():
        return glass, None
    mode = _brightest_mode(light[glass])
    # what a scanner fills in where it did not scan is brighter than its glass, and without any noise
    scanned = glass & (spread > 0.3) & (light > 0.92 * mode)
    if scanned.sum() >= MIN_GLASS_SHARE * (~padding).sum():
        mode = _brightest_mode(light[scanned])
        glass = scanned
    glass &= np.abs(light - mode) <= 6
    if not glass.any():
        return glass, None
    return glass, np.median(smooth[glass], axis=0).astype(np.float64)


def _brightest_mode(light: np.ndarray) -> int:
    """The brightest common value: pale flat tissue is common too, and a little darker than glass."""
    counts = np.bincount(light.astype(np.int64), minlength=256).astype(np.float64)
    counts = np.convolve(counts, np.ones(5), mode="same")
    return int(np.flatnonzero(counts >= 0.3 * counts.max())[-1])


def _density(image: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """(h, w) optical density over the glass, log10, of the channel that absorbs most."""
    table = np.log10((np.arange(256) + 1.0) / 256).astype(np.float32)
    reference = np.log10((glass + 1.0) / 256).astype(np.float32)
    return np.max(reference - table[image], axis=2)


def _stain_threshold(density: np.ndarray) -> float:
    levels = np.clip(density * 200, 0, 255).astype(np.uint8).reshape(-1, 1)
    otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # half way to Otsu: its two classes are glass and dark nuclei, and stroma lies between
    return float(np.clip(otsu / 200 * 0.5, *STAIN_LIMITS))


def _drop_specks(mask: np.ndarray) -> np.ndarray:
    """Without components too small to be a fragment of tissue (dust, noise)."""
    smallest = max(2, round(4e-6 * mask.size))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return keep[labels] if count > 1 else np.zeros_like(mask)


def _reach_into_pale(stained: np.ndarray, pale: np.ndarray) -> np.ndarray:
    """Stained tissue, and the pale parts that hang together with it."""
    _, labels = cv2.connectedComponents((stained | pale).astype(np.uint8), connectivity=8)
    seeded = np.zeros(int(labels.max()) + 1, bool)
    seeded[np.unique(labels[stained])] = True
    seeded[0] = False
    return seeded[labels]


def _close(mask: np.ndarray) -> np.ndarray:
    """Bridge thin gaps and fill holes: fat cells and lumens are white, and still tissue."""
    h, w = mask.shape
    radius = max(1, round(max(h, w) / 250))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), radius, radius, radius, radius, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)[radius:-radius, radius:-radius]
    closed = np.maximum(closed, mask.astype(np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - closed, connectivity=4)
    on_rim = np.zeros(len(stats), bool)
    on_rim[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = True
    small_hole = ~on_rim & (stats[:, cv2.CC_STAT_AREA] <= 0.01 * mask.size)
    small_hole[0] = False
    return (closed > 0) | small_hole[labels]
