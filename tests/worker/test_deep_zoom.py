"""Deep Zoom: how a slide is cut, what its tiles show, and the overlay's tiles upon them."""

import io
import time
from dataclasses import astuple
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.made_slides import tissue_picture, write_pyramid, write_sparse
from tests.worker.overlay_job import discs, finish, make_plan, segment_blocks
from worker.attempts import publish
from worker.deep_zoom import NAMESPACE, OVERLAP_PX, TILE_PX, USE, Zoom
from worker.errors import BadRequest, SlideNotFound
from worker.overlay_tiles import OverlayTiles, Shards
from worker.pyramid import OVERLAY, open_level
from worker.slide_tiles import SlideTiles
from worker.slides import open_slide
from worker.types import JobSpec

SIZES = st.integers(1, 200_000)


# How a slide is cut


@given(SIZES, SIZES)
def test_levels_go_from_the_slide_down_to_one_pixel(width: int, height: int):
    zoom = Zoom(width, height)
    assert zoom.size(zoom.top) == (width, height)
    assert zoom.size(0) == (1, 1)
    assert zoom.top == 0 or max(zoom.size(1)) == 2


@given(SIZES, st.data())
def test_tiles_share_their_overlap_and_cover_a_level(width: int, data: st.DataObject):
    zoom = Zoom(width, 300)
    level = data.draw(st.integers(0, zoom.top))
    cols, _ = zoom.tiles(level)
    col = data.draw(st.integers(0, cols - 1))
    frame = zoom.frame(level, col, 0)
    step = 2 ** (zoom.top - level)
    left, right = frame.x_px0 / step, frame.x_px0 / step + frame.width
    assert frame.step_px0 == step and left == int(left)
    assert left == (col * TILE_PX - OVERLAP_PX if col else 0)
    if col == cols - 1:
        assert right == zoom.size(level)[0]
    else:
        assert right == min((col + 1) * TILE_PX + OVERLAP_PX, zoom.size(level)[0])
        assert zoom.frame(level, col + 1, 0).x_px0 / step < right


@pytest.mark.parametrize(
    ("place", "field", "said"),
    [
        ((12, 0, 0), "level", "levels 0 to 11"),
        ((-1, 0, 0), "level", "levels 0 to 11"),
        ((11, 7, 0), "col", "7 columns and 5 rows"),
        ((11, 0, 5), "row", "7 columns and 5 rows"),
        ((0, 0, 1), "row", "1 columns and 1 rows"),
    ],
)
def test_a_tile_that_is_not_there_names_what_is(place: tuple[int, int, int], field: str, said: str):
    with pytest.raises(BadRequest, match=said) as caught:
        Zoom(1600, 1200).frame(*place)
    assert caught.value.field == field


def test_the_description_is_deep_zoom():
    text = Zoom(1600, 1200).descriptor("png")
    image = ElementTree.fromstring(text)
    assert image.tag == f"{{{NAMESPACE}}}Image"
    assert image.attrib == {"Format": "png", "Overlap": "1", "TileSize": "254"}
    assert image.find(f"{{{NAMESPACE}}}Size").attrib == {"Width": "1600", "Height": "1200"}
    assert USE in text


# What the tiles of a slide show


def raw_tile(tiles: SlideTiles, level: int, col: int, row: int) -> np.ndarray:
    """A tile before it is packed as JPEG."""
    frame = tiles._zoom.frame(level, col, row)
    steps = (frame.step_px0, frame.step_px0)
    return np.asarray(tiles._picture((frame.x_px0, frame.y_px0), steps, frame.width, frame.height))


def stitched(tiles: SlideTiles, level: int) -> np.ndarray:
    """A whole level, the overlap of each tile checked against what is there already."""
    width, height = tiles._zoom.size(level)
    out = np.zeros((height, width, 3), np.uint8)
    seen = np.zeros((height, width), bool)
    cols, rows = tiles._zoom.tiles(level)
    for row in range(rows):
        for col in range(cols):
            part = raw_tile(tiles, level, col, row)
            y, x = max(0, row * TILE_PX - OVERLAP_PX), max(0, col * TILE_PX - OVERLAP_PX)
            place = np.s_[y : y + part.shape[0], x : x + part.shape[1]]
            assert np.array_equal(out[place][seen[place]], part[seen[place]])
            out[place], seen[place] = part, True
    assert seen.all()
    return out


@pytest.mark.parametrize("below", [0, 1, 2, 3, 5])
def test_tiles_are_the_slide_and_leave_no_seam(pyramid_slide: Path, below: int):
    tiles = SlideTiles(str(pyramid_slide))
    found = stitched(tiles, tiles._zoom.top - below)
    height, width = found.shape[:2]
    with open_slide(pyramid_slide) as slide:
        expected = slide.read_px0(0, 0, width << below, height << below, width, height)
    inside = np.s_[: 1200 >> below, : 1600 >> below]  # beyond, the reader pads with white
    assert np.abs(found[inside].astype(int) - expected[inside]).max() <= 1


def test_a_fractional_level_is_placed_within_half_a_pixel(tmp_path: Path):
    # 3 to 1 between the levels: a step of 4 is cut from a level of 3
    picture = tissue_picture(1530, 1200)
    pages = [picture, np.asarray(Image.fromarray(picture).reduce(3))]
    path = tmp_path / "thirds.tif"
    with tifffile.TiffWriter(path) as writer:
        for index, page in enumerate(pages):
            packing = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None}
            writer.write(page, subfiletype=int(index > 0), **packing)
    tiles = SlideTiles(str(path))
    assert [source.factor[0] for source in tiles._levels] == [1.0, 3.0]
    found = stitched(tiles, tiles._zoom.top - 2).astype(float)
    with open_slide(path) as slide:
        height, width = found.shape[:2]
        wanted = slide.read_px0(0, 0, width * 4, height * 4, width, height).astype(float)
    here = error(found, wanted, 0, 0)
    assert here < 6
    assert all(here < error(found, wanted, dy, dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))


def error(found: np.ndarray, wanted: np.ndarray, dy: int, dx: int) -> float:
    """Mean difference of two pictures, one of them shifted."""
    return float(np.abs(np.roll(found, (dy, dx), (0, 1)) - wanted)[8:-8, 8:-8].mean())


def test_the_edge_goes_on_where_a_pixel_reaches_over_it(tmp_path: Path):
    picture = np.full((301, 517, 3), (90, 60, 140), np.uint8)
    tiles = SlideTiles(str(write_pyramid(tmp_path / "odd.tif", picture, levels=2, compression="zlib")))
    for level in range(tiles._zoom.top + 1):
        found = stitched(tiles, level)
        assert np.abs(found.astype(int) - (90, 60, 140)).max() <= 1, level


def test_a_tile_is_a_jpeg_that_says_what_it_may_be_used_for(pyramid_slide: Path):
    tiles = SlideTiles(str(pyramid_slide))
    image = Image.open(io.BytesIO(tiles.tile(11, 3, 2)))
    assert (image.format, image.size, image.info["comment"]) == ("JPEG", (256, 256), USE.encode())
    raw = raw_tile(tiles, 11, 3, 2)
    assert 0 < np.abs(np.asarray(image).astype(int) - raw).mean() < 6


def test_a_thumbnail_is_the_slide_in_its_proportions(pyramid_slide: Path):
    image = np.asarray(Image.open(io.BytesIO(SlideTiles(str(pyramid_slide)).thumbnail(300))))
    with open_slide(pyramid_slide) as slide:
        expected = slide.thumbnail(300)
    assert image.shape == expected.shape == (225, 300, 3)
    assert error(image.astype(float), expected.astype(float), 0, 0) < 4
    large = Image.open(io.BytesIO(SlideTiles(str(pyramid_slide)).thumbnail(5000)))
    assert large.size == (1600, 1200)


def test_a_huge_slide_without_coarse_levels_is_sampled(tmp_path: Path):
    path = write_sparse(tmp_path / "huge.tif", 60_000, ((20_000, 8_000, 40_000, 24_000),), levels=1)
    tiles = SlideTiles(str(path))
    began = time.monotonic()
    image = np.asarray(Image.open(io.BytesIO(tiles.tile(8, 0, 0)))).astype(int)  # 256 px0 a pixel
    assert time.monotonic() - began < 20
    stained = image[..., 1] < 180
    rows, cols = np.flatnonzero(stained.any(1)), np.flatnonzero(stained.any(0))
    found = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) * 256
    assert np.abs(found - (20_000, 8_000, 40_000, 24_000)).max() < 2 * 256 * 9  # within two of the sampled cells


def test_a_slide_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(SlideNotFound):
        SlideTiles(str(tmp_path / "none.tif"))


# The overlay's tiles


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JobSpec]:
    """A finished job of two queries on an overlay of 1700 x 1300 px, 2 level-0 pixels each."""
    root = tmp_path_factory.mktemp("job")
    spec = JobSpec("slide.tif", "slide", ("one", "two"), mpp=1.0, min_region_um2=10.0)
    plan = make_plan(1700, 1300, block_px=1024)
    pictures = [discs(1700, 1300, (400, 500, 200), (1100, 900, 150)), discs(1700, 1300, (500, 500, 150))]
    segment_blocks(root, plan, spec, pictures)
    finish(root, plan, spec)
    publish(root, "finish", 1)
    return root, spec


def layer(root: Path, name: str, level: int, **changes) -> dict:
    """A layer as the gateway describes it."""
    folder = root / OVERLAY / name / str(level)
    shards = {
        tuple(int(part) for part in path.relative_to(folder / "c").parts): path.read_bytes()
        for path in (folder / "c").rglob("*")
        if path.is_file()
    }
    described = {
        "metadata": (folder / "zarr.json").read_bytes(), "shards": shards, "factor": (2.0 * 2**level,) * 2,
        "least": 1, "color": (0, 185, 90), "alpha": 128,
    }  # fmt: skip
    return described | changes


def painted(frame, *layers: dict) -> np.ndarray:
    image = Image.open(io.BytesIO(OverlayTiles().paint(astuple(frame), layers)))
    assert (image.format, image.mode, image.info["Comment"]) == ("PNG", "RGBA", USE)
    return np.asarray(image)


@pytest.mark.parametrize("name", ["labels/0", "labels/1", "probability/0"])
def test_shards_are_read_as_zarr_reads_them(job: tuple[Path, JobSpec], name: str):
    root = job[0]
    group = zarr.open_group(root / OVERLAY, mode="r")
    for level in range(3):
        described = layer(root, name, level)
        array = Shards(described["metadata"], described["shards"])
        wanted = group[f"{name}/{level}"][:]
        assert (array.height, array.width) == wanted.shape
        assert wanted.any()
        for top, left, bottom, right in ((0, 0, *wanted.shape), (101, 77, wanted.shape[0], 300), (5, 5, 6, 6)):
            assert np.array_equal(array.read(top, left, bottom, right), wanted[top:bottom, left:right])


def test_another_packing_is_refused(job: tuple[Path, JobSpec]):
    described = layer(job[0], "labels/0", 0)
    with pytest.raises(ValueError, match="zstd"):
        Shards(described["metadata"].replace(b'"zstd"', b'"gzip"'), {})


@pytest.mark.parametrize("below", [0, 1, 2, 4])
def test_a_tile_lies_on_the_labels_it_shows(job: tuple[Path, JobSpec], below: int):
    zoom, index = Zoom(3400, 2600), max(0, below - 1)
    labels = open_level(job[0] / OVERLAY, "labels/0", min(index, 2))[:]
    cols, rows = zoom.tiles(zoom.top - below)
    for col, row in {(0, 0), (cols // 4, rows // 3), (cols - 1, rows - 1)}:
        frame = zoom.frame(zoom.top - below, col, row)
        found = painted(frame, layer(job[0], "labels/0", min(index, 2)))
        factor = 2 * 2 ** min(index, 2)
        ys = ((frame.y_px0 + (np.arange(frame.height) + 0.5) * frame.step_px0) // factor).astype(int)
        xs = ((frame.x_px0 + (np.arange(frame.width) + 0.5) * frame.step_px0) // factor).astype(int)
        inside = labels[np.ix_(ys.clip(max=labels.shape[0] - 1), xs.clip(max=labels.shape[1] - 1))] > 0
        assert np.array_equal(found[..., 3] > 0, inside)
        assert (found[inside] == (0, 185, 90, 128)).all() and (found[~inside] == 0).all()


def test_two_queries_are_laid_one_over_the_other(job: tuple[Path, JobSpec]):
    frame = Zoom(3400, 2600).frame(12, 3, 3)
    red, blue = {"color": (200, 0, 0), "alpha": 255}, {"color": (0, 0, 200), "alpha": 51}
    found = painted(frame, layer(job[0], "labels/0", 0, **red), layer(job[0], "labels/1", 0, **blue))
    pixels = {tuple(int(value) for value in pixel) for pixel in found.reshape(-1, 4)}
    assert {(200, 0, 0, 255), (160, 0, 40, 255)} <= pixels


def test_a_threshold_shows_what_is_probable_enough(job: tuple[Path, JobSpec]):
    frame = Zoom(3400, 2600).frame(10, 0, 0)
    probability = layer(job[0], "probability/0", 0)
    assert painted(frame, probability | {"least": 0.79 * 255})[..., 3].any()
    assert not painted(frame, probability | {"least": 0.81 * 255})[..., 3].any()


def test_where_nothing_is_stored_a_tile_is_empty(job: tuple[Path, JobSpec]):
    frame = Zoom(3400, 2600).frame(12, 3, 3)
    assert not painted(frame, layer(job[0], "labels/0", 0, shards={})).any()
    assert not painted(frame).any()
