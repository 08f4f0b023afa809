"""One slide interface over every format: frames, levels, resolution, and files that are no slides."""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.made_slides import tissue_picture, write_pyramid
from worker.errors import BadRequest, SlideNotFound, SlideUnreadable
from worker.slide_readers import OpenSlideReader, halve
from worker.slides import Slide, open_slide


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_a_pyramid_says_what_it_is(pyramid_slide: Path):
    with open_slide(pyramid_slide) as slide:
        info = slide.info
    assert (info.width_px0, info.height_px0) == (1600, 1200)
    assert info.level_dimensions == ((1600, 1200), (800, 600), (400, 300))
    assert info.level_downsamples == (1.0, 2.0, 4.0)
    assert (info.mpp_x, info.mpp_y) == pytest.approx((0.5, 0.5))
    assert info.mpp_source == "openslide.mpp"
    assert info.vendor == "generic-tiff"
    assert len(info.content_hash) == 64


def test_whole_frames_are_the_stored_pixels(tmp_path: Path):
    picture = tissue_picture(700, 500)
    path = write_pyramid(tmp_path / "exact.tif", picture, levels=1, compression="zlib", photometric="rgb")
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_px0(0, 0, 700, 500, 700, 500), picture)
        np.testing.assert_array_equal(slide.read_px0(13, 57, 300, 200, 300, 200), picture[57:257, 13:313])


def test_outside_the_slide_is_white(tmp_path: Path):
    picture = np.full((300, 400, 3), 90, np.uint8)
    path = write_pyramid(tmp_path / "flat.tif", picture, levels=1, compression="zlib", photometric="rgb")
    with open_slide(path) as slide:
        got = slide.read_px0(-100, -50, 600, 400, 600, 400)
        assert (got[50:350, 100:500] == 90).all()
        got[50:350, 100:500] = 255
        assert (got == 255).all()
        assert (slide.read_px0(5000, 5000, 100, 100, 10, 10) == 255).all()
        # half of the frame's last column lies outside: half white
        assert slide.read_px0(398, 0, 4, 4, 1, 1)[0, 0, 0] == pytest.approx((90 + 255) / 2, abs=1)


@pytest.mark.parametrize("step", [1.0, 1.7, 2.0, 2.004, 4.0, 9.5])
def test_tiles_of_one_grid_agree_where_they_overlap(pyramid_slide: Path, step: float):
    with open_slide(pyramid_slide) as slide:
        left = slide.read_px0(100 * step, 40 * step, 64 * step, 64 * step, 64, 64).astype(int)
        right = slide.read_px0(116 * step, 56 * step, 64 * step, 64 * step, 64, 64).astype(int)
        bound = 1 if step < 8 else 12
        assert np.abs(left[16:, 16:] - right[:48, :48]).max() <= bound


def test_a_coarser_read_comes_from_the_nearest_finer_level(tmp_path: Path):
    # each level has a colour of its own
    path = tmp_path / "levels.tif"
    with tifffile.TiffWriter(path) as writer:
        for level, value in enumerate((40, 120, 200)):
            flat = np.full((1024 >> level, 1024 >> level, 3), value, np.uint8)
            writer.write(flat, tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=int(level > 0))
    with open_slide(path) as slide:
        for step, value in [(0.5, 40), (1, 40), (1.9, 40), (2, 120), (3.9, 120), (4, 200), (30, 200)]:
            got = slide.read_px0(64, 64, 8 * step, 8 * step, 8, 8)
            assert (got == value).all(), step


def test_x_and_y_may_be_reduced_differently(pyramid_slide: Path):
    with open_slide(pyramid_slide) as slide:
        got = slide.read_px0(0, 0, 1600, 1200, 400, 600)
        full = slide.read_px0(0, 0, 1600, 1200, 1600, 1200).astype(float)
    mean = full.reshape(600, 2, 400, 4, 3).mean((1, 3))
    # read from level 1, which is JPEG-packed once more
    assert got.shape == (600, 400, 3)
    assert np.abs(got - mean).mean() < 3


def test_large_frames_are_read_in_pieces_without_seams(pyramid_slide: Path, monkeypatch: pytest.MonkeyPatch):
    with open_slide(pyramid_slide) as slide:
        whole = slide.read_px0(-30, -20, 1660, 1240, 613, 458)
        monkeypatch.setattr("worker.slides.PIECE_PX", 50_000)
        pieces = slide.read_px0(-30, -20, 1660, 1240, 613, 458)
    assert np.abs(whole.astype(int) - pieces).max() <= 1


def test_a_thumbnail_shows_the_whole_slide_and_never_grows(pyramid_slide: Path):
    with open_slide(pyramid_slide) as slide:
        small = slide.thumbnail(320)
        assert small.shape == (240, 320, 3)
        assert slide.thumbnail(9999).shape == (1200, 1600, 3)
        assert small[120, 160].mean() < 220 < small[2, 2].mean()


def test_a_huge_slide_without_a_pyramid_is_sampled(pyramid_slide: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.slides.WHOLE_READ_PX", 200_000)
    with open_slide(pyramid_slide) as slide:
        exact = slide.read_px0(0, 0, 1600, 1200, 800, 600).astype(int)
        sampled = slide.thumbnail(800)
        assert sampled.shape == (600, 800, 3)
        # what is tissue in one is tissue in the other, but for the rim
        assert ((exact.mean(2) < 225) == (sampled.mean(2) < 225)).mean() > 0.7


def test_threads_share_a_slide(pyramid_slide: Path):
    with open_slide(pyramid_slide) as slide:
        frames = [(x, y, 200.5, 200.5, 100, 100) for x in range(-50, 1500, 170) for y in range(-50, 1100, 170)]
        alone = [slide.read_px0(*frame) for frame in frames]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda frame: slide.read_px0(*frame), frames))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("size", [(0, 5, 1, 1), (5, -1, 1, 1), (5, 5, 0, 1)])
def test_an_empty_frame_is_refused(pyramid_slide: Path, size):
    with open_slide(pyramid_slide) as slide, pytest.raises(BadRequest):
        slide.read_px0(0, 0, *size)


class TestResolution:
    def test_x_and_y_are_kept_apart(self, tmp_path: Path):
        path = write_pyramid(tmp_path / "s.tif", tissue_picture(512, 512), mpp=(0.25, 0.5))
        with open_slide(path) as slide:
            assert (slide.info.mpp_x, slide.info.mpp_y) == pytest.approx((0.25, 0.5))

    def test_an_override_wins(self, pyramid_slide: Path):
        with open_slide(pyramid_slide, mpp_override=0.31) as slide:
            assert (slide.info.mpp_x, slide.info.mpp_y, slide.info.mpp_source) == (0.31, 0.31, "override")

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e6])
    def test_an_impossible_override_is_refused(self, pyramid_slide: Path, value: float):
        with pytest.raises(BadRequest) as caught:
            open_slide(pyramid_slide, mpp_override=value)
        assert caught.value.field == "mpp_override"

    def test_without_any_it_is_unknown(self, tmp_path: Path):
        with open_slide(write_pyramid(tmp_path / "s.tif", tissue_picture(512, 512), mpp=None)) as slide:
            assert (slide.info.mpp_x, slide.info.mpp_y, slide.info.mpp_source) == (None, None, None)

    def test_a_printers_dpi_is_no_resolution(self, tmp_path: Path):
        path = write_pyramid(tmp_path / "s.tif", tissue_picture(512, 512), mpp=25400 / 72)
        with open_slide(path) as slide:
            assert slide.info.mpp_x is None

    def test_a_striped_tiff_says_it_by_its_tags(self, tmp_path: Path):
        path = tmp_path / "striped.tif"
        tifffile.imwrite(
            path, tissue_picture(300, 200), resolution=(20_000, 20_000), resolutionunit="CENTIMETER", photometric="rgb"
        )
        with open_slide(path) as slide:
            assert (slide.info.mpp_x, slide.info.mpp_source) == (pytest.approx(0.5), "tiff.resolution")

    def test_the_objective_is_the_last_resort(self, tmp_path: Path):
        path = tmp_path / "aperio.svs"
        tifffile.imwrite(
            path,
            tissue_picture(512, 512),
            tile=(256, 256),
            photometric="rgb",
            description="Aperio Image Library v1\r\n512x512 [0,0 512x512] (256x256) |AppMag = 40|Patient = Jane Roe",
            metadata=None,
        )
        with open_slide(path) as slide:
            assert (slide.info.mpp_x, slide.info.mpp_source) == (0.25, "objective-power")
            assert slide.info.objective_power == 40
            assert "Jane" not in repr(slide.info)


class TestPictures:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
    def test_plain_pictures_are_read(self, tmp_path: Path, suffix: str):
        picture = tissue_picture(224, 200)
        Image.fromarray(picture).save(tmp_path / f"photo.{suffix}", **({"quality": 98} if suffix == "jpg" else {}))
        with open_slide(tmp_path / f"photo.{suffix}", mpp_override=0.5) as slide:
            got = slide.read_px0(0, 0, 224, 200, 224, 200)
            assert slide.info.level_dimensions == ((224, 200),)
        assert np.abs(got.astype(int) - picture).mean() < (4 if suffix == "jpg" else 0.01)

    def test_grey_becomes_rgb_and_transparency_white(self, tmp_path: Path):
        Image.fromarray(np.full((80, 90), 60, np.uint8)).save(tmp_path / "grey.png")
        rgba = np.zeros((80, 90, 4), np.uint8)
        rgba[:, 45:] = (10, 20, 30, 255)
        Image.fromarray(rgba).save(tmp_path / "alpha.png")
        with open_slide(tmp_path / "grey.png") as slide:
            assert (slide.thumbnail(100) == 60).all()
        with open_slide(tmp_path / "alpha.png") as slide:
            got = slide.thumbnail(100)
        assert (got[:, :45] == 255).all()
        assert (got[:, 45:] == (10, 20, 30)).all()

    def test_a_large_picture_gets_levels(self, tmp_path: Path):
        Image.fromarray(tissue_picture(4100, 900)).save(tmp_path / "wide.png")
        with open_slide(tmp_path / "wide.png") as slide:
            assert slide.info.level_dimensions == ((4100, 900), (2050, 450), (1025, 225))
            assert slide.thumbnail(256).shape == (56, 256, 3)

    def test_striped_grey_tiff(self, tmp_path: Path):
        tifffile.imwrite(tmp_path / "grey.tif", np.full((120, 130), 70, np.uint8))
        with open_slide(tmp_path / "grey.tif") as slide:
            assert (slide.thumbnail(200) == 70).all()


class TestNoSlides:
    def test_nothing_there(self, tmp_path: Path):
        with pytest.raises(SlideNotFound) as caught:
            open_slide(tmp_path / "gone.svs")
        assert caught.value.field == "slide"
        assert str(tmp_path) not in str(caught.value)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"just some words\n" * 50,
            b"\0" * 5000,
            b"II*\0" + b"\xff" * 200,
            b"MM\0*\0\0\0\x08" + b"\0" * 100,
            b"\0" * 128 + b"DICM" + b"\x01" * 500,
            b"\xff\xd8\xff\xe0" + b"\0" * 300,
            png_header(60_000, 60_000),
            png_header(64, 64),
            os.urandom(4096),
        ],
        ids=[
            "empty",
            "text",
            "zeros",
            "tiff-junk",
            "tiff-loop",
            "dicom-junk",
            "jpeg-junk",
            "bomb",
            "short-png",
            "noise",
        ],
    )
    def test_files_that_are_no_slides(self, tmp_path: Path, content: bytes):
        path = tmp_path / "slide.svs"
        path.write_bytes(content)
        with pytest.raises(SlideUnreadable) as caught:
            open_slide(path)
        assert caught.value.field == "slide"
        assert str(tmp_path) not in str(caught.value)

    def test_a_tiff_that_claims_more_than_memory(self, tmp_path: Path):
        path = tmp_path / "bomb.tif"
        # one strip of 100,000 x 100,000 px that is never written
        with tifffile.TiffWriter(path, bigtiff=True) as writer:
            writer.write(
                iter([b"\0" * 64]),
                shape=(100_000, 100_000, 3),
                dtype=np.uint8,
                photometric="rgb",
                compression="zlib",
                rowsperstrip=100_000,
            )
        with pytest.raises(SlideUnreadable):
            open_slide(path)

    def test_sixteen_bit_says_what_is_read(self, tmp_path: Path):
        tifffile.imwrite(tmp_path / "deep.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
        with pytest.raises(SlideUnreadable, match="8-bit"):
            open_slide(tmp_path / "deep.tif")

    def test_a_folder_without_dicom(self, tmp_path: Path):
        (tmp_path / "notes.txt").write_text("nothing")
        with pytest.raises(SlideUnreadable, match="DICOM"):
            open_slide(tmp_path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path):
        os.mkfifo(tmp_path / "pipe.svs")
        with pytest.raises(SlideUnreadable):
            open_slide(tmp_path / "pipe.svs")

    def test_a_truncated_slide_fails_where_it_ends_and_nowhere_else(self, tmp_path: Path):
        whole = write_pyramid(tmp_path / "whole.tif", tissue_picture(2048, 2048), levels=1, compression="jpeg")
        cut = tmp_path / "cut.tif"
        cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
        with open_slide(whole) as reference, open_slide(cut) as slide:
            with pytest.raises(SlideUnreadable):
                slide.read_px0(1800, 1800, 200, 200, 200, 200)
            for _ in range(2):
                got = slide.read_px0(100, 100, 200, 200, 200, 200)
                np.testing.assert_array_equal(got, reference.read_px0(100, 100, 200, 200, 200, 200))

    def test_an_openslide_handle_recovers_from_a_broken_read(self, tmp_path: Path):
        path = write_pyramid(tmp_path / "slide.tif", tissue_picture(1024, 1024))
        with tifffile.TiffFile(path) as tiff:
            last, count = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
        with path.open("r+b") as stream:
            stream.seek(last)
            stream.write(b"\0" * count)
        reader = OpenSlideReader(path)
        with pytest.raises(SlideUnreadable):
            reader.read_level(0, 800, 800, 200, 200)
        assert reader.read_level(0, 100, 100, 200, 200).shape == (200, 200, 3)
        reader.close()


def test_the_content_hash_follows_the_content_not_the_name(tmp_path: Path, pyramid_slide: Path):
    (tmp_path / "renamed.tif").write_bytes(pyramid_slide.read_bytes())
    other = write_pyramid(tmp_path / "other.tif", tissue_picture(1600, 1200, seed=1))

    def content(path: Path) -> str:
        with open_slide(path) as slide:
            return slide.info.content_hash

    assert content(tmp_path / "renamed.tif") == content(pyramid_slide) != content(other)


def test_a_closed_slide_fails_and_does_not_crash(pyramid_slide: Path):
    slide: Slide = open_slide(pyramid_slide)
    slide.close()
    slide.close()
    with pytest.raises(Exception):  # noqa: B017 - whatever the format's library raises
        slide.read_px0(0, 0, 100, 100, 100, 100)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (301, 512), (1001, 777)])
def test_pictures_are_halved_as_opencv_does(height: int, width: int):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    even = picture[: height // 2 * 2, : width // 2 * 2]
    wanted = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(halve(picture), wanted)
