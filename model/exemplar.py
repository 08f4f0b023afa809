"""An exemplar: one picture and the outline of what to look for, shown to the model without any weight update.

This file is torch-free, as the segmenter's contract is.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

MIN_SHARE = 0.002
"""An outline around less of its picture than this shows nothing that could be recognised."""


@dataclass(frozen=True, eq=False)
class Exemplar:
    """A reference of the size and scale of the tiles it is shown beside.

    Attributes:
        image: (T, T, 3) uint8 RGB; T is the segmenter's `tile_size_px`.
        mask: (T, T) bool, what lies inside the outline.

    Raises:
        ValueError: the shapes do not fit each other, or the outline holds less than `MIN_SHARE` of the picture, so
            that nothing could be recognised.
    """

    image: np.ndarray
    mask: np.ndarray

    def __post_init__(self):
        if self.image.shape != (*self.mask.shape, 3) or self.image.dtype != np.uint8 or self.mask.dtype != bool:
            raise ValueError(
                f"exemplar: image {self.image.shape} {self.image.dtype} with mask {self.mask.shape} {self.mask.dtype}; "
                "accepted are (T, T, 3) uint8 with (T, T) bool"
            )
        share = float(self.mask.mean())
        if share < MIN_SHARE:
            raise ValueError(f"exemplar: the outline holds {share:.2%} of its picture; at least {MIN_SHARE:.1%} is due")

    @cached_property
    def key(self) -> str:
        """Content hash; the same exemplar has the same key."""
        hashed = hashlib.blake2b(np.ascontiguousarray(self.image).data, digest_size=16)
        hashed.update(np.packbits(self.mask).tobytes())
        return hashed.hexdigest()

    def drawn(self) -> np.ndarray:
        """(T, T, 3) uint8: the picture with its outline."""
        return outlined(self.image, self.mask)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with the outline of (H, W) bool drawn on it, 2 px of pure green, which H&E does not have."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, (0, 255, 0), 2)
