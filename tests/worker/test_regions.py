"""Regions: exact polygons over block seams, one id, and the chain of the tile that made most of them."""

import uuid

import numpy as np
import pytest
import shapely

from tests.worker.overlay_job import JOB_ID, chain_of, discs, finish, make_plan, segment_blocks
from worker.regions import region_uuid, without_polygon
from worker.types import JobSpec

SPEC = JobSpec("slide", "slide", ("tumour", "fat"), min_region_um2=50.0)


def shape(region) -> shapely.Polygon:
    return shapely.geometry.shape(region.polygon_px0)


def ring(width_px: int, height_px: int, x: int, y: int, outer: int, inner: int) -> np.ndarray:
    picture = discs(width_px, height_px, (x, y, outer))
    picture[discs(width_px, height_px, (x, y, inner)) > 0] = 0
    return picture


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """A ring across four blocks, a small disc in one block, and a disc of another query."""
    plan = make_plan(1300, 900, scale=(2.0, 4.0))
    first = np.maximum(ring(1300, 900, 512, 512, 200, 100), discs(1300, 900, (1200, 100, 40), value=0.6))
    root = tmp_path_factory.mktemp("job")
    segment_blocks(root, plan, SPEC, [first, discs(1300, 900, (300, 300, 50))])
    return finish(root, plan, SPEC)[1]


def test_regions_come_by_query_and_label(regions):
    assert [(region.query_index, region.label) for region in regions] == [(0, 1), (0, 2), (1, 1)]


def test_ids_are_those_of_the_job(regions):
    expected = [str(uuid.uuid5(uuid.UUID(JOB_ID), name)) for name in ("0/1", "0/2", "1/1")]
    assert [region.region_id for region in regions] == expected
    assert region_uuid("not a uuid", 0, 1) == region_uuid("not a uuid", 0, 1) != region_uuid("another", 0, 1)


def test_areas_are_exact_over_the_seams_and_holes_are_kept(regions):
    area_px = int((ring(1300, 900, 512, 512, 200, 100) > 0).sum())
    polygon = shape(regions[1])
    assert regions[1].area_um2 == area_px
    assert polygon.geom_type == "Polygon" and polygon.is_valid and len(polygon.interiors) == 1
    # One overlay pixel is 2 x 4 level-0 pixels.
    assert polygon.area == area_px * 8


def test_joined_polygons_carry_no_points_of_the_seams(regions):
    corners = np.asarray(shape(regions[1]).exterior.coords)[:-1]
    before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
    a, b = corners - before, after - corners
    assert np.all(np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) > 0)


def test_measures_are_in_the_frames_they_name(regions):
    small = regions[0]
    assert small.bbox_px0 == (1160 * 2.0, 60 * 4.0, 1241 * 2.0, 141 * 4.0)
    assert small.centroid_px0 == pytest.approx((1200.5 * 2, 100.5 * 4), abs=0.1)
    # The outline is that of a disc, not of its pixels' stairs (which would be 8 r).
    assert small.perimeter_um == pytest.approx(2 * np.pi * 40.5, rel=0.03)
    assert small.confidence == pytest.approx(0.6, abs=0.002) and regions[1].confidence == pytest.approx(0.8, abs=0.002)


def test_the_chain_is_that_of_the_tile_with_the_largest_share(regions):
    small = regions[0]
    # Columns of 192: tile (0, 6) from 1152 holds the disc of 1160..1240 whole, tile (0, 5) only half of it.
    assert small.chain_tile["key"] == "0_6" and small.chain == chain_of("0_6")
    assert small.chain_tile["bbox_px0"] == (1152 * 2, 0, 1408 * 2, 256 * 4)
    assert small.support == ("0_5",)
    assert 0.5 < small.chain_tile["share"] < 1
    assert small.agreement == 0.8


def test_every_tile_that_made_a_region_over_four_blocks_is_named_once(regions):
    tiles = [regions[1].chain_tile["key"], *regions[1].support]
    assert len(tiles) == len(set(tiles)) >= 9
    assert regions[1].dissent == ()


def test_a_region_made_by_a_tile_of_the_next_block_has_its_chain(tmp_path):
    # Tile (0, 2) spans 384..640, and its centre, 512, lies in the second block; the disc lies left of it in the first.
    plan = make_plan(1024, 400)
    spec = JobSpec("slide", "slide", ("tumour",), min_region_um2=1.0)
    segment_blocks(tmp_path, plan, spec, [discs(1024, 400, (480, 100, 20))])
    (region,) = finish(tmp_path, plan, spec)[1]
    assert region.chain_tile["key"] == "0_2" and region.chain == chain_of("0_2")
    assert region.agreement is None and region.support == ()


def test_a_tile_that_saw_a_region_and_stayed_silent_dissents(tmp_path):
    plan = make_plan(900, 400)
    spec = JobSpec("slide", "slide", ("tumour",), min_region_um2=1.0)
    segment_blocks(tmp_path, plan, spec, [discs(900, 400, (220, 100, 30))], silent=("0_1",))
    (region,) = finish(tmp_path, plan, spec)[1]
    assert region.chain_tile["key"] == "0_0" and region.dissent == ("0_1",)
    assert region.chain_tile["share"] == 1.0


def test_a_hole_touching_the_outline_in_a_corner_is_a_valid_polygon(tmp_path):
    plan = make_plan(600, 600)
    spec = JobSpec("slide", "slide", ("tumour",), min_region_um2=1.0)
    picture = np.zeros((600, 600), np.float32)
    picture[100:103, 100:103] = 1
    picture[101, 101] = picture[100, 100] = 0
    segment_blocks(tmp_path, plan, spec, [picture])
    (region,) = finish(tmp_path, plan, spec)[1]
    assert shape(region).is_valid and shape(region).area == 7 * 4 and region.area_um2 == 7


def test_the_outline_stays_on_the_slide(tmp_path):
    # The overlay is 600 px of 2.5 level-0 pixels: its last column reaches over the slide of 1499 px.
    plan = make_plan(600, 600, scale=(2.498, 2.5))
    spec = JobSpec("slide", "slide", ("tumour",), min_region_um2=1.0)
    segment_blocks(tmp_path, plan, spec, [discs(600, 600, (590, 590, 30))])
    (region,) = finish(tmp_path, plan, spec)[1]
    assert shape(region).bounds[2] <= 1499 and shape(region).bounds[3] <= 1500


def test_a_light_copy_differs_only_in_its_outline(regions):
    light = without_polygon(regions[0])
    assert light.polygon_px0 == {} and light.region_id == regions[0].region_id and light.chain == regions[0].chain
