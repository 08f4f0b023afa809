"""What can be measured on an image and a mask: the facts that reasoning chains are made of.

Pure functions of arrays, a few milliseconds for 256 px; sizes in pixels unless the name says otherwise.
"""

import cv2
import numpy as np

# Ruifrok & Johnston 2001: optical density of haematoxylin, eosin and the rest, inverted to unmix RGB.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIX = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)).astype(np.float32)
_DENSITY = (-np.log10(np.maximum(np.arange(256), 1) / 255.0)).astype(np.float32)

ROWS = ("upper", "", "lower")
COLUMNS = ("left", "", "right")


def haematoxylin(image: np.ndarray) -> np.ndarray:
    """Optical density of haematoxylin, (H, W) float32 >= 0, of an (H, W, 3) uint8 RGB image."""
    density = _DENSITY[image]
    return np.maximum(density @ _UNMIX[:, 0], 0)


def nuclei_mask(image: np.ndarray) -> np.ndarray:
    """Pixels of cell nuclei, (H, W) bool: Otsu's threshold on the smoothed haematoxylin density."""
    stain = cv2.GaussianBlur(haematoxylin(image), (0, 0), 1.0)
    top = max(float(np.percentile(stain[::4, ::4], 99.5)), 0.2)
    scaled = np.clip(stain / top * 255, 0, 255).astype(np.uint8)
    _, binary = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return binary > 0


def lumen_mask(image: np.ndarray) -> np.ndarray:
    """Empty pixels, (H, W) bool: nearly as bright as the brightest of the picture, and hardly coloured."""
    high = image.max(axis=2)
    low = image.min(axis=2)
    bright = max(float(np.percentile(low[::4, ::4], 99.5)), 120.0)
    empty = (low > 0.86 * bright) & ((high - low) < 36)
    return cv2.morphologyEx(empty.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0


def count_pieces(mask: np.ndarray, min_share: float = 0.002) -> int:
    """Number of connected pieces that cover at least `min_share` of the field; at least 1 for a mask not empty."""
    n, _, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask, np.uint8), connectivity=8)
    areas = stats[1:n, cv2.CC_STAT_AREA]
    return max(int((areas >= min_share * mask.size).sum()), 1 if len(areas) else 0)


def solidity(mask: np.ndarray) -> float:
    """Area of the pieces over that of their convex hulls, in (0, 1]; 1 is smooth and convex, 0 for an empty mask."""
    contours, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    area = sum(cv2.contourArea(c) for c in contours)
    hull = sum(cv2.contourArea(cv2.convexHull(c)) for c in contours)
    return float(area / hull) if hull > 0 else 0.0


def _nucleus_diameter_px(nuclei: np.ndarray) -> float:
    """Twice the median radius at the ridges of the distance transform; 0 without nuclei."""
    if not nuclei.any() or nuclei.all():
        return 0.0
    distance = cv2.distanceTransform(nuclei.astype(np.uint8), cv2.DIST_L2, 3)
    peaks = (distance == cv2.dilate(distance, np.ones((5, 5), np.uint8))) & (distance > 1.0)
    return float(2 * np.median(distance[peaks])) if peaks.any() else 2.0


def measure(image: np.ndarray, mask: np.ndarray, mpp: float | None = None) -> dict[str, float]:
    """Measure one structure against its surroundings.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        mpp: µm/px; adds `nucleus_um` when known.

    Returns:
        `share` of the field, `pieces`, `piece_share` (mean piece over the field), `solidity`, `nuclei` and
        `nuclei_around` (share of nuclear pixels inside, and outside where there is tissue), `nucleus_px`, `lumen`
        (share of empty pixels inside), `darker` (brightness outside minus inside, of 255; > 0 is darker than the
        surroundings; 0 when nothing is outside). All floats, rounded to 4 digits so that they can be stored.
    """
    mask = mask.astype(bool)
    nuclei, empty = nuclei_mask(image), lumen_mask(image)
    brightness = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    cells_in, cells_out = mask & ~empty, ~mask & ~empty
    n_in, n_out = int(cells_in.sum()), int(cells_out.sum())
    pieces = count_pieces(mask)
    share = float(mask.mean())
    facts = {
        "share": share,
        "pieces": float(pieces),
        "piece_share": share / max(pieces, 1),
        "solidity": solidity(mask),
        "nuclei": float((nuclei & cells_in).sum() / max(n_in, 1)),
        "nuclei_around": float((nuclei & cells_out).sum() / max(n_out, 1)),
        "nucleus_px": _nucleus_diameter_px(nuclei & cells_in),
        "lumen": float((empty & mask).sum() / max(int(mask.sum()), 1)),
        "darker": 0.0,
    }
    if n_in and n_out > 0.01 * mask.size:
        facts["darker"] = float(brightness[cells_out].mean() - brightness[cells_in].mean()) / 255
    if mpp:
        facts["nucleus_um"] = facts["nucleus_px"] * mpp
    return {name: round(value, 4) for name, value in facts.items()}


def location_words(mask: np.ndarray) -> str:
    """Where a mask lies, in words: `upper left`, `center`, `right`, `most of the area`, `the whole area`.

    The field is cut into thirds; a mask over half or more of the field, or scattered over nearly all ninths, is named
    by its extent, anything else by its centroid. Empty masks lie nowhere: "".

    Args:
        mask: (H, W) bool, as the viewer sees it (after augmentation).
    """
    share = float(mask.mean())
    if share == 0:
        return ""
    if share >= 0.85:
        return "the whole area"
    ninths = cv2.resize(mask.astype(np.float32), (3, 3), interpolation=cv2.INTER_AREA)
    touched = int((ninths > max(0.1, share / 3)).sum())
    if share >= 0.5 and touched >= 7:
        return "most of the area"
    if touched >= 8:
        return "many parts of the area"
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    row = ROWS[_third(rows.mean() / height)]
    column = COLUMNS[_third(columns.mean() / width)]
    if not row and not column:
        return "center"
    if not column:
        return "top" if row == "upper" else "bottom"
    return f"{row} {column}".strip()


def _third(position: float) -> int:
    """0, 1 or 2; the middle is narrower than a third because centroids crowd there."""
    return 0 if position < 0.4 else 1 if position <= 0.6 else 2
