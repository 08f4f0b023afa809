"""Templates against numbers worked out by hand; a re-stained picture has the template that was asked for."""

import cv2
import numpy as np
import pytest

from model.data.readers import read_ebhi
from model.data.stain import (
    FLATTEST,
    StainStatistics,
    fit_stain_statistics,
    rand_stain_na,
    random_template,
    restain_to,
    template_of,
    z_score,
)

MILD = StainStatistics((60.0, 12.0, -8.0, 8.0, 4.0, 3.0), (4.0, 3.0, 3.0, 1.0, 0.5, 0.5), 9)


@pytest.fixture
def tissue():
    """(64, 64, 3) uint8 in the middle of the colours, so that no mild stain is clipped."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(90, 170, (8, 8, 3)).astype(np.float32)
    return cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def grey_pair(low: int, high: int) -> np.ndarray:
    """A picture half of one grey, half of another."""
    image = np.full((4, 4, 3), low, np.uint8)
    image[:2] = high
    return image


def test_black_and_white_have_lightness_0_and_100():
    np.testing.assert_allclose(template_of(grey_pair(0, 255)), [50, 0, 0, 50, 0, 0], atol=1e-3)


def test_the_template_of_red_is_cies():
    red = np.zeros((3, 5, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_allclose(template_of(red), [53.24, 80.09, 67.20, 0, 0, 0], atol=0.05)


def test_the_spread_is_the_populations_over_all_pixels_and_glass_counts():
    image = np.full((4, 4, 3), 255, np.uint8)
    image[0] = 0  # a quarter black: mean 75, std √(0.25·0.75)·100
    np.testing.assert_allclose(template_of(image)[[0, 3]], [75, 43.301], atol=1e-2)


def test_statistics_are_mean_and_std_over_pictures():
    images = [grey_pair(0, 255), np.full((2, 2, 3), 255, np.uint8)]  # L: A 50 and 100, D 50 and 0
    with pytest.raises(ValueError, match="fit on unlike pictures"):
        fit_stain_statistics(images)  # their a and b never vary
    rng = np.random.default_rng(1)
    images += [rng.integers(0, 256, (6, 6, 3)).astype(np.uint8) for _ in range(3)]
    statistics = fit_stain_statistics(iter(images))
    templates = np.stack([template_of(image) for image in images])
    assert statistics.images == 5
    np.testing.assert_allclose(statistics.mean, templates.sum(0) / 5)
    np.testing.assert_allclose(statistics.std, np.sqrt(((templates - templates.sum(0) / 5) ** 2).sum(0) / 5))


def test_statistics_of_one_picture_are_none():
    with pytest.raises(ValueError, match="1 pictures: accepted are two or more"):
        fit_stain_statistics([grey_pair(0, 255)])


def test_statistics_survive_their_file(tmp_path):
    MILD.save(tmp_path / "stain.json")
    assert StainStatistics.load(tmp_path / "stain.json") == MILD
    (tmp_path / "stain.json").write_text('{"mean": [1, 2], "std": [1, 2], "images": 3}')
    with pytest.raises(ValueError, match=r"stain.json: .*mean=.*accepted are six numbers"):
        StainStatistics.load(tmp_path / "stain.json")
    (tmp_path / "stain.json").write_text('{"average": []}')
    with pytest.raises(ValueError, match=r"stain\.json"):
        StainStatistics.load(tmp_path / "stain.json")


def test_z_scores_by_hand():
    np.testing.assert_allclose(z_score(np.array([64, 12, -14, 8, 5, 2.5]), MILD), [1, 0, -2, 0, 2, -1])
    assert not z_score(np.array(MILD.mean), MILD).any()


def test_a_restained_picture_has_the_template_that_was_asked_for(tissue):
    target = np.array([55, 15, -10, 9, 5, 4])
    assert np.abs(template_of(tissue) - target).max() > 3
    np.testing.assert_allclose(template_of(restain_to(tissue, target)), target, atol=0.15)


def test_a_pictures_own_template_leaves_it_as_it_is(tissue):
    again = restain_to(tissue, template_of(tissue)).astype(int)
    assert np.abs(again - tissue).max() <= 1


def test_restaining_is_linear_in_lab():
    """L 0 and 100 about 50 ± 50, told to lie about 60 ± 20: 40 and 80."""
    out = restain_to(grey_pair(0, 255), np.array([60, 0, 0, 20, 0, 0]))
    lightness = cv2.cvtColor(out.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
    assert lightness[0, 0] == pytest.approx(80, abs=0.3) and lightness[3, 0] == pytest.approx(40, abs=0.3)


def test_the_noise_of_empty_glass_is_not_blown_up():
    rng = np.random.default_rng(0)
    glass = (235 + rng.integers(0, 2, (32, 32, 3))).astype(np.uint8)
    assert template_of(restain_to(glass, np.array([60, 10, -5, 15, 8, 6])))[3] < 6


def test_a_template_that_is_none_is_refused(tissue):
    for bad in (np.zeros(5), np.array([50, 0, 0, 1, -1, 1])):
        with pytest.raises(ValueError, match="accepted are six numbers"):
            restain_to(tissue, bad)


def test_virtual_templates_follow_the_fitted_distributions():
    rng = np.random.default_rng(0)
    drawn = np.stack([random_template(MILD, rng) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(0), MILD.mean, atol=0.25)
    np.testing.assert_allclose(drawn.std(0), MILD.std, rtol=0.06)
    np.testing.assert_allclose(random_template(MILD, rng, spread=0.0), MILD.mean)


def test_the_drawn_spread_stays_positive():
    wild = StainStatistics(MILD.mean, (1.0, 1.0, 1.0, 40.0, 40.0, 40.0), 9)
    rng = np.random.default_rng(0)
    drawn = np.stack([random_template(wild, rng)[3:] for _ in range(50)])
    assert (drawn >= FLATTEST * np.array(MILD.mean[3:])).all() and (drawn == FLATTEST * np.array(MILD.mean[3:])).any()


def test_a_random_stain_is_a_function_of_the_generator_alone(tissue):
    views = [rand_stain_na(tissue, MILD, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])
    assert views[0].dtype == np.uint8 and views[0].shape == tissue.shape
    asked = random_template(MILD, np.random.default_rng(3))
    np.testing.assert_allclose(template_of(views[0]), asked, atol=0.3)


@pytest.mark.real
def test_raw_templates_of_real_pictures_all_agree_and_z_scored_ones_do_not(shared_data):
    folder = shared_data / "ebhi-seg"
    if not folder.exists():
        pytest.skip(f"EBHI-SEG not found at {folder}")
    templates = np.stack([template_of(scene.image) for scene in list(read_ebhi(folder, facts=False))[::40]])
    statistics = StainStatistics(tuple(templates.mean(0)), tuple(templates.std(0)), len(templates))

    def apart(vectors: np.ndarray) -> float:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return float((1 - unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())

    assert apart(templates) < 0.06
    assert 0.8 < apart(z_score(templates, statistics)) < 1.2
