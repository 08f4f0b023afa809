"""DICOM exports of jobs on real slides: equal to overlay and GeoJSON, laid on their slide, and free of the patient."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from tests.worker.test_dicom_ann import assert_like_geojson
from tests.worker.test_dicom_seg import complaints, masks, run_job
from worker.exports.dicom_ann import write_dicom_ann
from worker.exports.dicom_seg import write_dicom_seg
from worker.exports.job_results import JobResults

CMU = "cmu-1-small-region-dicom"
CAMELYON = "camelyon-dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm"
BAD_FRAME = "camelyon-dicom/multiframe_camelyon_challenge_image.dcm"
SLIDES = {
    "CMU-1-Small-Region.svs": {},
    CMU: {},
    CAMELYON: {"mpp": 40.0, "min_region_um2": 10_000.0},
    BAD_FRAME: {"mpp": 28.969, "min_region_um2": 10_000.0},
}
KEPT = ("PositionReferenceIndicator",)
"""The only text of the slide's headers that an export repeats."""

TEXT_VR = ("PN", "LO", "SH", "ST", "LT", "UT", "DA", "DT", "AS")

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=SLIDES)
def job(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    slide = shared_data / "slides" / request.param
    return run_job(slide, tmp_path_factory.mktemp("job"), **SLIDES[request.param])


def level_zero(results: JobResults) -> pydicom.Dataset | None:
    """The instance that the job has seen, with all its headers; None where the slide is not DICOM."""
    path = Path(results.spec.slide_path)
    files = sorted(path.glob("*.dcm")) if path.is_dir() else [path] if path.suffix == ".dcm" else []
    for file in files:
        slide = pydicom.dcmread(file)
        if slide.TotalPixelMatrixColumns == results.slide.width_px0:
            return slide
    return None


def texts_of(job: JobResults) -> tuple[set[str], set[str]]:
    """What may go along of the slide's headers, and every other text in them that somebody could be known by."""
    elements = [element for element in level_zero(job).iterall() if element.VR in TEXT_VR]
    kept = {str(element.value) for element in elements if element.keyword in KEPT}
    texts = {str(e.value) for e in elements if e.keyword not in KEPT and not e.keyword.startswith("Cod")}
    return kept, {text for text in texts - {"Unknown"} if len(text) > 5}


def test_the_segmentation_is_the_overlay(job: JobResults, tmp_path: Path):
    write_dicom_seg(job, tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    expected = masks(job)
    assert expected.any() and np.array_equal(seg.get_total_pixel_matrix(combine_segments=False) > 0, expected)
    assert complaints(tmp_path / "seg.dcm") == []


def test_the_annotations_are_the_geojson(job: JobResults, tmp_path: Path):
    write_dicom_ann(job, tmp_path / "ann.dcm")
    assert assert_like_geojson(job, highdicom.ann.annread(tmp_path / "ann.dcm")) > 5
    assert complaints(tmp_path / "ann.dcm") == []


def test_both_name_the_slide_where_it_is_dicom(job: JobResults, tmp_path: Path):
    slide = level_zero(job)
    for name, write in (("seg", write_dicom_seg), ("ann", write_dicom_ann)):
        write(job, tmp_path / name)
        export = pydicom.dcmread(tmp_path / name)
        if slide is None:
            assert export.PatientID.startswith("SR-")
            continue
        assert export.StudyInstanceUID == slide.StudyInstanceUID
        (series,) = export.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == slide.SeriesInstanceUID
        (instance,) = series.ReferencedInstanceSequence
        assert instance.ReferencedSOPInstanceUID == slide.SOPInstanceUID
        assert export.PatientID.startswith("SR-") and export.PatientName == ""


@pytest.mark.parametrize("job", [CMU], indirect=True)  # the one that says where it lies
def test_the_mask_covers_the_slide_to_its_corners(job: JobResults, tmp_path: Path):
    slide = level_zero(job)
    write_dicom_seg(job, tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.FrameOfReferenceUID == slide.FrameOfReferenceUID
    on_slide = highdicom.spatial.PixelToReferenceTransformer.for_image(slide, for_total_pixel_matrix=True)
    on_mask = highdicom.spatial.PixelToReferenceTransformer.for_image(seg, for_total_pixel_matrix=True)
    corner = np.array([[0, 0], [slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows]])
    mask_corner = np.array([[0, 0], [seg.TotalPixelMatrixColumns, seg.TotalPixelMatrixRows]])
    # the last row and column of the overlay may reach a fraction of its pixel beyond the slide
    assert np.abs(on_slide(corner) - on_mask(mask_corner)).max() < job.plan.mpp / 1000


@pytest.mark.parametrize("job", [CMU, CAMELYON, BAD_FRAME], indirect=True)
def test_nothing_else_of_the_headers_goes_along(job: JobResults, tmp_path: Path):
    with pydicom.config.disable_value_validation():
        kept, texts = texts_of(job)
    assert len(texts) >= 2
    for name, write in (("seg", write_dicom_seg), ("ann", write_dicom_ann)):
        write(job, tmp_path / name)
        told = (tmp_path / name).read_bytes()
        for value in kept:
            told = told.replace(value.encode(), b"")
        assert [text for text in sorted(texts) if text.encode() in told] == []
        assert Path(job.spec.slide_path).name.encode() not in told


def test_a_frame_of_reference_that_is_no_uid_is_not_repeated(shared_data: Path, tmp_path: Path):
    results = run_job(shared_data / "slides" / BAD_FRAME, tmp_path / "job", **SLIDES[BAD_FRAME])
    with pydicom.config.disable_value_validation():
        assert not level_zero(results).FrameOfReferenceUID.is_valid
    write_dicom_seg(results, tmp_path / "seg.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").FrameOfReferenceUID.is_valid
