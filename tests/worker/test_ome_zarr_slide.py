"""OME-Zarr as a slide: both versions, folder and zip, with the right pixels and µm/px; and what is refused."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.made_slides import tissue_picture
from worker.errors import SlideUnreadable
from worker.slides import open_slide
from worker.zarr_head import is_picture

WIDTH, HEIGHT = 700, 500
PICTURE = tissue_picture(WIDTH, HEIGHT)
NESTED = {"name": "v2", "separator": "/"}
LEVELS = (PICTURE, PICTURE[::2, ::2], PICTURE[::4, ::4])


def write_picture(
    path: Path,
    version: str = "0.5",
    axes: str = "cyx",
    unit: str | None = "micrometer",
    mpp: float = 0.5,
    levels: tuple[np.ndarray, ...] = LEVELS,
    **packing: Any,
) -> Path:
    """One picture as NGFF wants it; `levels` are (H, W, 3)."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for number, level in enumerate(levels):
        values = level.transpose(2, 0, 1)
        values = values.reshape([values.shape["cyx".index(axis)] if axis in "cyx" else 1 for axis in axes])
        chunks = (1,) * (len(axes) - 2) + (128, 128)
        group.create_array(str(number), data=np.ascontiguousarray(values), chunks=chunks, **packing)
        scale = [mpp * 2**number if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in named:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    multiscales = [{"axes": named, "datasets": datasets, "name": "slide"}]
    ome = {"multiscales": multiscales, "version": version}
    group.attrs.update({"ome": ome} if version == "0.5" else {"multiscales": [{**multiscales[0], "version": version}]})
    return path


def pack(folder: Path, path: Path, inside: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    """A folder as a zip."""
    with zipfile.ZipFile(path, "w", method) as out:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                out.write(file, inside + str(file.relative_to(folder)))
    return path


def whole(path: Path, scale: int = 1) -> np.ndarray:
    """The slide at 1 / scale."""
    with open_slide(path) as slide:
        width, height = slide.info.width_px0, slide.info.height_px0
        return slide.read_px0(0, 0, width, height, width // scale, height // scale)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
def test_levels_pixels_and_resolution(tmp_path: Path, version: str, axes: str):
    path = write_picture(tmp_path / "slide.ome.zarr", version, axes)
    with open_slide(path) as slide:
        info = slide.info
    assert info.level_dimensions == ((700, 500), (350, 250), (175, 125))
    assert (info.mpp_x, info.mpp_y, info.mpp_source, info.vendor) == (0.5, 0.5, "ome.physical-size", "ome-zarr")
    np.testing.assert_array_equal(whole(path), PICTURE)
    np.testing.assert_array_equal(whole(path, 2), PICTURE[::2, ::2])
    assert is_picture(path)


@pytest.mark.parametrize(
    ("unit", "size", "mpp"),
    [("nanometer", 250.0, 0.25), ("millimeter", 0.001, 1.0), (None, 0.5, None), ("parsec", 0.5, None)],
)
def test_units(tmp_path: Path, unit: str | None, size: float, mpp: float | None):
    path = write_picture(tmp_path / "slide.zarr", unit=unit, mpp=size)
    with open_slide(path) as slide:
        assert slide.info.mpp_x == (None if mpp is None else pytest.approx(mpp))
    with open_slide(path, mpp_override=0.3) as slide:
        assert (slide.info.mpp_x, slide.info.mpp_source) == (0.3, "override")


def test_levels_that_stand_in_another_order_keep_their_own_scale(tmp_path: Path):
    path = write_picture(tmp_path / "slide.zarr")
    group = zarr.open_group(path)
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"].reverse()
    group.attrs["ome"] = ome
    with open_slide(path) as slide:
        assert (slide.info.level_dimensions[0], slide.info.mpp_x) == ((WIDTH, HEIGHT), 0.5)


@pytest.mark.parametrize(
    "packing",
    [
        {"version": "0.5", "shards": (1, 256, 256)},
        {"version": "0.4", "compressors": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}},
        {"version": "0.4", "compressors": {"id": "zlib", "level": 1}, "chunk_key_encoding": NESTED},
    ],
)
def test_ways_to_pack_chunks(tmp_path: Path, packing: dict[str, Any]):
    np.testing.assert_array_equal(whole(write_picture(tmp_path / "slide.zarr", **packing)), PICTURE)


def test_grey_and_alpha(tmp_path: Path):
    grey = write_picture(tmp_path / "grey.zarr", levels=(PICTURE[..., :1],))
    np.testing.assert_array_equal(whole(grey), np.repeat(PICTURE[..., :1], 3, axis=-1))
    clear = np.dstack([PICTURE, np.zeros_like(PICTURE[..., 0])])
    assert (whole(write_picture(tmp_path / "clear.zarr", levels=(clear,))) == 255).all()


@pytest.mark.parametrize("inside", ["", "slide.ome.zarr/", "a/b.zarr/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_one(tmp_path: Path, inside: str, method: int):
    folder = write_picture(tmp_path / "slide.zarr", shards=(1, 256, 256))
    np.testing.assert_array_equal(whole(pack(folder, tmp_path / "slide.ozx", inside, method)), PICTURE)


def test_of_bio_formats_pictures_the_largest_is_the_slide(tmp_path: Path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    write_picture(tmp_path / "s.zarr" / "0", "0.4", levels=(PICTURE[:90, :120],))
    write_picture(tmp_path / "s.zarr" / "1", "0.4", "tczyx")
    write_picture(tmp_path / "s.zarr" / "2", "0.4", levels=(PICTURE[:50, :60],))
    np.testing.assert_array_equal(whole(tmp_path / "s.zarr"), PICTURE)
    assert is_picture(tmp_path / "s.zarr")


def test_the_content_hash_follows_the_pixels(tmp_path: Path):
    one = open_slide(write_picture(tmp_path / "one.zarr")).info.content_hash
    again = open_slide(write_picture(tmp_path / "again.zarr")).info.content_hash
    changed = PICTURE.copy()
    changed[250, 350] ^= 255
    other = open_slide(write_picture(tmp_path / "other.zarr", levels=(changed, *LEVELS[1:]))).info.content_hash
    assert one == again != other


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"levels": (PICTURE.astype(np.uint16),)}, "uint16"),
            ({"levels": (PICTURE[..., :2],)}, "2 channels"),
            ({"axes": "cxy"}, "axes cxy"),
        ],
    )
    def test_what_is_no_brightfield_picture(self, tmp_path: Path, options: dict[str, Any], word: str):
        with pytest.raises(SlideUnreadable, match=f"{word}.*8-bit RGB"):
            open_slide(write_picture(tmp_path / "slide.zarr", **options))

    def test_several_planes(self, tmp_path: Path):
        path = write_picture(tmp_path / "slide.zarr", axes="tcyx")
        zarr.create_array(path / "0", shape=(2, 3, 500, 700), chunks=(1, 1, 128, 128), dtype="u1", overwrite=True)
        with pytest.raises(SlideUnreadable, match="one plane"):
            open_slide(path)

    def test_labels_are_no_picture(self, tmp_path: Path):
        path = write_picture(tmp_path / "labels.zarr", levels=(PICTURE[..., :1],))
        group = zarr.open_group(path)
        group.attrs["ome"] = {**group.attrs["ome"], "image-label": {}}
        with pytest.raises(SlideUnreadable, match="labels, no picture"):
            open_slide(path)
        assert not is_picture(path)

    def test_a_zarr_without_ome(self, tmp_path: Path):
        zarr.create_array(tmp_path / "a.zarr", shape=(10, 10), chunks=(5, 5), dtype="u1")
        with pytest.raises(SlideUnreadable, match="single Zarr array"):
            open_slide(tmp_path / "a.zarr")
        zarr.open_group(tmp_path / "g.zarr", mode="w")
        with pytest.raises(SlideUnreadable, match="no multiscales"):
            open_slide(tmp_path / "g.zarr")

    def test_a_zip_without_zarr(self, tmp_path: Path):
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.txt").write_text("a")
        with pytest.raises(SlideUnreadable, match="holds no OME-Zarr"):
            open_slide(pack(tmp_path / "text", tmp_path / "a.zip"))
        (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:40])
        with pytest.raises(SlideUnreadable, match="zip is broken"):
            open_slide(tmp_path / "b.zip")

    def test_a_codec_that_could_run_code(self, tmp_path: Path):
        path = write_picture(tmp_path / "slide.zarr", "0.4", filters=None)
        meta = json.loads((path / "0" / ".zarray").read_text())
        meta.update(compressor=None, filters=[{"id": "pickle", "protocol": 5}])
        (path / "0" / ".zarray").write_text(json.dumps(meta))
        ran = tmp_path / "ran"
        for chunk in (path / "0").rglob("*"):
            if chunk.is_file() and not chunk.name.startswith("."):
                chunk.write_bytes(pickle.dumps(_Touch(str(ran))))
        with pytest.raises(SlideUnreadable, match="pickle"):
            open_slide(path)
        assert not ran.exists()

    @pytest.mark.parametrize("codec", ["packbits", "bitround"])
    def test_a_codec_that_is_not_on_the_list(self, tmp_path: Path, codec: str):
        path = write_picture(tmp_path / "slide.zarr", "0.4", filters=None)
        meta = json.loads((path / "1" / ".zarray").read_text())
        meta["filters"] = [{"id": codec, "keepbits": 3} if codec == "bitround" else {"id": codec}]
        (path / "1" / ".zarray").write_text(json.dumps(meta))
        with pytest.raises(SlideUnreadable, match=f"packed by '{codec}'; read are .*zstd"):
            open_slide(path)

    @pytest.mark.parametrize("name", ["../outside.zarr/0", "/etc", "0/../../outside.zarr/0"])
    def test_levels_elsewhere(self, tmp_path: Path, name: str):
        write_picture(tmp_path / "outside.zarr")
        path = write_picture(tmp_path / "slide.zarr")
        group = zarr.open_group(path)
        ome = dict(group.attrs["ome"])
        ome["multiscales"][0]["datasets"][0]["path"] = name
        group.attrs["ome"] = ome
        with pytest.raises(SlideUnreadable) as refused:
            open_slide(path)
        assert str(tmp_path) not in str(refused.value)

    def test_links_that_lead_outside(self, tmp_path: Path):
        outside = write_picture(tmp_path / "outside.zarr")
        path = write_picture(tmp_path / "slide.zarr")
        chunk = path / "0" / "c" / "0" / "0" / "0"
        chunk.unlink()
        os.symlink(outside / "0" / "c" / "0" / "0" / "0", chunk)
        with pytest.raises(SlideUnreadable, match="link leads out"):
            whole(path)

    @pytest.mark.parametrize("damage", ["cut", "flipped", "no metadata", "metadata", "list"])
    def test_damage_fails_clearly_or_reads(self, tmp_path: Path, damage: str):
        path = write_picture(tmp_path / "slide.zarr")
        chunk = path / "0" / "c" / "0" / "1" / "1"
        if damage == "cut":
            chunk.write_bytes(chunk.read_bytes()[:20])
        elif damage == "flipped":
            chunk.write_bytes(bytes(255 - byte for byte in chunk.read_bytes()))
        elif damage == "no metadata":
            (path / "0" / "zarr.json").unlink()
        else:
            (path / "zarr.json").write_text("{" if damage == "metadata" else "[1]")
        with pytest.raises(SlideUnreadable) as refused:
            whole(path)
        assert refused.value.field in ("slide", None)
        assert str(tmp_path) not in str(refused.value)


def test_a_broken_chunk_costs_its_tiles_not_the_slide(tmp_path: Path):
    path = write_picture(tmp_path / "slide.zarr")
    (path / "0" / "c" / "0" / "0" / "0").write_bytes(b"broken")
    with open_slide(path) as slide:
        assert (slide.read_px0(300, 200, 64, 64, 64, 64) == PICTURE[200:264, 300:364]).all()
        with pytest.raises(SlideUnreadable, match=r"level 0, \(0, 0\)"):
            slide.read_px0(0, 0, 64, 64, 64, 64)


class _Touch:
    """Pickled so that reading it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
