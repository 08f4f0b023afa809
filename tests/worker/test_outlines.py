"""Outlines from files: GeoJSON, and mask pictures that become polygons without losing a pixel."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio.features
import shapely

from tests.worker.overlay_job import make_info
from worker.errors import BadRequest, TooLarge
from worker.outlines import outline_mask, read_mask, read_roi

INFO = make_info(300, 200)
SQUARE = [[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]


def blobs(width: int = 300, height: int = 200) -> np.ndarray:
    """Two discs, one with a hole."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (80, 90), 50, 1, -1)
    cv2.circle(mask, (80, 90), 20, 0, -1)
    cv2.circle(mask, (220, 120), 30, 1, -1)
    return mask > 0


def rasterised(polygons, shape) -> np.ndarray:
    shapes = [{"type": "Polygon", "coordinates": polygon} for polygon in polygons]
    return rasterio.features.rasterize(shapes, shape) > 0


def test_a_mask_becomes_polygons_and_the_same_mask_again():
    polygons = outline_mask(blobs())
    assert sorted(map(len, polygons)) == [1, 2], "a disc, and a disc with its hole"
    np.testing.assert_array_equal(rasterised(polygons, (200, 300)), blobs())


@pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.bmp"])
@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_picture_may_have_any_colour_but_black(tmp_path: Path, name: str, value: int):
    cv2.imwrite(str(tmp_path / name), blobs().astype(np.uint8) * value)
    assert read_mask(tmp_path / name, INFO) == outline_mask(blobs())
    colour = np.zeros((200, 300, 3), np.uint8)
    colour[blobs()] = (0, 0, value)
    cv2.imwrite(str(tmp_path / name), colour)
    assert read_mask(tmp_path / name, INFO) == outline_mask(blobs())


def test_geojson_keeps_its_holes(tmp_path: Path):
    hole = [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [SQUARE, hole]}))
    ((shell, inner),) = read_mask(tmp_path / "a.geojson", INFO)
    assert (len(shell), len(inner)) == (5, 5)
    assert len(read_roi(tmp_path / "a.geojson")) == 2, "a roi is cut through its hole"


def test_a_ragged_mask_is_smoothed_by_a_pixel():
    ragged = np.zeros((2000, 2000), np.uint8)
    cv2.circle(ragged, (1000, 1000), 900, 1, -1)
    noise = np.random.default_rng(0).random((2000, 2000)) < 0.02
    edge = cv2.dilate(ragged, np.ones((3, 3))) != cv2.erode(ragged, np.ones((3, 3)))
    mask = (ragged > 0) ^ (edge & noise)
    polygons = outline_mask(mask)
    assert sum(len(ring) for polygon in polygons for ring in polygon) <= 10_000
    found = rasterised(polygons, mask.shape)
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.995


def test_a_mask_of_dust_is_too_much():
    with pytest.raises(TooLarge, match="fewer, larger") as raised:
        outline_mask(np.random.default_rng(0).random((1000, 1000)) < 0.2)
    assert raised.value.field == "exemplar.mask"


def test_bad_files_are_named(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "small.png"), np.ones((10, 10), np.uint8))
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((200, 300), np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.geojson").write_text("no JSON")
    (tmp_path / "point.geojson").write_text(json.dumps({"type": "Point", "coordinates": [1, 2]}))
    says = {
        "small.png": "300 x 200", "black.png": "nothing is marked", "text.png": "no picture", "empty.png": "no picture",
        "missing.png": "No such file", "missing.geojson": "No such file", "text.geojson": "not JSON",
        "point.geojson": "Point",
    }  # fmt: skip
    for name, words in says.items():
        with pytest.raises(BadRequest, match=words) as raised:
            read_mask(tmp_path / name, INFO)
        assert raised.value.field == "exemplar.mask", name


def test_a_huge_slide_takes_no_mask_picture(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "mask.png"), blobs().astype(np.uint8))
    with pytest.raises(BadRequest, match="GeoJSON"):
        read_mask(tmp_path / "mask.png", make_info(100_000, 80_000))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_polygons_are_those_of_gdal(share: float):
    mask = np.random.default_rng(0).random((90, 140)) < share
    shapes = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    theirs = [shapely.Polygon(shell, holes) for shell, *holes in (shape["coordinates"] for shape, _ in shapes)]
    ours = [shapely.Polygon(shell, holes) for shell, *holes in outline_mask(mask, max_vertices=10**6)]
    assert sorted(shapely.normalize(ours).tolist(), key=str) == sorted(shapely.normalize(theirs).tolist(), key=str)
    assert all(shapely.is_valid(ours))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_the_darkest_of_colours_is_no_black(tmp_path: Path, name: str, channels: int, kind: type):
    picture = np.repeat(blobs()[..., None], channels, axis=2).astype(kind)
    cv2.imwrite(str(tmp_path / name), picture)
    assert read_mask(tmp_path / name, INFO) == outline_mask(blobs())
