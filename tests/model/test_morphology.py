"""Facts are what they say on pictures whose truth is known."""

import numpy as np
import pytest

from model.data.morphology import count_pieces, location_words, lumen_mask, measure, nuclei_mask, solidity

PINK, PURPLE, WHITE = (225, 160, 190), (85, 45, 130), (245, 244, 246)


def disc(size: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@pytest.fixture()
def gland() -> tuple[np.ndarray, np.ndarray]:
    """A ring of nuclei around a lumen, on pink."""
    image = np.full((200, 200, 3), PINK, np.uint8)
    whole, inner, lumen = disc(200, 100, 100, 60), disc(200, 100, 100, 45), disc(200, 100, 100, 20)
    image[whole & ~inner] = PURPLE
    image[lumen] = WHITE
    return image, whole


def test_nuclei_and_lumen_are_found_where_they_were_painted(gland):
    image, whole = gland
    ring = disc(200, 100, 100, 58) & ~disc(200, 100, 100, 47)
    assert nuclei_mask(image)[ring].mean() > 0.95
    assert nuclei_mask(image)[~whole].mean() < 0.05
    assert lumen_mask(image)[disc(200, 100, 100, 18)].mean() > 0.95
    assert lumen_mask(image)[~disc(200, 100, 100, 22)].mean() < 0.01


def test_facts_of_a_painted_gland(gland):
    image, whole = gland
    facts = measure(image, whole, mpp=0.5)
    assert facts["share"] == pytest.approx(whole.mean(), abs=1e-3)
    assert facts["pieces"] == 1
    assert facts["solidity"] > 0.97
    assert facts["lumen"] == pytest.approx((20 / 60) ** 2, rel=0.1)
    assert facts["nuclei"] > 0.4 > 0.05 > facts["nuclei_around"]
    assert facts["darker"] > 0.1
    assert facts["nucleus_um"] == pytest.approx(facts["nucleus_px"] * 0.5, abs=1e-3)


def test_a_mask_over_everything_has_no_surroundings(gland):
    assert measure(gland[0], np.ones((200, 200), bool))["darker"] == 0


def test_pieces_leave_out_specks():
    mask = disc(100, 25, 25, 10) | disc(100, 75, 75, 10)
    mask[50, 50] = True
    assert count_pieces(mask) == 2
    assert count_pieces(np.zeros((9, 9), bool)) == 0


def test_solidity_falls_with_holes_in_the_outline():
    star = np.zeros((100, 100), bool)
    star[45:55] = True
    star[:, 45:55] = True
    assert solidity(disc(100, 50, 50, 30)) > 0.97
    assert solidity(star) < 0.5
    assert solidity(np.zeros((5, 5), bool)) == 0


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0.15, 0.15, "upper left"), (0.5, 0.15, "top"), (0.85, 0.15, "upper right"),
        (0.15, 0.5, "left"), (0.5, 0.5, "center"), (0.85, 0.5, "right"),
        (0.15, 0.85, "lower left"), (0.5, 0.85, "bottom"), (0.85, 0.85, "lower right"),
    ],
)  # fmt: skip
def test_location_words_name_the_ninth(x, y, words):
    assert location_words(disc(120, 120 * x, 120 * y, 12)) == words


def test_location_words_of_extents():
    scattered = np.zeros((90, 90), bool)
    scattered[5::30, 5::30] = True
    for dy in range(12):
        for dx in range(12):
            scattered[5 + dy :: 30, 5 + dx :: 30] = True
    assert location_words(scattered) == "many parts of the area"
    assert location_words(np.ones((9, 9), bool)) == "the whole area"
    most = np.ones((90, 90), bool)
    most[:30] = False
    most[:40, :40] = True
    assert location_words(most) == "most of the area"
    assert location_words(np.zeros((9, 9), bool)) == ""
