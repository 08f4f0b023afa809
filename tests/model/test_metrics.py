"""Figures from pixel counts, and their bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation import bootstrap
from model.evaluation.metrics import FIGURES, Score, counts, figures, score_mask, terms


def masks(truth_px: int, mask_px: int, overlap_px: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth and an answer on one line of 100 pixels with the given counts."""
    truth, mask = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
    truth[0, :truth_px] = True
    mask[0, truth_px - overlap_px : truth_px - overlap_px + mask_px] = True
    return truth, mask


FOUND = Score(emitted=True, truth_px=40, mask_px=20, overlap_px=15, image_px=100)
MISSED = Score(emitted=False, truth_px=30, mask_px=0, overlap_px=0, image_px=100)
SILENT = Score(emitted=False, truth_px=0, mask_px=0, overlap_px=0, image_px=100)
FALSE = Score(emitted=True, truth_px=0, mask_px=10, overlap_px=0, image_px=100)


def test_a_score_counts_pixels_and_derives_dice_and_iou():
    truth, mask = masks(40, 20, 15)
    score = score_mask(mask, truth, 100)
    assert score == FOUND
    assert score.dice == pytest.approx(2 * 15 / 60)
    assert score.iou == pytest.approx(15 / 45)


def test_silence_and_absence_are_told_apart():
    truth, mask = masks(40, 20, 15)
    assert (score_mask(None, truth, 100).target, score_mask(None, truth, 100).emitted) == (True, False)
    assert (score_mask(mask, None, 100).target, score_mask(mask, None, 100).emitted) == (False, True)
    assert score_mask(None, None, 100).dice == 1.0


def test_an_empty_true_mask_is_an_absent_target():
    assert not score_mask(None, np.zeros((2, 2), bool), 4).target


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        score_mask(np.zeros((2, 2), bool), np.zeros((2, 3), bool), 4)


def test_figures_by_hand():
    values = figures(terms([FOUND, MISSED, SILENT, FALSE, FALSE]).sum(0))
    expected = {
        "dice_emitted": 0.5,
        "dice_with_misses": 0.25,
        "sensitivity": 1 / 2,
        "specificity": 1 / 3,
        "balanced_accuracy": (1 / 2 + 1 / 3) / 2,
        "giou": (15 / 45) / 2,
        "ciou": 15 / (45 + 30),
        "giou_with_absent": (15 / 45 + 1) / 5,
        "ciou_with_absent": 15 / (45 + 30 + 20),
    }
    assert values.keys() == expected.keys() == FIGURES.keys() | {"balanced_accuracy"}
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)
    assert counts([FOUND, MISSED, SILENT, FALSE]) == {"n": 4, "n_targets": 2, "n_absent": 2, "n_emitted": 2}


def test_a_figure_without_rows_is_undefined_not_zero():
    values = figures(terms([FOUND, MISSED]).sum(0))
    assert math.isnan(values["specificity"]) and math.isnan(values["balanced_accuracy"])
    assert not math.isnan(values["sensitivity"])


def test_all_ones_keeps_the_decision_and_covers_the_image():
    ones = FOUND.as_all_ones()
    assert (ones.mask_px, ones.overlap_px) == (100, 40)
    assert ones.dice == pytest.approx(2 * 40 / 140)
    assert MISSED.as_all_ones() == MISSED


@given(st.integers(1, 50), st.integers(0, 50), st.data())
def test_dice_and_iou_are_two_readings_of_one_number(truth_px, mask_px, data):
    overlap = data.draw(st.integers(0, min(truth_px, mask_px)))
    score = score_mask(*reversed(masks(truth_px, mask_px, overlap)), 100)
    assert score.overlap_px == overlap
    assert score.dice == pytest.approx(2 * score.iou / (1 + score.iou))


def test_intervals_hold_the_figure_and_follow_the_seed():
    rng = np.random.default_rng(1)
    scores = [FOUND if rng.random() < 0.7 else MISSED for _ in range(200)]
    table = terms(scores)
    first = bootstrap.intervals(table, range(200), figures, resamples=500, seed=3)
    low, high = first["sensitivity"]
    value = float(figures(table.sum(0))["sensitivity"])
    assert low < value < high
    # Normal approximation of a binomial share, 200 rows: ±1.96·sqrt(p(1−p)/n); the bootstrap must agree within 20 %.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(value * (1 - value) / 200), rel=0.2)
    assert first == bootstrap.intervals(table, range(200), figures, resamples=500, seed=3)
    assert first != bootstrap.intervals(table, range(200), figures, resamples=500, seed=4)


def test_rows_of_one_patient_are_drawn_together():
    table = terms([FOUND, MISSED] * 50)
    together = bootstrap.intervals(table, [index // 2 for index in range(100)], figures, resamples=200)
    alone = bootstrap.intervals(table, range(100), figures, resamples=200)
    assert together["sensitivity"] == (0.5, 0.5)  # every patient has one of each, so nothing varies
    assert alone["sensitivity"][1] - alone["sensitivity"][0] > 0.1


def test_an_undefined_figure_has_no_interval():
    assert bootstrap.intervals(terms([FOUND, MISSED]), "ab", figures, resamples=50)["specificity"] is None


@pytest.mark.parametrize(("groups", "level"), [("", 0.95), ("abc", 0.95), ("ab", 1.0)])
def test_bootstrap_refuses_what_it_cannot_do(groups, level):
    table = terms([FOUND, MISSED]) if groups else terms([])
    with pytest.raises(ValueError):
        bootstrap.intervals(table, groups, figures, level=level)
