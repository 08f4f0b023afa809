"""Exact area resampling of a rectangle with fractional corners: pure functions of arrays."""

import math

import numpy as np

SNAP_FACTOR = 8.0
"""From this reduction on, corners are rounded to source pixels: at most 1/16 of an output pixel."""


def resample_area(
    image: np.ndarray, x: float, y: float, width: float, height: float, out_w: int, out_h: int
) -> np.ndarray:
    """Average `image` over a grid of equal rectangles; interpolate linearly where it has to grow.

    Two reads that share an output pixel of one global grid give it the same value, whatever tile it is read in,
    because no corner is rounded (up to a reduction of `SNAP_FACTOR`).

    Args:
        image: (H, W, 3) uint8 source.
        x, y, width, height: the rectangle in source pixels; it must lie inside the image.
        out_w, out_h: size of the result.

    Returns:
        (out_h, out_w, 3) uint8.
    """
    step_x, step_y = width / out_w, height / out_h
    whole = _is_whole(x) and _is_whole(y)
    if whole and _is_whole(width) and _is_whole(height):
        if round(width) == out_w and round(height) == out_h:
            return _crop(image, x, y, width, height)
        if step_x >= 1 and step_y >= 1:
            return _shrink(_crop(image, x, y, width, height), out_w, out_h)
    if step_x >= SNAP_FACTOR and step_y >= SNAP_FACTOR:
        x0, y0 = round(x), round(y)
        x1, y1 = max(x0 + 1, round(x + width)), max(y0 + 1, round(y + height))
        return _shrink(_crop(image, x0, y0, x1 - x0, y1 - y0), out_w, out_h)
    rows = _apply_taps(image, *_taps(y, step_y, out_h, image.shape[0]), axis=0)
    both = _apply_taps(rows, *_taps(x, step_x, out_w, image.shape[1]), axis=1)
    return np.clip(both + 0.5, 0, 255).astype(np.uint8)


def _shrink(image: np.ndarray, out_w: int, out_h: int) -> np.ndarray:
    import cv2  # gateways look at slides without reading any pixels, and have no OpenCV

    return cv2.resize(image, (out_w, out_h), interpolation=cv2.INTER_AREA)


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _crop(image: np.ndarray, x: float, y: float, width: float, height: float) -> np.ndarray:
    x0, y0 = max(0, round(x)), max(0, round(y))
    return np.ascontiguousarray(image[y0 : round(y) + round(height), x0 : round(x) + round(width)])


def _taps(start: float, step: float, count: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and weights of each output pixel along one axis: both (taps, count)."""
    if step < 1:
        # growing: linear interpolation between source centres
        centre = start + (np.arange(count) + 0.5) * step - 0.5
        low = np.floor(centre)
        part = centre - low
        index = np.stack([low, low + 1])
        weight = np.stack([1 - part, part])
    else:
        left = start + np.arange(count) * step
        first = np.floor(left + 1e-9)
        index = first + np.arange(math.ceil(step) + 1)[:, None]
        overlap = np.minimum(index + 1, left + step) - np.maximum(index, left)
        weight = np.clip(overlap, 0, None) / step
    return np.clip(index, 0, limit - 1).astype(np.intp), weight.astype(np.float32)


def _apply_taps(image: np.ndarray, index: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total: np.ndarray | None = None
    for taps, weights in zip(index, weight, strict=True):
        if not weights.any():
            continue
        part = np.take(image, taps, axis=axis) * weights.reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    return total
