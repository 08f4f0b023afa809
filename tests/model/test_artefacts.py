"""Artefacts: pure, graded, and each does to a picture what its name says."""

import numpy as np
import pytest

from model.data.artefacts import ARTEFACTS, STRENGTHS, add_artefact, glass_of
from model.data.synthetic import synthetic_scene

SEEDS = range(4)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """A synthetic H&E picture of 224 px."""
    return synthetic_scene(np.random.default_rng(3), 224, 1.0).image


def spoilt(image: np.ndarray, name: str, strength: int, seed: int = 0) -> np.ndarray:
    return add_artefact(image, name, strength, np.random.default_rng(seed))


def changed(image: np.ndarray, name: str, strength: int) -> float:
    """Mean absolute change, over several draws."""
    away = [np.abs(spoilt(image, name, strength, seed).astype(int) - image).mean() for seed in SEEDS]
    return float(np.mean(away))


@pytest.mark.parametrize("name", ARTEFACTS)
@pytest.mark.parametrize("shape", [(64, 64), (90, 150)])
def test_the_picture_given_stays_as_it_is_and_chance_comes_from_the_seed_alone(tissue, name, shape):
    image = tissue[: shape[0], : shape[1]].copy()
    before = image.copy()
    first = spoilt(image, name, 3)
    assert first.shape == image.shape and first.dtype == np.uint8 and first is not image
    assert np.array_equal(image, before) and np.array_equal(first, spoilt(image, name, 3))
    assert any(not np.array_equal(first, spoilt(image, name, 3, seed)) for seed in (1, 2, 3))


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_higher_strength_changes_more(tissue, name):
    steps = [changed(tissue, name, strength) for strength in STRENGTHS]
    assert 0 < steps[0] < steps[2] < steps[4]


def test_ice_leaves_holes_that_show_glass_and_more_of_them(tissue):
    glass = glass_of(tissue).mean()
    holes = [
        np.mean([(spoilt(tissue, "ice_crystals", strength, seed).mean(axis=2) > 0.95 * glass).mean() for seed in SEEDS])
        for strength in (1, 3, 5)
    ]
    assert holes[0] < holes[1] < holes[2] and holes[2] - (tissue.mean(axis=2) > 0.95 * glass).mean() > 0.1


def test_a_fold_darkens_a_band_and_leaves_the_rest_alone(tissue):
    for seed in SEEDS:
        change = spoilt(tissue, "folds", 2, seed).astype(int).mean(axis=2) - tissue.mean(axis=2)
        assert change.min() < -15 and 0.01 < (change < -8).mean() < 0.5
        assert (np.abs(change) < 1).mean() > 0.5


def test_defocus_takes_detail_and_keeps_colour(tissue):
    sharp = [np.abs(np.diff(spoilt(tissue, "defocus", s).astype(int), axis=0)).mean() for s in STRENGTHS]
    assert all(later < earlier for earlier, later in zip(sharp, sharp[1:], strict=False))
    assert np.allclose(spoilt(tissue, "defocus", 5).mean(axis=(0, 1)), tissue.mean(axis=(0, 1)), atol=3)


def test_a_bubble_has_a_black_rim_that_tissue_does_not_have():
    pale = np.full((224, 224, 3), (230, 190, 215), np.uint8)
    for seed in SEEDS:
        out = spoilt(pale, "bubbles", 3, seed)
        rim = out.max(axis=2) < 120
        assert 0.002 < rim.mean() < 0.15  # a line, not a disc
        assert (out.min(axis=2) > 215).any()  # and a bright one beside it


def test_pens_are_blue_green_or_black_and_let_tissue_through(tissue):
    inks = set()
    for seed in range(12):
        white = spoilt(np.full((224, 224, 3), 240, np.uint8), "pen", 3, seed)
        inked = white[white.min(axis=2) < 200].mean(axis=0)
        if np.isnan(inked).any():
            continue  # the stroke missed the picture
        red, green, blue = inked
        inks.add("blue" if blue > green + 25 else "green" if green > red + 40 else "black")
    assert inks == {"blue", "green", "black"}
    out = spoilt(tissue, "pen", 2).astype(float)
    under = np.abs(out - tissue).mean(axis=2) > 25
    assert under.any() and out[under].std() > 8  # structure is still there


@pytest.mark.parametrize(("name", "strength", "words"), [("dust", 3, "pen"), ("pen", 0, "1 to 5"), ("pen", 6, "to 5")])
def test_what_does_not_exist_is_refused_with_what_does(tissue, name, strength, words):
    with pytest.raises(ValueError, match=words):
        spoilt(tissue, name, strength)
