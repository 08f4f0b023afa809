"""Confidence: figures computed by hand, a known slope and offset found again, and data that say little."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.cli import run_calibrate
from model.evaluation.calibration import (
    MIN_MASKS,
    MaskRecord,
    Platt,
    calibrate,
    describe,
    equal_mass_bins,
    error_of_chance,
    expected_calibration_error,
    fit,
    log_odds,
    ranking,
    reliability,
)
from model.evaluation.results import ResultsError, read_masks


def records(confidence, right, patient: str = "p", masks_each: int = 4) -> list[MaskRecord]:
    """Masks of several patients; IoU 0.8 where right, 0.2 where wrong."""
    return [
        MaskRecord(float(c), float(c), 0.8 if r else 0.2, f"{patient}{number // masks_each}")
        for number, (c, r) in enumerate(zip(confidence, right, strict=True))
    ]


def too_sure(count: int, seed: int, slope: float = 0.6, offset: float = -0.7) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and events drawn by σ(slope · logit + offset)."""
    rng = np.random.default_rng(seed)
    confidence = 1 / (1 + np.exp(-rng.normal(1.0, 2.0, count)))
    return confidence, rng.random(count) < Platt(slope, offset)(confidence)


def test_a_mask_is_right_from_half_overlap_on():
    assert MaskRecord(0.9, 0.9, 0.5, "p").right and not MaskRecord(0.9, 0.9, 0.499, "p").right


# The error


def test_the_error_of_two_bins_by_hand():
    confidence = np.array([0.1, 0.3, 0.6, 0.8])
    right = np.array([False, True, True, True])
    # bins {0.1, 0.3}: mean 0.2, right 0.5; {0.6, 0.8}: mean 0.7, right 1.0; both hold half the masks
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.3)
    first, second = reliability(confidence, right, bins=2)
    assert first == pytest.approx({"n": 2, "from": 0.1, "to": 0.3, "confidence": 0.2, "right": 0.5})
    assert (second["n"], second["right"]) == (2, 1.0)


def test_more_bins_than_masks_leave_each_its_own():
    assert expected_calibration_error(np.array([0.2, 0.9]), np.array([False, True]), bins=15) == pytest.approx(0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 20))
def test_bins_are_in_order_even_and_equals_share_one(values, bins):
    confidence = np.array(values)
    index = equal_mass_bins(confidence, bins)
    assert set(index) == set(range(index.max() + 1)) and index.max() < bins
    order = np.argsort(confidence, kind="stable")
    assert (np.diff(index[order]) >= 0).all()
    assert all(len(set(index[confidence == value])) == 1 for value in confidence)
    if len(set(values)) == len(values):
        sizes = np.bincount(index)
        assert sizes.max() - sizes.min() <= 1


def test_one_confidence_for_all_is_one_bin():
    confidence, right = np.full(10, 0.7), np.arange(10) < 4
    assert expected_calibration_error(confidence, right) == pytest.approx(0.3)
    assert len(reliability(confidence, right)) == 1


def test_chance_alone_leaves_an_error_that_shrinks_with_the_masks():
    rng = np.random.default_rng(0)
    few, many = rng.random(60), rng.random(6000)
    assert 0.08 < error_of_chance(few) < 0.25 and error_of_chance(many) < 0.03
    measured = expected_calibration_error(many, rng.random(6000) < many)
    assert measured == pytest.approx(error_of_chance(many), abs=0.02)


def test_ranking_by_hand():
    assert ranking(np.array([0.9, 0.4, 0.5, 0.1]), np.array([True, True, False, False])) == 0.75
    assert ranking(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert ranking(np.array([0.5, 0.6]), np.array([True, True])) is None


def test_a_description_holds_what_anybody_needs_to_compute_it_again():
    confidence, right = too_sure(200, 1)
    told = describe(confidence, records(confidence, right), resamples=200)
    assert told["ece"] == pytest.approx(expected_calibration_error(confidence, right))
    assert told["brier"] == pytest.approx(float(((confidence - right) ** 2).mean()))
    assert told["n_masks"] == 200 == sum(line["n"] for line in told["reliability"])
    low, high = told["intervals_95"]["brier"]
    assert low < told["brier"] < high
    by_table = sum(line["n"] * abs(line["confidence"] - line["right"]) for line in told["reliability"]) / 200
    assert by_table == pytest.approx(told["ece"])


# The fit


def test_a_known_slope_and_offset_are_found_again():
    found = fit(*too_sure(40_000, 2, slope=0.6, offset=-0.7))
    assert (found.slope, found.offset) == pytest.approx((0.6, -0.7), abs=0.03)


def test_what_is_calibrated_is_left_alone():
    found = fit(*too_sure(40_000, 3, slope=1.0, offset=0.0))
    assert (found.slope, found.offset) == pytest.approx((1.0, 0.0), abs=0.05)


def test_the_fit_is_the_top_of_the_likelihood():
    confidence, right = too_sure(150, 4)
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def likelihood(platt: Platt) -> float:
        p = platt(confidence)
        return float((target * np.log(p) + (1 - target) * np.log(1 - p)).sum())

    best = fit(confidence, right)
    for slope, offset in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert likelihood(best) > likelihood(Platt(best.slope + slope, best.offset + offset))


@pytest.mark.parametrize("all_right", [True, False])
def test_masks_that_are_all_right_or_all_wrong_leave_finite_numbers(all_right: bool):
    confidence = np.linspace(0.05, 0.95, 40)
    found = fit(confidence, np.full(40, all_right))
    due = 41 / 42 if all_right else 1 / 42
    assert found.slope == pytest.approx(0, abs=1e-6)
    assert found(confidence) == pytest.approx(np.full(40, due))


def test_masks_that_confidence_parts_without_error_leave_finite_numbers():
    confidence = np.concatenate([np.linspace(0.1, 0.4, 30), np.linspace(0.6, 0.9, 30)])
    found = fit(confidence, confidence > 0.5)
    assert np.isfinite([found.slope, found.offset]).all() and found.slope > 1
    assert found(np.array([0.99])) < 1


def test_confidence_at_0_and_1_is_finite():
    found = fit(np.array([0.0, 1.0] * 15), np.array([False, True] * 15))
    assert np.isfinite([found.slope, found.offset]).all()
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()


def test_one_confidence_for_all_keeps_the_slope_and_meets_the_share():
    found = fit(np.full(100, 0.9), np.arange(100) < 30)
    assert found.slope == 1.0
    assert found(np.array([0.9])) == pytest.approx(0.3, abs=0.01)


def test_too_few_masks_are_refused():
    with pytest.raises(ValueError, match=f"19 masks.*at least {MIN_MASKS}"):
        fit(np.linspace(0, 1, 19), np.arange(19) > 5)


# Before and after


def test_calibration_helps_patients_it_was_not_fitted_on():
    val, test = too_sure(1500, 5), too_sure(1500, 6)
    found = calibrate(records(*val), records(*test, patient="q"), resamples=300)
    before, after, difference = (found["test"][name] for name in ("before", "after", "difference"))
    assert before["ece"] > 0.15 and after["ece"] < 0.05
    assert difference["ece"] == pytest.approx(after["ece"] - before["ece"])
    assert difference["intervals_95"]["ece"][1] < 0 and difference["intervals_95"]["brier"][1] < 0
    assert before["auroc"] == after["auroc"]  # order is kept
    assert found["val"]["after"]["n_masks"] == 1500
    json.dumps(found, allow_nan=False)


def test_the_raw_confidence_is_what_is_fitted():
    confidence, right = too_sure(400, 7)
    stated = [MaskRecord(0.5, one.raw_confidence, one.iou, one.group) for one in records(confidence, right)]
    assert calibrate(stated, records(confidence, right, "q"), 10)["slope"] == fit(confidence, right).slope


def test_a_patient_on_both_sides_is_refused():
    masks = records(*too_sure(40, 8))
    with pytest.raises(ValueError, match="share 10 groups"):
        calibrate(masks, masks)


def test_a_side_with_too_few_masks_is_named():
    with pytest.raises(ValueError, match="test: 5 masks"):
        calibrate(records(*too_sure(40, 9)), records(*too_sure(5, 9), "q"))


# The command


def results(path: Path, masks: list[MaskRecord]) -> Path:
    samples = [{"group": mask.group, "masks": [mask.to_json()]} for mask in masks]
    path.write_text(json.dumps({"samples": samples}))
    return path


def test_results_are_read_again(tmp_path: Path):
    masks = records(*too_sure(30, 10))
    assert read_masks(results(tmp_path / "r.json", masks)) == masks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{oops", "not JSON"),
        ("[]", "slidereason evaluate"),
        ('{"summary": 1}', "field samples is missing"),
        ('{"samples": [{"group": "a"}]}', "field masks is missing"),
        ('{"samples": [{"group": "a", "masks": [{"confidence": "much", "raw_confidence": 1, "iou": 1}]}]}', "much"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultsError, match=words):
        read_masks(tmp_path / "r.json")


def test_the_command_fits_measures_and_draws(tmp_path: Path, capsys):
    first = results(tmp_path / "val1.json", records(*too_sure(300, 11), "a"))
    second = results(tmp_path / "val2.json", records(*too_sure(300, 12), "b"))
    test = results(tmp_path / "test.json", records(*too_sure(600, 13), "c"))
    out, plot = tmp_path / "calibration.json", tmp_path / "plots" / "reliability.png"
    files = ["--val", str(first), str(second), "--test", str(test)]
    assert run_calibrate([*files, "--out", str(out), "--plot", str(plot), "--bootstrap", "50"]) == 0
    found = json.loads(out.read_text())
    assert found["val"]["before"]["n_masks"] == 600 and found["files"]["val"].keys() == {str(first), str(second)}
    assert found["test"]["after"]["ece"] < found["test"]["before"]["ece"]
    said = capsys.readouterr().out
    assert f"slope {found['slope']:.4f}" in said and "before" in said
    with Image.open(plot) as picture:
        assert picture.size[0] == 2 * picture.size[1]


def test_the_command_asks_a_model_about_manifests(tmp_path: Path):
    for side in ("val", "test"):
        lines = []
        for number in range(MIN_MASKS):
            mask = np.zeros((64, 64), bool)
            mask[: 20 + number, 10:50] = True
            image = np.where(mask[..., None], np.array((90, 40, 130)), np.array((240, 225, 238))).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"{side}{number}.png")
            Image.fromarray(mask).save(tmp_path / f"{side}{number}_mask.png")
            files = {"image": f"{side}{number}.png", "mask": f"{side}{number}_mask.png"}
            lines.append(json.dumps({"id": f"{side}{number}", "query": "nuclei", **files}))
        (tmp_path / f"{side}.jsonl").write_text("\n".join(lines))
    files = ["--val", str(tmp_path / "val.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    options = ["--model", "tests.segmenters:hue_segmenter", "--bootstrap", "10", "--out", str(tmp_path / "c.json")]
    assert run_calibrate([*files, *options]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["test"]["before"]["n_right"] == MIN_MASKS and found["model"] == "tests.segmenters:hue_segmenter"


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys):
    masks = results(tmp_path / "r.json", records(*too_sure(60, 14)))
    out = tmp_path / "c.json"
    assert run_calibrate(["--val", str(masks), "--test", str(masks), "--out", str(out)]) == 2
    assert "slidereason calibrate: val and test share" in capsys.readouterr().err
    assert run_calibrate(["--val", str(masks), "--test", str(tmp_path / "no.json"), "--out", str(out)]) == 2
    assert "no.json" in capsys.readouterr().err and not out.exists()
