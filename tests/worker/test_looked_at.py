"""What was not looked at, by reason: the parts add up to the slide, exactly."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import shapely

from tests.worker.overlay_job import JOB_ID, make_info, make_plan
from worker.looked_at import Failures, measure_coverage
from worker.report import build_report
from worker.report_parts import coverage_words
from worker.types import JobSpec, TileRecord

INFO = make_info(2600, 1800)
PLAN = make_plan(1300, 900)
SPEC = JobSpec("slide", "slide", ("tumour",))
CARD = {"name": "made", "revision": "1"}
ROI = (((200.0, 200.0), (1500.0, 300.0), (1200.0, 1500.0), (200.0, 200.0)),)


def wanting(wanted: np.ndarray):
    packed = base64.b64encode(np.packbits(wanted).tobytes()).decode()
    return replace(PLAN, wanted=packed, n_tiles=int(wanted.sum()), n_skipped=int((~wanted).sum()))


def parts(coverage: dict) -> float:
    return sum(coverage[name] for name in ("looked_at_um2", "glass_um2", "outside_roi_um2", "failed_um2"))


@pytest.mark.parametrize("seed", range(6))
def test_parts_add_up_and_glass_is_what_of_the_roi_was_left_out(seed: int):
    rng = np.random.default_rng(seed)
    plan = wanting(rng.random((PLAN.rows, PLAN.cols)) < 0.4)
    failures = Failures()
    for key in rng.permutation([f"{r}_{c}" for r in range(PLAN.rows) for c in range(PLAN.cols)])[:3]:
        failures.add(TileRecord(str(key), 0, 0, 0, 256, error="broken"))
    coverage = measure_coverage(plan, INFO, replace(SPEC, roi=ROI), failures)
    assert parts(coverage) == pytest.approx(coverage["slide_um2"], abs=0.01)
    left = coverage["glass_um2"] + coverage["outside_roi_um2"] + coverage["failed_um2"]
    assert left == pytest.approx(coverage["not_looked_at_um2"], abs=0.01)
    # by another way: paint what was planned, and take it from the region of interest
    wanted = np.unpackbits(np.frombuffer(base64.b64decode(plan.wanted), np.uint8), count=PLAN.rows * PLAN.cols)
    tiles = [
        shapely.box(2 * 192 * col, 2 * 192 * row, min(2 * (192 * col + 256), 2600), min(2 * (192 * row + 256), 1800))
        for row, col in np.argwhere(wanted.reshape(PLAN.rows, PLAN.cols))
    ]
    glass = shapely.difference(shapely.Polygon(ROI[0]), shapely.union_all(tiles)).area / 4
    assert coverage["glass_um2"] == pytest.approx(glass, abs=0.01)


def test_without_a_region_of_interest_all_that_is_skipped_is_glass():
    wanted = np.ones((PLAN.rows, PLAN.cols), bool)
    wanted[:, 4:] = False
    coverage = measure_coverage(wanting(wanted), INFO, SPEC, Failures())
    assert coverage["outside_roi_um2"] == 0 and coverage["glass_um2"] == (1300 - 832) * 900
    words = coverage_words(coverage)
    assert words.startswith("Not looked at: 0.42 mm², 36.0 % of the slide (0.42 mm² glass). Skipped: 15 of 35 tiles")


def test_not_found_says_what_it_says_nothing_of():
    wanted = np.ones((PLAN.rows, PLAN.cols), bool)
    wanted[:, 4:] = False
    silent = [TileRecord("0_0", 0, 0, 0, 256, text="No tumour is present.")]
    report = build_report(JOB_ID, SPEC, wanting(wanted), INFO, [], silent, CARD)
    answer = report["queries"][0]["answer"]
    assert answer.startswith("Not found in the 20 tiles looked at (0.75 mm²).")
    assert answer.endswith("This says nothing of the 0.42 mm² not looked at, 36.0 % of the slide.")


def test_an_older_report_is_still_put_in_words():
    old = {"tiles": 5, "looked_at": 5, "failed": 0, "skipped": 0, "coverage": 1.0, "failed_reasons": []}
    assert coverage_words(old) == "Every tile of the slide was looked at."
