"""Tissue is told from glass; pale tissue beside stained tissue is kept."""

import cv2
import numpy as np
import pytest

from tests.made_slides import tissue_picture
from worker.tissue import find_tissue


def glass(height: int = 300, width: int = 400, colour=(243, 243, 245), noise: float = 1.5) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.clip(np.float64(colour) + rng.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def stain(picture: np.ndarray, centre: tuple[int, int], radius: int, colour=(190, 90, 150)) -> np.ndarray:
    """The pixels of a disc, painted as stained tissue into the picture."""
    disc = cv2.circle(np.zeros(picture.shape[:2], np.uint8), centre, radius, 1, -1) > 0
    grain = np.random.default_rng(5).normal(0, 14, (int(disc.sum()), 3))
    picture[disc] = np.clip(np.float64(colour) + grain, 0, 255)
    return disc


@pytest.mark.parametrize("colour", [(255, 255, 255), (243, 243, 245), (214, 216, 220), (238, 233, 228)])
def test_clean_glass_of_any_tint_holds_no_tissue(colour):
    assert find_tissue(glass(colour=colour)).mean() < 0.001


@pytest.mark.parametrize("colour", [(255, 255, 255), (220, 222, 226)])
def test_stained_tissue_is_found_and_glass_left_out(colour):
    picture = glass(colour=colour)
    disc = stain(picture, (200, 150), 70)
    found = find_tissue(picture)
    assert found[disc].mean() > 0.99
    far = cv2.dilate(disc.astype(np.uint8), np.ones((15, 15))) == 0
    assert found[far].mean() < 0.001


def test_a_pale_stain_is_found():
    picture = glass()
    disc = stain(picture, (200, 150), 70, colour=(231, 205, 222))
    assert find_tissue(picture)[disc].mean() > 0.95


def test_pale_tissue_counts_beside_stained_tissue_only():
    picture = glass(noise=0.7)
    pale = (232, 226, 230)
    picture[100:200, 60:120] = pale  # a smudge on its own
    picture[100:200, 250:300] = pale  # mucin that hangs together with the disc
    disc = stain(picture, (330, 150), 40)
    found = find_tissue(picture)
    assert found[disc].mean() > 0.99
    assert found[110:190, 255:290].mean() > 0.95
    assert found[110:190, 70:110].mean() < 0.05


def test_fat_is_filled_between_its_membranes():
    picture = glass(600, 600)
    stain(picture, (150, 300), 120)
    disc = np.zeros((600, 600), bool)
    for row in range(220, 380, 20):
        for col in range(250, 400, 20):
            cv2.circle(picture, (col, row), 10, (205, 150, 190), 2)
            disc[row, col] = True  # the empty middle of a fat cell
    assert find_tissue(picture)[disc].mean() > 0.95


def test_a_picture_without_glass_is_all_tissue():
    rng = np.random.default_rng(2)
    grain = cv2.GaussianBlur(rng.normal(0, 80, (224, 224)).astype(np.float32), (0, 0), 3)[..., None]
    picture = np.clip(np.float32((190, 110, 160)) + grain, 0, 255).astype(np.uint8)
    assert find_tissue(picture).all()


def test_black_padding_is_not_tissue():
    picture = glass()
    picture[:, :90] = 0
    disc = stain(picture, (260, 150), 60)
    found = find_tissue(picture)
    assert found[:, :88].mean() == 0
    assert found[disc].mean() > 0.99


def test_glass_is_not_mistaken_for_tissue_beside_the_white_of_what_was_not_scanned():
    picture = glass(colour=(246, 244, 247))
    picture[:120] = 255
    picture[:, :100] = 255
    disc = stain(picture, (280, 210), 50)
    found = find_tissue(picture)
    assert found[disc].mean() > 0.99
    assert found[cv2.dilate(disc.astype(np.uint8), np.ones((15, 15))) == 0].mean() < 0.01


def test_dust_is_dropped():
    picture = glass(1500, 2000)
    disc = stain(picture, (1000, 700), 300)
    picture[100:102, 100:102] = 60
    found = find_tissue(picture)
    assert found[disc].mean() > 0.99
    assert not found[80:120, 80:120].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (5, 900)])
def test_the_smallest_pictures_are_no_special_case(shape):
    assert find_tissue(np.full((*shape, 3), 245, np.uint8)).shape == shape
    assert find_tissue(np.full((*shape, 3), (190, 90, 150), np.uint8)).all()


def test_the_made_slide_is_a_third_of_the_picture():
    found = find_tissue(tissue_picture(800, 600))
    assert 0.2 < found.mean() < 0.35
    assert found[300, 400]
    assert not found[:40].any()
