"""GeoJSON: what QuPath and everyone reads."""

import json

import pytest
import shapely

from tests.worker.overlay_job import JOB_ID, discs, finish, make_info, make_plan, segment_blocks
from worker.exports.geojson import region_feature, write_geojson
from worker.types import JobSpec

SPEC = JobSpec("/secret/path.svs", "slide", ("Where is the “tumour”?",), min_region_um2=50.0)
INFO = make_info(1200, 1200, bounds_px0=(100, 40, 1000, 1000))


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    root = tmp_path_factory.mktemp("job")
    plan = make_plan(600, 600)
    picture = discs(600, 600, (200, 200, 60), (500, 500, 30))
    picture[190:210, 190:210] = 0
    segment_blocks(root, plan, SPEC, [picture])
    return finish(root, plan, SPEC)[1]


def read(tmp_path, regions, **options) -> dict:
    path = tmp_path / "regions.geojson"
    assert write_geojson(path, iter(regions), SPEC, JOB_ID, INFO, **options) == len(regions)
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_collection_of_valid_polygons_with_holes(tmp_path, regions):
    collection = read(tmp_path, regions)
    assert collection["type"] == "FeatureCollection" and len(collection["features"]) == 2
    for feature, region in zip(collection["features"], regions, strict=True):
        polygon = shapely.geometry.shape(feature["geometry"])
        assert feature["geometry"]["type"] == "Polygon" and polygon.is_valid
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])
        assert polygon.area == region.area_um2 * 4
        assert polygon.exterior.is_ccw
    assert len(collection["features"][0]["geometry"]["coordinates"]) == 2


def test_a_feature_is_a_qupath_annotation(tmp_path, regions):
    feature = read(tmp_path, regions)["features"][0]
    assert set(feature) == {"type", "id", "geometry", "properties"}
    assert feature["id"] == regions[0].region_id
    properties = feature["properties"]
    assert properties["objectType"] == "annotation" and properties["isLocked"] is False
    assert properties["classification"] == {"name": SPEC.queries[0], "color": properties["color"]}
    assert all(isinstance(value, int | float) for value in properties["measurements"].values())
    assert properties["measurements"]["Area µm^2"] == regions[0].area_um2
    assert all(isinstance(value, str | int | float) for value in properties["metadata"].values())
    assert properties["metadata"]["chain"] == regions[0].chain and properties["metadata"]["job"] == JOB_ID


def test_the_frame_of_the_bounds_is_shifted(tmp_path, regions):
    plain = shapely.geometry.shape(read(tmp_path, regions)["features"][1]["geometry"])
    shifted_collection = read(tmp_path, regions, frame="bounds")
    shifted = shapely.geometry.shape(shifted_collection["features"][1]["geometry"])
    moved = [a - b for a, b in zip(plain.bounds, shifted.bounds, strict=True)]
    assert moved == [100, 40, 100, 40] and shifted_collection["slidereason"]["frame"] == "bounds"
    measured = shifted_collection["features"][1]["properties"]["measurements"]["Centroid X px"]
    assert measured == pytest.approx(regions[1].centroid_px0[0] - 100)


def test_an_unknown_frame_is_refused(tmp_path, regions):
    with pytest.raises(ValueError, match="level0 or bounds"):
        read(tmp_path, regions, frame="overlay")


def test_no_regions_are_an_empty_collection(tmp_path):
    assert read(tmp_path, [])["features"] == []


def test_regions_are_streamed_and_a_broken_stream_leaves_no_file(tmp_path, regions):
    def broken():
        yield regions[0]
        raise RuntimeError("the walk stopped")

    path = tmp_path / "regions.geojson"
    with pytest.raises(RuntimeError):
        write_geojson(path, broken(), SPEC, JOB_ID, INFO)
    assert not path.exists()


def test_neither_path_nor_anything_of_the_machine_is_told(tmp_path, regions):
    assert "secret" not in json.dumps(read(tmp_path, regions))
    assert region_feature(regions[0], SPEC, JOB_ID)["properties"]["metadata"]["use"] == "Research use only"
