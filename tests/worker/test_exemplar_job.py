"""Jobs with an exemplar, from plan to report: what was outlined decides what is found, however the job runs."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr

from tests.jobs import COLOUR, digest, hue_spec
from tests.made_slides import tissue_picture, write_pyramid
from tests.segmenters import ColourSegmenter, colour_segmenter, hue_segmenter
from worker.artifacts import LocalArtifacts
from worker.engine import Engine
from worker.errors import BadRequest
from worker.inline import MAYBE, RESULTS, InlineResult, run_job_inline
from worker.ledger import Ledger
from worker.tasks import Runner
from worker.types import SAME_AS_EXAMPLE, ExemplarSpec, JobSpec

DARK, GREEN = (70, 40, 110), (60, 150, 90)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with two dark discs and a green one at 0.5 µm/px; a reference with one of each at 0.25 µm/px."""
    folder = tmp_path_factory.mktemp("slides")
    target = tissue_picture(1600, 1200)
    for x, colour in ((600, DARK), (800, GREEN), (1000, DARK)):
        cv2.circle(target, (x, 600), 60, colour, -1)
    write_pyramid(folder / "target.tif", target)
    reference = tissue_picture(1800, 1400, seed=3)
    cv2.circle(reference, (800, 600), 100, DARK, -1)
    cv2.circle(reference, (1100, 700), 100, GREEN, -1)
    write_pyramid(folder / "reference.tif", reference, mpp=0.25)
    return folder


def spec(slides: Path, x: float, y: float, name: str = "reference.tif", radius: float = 90) -> JobSpec:
    """Find on the target what lies around a point of the reference."""
    angles = np.linspace(0, 2 * np.pi, 33)
    ring = tuple((float(x + radius * np.cos(a)), float(y + radius * np.sin(a))) for a in angles)
    exemplar = ExemplarSpec(str(slides / name), name, ((ring,),))
    return hue_spec(slides / "target.tif", SAME_AS_EXAMPLE, exemplar=exemplar, model=COLOUR)


def labels(result: InlineResult) -> np.ndarray:
    return zarr.open_array(str(result.folder / "overlay.zarr/labels/0/0"), mode="r")[...]


@pytest.fixture(scope="module")
def dark(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> InlineResult:
    return run_job_inline(spec(slides, 800, 600), tmp_path_factory.mktemp("dark"), colour_segmenter())


def test_what_is_outlined_elsewhere_is_what_is_found(slides: Path, dark: InlineResult, tmp_path: Path):
    green = run_job_inline(spec(slides, 1100, 700), tmp_path / "green", colour_segmenter())
    at = {"dark": [(300, 300), (300, 500)], "green": [(300, 400)]}  # (y, x) of the discs in the overlay
    for result, found, other in ((dark, "dark", "green"), (green, "green", "dark")):
        overlay = labels(result)
        assert all(overlay[place] for place in at[found])
        assert not any(overlay[place] for place in at[other])
    assert (dark.job.result["regions"], green.job.result["regions"]) == (2, 1)


def test_the_exemplar_may_lie_on_the_same_slide(slides: Path, dark: InlineResult, tmp_path: Path):
    same = run_job_inline(spec(slides, 600, 600, "target.tif", radius=45), tmp_path / "same", colour_segmenter())
    both = (labels(same) > 0, labels(dark) > 0)
    assert 2 * (both[0] & both[1]).sum() / (both[0].sum() + both[1].sum()) > 0.95


def test_without_its_exemplar_the_job_finds_nothing(slides: Path, tmp_path: Path):
    plain = replace(spec(slides, 800, 600), exemplar=None)
    result = run_job_inline(plain, tmp_path / "plain", colour_segmenter())
    assert result.job.result["regions"] == 0
    assert json.loads((result.folder / "report.json").read_text())["exemplar"] is None
    assert not (result.folder / "exemplar.png").exists()
    assert "The example" not in (result.folder / "report.html").read_text()


def test_the_report_shows_the_exemplar(dark: InlineResult):
    assert sorted(path.name for path in dark.folder.iterdir()) == sorted((*RESULTS, *MAYBE))
    report = json.loads((dark.folder / "report.json").read_text())
    about = report["exemplar"]
    assert (about["slide_id"], about["mpp"], about["slide_mpp"]) == ("reference.tif", 1.0, [0.25, 0.25])
    assert about["area_um2"] == pytest.approx(np.pi * 22.5**2, rel=0.02)
    assert about["bbox_px0"] == pytest.approx([710, 510, 890, 690], abs=1)
    assert "outline of 1,580 µm² on slide reference.tif" in dark.answer
    assert "Research use only" in report["use"]
    page = (dark.folder / "report.html").read_text()
    assert "The example" in page and about["key"][:16] in page
    picture = cv2.imread(str(dark.folder / "exemplar.png"))
    assert picture.shape == (256, 256, 3)
    assert (picture == (0, 255, 0)).all(-1).sum() > 100, "the outline is drawn"


def test_a_cut_outline_is_said_in_the_answer(slides: Path, tmp_path: Path):
    big = spec(slides, 900, 700)
    ring = ((100.0, 100.0), (1700.0, 100.0), (1700.0, 1300.0), (100.0, 1300.0), (100.0, 100.0))
    result = run_job_inline(
        replace(big, exemplar=replace(big.exemplar, mask=((ring,),))), tmp_path / "big", colour_segmenter()
    )
    assert "only its densest part was shown, 54.6 % of it" in result.answer


def test_an_earlier_runs_exemplar_does_not_stay(slides: Path, tmp_path: Path):
    run_job_inline(spec(slides, 800, 600), tmp_path, colour_segmenter())
    run_job_inline(hue_spec(slides / "target.tif"), tmp_path, hue_segmenter(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(RESULTS)


def test_a_model_that_takes_no_exemplar_says_so(slides: Path, tmp_path: Path):
    with pytest.raises(BadRequest, match="hue takes no exemplar") as raised:
        run_job_inline(spec(slides, 800, 600), tmp_path / "out", hue_segmenter())
    assert raised.value.field == "exemplar"


def test_a_bad_exemplar_fails_the_job_before_any_tile(slides: Path, tmp_path: Path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    job_id, _ = ledger.create_job(spec(slides, 90_000, 600))
    with Engine(colour_segmenter()) as engine:
        runner = Runner(ledger, LocalArtifacts(tmp_path), engine, "test", (COLOUR,))
        while runner.run_one():
            pass
    job = ledger.job(job_id)
    assert (job.status, job.error_code, job.error_field) == ("failed", "bad-request", "exemplar.mask")
    assert (job.tiles_total, job.message.count("outside the exemplar's slide")) == (0, 1)
    ledger.close()


class Showing(ColourSegmenter):
    """Notes what it was shown, and is too cautious to point at half a disc, so that it is asked again."""

    def __init__(self):
        super().__init__(emit_share=0.03)
        self.shown: list[tuple[bool, str | None]] = []

    def predict(self, batch, cancelled=None):
        exemplars = batch.exemplars or [None] * len(batch)
        self.shown += [(bool(f), e and e.key) for f, e in zip(batch.forced, exemplars, strict=True)]
        return super().predict(batch, cancelled)


def test_second_looks_and_isolated_blocks_see_the_same_exemplar(slides: Path, tmp_path: Path):
    """The reference is gone once the job is planned; every block loses its first owner and runs tile by tile."""
    asked = replace(spec(slides, 800, 600), grid_offset_px=(40, 0))  # a tile's edge runs through a disc
    plain = run_job_inline(asked, tmp_path / "plain", Showing())
    copy = tmp_path / "reference.tif"
    copy.write_bytes((slides / "reference.tif").read_bytes())
    asked = replace(asked, exemplar=replace(asked.exemplar, slide_path=str(copy)))
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger, impatient = Ledger(url), Ledger(url, lease_s=-1)
    job_id, _ = ledger.create_job(asked, job_id=plain.job.job_id)
    segmenter = Showing()
    with Engine(segmenter) as engine:
        runner = Runner(ledger, LocalArtifacts(tmp_path), engine, "test", (COLOUR,))
        runner.run_one()
        copy.unlink()
        while impatient.claim("lost", [COLOUR]):
            pass
        assert ledger.sweep().expired == len(ledger.blocks(job_id))
        while runner.run_one():
            pass
    assert ledger.job(job_id).status == "successful"
    key = json.loads((plain.folder / "report.json").read_text())["exemplar"]["key"]
    assert {shown for _, shown in segmenter.shown} == {key}
    assert {forced for forced, _ in segmenter.shown} == {False, True}, "second looks were taken"
    folder = LocalArtifacts(tmp_path).job_folder(job_id)
    assert digest(folder, (*RESULTS, *MAYBE)) == digest(plain.folder, (*RESULTS, *MAYBE))
    ledger.close()
