"""The picture: the slide as it is, regions where they are, a scale bar that is right, and a legend that says all."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.worker.report_jobs import EVIL, changed, real_job
from worker.colors import query_color
from worker.exports import picture
from worker.exports.job_results import JobResults
from worker.exports.picture import FILL, INK, MIN_WIDTH_PX, legend_lines, length_words, nice_length_um, wrap_words
from worker.pyramid import open_level

RESEARCH_ONLY = "Research use only. Not for use in diagnostic procedures."
SIDE_PX = 20
"""White at either side of the picture of `done`, which is 600 px wide."""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> JobResults:
    return real_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def drawn(done, tmp_path_factory) -> np.ndarray:
    return write_png(done, tmp_path_factory.mktemp("picture"))


def write_png(results: JobResults, folder: Path, **options) -> np.ndarray:
    """The picture as (h, w, 3) uint8."""
    picture.write_png(results, folder / "picture.png", **options)
    with Image.open(folder / "picture.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.array(image)


def reference(done: JobResults, level: int = 0) -> np.ndarray:
    return np.moveaxis(open_level(done.overlay, "", level)[...], 0, 2)


def found(done: JobResults, query_index: int = 0, level: int = 0) -> np.ndarray:
    return open_level(done.overlay, f"labels/{query_index}", level)[...] > 0


def apart(mask: np.ndarray, px: int = 8) -> np.ndarray:
    """What is further than `px` from a mask; plates in the corners on the left left out."""
    far = ~cv2.dilate(mask.astype(np.uint8), np.ones((2 * px + 1, 2 * px + 1), np.uint8)).astype(bool)
    far[:40, :200] = far[-60:, :200] = False
    return far


def count(image: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((image == np.array(color)).all(-1).sum())


def test_the_slide_is_shown_as_it_is(done, drawn):
    shown = drawn[:450, SIDE_PX : SIDE_PX + 600]
    far = apart(found(done) | found(done, 1))
    assert far.mean() > 0.5 and (shown[far] == reference(done)[far]).all()
    assert drawn.shape[1] == MIN_WIDTH_PX and (drawn[:, :4] == 255)[:450].all()


def test_regions_are_tinted_inside_and_outlined_in_their_colour(done, drawn):
    shown, tinted = drawn[:450, SIDE_PX : SIDE_PX + 600], reference(done)
    inside = found(done) & (cv2.erode(found(done).astype(np.uint8), np.ones((11, 11))) > 0)
    for index in (0, 1):
        tinted = (tinted * (1 - FILL) + np.array(query_color(index)) * FILL).astype(np.uint8)
    assert inside.sum() > 2000 and (shown[inside] == tinted[inside]).all()
    rim = found(done) & ~(cv2.erode(found(done).astype(np.uint8), np.ones((3, 3))) > 0)
    colored = [(shown[rim] == np.array(query_color(index))).all(-1).mean() for index in (0, 1)]
    assert sum(colored) > 0.8


def test_questions_that_found_the_same_share_the_outline(drawn):
    first, second = (count(drawn[:450], query_color(index)) for index in (0, 1))
    assert first > 300 and 0.6 < first / second < 1.6


def test_a_question_alone_has_the_outline_to_itself(done, tmp_path):
    def one(report):
        report["queries"].pop()
        report["regions"] = [region for region in report["regions"] if region["query_index"] == 0]

    image = write_png(changed(done, tmp_path / "job", one), tmp_path)
    assert count(image[:450], query_color(0)) > 600 and count(image, query_color(1)) == 0


def test_the_scale_bar_is_as_long_as_it_says(drawn):
    row = (drawn[441, SIDE_PX : SIDE_PX + 200] == np.array(INK)).all(-1)
    start = int(row.argmax())
    assert row[start : start + 100].all() and row.sum() == 100, "100 µm at 1 µm/px"


@given(st.floats(1e-3, 1e7))
def test_lengths_are_round_and_as_long_as_they_may_be(most_um):
    length = nice_length_um(most_um)
    assert f"{length:e}"[0] in "125" and f"{length:.3e}"[2:5] == "000"
    assert length <= most_um < 2.5 * length * (1 + 1e-9)


def test_lengths_in_words():
    assert [length_words(um) for um in (0.5, 20, 500, 1000, 2000, 50_000)] == [
        "0.5 µm", "20 µm", "500 µm", "1 mm", "2 mm", "50 mm",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("max_px", "level", "size"), [(2048, 0, (450, 600)), (599, 1, (225, 300)), (10, 1, (225, 300))]
)
def test_the_finest_level_that_fits_is_shown(done, tmp_path, max_px, level, size):
    image = write_png(done, tmp_path, max_px=max_px)
    side = (MIN_WIDTH_PX - size[1]) // 2
    shown = image[: size[0], side : side + size[1]]
    far = apart(found(done, 0, level) | found(done, 1, level))
    assert reference(done, level).shape[:2] == size
    assert far.any() and (shown[far] == reference(done, level)[far]).all()


def test_only_the_scanned_area_is_shown(done, tmp_path):
    bounded = replace(done, slide=replace(done.slide, bounds_px0=(400, 200, 700, 600)))
    image = write_png(bounded, tmp_path)
    side = (MIN_WIDTH_PX - 350) // 2
    shown, whole = image[:300, side : side + 350], reference(done)[100:400, 200:550]
    far = apart((found(done) | found(done, 1))[100:400, 200:550])
    assert far.any() and (shown[far] == whole[far]).all()
    assert count(image[:300], query_color(0)) > 100


def test_failed_tiles_are_framed_and_counted(done, drawn, tmp_path):
    def fail(report):
        report["coverage"] |= {
            "failed": 1, "coverage": 5 / 6,
            "failed_tiles": [{"key": "0_0", "reason": "it is broken", "bbox_px0": [700.0, 20.0, 1100.0, 120.0]}],
        }  # fmt: skip

    results = changed(done, tmp_path / "job", fail)
    image = write_png(results, tmp_path)
    y, x = np.nonzero((image[:450] != drawn[:450]).any(-1))
    assert (x.min() - SIDE_PX, x.max() - SIDE_PX, y.min(), y.max()) == pytest.approx((350, 550, 10, 60), abs=1)
    words = " ".join(words for _, words in legend_lines(results, 1.0))
    assert "83.3 % of 6 tiles looked at, 1 failed (dashed)" in words


def test_small_regions_are_ringed_unless_there_are_too_many(done, tmp_path, monkeypatch):
    def shrink(report):
        report["regions"][0] |= {"bbox_px0": [200.0, 200.0, 204.0, 204.0], "centroid_px0": [202.0, 202.0]}

    results = changed(done, tmp_path / "job", shrink)
    ringed = write_png(results, tmp_path)[80:120, SIDE_PX + 80 : SIDE_PX + 120]
    assert count(ringed, query_color(0)) > 20
    monkeypatch.setattr(picture, "CROWD", 1)
    crowded = write_png(results, tmp_path)
    assert (crowded[80:120, SIDE_PX + 80 : SIDE_PX + 120] == reference(done)[80:120, 80:120]).all()


def test_the_legend_says_what_was_asked_found_and_looked_at(done, tmp_path):
    (_, first), (index, second), (none, slide), (_, use) = legend_lines(done, 1.0)
    assert first.startswith("3 regions, ") and first.endswith(f" µm² – {EVIL}")
    assert (index, second.endswith("Is there a gland?"), none) == (1, True, None)
    assert slide.startswith("Slide slide.tif, shown at 1 µm/px; model hue ") and "% of 6 tiles looked at" in slide
    assert use == RESEARCH_ONLY

    def lose(report):
        report["queries"][1]["found"] = False

    assert list(legend_lines(changed(done, tmp_path / "a", lose), 1.0))[1][1].startswith("not found – ")

    def blind(report):
        lose(report)
        report["coverage"]["looked_at"] = 0

    lines = list(legend_lines(changed(done, tmp_path / "b", blind), 1.0))
    assert lines[1][1].startswith("nothing was looked at – ")


def test_the_legend_has_swatches_and_words_below_the_picture(drawn):
    legend = drawn[450:]
    assert count(legend, query_color(0)) > 50 and count(legend, query_color(1)) > 50
    assert (legend[-40:-8, 30:500] < 128).any(-1).sum() > 200, "the last line"
    assert (legend[:, -8:] == 255).all(), "nothing is cut off at the right"


@pytest.mark.parametrize("words", ["", "word", "many words " * 9, "腫瘍はどこですか" * 40, "x" * 400, "a " + "y" * 90])
def test_lines_are_no_wider_than_there_is_room(words):
    rows = wrap_words(words, 16, 300)
    image = np.zeros((60, 400, 3), np.uint8)
    for row in rows:
        picture.write_words(image, row, (0, 30), 16)
    assert image[:, 304:].max() == 0 and len(rows) <= 3
    kept = "".join(rows).replace(" ", "")
    whole = words.replace(" ", "")
    assert kept == whole or (kept.endswith("…") and whole.startswith(kept[:-1]) and len(rows) == 3)


def test_the_file_says_what_it_is_and_names_no_path(done, tmp_path):
    write_png(done, tmp_path)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.text == {
            "Software": "SlideReason",
            "Comment": RESEARCH_ONLY,
            "Source": f"job {done.job_id}, slide slide.tif, 1 µm/px",
        }
    assert str(done.folder).encode() not in (tmp_path / "picture.png").read_bytes()


def test_the_same_results_give_the_same_bytes(done, tmp_path):
    write_png(done, tmp_path)
    first = (tmp_path / "picture.png").read_bytes()
    write_png(replace(done), tmp_path)
    assert (tmp_path / "picture.png").read_bytes() == first


def test_levels_without_pixels_are_never_shown(done, tmp_path):
    """A large slide's finest levels have no reference; they would be white."""
    copy = changed(done, tmp_path / "job", lambda report: None)
    overlay = copy.folder / "overlay.zarr"
    overlay.unlink()
    overlay.mkdir()
    for child in done.overlay.iterdir():
        (overlay / child.name).symlink_to(child)
    attributes = json.loads((overlay / "zarr.json").read_text())
    attributes["attributes"]["slidereason"]["reference_levels"] = [1]
    (overlay / "zarr.json").unlink()
    (overlay / "zarr.json").write_text(json.dumps(attributes))
    image = write_png(copy, tmp_path)
    assert image.shape[0] < 450 and count(image[:225], (255, 255, 255)) < 0.6 * 225 * MIN_WIDTH_PX
