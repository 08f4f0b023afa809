"""What kinds of files open as slides, with the right pixels and µm/px; and what is refused, and in which words."""

import io
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.made_slides import tissue_picture
from worker.errors import SlideUnreadable
from worker.slides import open_slide

WIDTH, HEIGHT = 700, 500
PICTURE = tissue_picture(WIDTH, HEIGHT)
GREY = np.ascontiguousarray(PICTURE[..., 0])


def write_ome(path: Path, unit: str | None = "µm", size: float = 0.5, label: str = "", **packing: object) -> Path:
    """An OME-TIFF as Bio-Formats writes it: smaller levels in SubIFDs, the size in the XML."""
    sizes = {} if unit is None else {"PhysicalSizeX": size, "PhysicalSizeY": size * 2}
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    packing = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", **packing}
    with tifffile.TiffWriter(path, ome=True) as writer:
        if label == "first":
            writer.write(PICTURE[:90, :120], photometric="rgb", metadata={"axes": "YXS", "Name": "label image"})
        writer.write(PICTURE, subifds=1, metadata={"axes": "YXS", **sizes, **units}, **packing)
        writer.write(np.ascontiguousarray(PICTURE[::2, ::2]), subfiletype=1, **packing)
        if label == "last":
            writer.write(PICTURE[:90, :120], photometric="rgb", metadata={"axes": "YXS", "Name": "macro image"})
    return path


def whole(path: Path) -> np.ndarray:
    """Level 0 of a slide."""
    with open_slide(path) as slide:
        width, height = slide.info.width_px0, slide.info.height_px0
        return slide.read_px0(0, 0, width, height, width, height)


class TestOmeTiff:
    @pytest.mark.parametrize(
        ("unit", "size"), [("µm", 0.5), ("\u03bcm", 0.5), ("nm", 500), ("mm", 0.0005), ("Å", 5000)]
    )
    def test_levels_and_physical_size_are_read(self, tmp_path: Path, unit: str, size: float):
        path = write_ome(tmp_path / "slide.ome.tif", unit, size)
        with open_slide(path) as slide:
            info = slide.info
            half = slide.read_px0(0, 0, WIDTH, HEIGHT, WIDTH // 2, HEIGHT // 2)
        assert info.level_dimensions == ((WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2))
        assert (info.mpp_x, info.mpp_y) == pytest.approx((0.5, 1.0))
        assert (info.mpp_source, info.vendor) == ("ome.physical-size", "ome-tiff")
        np.testing.assert_array_equal(whole(path), PICTURE)
        np.testing.assert_array_equal(half, PICTURE[::2, ::2])

    @pytest.mark.parametrize("unit", [None, "pixel", "reference frame"])
    def test_a_size_that_is_no_length_is_no_resolution(self, tmp_path: Path, unit: str | None):
        with open_slide(write_ome(tmp_path / "slide.ome.tif", unit)) as slide:
            assert (slide.info.mpp_x, slide.info.mpp_source) == (None, None)

    @pytest.mark.parametrize("label", ["first", "last"])
    def test_the_slide_is_found_beside_its_label(self, tmp_path: Path, label: str):
        path = write_ome(tmp_path / "slide.ome.tif", label=label)
        with open_slide(path) as slide:
            assert slide.info.mpp_x == pytest.approx(0.5)
        np.testing.assert_array_equal(whole(path), PICTURE)

    def test_jpeg_tiles_keep_their_colours(self, tmp_path: Path):
        got = whole(write_ome(tmp_path / "slide.ome.tif", compression="jpeg"))
        assert np.abs(got.astype(int) - PICTURE).mean() < 4

    def test_planes_of_one_colour_each(self, tmp_path: Path):
        planes = np.ascontiguousarray(PICTURE.transpose(2, 0, 1))
        path = tmp_path / "planar.ome.tif"
        tifffile.imwrite(path, planes, ome=True, photometric="rgb", tile=(128, 128), metadata={"axes": "SYX"})
        np.testing.assert_array_equal(whole(path), PICTURE)

    @pytest.mark.parametrize(
        ("pixels", "axes"),
        [
            (np.zeros((4, 256, 256), np.uint8), "CYX"),
            (np.zeros((2, 256, 256, 3), np.uint8), "ZYXS"),
            (np.zeros((256, 256, 3), np.uint16), "YXS"),
        ],
        ids=["fluorescence", "stack", "deep"],
    )
    def test_what_is_not_brightfield_is_refused(self, tmp_path: Path, pixels: np.ndarray, axes: str):
        path = tmp_path / "other.ome.tif"
        kind = "rgb" if axes.endswith("S") else "minisblack"
        tifffile.imwrite(path, pixels, ome=True, photometric=kind, tile=(128, 128), metadata={"axes": axes})
        with pytest.raises(SlideUnreadable, match="8-bit") as caught:
            open_slide(path)
        assert caught.value.field == "slide"

    def test_other_files_that_the_xml_names_stay_closed(self, tmp_path: Path):
        secret = np.full((256, 256, 3), 7, np.uint8)
        tifffile.imwrite(tmp_path / "secret.tif", secret, photometric="rgb", tile=(128, 128))
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            'DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeC="3" SizeZ="1" SizeT="1">'
            '<Channel ID="Channel:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1">'
            '<UUID FileName="secret.tif">urn:uuid:11111111-1111-1111-1111-111111111111</UUID></TiffData>'
            "</Pixels></Image></OME>"
        )
        path = tmp_path / "outer.ome.tif"
        own = np.full((256, 256, 3), 200, np.uint8)
        tifffile.imwrite(path, own, photometric="rgb", tile=(128, 128), description=xml, metadata=None)
        try:
            got = whole(path)
        except SlideUnreadable:
            return
        assert (got == 200).all()


class TestTiff:
    @pytest.mark.parametrize("tile", [None, (128, 128)], ids=["strips", "tiles"])
    @pytest.mark.parametrize("kind", ["big", "grey", "inverted", "palette", "rgba"])
    def test_colours_are_right(self, tmp_path: Path, kind: str, tile: tuple[int, int] | None):
        table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
        opaque = np.dstack([PICTURE, np.full_like(GREY, 255)])
        pixels, options, expected = {
            "big": (PICTURE, {"bigtiff": True, "photometric": "rgb"}, PICTURE),
            "grey": (GREY, {}, np.dstack([GREY] * 3)),
            "inverted": (GREY, {"photometric": "miniswhite"}, 255 - np.dstack([GREY] * 3)),
            "palette": (GREY, {"photometric": "palette", "colormap": table * 257}, table[:, GREY].transpose(1, 2, 0)),
            "rgba": (opaque, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, PICTURE),
        }[kind]
        tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=tile, **options)
        np.testing.assert_array_equal(whole(tmp_path / "slide.tif"), expected)

    @pytest.mark.parametrize("tile", [None, (128, 128)], ids=["strips", "tiles"])
    @pytest.mark.parametrize("kind", ["16 bits", "CMYK", "turned"])
    def test_what_would_look_wrong_is_refused(self, tmp_path: Path, kind: str, tile: tuple[int, int] | None):
        pixels, options, said = {
            "16 bits": (PICTURE.astype(np.uint16), {"photometric": "rgb"}, "uint16; 8-bit"),
            "CMYK": (np.dstack([PICTURE, GREY]), {"photometric": "separated"}, "SEPARATED; 8-bit"),
            "turned": (PICTURE, {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}, "orientation 6"),
        }[kind]
        tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=tile, **options)
        with pytest.raises(SlideUnreadable, match=said) as caught:
            open_slide(tmp_path / "slide.tif")
        assert caught.value.field == "slide"


class TestPictures:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    def test_a_turned_picture_is_set_upright(self, tmp_path: Path, suffix: str):
        exif = Image.Exif()
        exif[274] = 6
        options = {"quality": 98} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(PICTURE).save(tmp_path / f"photo.{suffix}", exif=exif, **options)
        got = whole(tmp_path / f"photo.{suffix}")
        assert np.abs(got.astype(int) - np.rot90(PICTURE, -1)).mean() < (4 if suffix == "jpg" else 0.01)

    @pytest.mark.parametrize("suffix", ["png", "webp"])
    def test_an_animation_is_refused(self, tmp_path: Path, suffix: str):
        frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(SlideUnreadable, match="animated; one still picture"):
            open_slide(tmp_path / f"moving.{suffix}")

    def test_deep_and_printed_colours_are_refused(self, tmp_path: Path):
        for name, pixels in (("rgb.png", PICTURE), ("grey.png", GREY)):
            (tmp_path / name).write_bytes(imagecodecs.png_encode(pixels.astype(np.uint16) * 257))
            with pytest.raises(SlideUnreadable, match="16-bit; one still picture of 8-bit"):
                open_slide(tmp_path / name)
        Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "print.jpg")
        with pytest.raises(SlideUnreadable, match="CMYK; one still picture of 8-bit"):
            open_slide(tmp_path / "print.jpg")

    def test_other_picture_formats_stay_closed(self, tmp_path: Path):
        Image.fromarray(PICTURE).save(tmp_path / "still.gif")
        with pytest.raises(SlideUnreadable, match="PNG, JPEG, WebP or BMP"):
            open_slide(tmp_path / "still.gif")


def encoded(kind: str) -> bytes:
    """The picture as a plain file."""
    out = io.BytesIO()
    Image.fromarray(PICTURE[:200, :300]).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["ome", "PNG", "JPEG", "WEBP", "BMP"])
def test_broken_files_open_or_fail_clearly(tmp_path: Path, kind: str):
    whole_file = write_ome(tmp_path / "whole.ome.tif").read_bytes() if kind == "ome" else encoded(kind)
    rng = np.random.default_rng(5)

    def cut(data: bytearray) -> bytearray:
        return data[: rng.integers(1, len(data))]

    def flip(data: bytearray) -> bytearray:
        # headers stand at either end
        for at in (rng.integers(0, 400, 3), rng.integers(0, len(data), 3), len(data) - 1 - rng.integers(0, 400, 2)):
            for index in at:
                data[index % len(data)] ^= 1 << int(rng.integers(8))
        return data

    harms: list[Callable[[bytearray], bytearray]] = [cut, flip]
    for number in range(24):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(harms[number % 2](bytearray(whole_file)))
        try:
            with open_slide(path) as slide:
                slide.thumbnail(64)
        except SlideUnreadable as error:
            assert str(tmp_path) not in str(error)
