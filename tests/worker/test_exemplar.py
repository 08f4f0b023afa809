"""The exemplar of a job: read at the job's scale, kept as it was read, and refused for a reason."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.made_slides import tissue_picture, write_pyramid
from worker.errors import BadRequest, MppUnknown, SlideNotFound, SlideReasonError, SlideUnreadable
from worker.exemplar import read_exemplar, take_exemplar, write_exemplar
from worker.types import ExemplarSpec, JobSpec

CENTRE, RADIUS = (600, 450), 60


def disc(x: float, y: float, radius: float) -> tuple:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = [(float(x + radius * np.cos(a)), float(y + radius * np.sin(a))) for a in angles]
    return (*points, points[0])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1200 x 900 px at 0.5 µm/px with one dark disc on tissue; and the same at 0.25 µm/px beside it."""
    folder = tmp_path_factory.mktemp("reference")
    picture = tissue_picture(1200, 900)
    cv2.circle(picture, CENTRE, RADIUS, (70, 40, 110), -1)
    write_pyramid(folder / "half.tif", picture, mpp=0.5)
    write_pyramid(folder / "quarter.tif", cv2.resize(picture, (2400, 1800)), mpp=0.25)
    cv2.imwrite(str(folder / "plain.png"), picture[..., ::-1])
    (folder / "text.svs").write_text("no slide")
    return folder


def shown(reference: Path, name: str = "half.tif", scale: float = 1.0, **more) -> ExemplarSpec:
    """The disc, outlined."""
    mask = ((disc(CENTRE[0] * scale, CENTRE[1] * scale, RADIUS * scale),),)
    return ExemplarSpec(str(reference / name), name, mask, **more)


def test_a_spec_survives_json_and_one_of_old_has_none(reference: Path):
    hole = disc(600, 450, 20)
    exemplar = ExemplarSpec("/a.tif", "a", ((disc(600, 450, 60), hole), (hole,)), (disc(0, 0, 9),), 0.25)
    spec = JobSpec("/b.tif", "b", ("q",), exemplar=exemplar)
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    old = JobSpec("/b.tif", "b", ("q",)).to_json()
    del old["exemplar"]
    assert JobSpec.from_json(old).exemplar is None


def test_the_picture_has_the_scale_of_the_tiles_whatever_the_slides(reference: Path):
    taken = [
        take_exemplar(shown(reference), 1.0, 256),
        take_exemplar(shown(reference, "quarter.tif", scale=2), 1.0, 256),
    ]
    for one in taken:
        assert one.shown.image.shape == (256, 256, 3)
        assert one.shown.mask.sum() == pytest.approx(np.pi * 30**2, rel=0.02)
        dark = one.shown.image[..., 0] < 120
        assert 2 * (dark & one.shown.mask).sum() / (dark.sum() + one.shown.mask.sum()) > 0.97
        assert one.about["area_um2"] == pytest.approx(np.pi * 30**2, rel=0.02)
    fine, coarse = (np.abs(one.shown.image.astype(int)) for one in taken)
    assert np.abs(fine - coarse).mean() < 4


def test_a_finer_job_sees_the_disc_larger(reference: Path):
    fine = take_exemplar(shown(reference), 0.5, 256)
    assert fine.shown.mask.sum() == pytest.approx(np.pi * 60**2, rel=0.02)
    assert fine.about["window_px0"] == [600 - 128, 450 - 128, 600 + 128, 450 + 128]


def test_at_the_slides_own_scale_pixels_are_untouched(reference: Path):
    spec = shown(reference, "plain.png", mpp_override=0.5)
    taken = take_exemplar(spec, 0.5, 256)
    picture = cv2.imread(str(reference / "plain.png"))[..., ::-1]
    np.testing.assert_array_equal(taken.shown.image, picture[450 - 128 : 450 + 128, 600 - 128 : 600 + 128])


def test_outside_the_roi_nothing_is_shown(reference: Path):
    roi = ((540, 390), (660, 390), (660, 510), (540, 510), (540, 390))
    taken = take_exemplar(shown(reference, roi=(roi,)), 1.0, 256)
    inside = np.zeros((256, 256), bool)
    inside[128 - 30 : 128 + 30, 128 - 30 : 128 + 30] = True
    assert (taken.shown.image[~inside] == 255).all()
    assert (taken.shown.image[inside] < 250).mean() > 0.95


def test_a_part_of_a_large_outline_says_how_much_it_is(reference: Path):
    whole = ((400, 200), (800, 200), (800, 700), (400, 700), (400, 200))
    taken = take_exemplar(replace(shown(reference), mask=((whole,),)), 0.5, 128)
    assert taken.about["outlined_um2"] == 400 * 500 * 0.25
    assert taken.about["area_um2"] == 128 * 128 * 0.25
    assert taken.about["share_of_picture"] == 1


def test_what_is_kept_is_what_was_taken(reference: Path, tmp_path: Path):
    taken = take_exemplar(shown(reference), 1.0, 256)
    write_exemplar(tmp_path, taken)
    kept = read_exemplar(tmp_path)
    assert kept.shown.key == taken.shown.key == kept.about["key"]
    np.testing.assert_array_equal(kept.shown.image, taken.shown.image)
    assert kept.about == taken.about
    assert str(reference) not in json.dumps(kept.about)


@pytest.mark.parametrize(
    ("name", "error", "field"),
    [
        ("missing.tif", SlideNotFound, "exemplar.slide"),
        ("text.svs", SlideUnreadable, "exemplar.slide"),
        ("plain.png", MppUnknown, "exemplar.mpp_override"),
    ],
)
def test_a_slide_that_cannot_be_shown_is_named(
    reference: Path, name: str, error: type[SlideReasonError], field: str
):
    with pytest.raises(error) as raised:
        take_exemplar(shown(reference, name), 1.0, 256)
    assert raised.value.field == field


def test_an_outline_too_small_for_the_scale_is_refused(reference: Path):
    with pytest.raises(BadRequest, match="finer mpp") as raised:
        take_exemplar(shown(reference), 8.0, 256)
    assert raised.value.field == "exemplar.mask"
