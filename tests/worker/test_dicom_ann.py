"""The DICOM annotations are the outlines of the GeoJSON, one for one, with measurements and the regions' ids."""

import math
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import shapely
from pydicom.sr.codedict import codes

from tests.worker.overlay_job import discs, make_plan
from tests.worker.test_dicom_seg import (  # noqa: F401 - fixtures
    PLANTED,
    QUERIES,
    complaints,
    dicom_job,
    made_results,
    two,
)
from worker.colors import query_color
from worker.errors import JobConflict, SlideUnreadable, TooLarge
from worker.exports import dicom_ann
from worker.exports.dicom_ann import REGION_LABEL, write_dicom_ann
from worker.exports.geojson import write_geojson
from worker.exports.job_results import JobResults, no_slide
from worker.regions import region_uuid
from worker.types import Region

IDS = "Region ids, in the order of the annotations:"


def written(results: JobResults, path: Path) -> highdicom.ann.MicroscopyBulkSimpleAnnotations:
    write_dicom_ann(results, path)
    return highdicom.ann.annread(path)


def region_ids(group: highdicom.ann.AnnotationGroup) -> list[str]:
    """As a reader takes them from the description."""
    return str(group.AnnotationGroupDescription).partition(IDS)[2].split()


def measured(group: highdicom.ann.AnnotationGroup, name) -> np.ndarray:
    (_,), values, _ = group.get_measurements(name=name)
    return values[:, 0]


def assert_like_geojson(results: JobResults, annotations) -> int:
    """Compare every annotation with its feature; returns how many there were."""
    features = list(results.features())
    compared = 0
    for group in annotations.AnnotationGroupSequence:
        polygons = group.get_graphic_data("2D")
        ids, areas = region_ids(group), measured(group, codes.SCT.Area)
        certainties, labels = measured(group, codes.DCM.CertaintyOfFinding), measured(group, REGION_LABEL)
        assert len(polygons) == len(ids) == len(areas) == group.number_of_annotations
        for polygon, region_id, area, certainty, label in zip(polygons, ids, areas, certainties, labels, strict=True):
            feature = features[compared]
            assert feature["id"] == region_id
            outer = feature["geometry"]["coordinates"][0]
            assert polygon.tolist() == [list(point) for point in outer[:-1]]
            said = feature["properties"]["measurements"]
            assert math.isclose(area, said["Area µm^2"], rel_tol=1e-6)
            assert math.isclose(certainty, 100 * said["Confidence"], rel_tol=1e-6)
            assert label == feature["properties"]["metadata"]["label"]
            query_index = feature["properties"]["metadata"]["query_index"]
            assert region_uuid(results.job_id, query_index, int(label)) == region_id
            compared += 1
    assert compared == len(features)
    return compared


def test_every_polygon_is_its_features_outer_ring(two: JobResults, tmp_path: Path):  # noqa: F811
    annotations = written(two, tmp_path / "ann.dcm")
    assert annotations.AnnotationCoordinateType == "2D" and annotations.PixelOriginInterpretation == "VOLUME"
    assert assert_like_geojson(two, annotations) == 5


def test_a_query_is_a_group_that_says_what_it_is(two: JobResults, tmp_path: Path):  # noqa: F811
    annotations = written(two, tmp_path / "ann.dcm")
    assert [group.AnnotationGroupLabel for group in annotations.AnnotationGroupSequence] == list(QUERIES)
    assert [group.number_of_annotations for group in annotations.AnnotationGroupSequence] == [3, 2]
    for index, group in enumerate(annotations.AnnotationGroupSequence):
        described = str(group.AnnotationGroupDescription)
        assert QUERIES[index] in described and "holes cannot" in described and "Research use only" in described
        who = group.AnnotationGroupAlgorithmIdentificationSequence[0]
        assert who.AlgorithmName == "SlideReason" and two.report["model"]["revision"] in who.AlgorithmVersion
        shown = highdicom.color.CIELabColor.from_dicom_value(group.RecommendedDisplayCIELabValue).to_rgb()
        assert np.abs(np.subtract(shown, query_color(index))).max() <= 2
    uids = {group.AnnotationGroupUID for group in annotations.AnnotationGroupSequence}
    assert len(uids) == 2 and all(uid.startswith("2.25.") for uid in uids)


def test_the_same_results_give_the_same_bytes(two: JobResults, tmp_path: Path):  # noqa: F811
    for name in "ab":
        write_dicom_ann(two, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = written(replace(two, job_id="f" * 32), tmp_path / "c")
    assert other.SOPInstanceUID != pydicom.dcmread(tmp_path / "a").SOPInstanceUID


def test_a_hole_is_filled_and_its_area_left_out(dicom_job: JobResults, tmp_path: Path):  # noqa: F811
    annotations = written(dicom_job, tmp_path / "ann.dcm")
    assert assert_like_geojson(dicom_job, annotations) >= 2
    holed = [i for i, f in enumerate(dicom_job.features()) if len(f["geometry"]["coordinates"]) > 1]
    (group,) = annotations.AnnotationGroupSequence
    polygon = shapely.Polygon(group.get_graphic_data("2D")[holed[0]])
    px0_um2 = (dicom_job.plan.mpp / dicom_job.plan.scale_x) ** 2
    assert polygon.area * px0_um2 > 1.05 * measured(group, codes.SCT.Area)[holed[0]]


def test_a_dicom_slide_is_referenced(dicom_job: JobResults, tmp_path: Path):  # noqa: F811
    annotations = written(dicom_job, tmp_path / "ann.dcm")
    assert [item.ReferencedSOPInstanceUID for item in annotations.ReferencedImageSequence] == ["2.25.1001"]
    assert annotations.StudyInstanceUID == "2.25.1" and annotations.PatientID.startswith("SR-")
    told = (tmp_path / "ann.dcm").read_bytes()
    planted = [value for keyword, value in PLANTED.items() if keyword != "PatientSex"]
    assert [value for value in [*planted, "SecretOrgan", str(tmp_path)] if value.encode() in told] == []


def test_the_validator_finds_no_error(two: JobResults, dicom_job: JobResults, tmp_path: Path):  # noqa: F811
    for name, results in (("two", two), ("dicom", dicom_job)):
        write_dicom_ann(results, tmp_path / f"{name}.dcm")
        assert complaints(tmp_path / f"{name}.dcm") == []


def test_a_query_without_regions_has_no_group(tmp_path: Path):
    pictures = [discs(600, 600), discs(600, 600, (200, 200, 60))]
    annotations = written(made_results(tmp_path / "job", make_plan(600, 600), pictures), tmp_path / "ann.dcm")
    (group,) = annotations.AnnotationGroupSequence
    assert (group.AnnotationGroupNumber, group.AnnotationGroupLabel) == (1, QUERIES[1])


def test_a_job_without_regions_is_refused_by_name(tmp_path: Path):
    results = made_results(tmp_path / "job", make_plan(600, 600), [discs(600, 600)], ("tumour",))
    with pytest.raises(JobConflict, match="found no region") as caught:
        write_dicom_ann(results, tmp_path / "ann.dcm")
    assert caught.value.subject == results.job_id and not (tmp_path / "ann.dcm").exists()


def test_a_region_of_two_parts_is_two_polygons_that_share_its_area(two: JobResults, tmp_path: Path):  # noqa: F811
    parts = [shapely.box(0, 0, 30, 10), shapely.box(40, 0, 50, 10)]
    shape = shapely.geometry.mapping(shapely.MultiPolygon(parts))
    region = Region(region_uuid(two.job_id, 0, 1), 0, 1, shape, 100.0, 1, (0, 0, 50, 10), (20, 5), 0.5, None, "", {})
    (tmp_path / "report.json").write_bytes((two.folder / "report.json").read_bytes())
    write_geojson(tmp_path / "regions.geojson", [region], two.spec, two.job_id, two.slide)
    (group,) = written(replace(two, folder=tmp_path), tmp_path / "ann.dcm").AnnotationGroupSequence
    assert region_ids(group) == [region.region_id] * 2
    assert measured(group, codes.SCT.Area).tolist() == [75.0, 25.0]
    assert [
        shapely.Polygon(points).equals(part) for points, part in zip(group.get_graphic_data("2D"), parts, strict=True)
    ]


def test_what_cannot_be_written_is_an_error(two: JobResults, dicom_job, tmp_path: Path, monkeypatch):  # noqa: F811
    with pytest.raises(SlideUnreadable):
        write_dicom_ann(replace(dicom_job, open_slide=no_slide), tmp_path / "ann.dcm")
    monkeypatch.setattr(dicom_ann, "MAX_BYTES", 160)
    with pytest.raises(TooLarge, match="more than 10 points") as caught:
        write_dicom_ann(two, tmp_path / "ann.dcm")
    assert caught.value.field == "mpp" and not (tmp_path / "ann.dcm").exists()
