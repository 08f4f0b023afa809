"""GeoJSON as RFC 7946 and QuPath want it, of whole jobs: outlines give the overlay back, pixel by pixel."""

import json
import math
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio.features
import shapely
import zarr
from affine import Affine

from tests.jobs import hue_spec
from tests.leica_slide import write_leica
from tests.made_slides import tissue_picture
from tests.segmenters import hue_segmenter
from tests.worker.report_jobs import real_job, run_job
from worker.exports.geojson import write_geojson
from worker.exports.job_results import JobResults
from worker.pyramid import OVERLAY
from worker.slides import open_slide
from worker.types import JobSpec, Region

CORNER, SLIDE = (700, 500), (3000, 2400)
SPOT, RADIUS = (450, 400), 70
"""A purple disc in the scanned area, in level-0 pixels from the area's corner."""
QUPATH_TYPES = {"annotation", "detection", "cell", "tile", "tma_core"}


@pytest.fixture(scope="module")
def hue(tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    """Two questions to a made slide; one region has a hole."""
    return real_job(tmp_path_factory.mktemp("hue"))


@pytest.fixture(scope="module")
def leica(tmp_path_factory: pytest.TempPathFactory) -> JobResults:
    """A disc on a slide that OpenSlide gives bounds."""
    root = tmp_path_factory.mktemp("leica")
    picture = tissue_picture(1200, 900)
    cv2.circle(picture, SPOT, RADIUS, (95, 50, 140), -1)
    slide = write_leica(root / "slide.scn", picture, SLIDE, CORNER)
    return run_job(root, hue_spec(slide), hue_segmenter())


def collection(results: JobResults) -> dict[str, Any]:
    return json.loads((results.folder / "regions.geojson").read_text(encoding="utf-8"))


def polygons(geometry: dict[str, Any]) -> list[list]:
    return geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]


def broken_rules(feature: dict[str, Any]) -> Iterator[str]:
    """What of RFC 7946 (§3.1.6, §3.2) and of QuPath's reader a feature breaks."""
    if feature["type"] != "Feature" or feature["geometry"]["type"] not in ("Polygon", "MultiPolygon"):
        yield "not a Feature of a Polygon or MultiPolygon"
    if set(feature) & {"coordinates", "geometries", "features", "crs"}:
        yield "members that a Feature may not have"
    for rings in polygons(feature["geometry"]):
        for number, ring in enumerate(rings):
            if len(ring) < 4 or ring[0] != ring[-1]:
                yield "a ring that is not closed, or has fewer than four positions"
            if any(len(point) != 2 or not all(math.isfinite(value) for value in point) for point in ring):
                yield "a position that is not two finite numbers"
            if any(one == other for one, other in zip(ring, ring[1:], strict=False)):
                yield "a position twice in a row"
            if shapely.LinearRing(ring).is_ccw == bool(number):
                yield "an exterior ring that runs clockwise, or a hole that does not"
    if not shapely.geometry.shape(feature["geometry"]).is_valid:
        yield "an invalid geometry"
    properties = feature["properties"]
    if str(uuid.UUID(feature["id"])) != feature["id"]:
        yield "an id that is no UUID"
    if properties["objectType"] not in QUPATH_TYPES or type(properties["isLocked"]) is not bool:
        yield "an objectType or isLocked that QuPath does not know"
    for color in (properties["color"], properties["classification"]["color"]):
        if len(color) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in color):
            yield "a color that is not three numbers in 0 to 255"
    if not isinstance(properties["classification"]["name"], str) or not isinstance(properties["name"], str):
        yield "a name that is no text"
    if not all(type(v) in (int, float) and math.isfinite(v) for v in properties["measurements"].values()):
        yield "a measurement that is no finite number"
    if not all(isinstance(value, str | int | float) for value in properties["metadata"].values()):
        yield "metadata that is neither text nor number"


def painted(results: JobResults, query: int) -> np.ndarray:
    """(h, w) labels of the overlay, painted from the outlines alone."""
    plan = results.plan
    shapes = [
        (feature["geometry"], feature["properties"]["metadata"]["label"])
        for feature in collection(results)["features"]
        if feature["properties"]["metadata"]["query_index"] == query
    ]
    frame = Affine.scale(plan.scale_x, plan.scale_y)
    return rasterio.features.rasterize(shapes, (plan.height_px, plan.width_px), transform=frame, dtype=np.int32)


def labels(results: JobResults, query: int) -> np.ndarray:
    return np.asarray(zarr.open(results.folder / OVERLAY, mode="r")[f"labels/{query}/0"][:])


def assert_rules(results: JobResults) -> None:
    found = collection(results)
    assert found["type"] == "FeatureCollection" and "crs" not in found and found["features"]
    assert {rule for feature in found["features"] for rule in broken_rules(feature)} == set()
    assert len({feature["id"] for feature in found["features"]}) == len(found["features"])


def assert_same_pixels(results: JobResults) -> None:
    """Outlines paint the labels, and every area is that of the region's pixels within 0.1 %."""
    plan, features = results.plan, collection(results)["features"]
    for query in range(len(results.spec.queries)):
        there = labels(results, query)
        assert np.array_equal(painted(results, query), there)
        counts = np.bincount(there.ravel())
        own = [f for f in features if f["properties"]["metadata"]["query_index"] == query]
        assert len(own) == np.count_nonzero(counts[1:])
        for feature in own:
            pixels = int(counts[feature["properties"]["metadata"]["label"]])
            area_px = shapely.geometry.shape(feature["geometry"]).area / (plan.scale_x * plan.scale_y)
            assert area_px == pytest.approx(pixels, rel=1e-3)
            assert feature["properties"]["measurements"]["Area µm^2"] == pytest.approx(pixels * plan.mpp**2, rel=1e-3)


def test_every_rule_is_kept(hue: JobResults, leica: JobResults):
    assert_rules(hue)
    assert_rules(leica)


def test_a_broken_feature_is_noticed(hue: JobResults):
    text = json.dumps(collection(hue)["features"][0])
    for damage, rule in (
        (lambda f: f["geometry"]["coordinates"][0].pop(), "not closed"),
        (lambda f: f["geometry"]["coordinates"][0].reverse(), "clockwise"),
        (lambda f: f["geometry"]["coordinates"][0].insert(1, f["geometry"]["coordinates"][0][0]), "twice"),
        (lambda f: f["properties"].update(objectType="blob"), "objectType"),
        (lambda f: f["properties"]["measurements"].update(Area="7"), "measurement"),
    ):
        feature = json.loads(text)
        damage(feature)
        assert any(rule in said for said in broken_rules(feature))


def test_outlines_give_the_overlay_back(hue: JobResults, leica: JobResults):
    assert_same_pixels(hue)
    assert_same_pixels(leica)


def test_holes_are_kept(hue: JobResults):
    rings = [rings for feature in collection(hue)["features"] for rings in polygons(feature["geometry"])]
    assert sum(len(each) - 1 for each in rings) >= 1


def test_a_slide_with_bounds_lands_where_it_should(leica: JobResults, tmp_path: Path):
    assert leica.slide.vendor == "leica" and leica.slide.bounds_px0 == (*CORNER, 1200, 900)
    (feature,) = collection(leica)["features"]
    x, y = shapely.geometry.shape(feature["geometry"]).centroid.coords[0]
    assert (x, y) == pytest.approx((CORNER[0] + SPOT[0], CORNER[1] + SPOT[1]), abs=4)
    with open_slide(Path(leica.spec.slide_path)) as slide:
        red = slide.read_px0(x - 2, y - 2, 4, 4, 4, 4)[..., 0]
        assert red.max() < 130, "the disc is there"
        outside = slide.read_px0(x + 2 * RADIUS, y, 4, 4, 4, 4)[..., 0]
        assert outside.min() > 130, "and tissue is beside it"


def test_the_frame_of_bounds_starts_at_the_scanned_area(leica: JobResults, tmp_path: Path):
    (feature,) = collection(leica)["features"]
    x0, y0, x1, y1 = shapely.geometry.shape(feature["geometry"]).bounds
    region = Region(
        feature["id"], 0, 1, feature["geometry"], 1.0, 1.0, (x0, y0, x1, y1), (0.0, 0.0), 0.5, None, "", {}
    )  # fmt: skip
    path = tmp_path / "bounds.geojson"
    write_geojson(path, [region], leica.spec, leica.job_id, leica.slide, frame="bounds")
    (shifted,) = json.loads(path.read_text(encoding="utf-8"))["features"]
    assert set(broken_rules(shifted)) == set()
    assert shapely.geometry.shape(shifted["geometry"]).centroid.coords[0] == pytest.approx(SPOT, abs=4)


@pytest.mark.real
@pytest.mark.slow
def test_a_job_of_the_shipped_model_on_a_real_slide(shared_data: Path, tmp_path: Path):
    predictor = pytest.importorskip("model.predictor")
    slide = shared_data / "slides" / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.skip(f"{slide.name} is not there")
    spec = JobSpec(str(slide), slide.name, ("Where are the glands?",), mpp=2.0, threshold=0.3, model="tiny")
    results = run_job(tmp_path, replace(spec, overlap=0.25), predictor.load_segmenter("tiny", "cpu"))
    report = results.report
    assert report["stain"] is not None and report["model"]["stain"]["images"] > 0
    assert report["queries"][0]["tiles_checked"] == report["coverage"]["looked_at"]
    if report["regions"]:
        assert_rules(results)
    assert_same_pixels(results)
