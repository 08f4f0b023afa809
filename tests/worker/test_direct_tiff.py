"""The fast path gives the same pixels as OpenSlide, or stands aside."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.made_slides import tissue_picture, write_pyramid
from worker.direct_tiff import RGB, YCBCR, DirectTiff, open_direct_tiff
from worker.errors import SlideUnreadable
from worker.slide_readers import OpenSlideReader

PACKINGS = {
    "jpeg-420": {"compression": "jpeg", "photometric": "rgb", "subsampling": (2, 2)},
    "jpeg-422": {"compression": "jpeg", "photometric": "rgb", "subsampling": (2, 1)},
    "jpeg-444": {"compression": "jpeg", "photometric": "rgb", "subsampling": (1, 1)},
    "jpeg-rgb": {"compression": "jpeg", "photometric": "rgb", "compressionargs": {"outcolorspace": "rgb"}},
    "raw": {"compression": None, "photometric": "rgb"},
    "deflate": {"compression": "zlib", "photometric": "rgb"},
    "deflate-predictor": {"compression": "zlib", "photometric": "rgb", "predictor": True},
    "lzw": {"compression": "lzw", "photometric": "rgb"},
    "lzw-predictor": {"compression": "lzw", "photometric": "rgb", "predictor": True},
}


def assert_same_pixels(direct: DirectTiff, reader: OpenSlideReader, seed: int = 0, reads: int = 12) -> None:
    rng = np.random.default_rng(seed)
    for level, (width, height) in enumerate(reader.level_dimensions):
        if not direct.serves(level):
            continue
        frames = [(0, 0, min(width, 600), min(height, 600)), (width - 1, height - 1, 1, 1)]
        for _ in range(reads):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            frames.append(
                (x, y, int(rng.integers(1, min(700, width - x) + 1)), int(rng.integers(1, min(700, height - y) + 1)))
            )
        for x, y, w, h in frames:
            if reader.whole_position(level, x, y) != (x, y):
                continue
            mine, theirs = direct.read_level(level, x, y, w, h), reader.read_level(level, x, y, w, h)
            np.testing.assert_array_equal(mine, theirs, err_msg=f"level {level} at {(x, y, w, h)}")


@pytest.mark.parametrize("name", PACKINGS)
def test_made_tiffs_are_identical_to_openslide(name: str, tmp_path: Path):
    # 1000 x 776: the last tiles hang over the edge, and the halves stay whole numbers
    path = write_pyramid(
        tmp_path / "slide.tif", tissue_picture(1000, 776), tile=240 if "jpeg" in name else 256, **PACKINGS[name]
    )
    reader = OpenSlideReader(path)
    direct = open_direct_tiff(path, reader)
    try:
        assert [direct.serves(level) for level in range(3)] == [True] * 3
        assert direct._levels[0].photometric == (YCBCR if name in ("jpeg-420", "jpeg-422", "jpeg-444") else RGB)
        assert_same_pixels(direct, reader)
    finally:
        direct.close()
        reader.close()


def test_absent_tiles_are_white_as_in_openslide(sparse_slide: Path):
    reader = OpenSlideReader(sparse_slide)
    direct = open_direct_tiff(sparse_slide, reader)
    try:
        assert direct.serves(0)
        for frame in (
            (39_800, 39_800, 700, 700),
            (0, 0, 300, 300),
            (43_900, 41_000, 700, 90),
            (99_900, 99_900, 100, 100),
        ):
            np.testing.assert_array_equal(direct.read_level(0, *frame), reader.read_level(0, *frame))
        assert (direct.read_level(0, 0, 0, 9, 9) == 255).all()
        assert (direct.read_level(0, 41_000, 41_000, 9, 9) < 255).any()
    finally:
        direct.close()
        reader.close()


def test_threads_read_the_same_as_one(pyramid_slide: Path):
    reader = OpenSlideReader(pyramid_slide)
    direct = open_direct_tiff(pyramid_slide, reader)
    try:
        whole = direct.read_level(0, 0, 0, 1600, 1200)
        frames = [(x, y, 300, 300) for x in range(0, 1300, 130) for y in range(0, 900, 130)]
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda frame: direct.read_level(0, *frame), frames))
        for (x, y, w, h), part in zip(frames, parts, strict=True):
            np.testing.assert_array_equal(part, whole[y : y + h, x : x + w])
    finally:
        direct.close()
        reader.close()


def test_what_it_cannot_read_is_left_to_openslide(tmp_path: Path):
    grey = write_pyramid(
        tmp_path / "grey.tif", tissue_picture(512, 512)[..., 0], compression="zlib", photometric="minisblack"
    )
    reader = OpenSlideReader(grey)
    assert open_direct_tiff(grey, reader) is None
    reader.close()


def test_two_pages_of_one_size_are_not_guessed_between(tmp_path: Path):
    path = tmp_path / "twins.tif"
    with tifffile.TiffWriter(path) as writer:
        for seed in (1, 2):
            writer.write(tissue_picture(512, 512, seed), tile=(256, 256), compression="zlib", photometric="rgb")
    reader = OpenSlideReader(path)
    direct = open_direct_tiff(path, reader)
    assert direct is None or not direct.serves(0)
    reader.close()


def test_a_tile_cut_off_is_an_error_that_leaves_the_others_readable(tmp_path: Path):
    # the directory comes first in a file written this way, so that a truncated copy still opens
    whole = write_pyramid(tmp_path / "whole.tif", tissue_picture(1024, 1024), levels=1)
    reader = OpenSlideReader(whole)
    direct = open_direct_tiff(whole, reader)
    cut = tmp_path / "cut.tif"
    layout = direct._levels[0]
    cut.write_bytes(whole.read_bytes()[: layout.offsets[-1] + 5])
    broken = DirectTiff(cut, dict(direct._levels))
    with pytest.raises(SlideUnreadable, match="tile 15"):
        broken.read_level(0, 1000, 1000, 10, 10)
    np.testing.assert_array_equal(broken.read_level(0, 0, 0, 300, 300), direct.read_level(0, 0, 0, 300, 300))
    for one in (direct, broken, reader):
        one.close()


def test_the_cache_stays_within_its_bound(pyramid_slide: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.direct_tiff.CACHE_BYTES", 3 * 256 * 256 * 3)
    reader = OpenSlideReader(pyramid_slide)
    direct = open_direct_tiff(pyramid_slide, reader)
    direct.read_level(0, 0, 0, 1600, 1200)
    assert len(direct._cache) == 3
    assert direct._cached_bytes == 3 * 256 * 256 * 3
    direct.close()
    reader.close()
