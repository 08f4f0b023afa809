"""The DICOM Segmentation is the overlay, lies on the slide, tells nothing of the patient, and is the same each time."""

import shutil
import subprocess
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
import simplejpeg
import zarr
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from benchmarks.dicom_memory import LIMIT_MB, export_in_child, make_results
from tests.jobs import hue_spec
from tests.made_slides import tissue_picture
from tests.segmenters import hue_segmenter
from tests.worker.overlay_job import JOB_ID, discs, finish, make_info, make_plan, segment_blocks
from worker.attempts import publish, read_records
from worker.colors import query_color
from worker.errors import SlideUnreadable, TooLarge
from worker.exports import dicom_seg
from worker.exports.dicom_ann import write_dicom_ann
from worker.exports.dicom_seg import write_dicom_seg
from worker.exports.dicom_source import line, read_source
from worker.exports.geojson import write_geojson
from worker.exports.job_results import JobResults
from worker.inline import run_job_inline
from worker.job_slide import open_unchanged
from worker.plan import plan_tiles
from worker.report import build_report, write_report_json
from worker.slides import open_slide
from worker.tissue import find_tissue
from worker.types import JobSpec

FINISHED = datetime(2026, 11, 26, 10, 11, 12, 345678, tzinfo=UTC)
QUERIES = ("tumour", "Wo ist die Schleimhaut – ü?")
PLANTED = {
    "PatientName": "Secret^Name", "PatientBirthDate": "19510203", "PatientSex": "F", "PatientAge": "074Y",
    "AccessionNumber": "ACC-SECRET", "StudyID": "STUDY-SECRET", "StudyDate": "20190817", "StudyTime": "131415",
    "ReferringPhysicianName": "Secret^Doctor", "InstitutionName": "Secret Hospital", "StudyDescription": "SecretStudy",
    "SeriesDescription": "SecretSeries", "BarcodeValue": "BAR-SECRET", "LabelText": "LabelSecret",
    "OtherPatientIDs": "OTHER-SECRET", "PatientComments": "SecretComment", "DeviceSerialNumber": "SERIAL-SECRET",
}  # fmt: skip


def made_results(root: Path, plan, pictures: list[np.ndarray], queries=QUERIES) -> JobResults:
    """A job finished from pictures of probabilities, with all that an export reads."""
    spec = JobSpec("nowhere.tif", "slide", queries, min_region_um2=50.0)
    info = make_info(round(plan.width_px * plan.scale_x), round(plan.height_px * plan.scale_y))
    segment_blocks(root, plan, spec, pictures)
    folder, regions = finish(root, plan, spec)
    write_geojson(folder / "regions.geojson", iter(regions), spec, JOB_ID, info)
    records = read_records(root, plan)
    report = build_report(JOB_ID, spec, plan, info, regions, records, asdict(hue_segmenter().card))
    write_report_json(folder / "report.json", report)
    publish(root, "finish", 1)
    return JobResults(JOB_ID, spec, plan, info, FINISHED, root)


def run_job(slide: Path, out: Path, **changes) -> JobResults:
    """A real job on a slide, and its results."""
    spec = hue_spec(slide, **changes)
    job = run_job_inline(spec, out, hue_segmenter()).job
    with open_slide(slide, spec.mpp_override) as opened:
        plan = plan_tiles(opened.info, spec, find_tissue(opened.thumbnail(2048)), 256, 1.0)
        opener = partial(open_unchanged, spec, opened.info)
        return JobResults(job.job_id, spec, plan, opened.info, FINISHED, out, opener)


def moved(results: JobResults, path: Path) -> JobResults:
    """The same results, with the slide at another place and as it is found there."""
    spec = replace(results.spec, slide_path=str(path))
    with open_slide(path) as opened:
        return replace(results, spec=spec, slide=opened.info, open_slide=partial(open_unchanged, spec, opened.info))


def write_dicom_slide(path: Path, picture: np.ndarray, **changes) -> Path:
    """A picture as a DICOM whole slide image, 0.5 µm/px, with a patient's data planted wherever there may be some."""
    slide, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID = "2.25.1001"
    slide.SOPClassUID, slide.Modality = VLWholeSlideMicroscopyImageStorage, "SM"
    slide.StudyInstanceUID, slide.SeriesInstanceUID, slide.FrameOfReferenceUID = "2.25.1", "2.25.10", "2.25.7"
    for keyword, value in PLANTED.items():
        setattr(slide, keyword, value)
    slide.PatientID, slide.ContainerIdentifier = "PID-7", "GLASS-7"
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "BLOCK-7", "2.25.77"
    specimen.SpecimenShortDescription, specimen.SpecimenPreparationSequence = "SecretOrgan", []
    slide.SpecimenDescriptionSequence = [specimen]
    slide.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType, slide.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1
    slide.Rows = slide.Columns = 256
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = picture.shape[:2]
    slide.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.5", "40.25"
    slide.TotalPixelMatrixOriginSequence = [origin]
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.002
    shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "YBR_FULL_422", 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit, slide.PixelRepresentation = 8, 8, 7, 0
    slide.LossyImageCompression, slide.LossyImageCompressionRatio = "01", "10"
    slide.LossyImageCompressionMethod = "ISO_10918_1"
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, -height % 256), (0, -width % 256), (0, 0)), mode="edge")
    tiles = [padded[y : y + 256, x : x + 256] for y in range(0, height, 256) for x in range(0, width, 256)]
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=90) for tile in tiles]
    slide.NumberOfFrames, slide.PixelData = len(tiles), encapsulate(encoded)
    for keyword, value in changes.items():
        setattr(slide, keyword, value)
    slide.file_meta = meta
    pydicom.dcmwrite(path, slide, enforce_file_format=True)
    return path


def masks(results: JobResults) -> np.ndarray:
    """(H, W, queries) bool: where the overlay's label is not 0."""
    labels = [
        zarr.open_array(str(results.overlay / f"labels/{i}/0"), mode="r") for i in range(len(results.spec.queries))
    ]
    return np.stack([label[...] > 0 for label in labels], axis=-1)


def written(results: JobResults, path: Path) -> highdicom.seg.Segmentation:
    write_dicom_seg(results, path)
    return highdicom.seg.segread(path)


def complaints(path: Path) -> list[str]:
    """What David Clunie's validator calls an error."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed; it comes with dicom3tools")
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    assert "Segmentation" in said.stdout + said.stderr or "Annotations" in said.stdout + said.stderr
    # This one it says of every two-dimensional annotation, whether the attribute is there or not
    known = "CommonZCoordinateValue(006a,0010)> - Only valid for"
    return [text for text in (said.stdout + said.stderr).splitlines() if text.startswith("Error") and known not in text]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> JobResults:
    """Two queries that overlap, over 3 x 2 tiles of which the last row and column are cut; one tile holds nothing."""
    pictures = [
        discs(1300, 900, (300, 300, 120), (700, 250, 40), (1250, 880, 45)),
        discs(1300, 900, (340, 320, 90), (511, 700, 30)),
    ]
    return made_results(tmp_path_factory.mktemp("two"), make_plan(1300, 900, block_px=512), pictures)


@pytest.fixture(scope="module")
def dicom_job(tmp_path_factory) -> JobResults:
    folder = tmp_path_factory.mktemp("dicom")
    (folder / "slide").mkdir()
    picture = tissue_picture(1400, 1000)
    for x, y, radius in ((700, 500, 90), (560, 420, 40)):
        cv2.circle(picture, (x, y), radius, (70, 40, 110), -1)
    cv2.circle(picture, (700, 500), 40, (205, 120, 170), -1)
    write_dicom_slide(folder / "slide" / "level0.dcm", picture)
    (folder / "slide" / "notes.txt").write_text("no DICOM")
    return run_job(folder / "slide", folder / "out")


def test_every_pixel_of_every_query_is_the_overlays(two: JobResults, tmp_path: Path):
    found = written(two, tmp_path / "seg.dcm").get_total_pixel_matrix(combine_segments=False)
    expected = masks(two)
    assert found.shape == expected.shape == (900, 1300, 2)
    assert expected[..., 0].any() and (expected[..., 0] & expected[..., 1]).any()
    assert np.array_equal(found > 0, expected)


def test_only_tiles_that_hold_something_are_frames(two: JobResults, tmp_path: Path):
    seg = written(two, tmp_path / "seg.dcm")
    padded = np.pad(masks(two), ((0, 124), (0, 236), (0, 0)))
    busy = padded.reshape(2, 512, 3, 512, 2).any(axis=(1, 3))
    places = [
        (
            item.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1,
            (item.PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix - 1) // 512,
            (item.PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix - 1) // 512,
        )
        for item in seg.PerFrameFunctionalGroupsSequence
    ]
    assert places == [tuple(place) for place in np.argwhere(busy.transpose(2, 0, 1))]
    assert seg.NumberOfFrames == len(places) < busy.size
    assert len(seg.PixelData) == len(places) * 512 * 512 // 8
    assert (seg.DimensionOrganizationType, seg.SegmentationType) == ("TILED_SPARSE", "BINARY")


def test_it_says_who_made_it_and_that_it_is_for_research(two: JobResults, tmp_path: Path):
    seg = written(two, tmp_path / "seg.dcm")
    revision = two.report["model"]["revision"]
    for index, segment in enumerate(seg.SegmentSequence):
        who = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert who.AlgorithmName == "SlideReason" and revision in who.AlgorithmVersion
        assert revision in str(who.AlgorithmParameters) and "threshold" in str(who.AlgorithmParameters)
        assert segment.SegmentLabel == QUERIES[index] and "Research use only" in segment.SegmentDescription
        shown = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        assert np.abs(np.subtract(shown, query_color(index))).max() <= 2
    assert "Research use only" in seg.SeriesDescription and "Research use only" in seg.ContentDescription
    assert (seg.ContentDate, seg.ContentTime) == ("20261126", "101112.345678")


def test_the_same_results_give_the_same_bytes_and_another_job_other_uids(two: JobResults, tmp_path: Path):
    write_dicom_seg(two, tmp_path / "a.dcm")
    write_dicom_seg(two, tmp_path / "b.dcm")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    first, other = pydicom.dcmread(tmp_path / "a.dcm"), written(replace(two, job_id="f" * 32), tmp_path / "c.dcm")
    assert first.SOPInstanceUID != other.SOPInstanceUID and first.SeriesInstanceUID != other.SeriesInstanceUID
    assert first.StudyInstanceUID == other.StudyInstanceUID and first.FrameOfReferenceUID == other.FrameOfReferenceUID


def test_a_slide_that_is_no_dicom_has_a_frame_and_a_patient_of_its_own(two: JobResults, tmp_path: Path):
    seg = written(two, tmp_path / "seg.dcm")
    assert "ReferencedSeriesSequence" not in seg and "SourceImageSequence" not in seg
    assert seg.PatientID.startswith("SR-") and seg.PatientName == "" and "slide" not in seg.PatientID
    assert seg.FrameOfReferenceUID.startswith("2.25.")
    assert [float(v) for v in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing] == [
        0.001
    ] * 2
    corner = highdicom.spatial.PixelToReferenceTransformer.for_image(seg, for_total_pixel_matrix=True)
    assert corner(np.array([[0, 0]])).tolist() == [[0.9, 1.3, 0.0]]
    assert np.allclose(corner(np.array([[1300, 900]])), 0)


def test_frames_stand_where_highdicom_would_put_them(two: JobResults, tmp_path: Path):
    seg = written(two, tmp_path / "seg.dcm")
    expected = highdicom.spatial.PixelToReferenceTransformer.for_image(seg, for_total_pixel_matrix=True)
    for item in seg.PerFrameFunctionalGroupsSequence:
        place = item.PlanePositionSlideSequence[0]
        pixel = [place.ColumnPositionInTotalImagePixelMatrix - 1, place.RowPositionInTotalImagePixelMatrix - 1]
        offsets = [float(place.get(f"{axis}OffsetInSlideCoordinateSystem")) for axis in "XYZ"]
        assert np.allclose(expected(np.array([pixel]))[0], offsets, atol=1e-6)
        row = item.FrameContentSequence[0].DimensionIndexValues
        assert list(row[1:]) == [pixel[1] // 512 + 1, pixel[0] // 512 + 1]


def test_a_job_that_found_nothing_is_one_empty_frame(tmp_path: Path):
    results = made_results(tmp_path / "job", make_plan(600, 600), [discs(600, 600)], ("tumour",))
    seg = written(results, tmp_path / "seg.dcm")
    assert seg.NumberOfFrames == 1 and not any(seg.PixelData)
    assert not seg.get_total_pixel_matrix(combine_segments=True).any()
    assert complaints(tmp_path / "seg.dcm") == []


def test_a_dicom_slide_is_referenced_and_lain_on(dicom_job: JobResults, tmp_path: Path):
    seg = written(dicom_job, tmp_path / "seg.dcm")
    found, expected = seg.get_total_pixel_matrix(combine_segments=True), masks(dicom_job)[..., 0]
    assert expected.any() and np.array_equal(found > 0, expected)
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "2.25.10"
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == ["2.25.1001"]
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("2.25.1", "2.25.7")
    told = str(seg)
    assert "GLASS-7" not in told and "PID-7" not in told and "BLOCK-7" not in told and seg.PatientID.startswith("SR-")
    assert seg.SpecimenDescriptionSequence[0].SpecimenUID == "2.25.77"
    slide = read_source(dicom_job).image
    ours, theirs = (
        highdicom.spatial.PixelToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
        for image in (seg, pydicom.dcmread(dicom_job.spec.slide_path + "/level0.dcm"))
    )
    scale = np.array([dicom_job.plan.scale_x, dicom_job.plan.scale_y])
    points = np.array([[0, 0], [100, 0], [0, 100], [700, 500]])
    assert np.allclose(ours(points), theirs((points * scale).astype(int)), atol=1e-6)
    assert slide.TotalPixelMatrixColumns == 1400


def test_nothing_of_the_patient_goes_along(dicom_job: JobResults, tmp_path: Path):
    write_dicom_seg(dicom_job, tmp_path / "seg.dcm")
    told = (tmp_path / "seg.dcm").read_bytes()
    values = [value for keyword, value in PLANTED.items() if keyword != "PatientSex"]
    assert [value for value in [*values, "SecretOrgan", str(tmp_path), "level0"] if value.encode() in told] == []
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientSex == ""


def test_the_validator_finds_no_error(two: JobResults, dicom_job: JobResults, tmp_path: Path):
    for name, results in (("two", two), ("dicom", dicom_job)):
        write_dicom_seg(results, tmp_path / f"{name}.dcm")
        assert complaints(tmp_path / f"{name}.dcm") == []


def test_a_dicom_slide_that_is_gone_or_changed_is_said(dicom_job: JobResults, tmp_path: Path):
    path = write_dicom_slide(tmp_path / "slide.dcm", tissue_picture(1400, 1000))
    results = moved(dicom_job, path)
    write_dicom_slide(path, tissue_picture(1400, 1000, seed=5))
    with pytest.raises(SlideUnreadable, match="changed") as changed:
        write_dicom_seg(results, tmp_path / "seg.dcm")
    path.unlink()
    with pytest.raises(SlideUnreadable, match="no longer|gone") as gone:
        write_dicom_seg(results, tmp_path / "seg.dcm")
    for error in (changed.value, gone.value):
        assert (error.field, error.subject) == ("slide", dicom_job.job_id)
        assert str(tmp_path) not in str(error) and not (tmp_path / "seg.dcm").exists()


def test_a_file_of_the_series_stands_for_it_and_its_level_zero_is_named(dicom_job: JobResults, tmp_path: Path):
    picture = tissue_picture(1400, 1000)
    write_dicom_slide(tmp_path / "a.dcm", picture)
    small = write_dicom_slide(tmp_path / "b.dcm", picture[::4, ::4].copy(), SOPInstanceUID="2.25.1002")
    write_dicom_slide(tmp_path / "c.dcm", picture, SeriesInstanceUID="2.25.11", SOPInstanceUID="2.25.1003")
    results = moved(dicom_job, small)
    assert results.slide.width_px0 == 1400
    assert read_source(results).image.SOPInstanceUID == "2.25.1001"


@pytest.mark.parametrize(
    "broken",
    [
        {"StudyInstanceUID": "no.uid"},
        {"ImageOrientationSlide": [0, 1]},
        {"SharedFunctionalGroupsSequence": None, "ImageOrientationSlide": ["nan"] * 6},
    ],
)
def test_broken_headers_are_an_error_of_the_slide(dicom_job: JobResults, tmp_path: Path, broken: dict):
    with pydicom.config.disable_value_validation():
        path = write_dicom_slide(tmp_path / "slide.dcm", tissue_picture(1400, 1000), **broken)
    with pytest.raises(SlideUnreadable, match="headers of the slide are broken") as caught:
        read_source(moved(dicom_job, path))
    assert caught.value.field == "slide" and str(tmp_path) not in str(caught.value)


def test_a_frame_of_reference_that_is_no_uid_is_not_repeated(dicom_job: JobResults, tmp_path: Path):
    with pydicom.config.disable_value_validation():
        path = write_dicom_slide(tmp_path / "s.dcm", tissue_picture(1400, 1000), FrameOfReferenceUID="1.2." + "3" * 70)
    source = read_source(moved(dicom_job, path))
    assert source.exists and source.image.FrameOfReferenceUID.startswith("2.25.")


def test_deflated_headers_are_never_inflated(dicom_job: JobResults, tmp_path: Path):
    for path in (tmp_path / "slide" / "plain.dcm", tmp_path / "slide" / "deflated.dcm"):
        path.parent.mkdir(exist_ok=True)
        slide = pydicom.dcmread(Path(dicom_job.spec.slide_path) / "level0.dcm")
        if path.stem == "deflated":
            slide.file_meta.TransferSyntaxUID, slide.SOPInstanceUID = DeflatedExplicitVRLittleEndian, "2.25.1000"
            del slide.PixelData
        pydicom.dcmwrite(path, slide)
    assert read_source(moved(dicom_job, tmp_path / "slide")).image.SOPInstanceUID == "2.25.1001"


def test_more_than_an_object_can_hold_is_refused(two: JobResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dicom_seg, "MAX_BYTES", 2 * 512 * 512 // 8)
    with pytest.raises(TooLarge, match="more than 2 tiles") as caught:
        write_dicom_seg(two, tmp_path / "seg.dcm")
    assert caught.value.field == "mpp"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slide(tmp_path: Path):
    results = make_results(tmp_path / "job", side_px=24_576, every=8)  # its mask alone would take 604 MB
    for write in (write_dicom_seg, write_dicom_ann):
        _, peak_mb, _ = export_in_child(write, results, tmp_path / "export.dcm")
        assert peak_mb < LIMIT_MB
    annotations = highdicom.ann.annread(tmp_path / "export.dcm")
    assert annotations.AnnotationGroupSequence[0].number_of_annotations > 1000


def test_long_and_strange_questions_become_one_line():
    assert line("a\\b\nc\td") == "a b c d"
    assert line("ü" * 64) == "ü" * 64 and line("ü" * 65) == "ü" * 63 + "…"
