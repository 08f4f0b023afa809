"""Area resampling: exact averages, and the same value for one output pixel whatever frame it is read in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.resample import resample_area


def picture(height: int = 40, width: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def brute_force(image: np.ndarray, x: float, y: float, w: float, h: float, out_w: int, out_h: int) -> np.ndarray:
    """Every output pixel as the mean over its rectangle, pixel by pixel."""
    out = np.zeros((out_h, out_w, 3))
    for j in range(out_h):
        for i in range(out_w):
            x0, x1 = x + i * w / out_w, x + (i + 1) * w / out_w
            y0, y1 = y + j * h / out_h, y + (j + 1) * h / out_h
            cover_x = np.clip(
                np.minimum(np.arange(image.shape[1]) + 1, x1) - np.maximum(np.arange(image.shape[1]), x0), 0, 1
            )
            cover_y = np.clip(
                np.minimum(np.arange(image.shape[0]) + 1, y1) - np.maximum(np.arange(image.shape[0]), y0), 0, 1
            )
            weight = cover_y[:, None] * cover_x
            out[j, i] = (image * weight[..., None]).sum((0, 1)) / weight.sum()
    return out


def test_whole_pixels_at_full_size_are_copied():
    image = picture()
    np.testing.assert_array_equal(resample_area(image, 3, 4, 20, 10, 20, 10), image[4:14, 3:23])


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 5), st.floats(0, 5), st.floats(1, 7.5), st.floats(1, 7.5), st.integers(1, 5), st.integers(1, 5))
def test_shrinking_is_the_mean_over_each_rectangle(x, y, step_x, step_y, out_w, out_h):
    image = picture()
    w, h = step_x * out_w, step_y * out_h
    got = resample_area(image, x, y, w, h, out_w, out_h)
    assert got.shape == (out_h, out_w, 3)
    np.testing.assert_allclose(got, brute_force(image, x, y, w, h, out_w, out_h), atol=0.6)


def test_strong_shrinking_stays_close_to_the_mean():
    image = picture(400, 400)
    got = resample_area(image, 0.4, 0.3, 380.7, 390.1, 12, 11)
    np.testing.assert_allclose(got, brute_force(image, 0.4, 0.3, 380.7, 390.1, 12, 11), atol=4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.sampled_from([0.4, 1.0, 1.5, 2.004008, 3.3]))
def test_a_pixel_is_the_same_in_every_frame_that_holds_it(dx, dy, step):
    image = picture(120, 120)
    start = 2.0
    whole = resample_area(image, start, start, 30 * step, 30 * step, 30, 30)
    part = resample_area(image, start + dx * step, start + dy * step, 15 * step, 15 * step, 15, 15)
    # the order of float32 sums may tip a rounding
    assert np.abs(whole[dy : dy + 15, dx : dx + 15].astype(int) - part).max() <= 1


def test_growing_a_constant_or_a_ramp_changes_nothing_but_the_size():
    flat = np.full((20, 20, 3), 77, np.uint8)
    assert (resample_area(flat, 4.3, 4.7, 6, 6, 24, 24) == 77).all()
    ramp = np.repeat(np.repeat(np.arange(20, dtype=np.uint8)[None, :, None] * 10, 20, axis=0), 3, axis=2)
    got = resample_area(ramp, 5, 5, 8, 8, 16, 16)[0, :, 0].astype(float)
    np.testing.assert_allclose(got, 10 * (5 + (np.arange(16) + 0.5) / 2 - 0.5), atol=0.6)


@pytest.mark.parametrize(("step_x", "step_y"), [(0.5, 2.0), (3.0, 0.7)])
def test_one_axis_may_grow_while_the_other_shrinks(step_x, step_y):
    flat = np.full((60, 60, 3), 200, np.uint8)
    got = resample_area(flat, 2, 2, 10 * step_x, 10 * step_y, 10, 10)
    assert got.shape == (10, 10, 3)
    assert (got == 200).all()
