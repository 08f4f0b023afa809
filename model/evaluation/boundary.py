"""Boundary F-score: how much of two outlines lies within a tolerance of the other.

Dice of a large mask hardly moves when its edge is wrong by some pixels; this does. An edge where a mask runs off the
picture is no outline: what lies beyond is not known.
Source: Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?"; the tolerance as a share of
the diagonal, rounded up to whole pixels, as in DAVIS (Perazzi et al. 2016, §4.1).
"""

import math
import re
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """How far apart two outlines may lie and still agree.

    Attributes:
        amount: pixels of the original picture, or a share of its diagonal.
        unit: `px` or `diagonal`.

    Raises:
        ValueError: a unit that does not exist, pixels that are not positive, or a share outside (0, 1).
    """

    amount: float
    unit: str = "diagonal"

    def __post_init__(self):
        most = {"px": math.inf, "diagonal": 1.0}.get(self.unit)
        if most is None or not 0 < self.amount < most:
            raise ValueError(f"tolerance {self.amount:g} {self.unit}: px above 0, or a diagonal's share in (0, 1)")

    @classmethod
    def parse(cls, text: str) -> "Tolerance":
        """`3px`, or `0.008` of the diagonal.

        Raises:
            ValueError: neither of the two.
        """
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(px)?\s*", text)
        if match is None:
            raise ValueError(f"tolerance {text!r}: pixels, as 3px, or a share of the diagonal, as 0.008, is accepted")
        return cls(float(match[1]), "px" if match[2] else "diagonal")

    def __str__(self) -> str:
        """As `parse` takes it."""
        return f"{self.amount:g}px" if self.unit == "px" else f"{self.amount:g}"

    def px(self, height: int, width: int) -> float:
        """In pixels of a picture of this size; a share is rounded up."""
        return self.amount if self.unit == "px" else math.ceil(self.amount * math.hypot(height, width))


DEFAULT = Tolerance(0.008)
"""3 px in a picture of 224 px."""


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask (H, W) bool with one of their four neighbours outside of it; beyond the picture goes on."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def boundary_f1(mask: np.ndarray, truth: np.ndarray, tolerance: Tolerance = DEFAULT) -> float:
    """Harmonic mean of the shares of either outline that lie within the tolerance of the other, Euclidean.

    Args:
        mask, truth: (H, W) bool.
        tolerance: how far is still right.

    Returns:
        In [0, 1]; 1 where neither has an outline (both empty, or both the whole picture), 0 where one has.

    Raises:
        ValueError: the two differ in shape.
    """
    if mask.shape != truth.shape:
        raise ValueError(f"mask {mask.shape} and truth {truth.shape} differ in shape")
    told, true = boundary(mask), boundary(truth)
    if not told.any() or not true.any():
        return float(told.any() == true.any())
    reach = tolerance.px(*mask.shape) + 1e-3  # distances are float32
    precision = float((_distance(true)[told] <= reach).mean())
    recall = float((_distance(told)[true] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _distance(line: np.ndarray) -> np.ndarray:
    """(H, W) float32 pixels from everywhere to a line."""
    return cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
