"""Unseen stains: statistics and dyes are what was asked for, glass stays, no laboratory is one that training shows."""

import numpy as np
import pytest

from model.data.restaining import LABORATORIES, Template, perturb_dyes, restain, scale_dyes, statistics, transfer
from model.data.synthetic import synthetic_scene

EBHI_MEAN, EBHI_SPREAD = np.array([114.7, 164.7, 88.7]), np.array([12.2, 11.4, 12.3])
"""LAB of the tissue of every fifth picture of EBHI-SEG: mean, and deviation over pictures."""
SHIFT = np.array([14, 7, 7])
"""Deviation of what `model/training/augment.py` shifts LAB by."""


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """A synthetic H&E picture of 128 px."""
    return synthetic_scene(np.random.default_rng(5), 128, 1.0).image


def test_a_template_is_met():
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal((150, 90, 160), (12, 10, 12), (64, 64, 3)), 60, 200).astype(np.uint8)  # no glass
    wanted = Template((130, 150, 110), (14, 5, 6))
    told = statistics(transfer(image, wanted))
    assert np.allclose(told.mean, wanted.mean, atol=0.7) and np.allclose(told.spread, wanted.spread, atol=0.7)
    own = statistics(image)
    assert np.abs(transfer(image, own).astype(int) - image).max() <= 3  # its own template leaves it


def test_glass_stays_glass_and_a_picture_of_nothing_else_as_it_is(tissue):
    image = tissue.copy()
    image[:40] = 250
    aged = next(one for one in LABORATORIES if one.name == "aged")
    out = restain(image, aged, np.random.default_rng(0))
    assert np.abs(out[:30].astype(int) - 250).max() <= 2
    assert np.abs(out[60:].astype(int) - image[60:]).mean() > 10
    empty = np.full((70, 70, 3), 252, np.uint8)
    assert np.array_equal(transfer(empty, aged.template), empty)


def density(image: np.ndarray, channel: int) -> float:
    return float(-np.log(np.maximum(image[..., channel], 1) / 255).mean())


def test_dyes_are_scaled_one_by_one(tissue):
    assert np.array_equal(scale_dyes(tissue, 1, 1), tissue)
    more, less = scale_dyes(tissue, 2, 1), scale_dyes(tissue, 1, 0.3)
    assert density(more, 0) > 1.4 * density(tissue, 0)  # haematoxylin takes red
    assert density(less, 0) > 0.85 * density(tissue, 0)  # eosin hardly does
    assert density(less, 1) < 0.8 * density(tissue, 1)  # it takes green
    with pytest.raises(ValueError, match="0 and more"):
        scale_dyes(tissue, -1, 1)


def test_perturbation_grows_with_its_strength_and_follows_the_seed(tissue):
    def away(strength: float) -> float:
        drawn = [perturb_dyes(tissue, strength, np.random.default_rng(seed)) for seed in range(5)]
        return float(np.mean([np.abs(one.astype(int) - tissue).mean() for one in drawn]))

    assert away(0.0) == 0 < away(0.3) < away(1.5)
    first, again = (perturb_dyes(tissue, 0.5, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again)


def test_a_laboratory_is_itself_whatever_the_slide(tissue):
    for laboratory in LABORATORIES:
        one, other, again = (restain(tissue, laboratory, np.random.default_rng(seed)) for seed in (0, 1, 0))
        assert np.array_equal(one, again) and not np.array_equal(one, other)
        far = np.linalg.norm(np.array(statistics(one).mean) - statistics(tissue).mean)
        assert np.linalg.norm(np.array(statistics(one).mean) - statistics(other).mean) < max(20, far)
        assert one.shape == tissue.shape and one.dtype == np.uint8


@pytest.mark.parametrize("laboratory", [one for one in LABORATORIES if one.template], ids=lambda one: one.name)
def test_every_template_is_away_from_all_that_training_shows(laboratory):
    combined = np.hypot(EBHI_SPREAD, SHIFT)
    assert np.linalg.norm((np.array(laboratory.template.mean) - EBHI_MEAN) / combined) > 2


def test_every_dye_is_away_from_all_that_training_shows():
    named = [one.dyes for one in LABORATORIES if one.dyes]
    assert len(named) == 2 and all(max(max(dyes), 1 / min(dyes)) >= 1.6 for dyes in named)
    assert len({one.name for one in LABORATORIES}) == len(LABORATORIES) == 8


@pytest.mark.real
def test_what_is_said_of_ebhi_is_so(shared_data):
    from model.data.readers import read_ebhi

    some = [statistics(scene.image).mean for number, scene in enumerate(read_ebhi(shared_data / "ebhi-seg"))
            if number % 40 == 0]  # fmt: skip
    assert np.allclose(np.mean(some, axis=0), EBHI_MEAN, atol=6)
    assert np.allclose(np.std(some, axis=0), EBHI_SPREAD, atol=6)
