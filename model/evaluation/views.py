"""A picture of any size as tiles of the model's size, and the tiles' answers as one map of the picture again.

With known µm/px the picture is brought to the wanted µm/px; a picture smaller than a tile is kept as fine as it is as
far as one tile holds it, and stands on white. Without µm/px the whole picture becomes one tile by plain resizing, as in
training on photographs; a long one (beyond 4:3) is resized by its short side and tiled along the long one.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

PLAIN_ASPECT = 4 / 3
OVERLAP = 0.25


@dataclass(frozen=True)
class Views:
    """A picture cut for the model.

    Attributes:
        tiles: (N, T, T, 3) uint8 RGB.
        corners_px: N corners (x, y) in the frame.
        frame_hw: size of the frame; never smaller than a tile.
        picture_xywh: where the resampled picture lies in the frame; the rest is white.
        image_hw: size of the original picture.
        mpp: µm/px of the tiles; NaN when unknown.
    """

    tiles: np.ndarray
    corners_px: tuple[tuple[int, int], ...]
    frame_hw: tuple[int, int]
    picture_xywh: tuple[int, int, int, int]
    image_hw: tuple[int, int]
    mpp: float


def starts(length_px: int, tile_px: int, overlap: float = OVERLAP) -> list[int]:
    """Evenly spread tile corners along one axis that cover it, neighbours sharing at least `overlap` of a tile."""
    if length_px <= tile_px:
        return [0]
    steps = math.ceil((length_px - tile_px) / (tile_px * (1 - overlap)))
    return [round(index * (length_px - tile_px) / steps) for index in range(steps + 1)]


def resample(image: np.ndarray, width_px: int, height_px: int) -> np.ndarray:
    """Any array (H, W[, C]) at another size: area when it shrinks, linear when it grows."""
    if image.shape[:2] == (height_px, width_px):
        return image
    shrinks = width_px * height_px < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def frame_size(height_px: int, width_px: int, mpp: float | None, tile_px: int, target_mpp: float) -> tuple[int, int]:
    """(height, width) that the picture is resampled to before it is cut."""
    if mpp is not None:
        one_tile = tile_px / max(height_px, width_px)
        scale = max(mpp / target_mpp, min(1.0, one_tile))
        return max(1, round(height_px * scale)), max(1, round(width_px * scale))
    if max(height_px, width_px) <= PLAIN_ASPECT * min(height_px, width_px):
        return tile_px, tile_px
    scale = tile_px / min(height_px, width_px)
    return max(tile_px, round(height_px * scale)), max(tile_px, round(width_px * scale))


def cut(image: np.ndarray, mpp: float | None, tile_px: int, target_mpp: float) -> Views:
    """Cut a picture into tiles.

    Args:
        image: (H, W, 3) uint8 RGB.
        mpp: its µm/px, None when unknown.
        tile_px: T.
        target_mpp: µm/px to look at.
    """
    image_hw = image.shape[:2]
    height, width = frame_size(*image_hw, mpp, tile_px, target_mpp)
    frame, (x, y) = _framed(resample(image, width, height), tile_px, 255)
    frame_hw = frame.shape[:2]
    corners = tuple((left, top) for top in starts(frame_hw[0], tile_px) for left in starts(frame_hw[1], tile_px))
    return Views(
        tiles=np.stack([frame[top : top + tile_px, left : left + tile_px] for left, top in corners]),
        corners_px=corners, frame_hw=frame_hw, picture_xywh=(x, y, width, height), image_hw=image_hw,
        mpp=math.nan if mpp is None else mpp * math.sqrt(image_hw[0] * image_hw[1] / (height * width)),
    )  # fmt: skip


def _framed(picture: np.ndarray, tile_px: int, fill: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture in the middle of a frame that is never smaller than a tile, and its corner (x, y) there."""
    height, width = picture.shape[:2]
    frame = np.full((max(height, tile_px), max(width, tile_px), *picture.shape[2:]), fill, picture.dtype)
    x, y = (frame.shape[1] - width) // 2, (frame.shape[0] - height) // 2
    frame[y : y + height, x : x + width] = picture
    return frame, (x, y)


def cut_mask(views: Views, mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool of the picture, cut as the picture was: (N, T, T) bool."""
    tile_px = views.tiles.shape[1]
    _, _, width, height = views.picture_xywh
    frame, _ = _framed(resample(mask.astype(np.float32), width, height) >= 0.5, tile_px, 0)
    return np.stack([frame[top : top + tile_px, left : left + tile_px] for left, top in views.corners_px])


def cut_exemplar(
    image: np.ndarray, mask: np.ndarray, mpp: float | None, tile_px: int, tile_mpp: float
) -> tuple[np.ndarray, np.ndarray]:
    """One tile of an exemplar, at the scale of the tiles that it is shown beside.

    The tile is taken where most of the mask lies inside it; where several places are as good, nearest to the mask's
    middle. A picture that is smaller than a tile at this scale stands on white.

    Args:
        image: (H, W, 3) uint8 RGB; mask: (H, W) bool, not empty.
        mpp: its µm/px, None when unknown.
        tile_px: T.
        tile_mpp: µm/px of the tiles; NaN when unknown. Where either is unknown, it is resized as `cut` does without.

    Returns:
        (T, T, 3) uint8 and (T, T) bool.
    """
    height, width = frame_size(*mask.shape, None, tile_px, tile_mpp)
    if mpp is not None and math.isfinite(tile_mpp):
        height, width = (max(1, round(side * mpp / tile_mpp)) for side in mask.shape)
    picture, _ = _framed(resample(image, width, height), tile_px, 255)
    inside, _ = _framed(resample(mask.astype(np.float32), width, height) >= 0.5, tile_px, 0)
    x, y = _fullest_window(inside, tile_px)
    window = np.s_[y : y + tile_px, x : x + tile_px]
    return np.ascontiguousarray(picture[window]), np.ascontiguousarray(inside[window])


def _fullest_window(mask: np.ndarray, tile_px: int) -> tuple[int, int]:
    """Corner (x, y) of the T×T window that holds most of a mask; of equals, the one nearest to the mask's middle."""
    sums = cv2.integral(mask.astype(np.uint8))  # [H + 1, W + 1]
    held = sums[tile_px:, tile_px:] - sums[:-tile_px, tile_px:] - sums[tile_px:, :-tile_px] + sums[:-tile_px, :-tile_px]
    places = np.argwhere(held == held.max())
    rows, columns = np.nonzero(mask)
    if len(rows):
        middle = np.array([rows.min() + rows.max() + 1, columns.min() + columns.max() + 1]) / 2
        places = places[np.argsort(((places + tile_px / 2 - middle) ** 2).sum(axis=1), kind="stable")]
    y, x = places[0]
    return int(x), int(y)


def stitch(views: Views, probabilities: np.ndarray) -> np.ndarray:
    """One map from the tiles' probabilities: the mean where they overlap, at the size of the original picture.

    Args:
        views: how the picture was cut.
        probabilities: (N, T, T) float in [0, 1]; zeros for a silent tile.

    Returns:
        (H, W) float32 in [0, 1].
    """
    total = np.zeros(views.frame_hw, np.float32)
    count = np.zeros(views.frame_hw, np.float32)
    tile_px = probabilities.shape[-1]
    for (left, top), probability in zip(views.corners_px, probabilities, strict=True):
        window = np.s_[top : top + tile_px, left : left + tile_px]
        total[window] += probability
        count[window] += 1
    x, y, width, height = views.picture_xywh
    mean = (total / count)[y : y + height, x : x + width]
    return resample(np.ascontiguousarray(mean), views.image_hw[1], views.image_hw[0])
