"""OME-Zarr as a slide: versions 0.4 (Zarr v2) and 0.5 (Zarr v3), in a folder or in one zip; what NGFF lets it mean.

A Zarr may come from a client, so its metadata choose nothing that runs: only well-known codecs decode, and nothing is
read through a link that leads out of the folder. Source: https://ngff.openmicroscopy.org/0.5/
"""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.errors import ContainsArrayError
from zarr.storage import LocalStore, ZipStore

from worker.errors import SlideUnreadable
from worker.slide_readers import MAX_PLAIN_PX, reason, to_rgb
from worker.zarr_head import MARKS, ome_of

ACCEPTED = "one plane of 8-bit RGB, RGBA or grey (brightfield), with axes that end in y, x, is read"
CODECS = frozenset(
    "bytes transpose blosc gzip zlib zstd lz4 lzma bz2 crc32 crc32c adler32 shuffle delta sharding_indexed".split()
)
"""What may decode a chunk, by Zarr's names. Numcodecs has more; one of them unpickles."""

UM_PER_UNIT = {
    "meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3, "picometer": 1e-6,
    "angstrom": 1e-4, "inch": 25_400.0,
}  # fmt: skip
MAX_LEVELS = 64
SAMPLES = 16
SAMPLE_PX = 256


class OmeZarrReader:
    """The picture of an OME-Zarr: of several (`bioformats2raw.layout`) the largest that is brightfield. Thread-safe.

    Args:
        path: the folder, or a zip that holds one.

    Raises:
        SlideUnreadable: there is no such picture in it; says what would be read.
    """

    vendor = "ome-zarr"

    def __init__(self, path: Path):
        self._path = path
        self._store, root = _open_store(path)
        try:
            group = zarr.open_group(self._store, path=root, mode="r", use_consolidated=False)
            entry, named = _find_picture(group)
            self._levels = [level for _, level in named]
        except SlideUnreadable:
            self.close()
            raise
        except ContainsArrayError as error:
            self.close()
            raise SlideUnreadable("a single Zarr array; give the folder above it that lists its levels") from error
        except Exception as error:  # hostile metadata raise whatever they lead the library into
            self.close()
            raise SlideUnreadable(f"the OME-Zarr's metadata are broken: {reason(error, path)}") from error
        self.level_dimensions = tuple((level.shape[-1], level.shape[-2]) for level in self._levels)
        self.properties = _physical_size(entry, named[0][0])
        self.properties["quickhash"] = self._quickhash()

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        array = self._levels[level]
        frame = (..., slice(y, y + height), slice(x, x + width))
        try:
            pixels = np.asarray(array[frame])
        except Exception as error:  # codecs raise whatever the broken bytes lead them into
            raise SlideUnreadable(
                f"the slide's data is broken at level {level}, ({x}, {y}): {reason(error, self._path)}"
            ) from error
        return to_rgb(pixels.reshape(-1, height, width).transpose(1, 2, 0))

    def close(self) -> None:
        self._store.close()

    def _quickhash(self) -> str:
        """sha256 of the levels' sizes, of frames along the diagonal of the finest and of one of the coarsest."""
        digest = hashlib.sha256(repr(self.level_dimensions).encode())
        for level, count in ((0, SAMPLES), (len(self._levels) - 1, 1)):
            width, height = self.level_dimensions[level]
            w, h = min(width, SAMPLE_PX), min(height, SAMPLE_PX)
            for part in range(count):
                x, y = ((size - side) * part // max(1, count - 1) for size, side in ((width, w), (height, h)))
                try:
                    digest.update(self.read_level(level, x, y, w, h).tobytes())
                except SlideUnreadable:  # a broken chunk costs its tiles, not the slide
                    digest.update(b"broken")
        return digest.hexdigest()


class _Folder(LocalStore):
    """A folder out of which no link leads."""

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None):
        if not (self.root / key).resolve().is_relative_to(self.root):
            raise PermissionError("a link leads out of the folder")
        return await super().get(key, prototype, byte_range)


class _Zip(ZipStore):
    """A zip whose members are no larger than a chunk may be."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if byte_range is None and key in self._zf.NameToInfo and self._zf.getinfo(key).file_size > 4 * MAX_PLAIN_PX:
            raise SlideUnreadable(f"the zip's {key} is larger than {4 * MAX_PLAIN_PX} bytes")
        return await super().get(key, prototype, byte_range)


def _open_store(path: Path) -> tuple[Store, str]:
    """The store, and where in it the root of the OME-Zarr lies."""
    if path.is_dir():
        return _Folder(path.resolve(), read_only=True), ""
    try:
        store = _Zip(path)
        store._sync_open()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SlideUnreadable(f"the zip is broken: {reason(error, path)}") from error
    roots = [name.rpartition("/") for name in store._zf.NameToInfo if name.rpartition("/")[2] in MARKS]
    if not roots:
        store.close()
        raise SlideUnreadable("the zip holds no OME-Zarr; of zips, one OME-Zarr in each is read")
    return store, min((folder for folder, _, _ in roots), key=lambda folder: (folder.count("/"), len(folder), folder))


Named = tuple[Mapping[str, Any], zarr.Array]
"""A level, after what its `datasets` entry says of it."""


def _find_picture(group: zarr.Group) -> tuple[Mapping[str, Any], list[Named]]:
    """The multiscales entry of the largest brightfield picture, and its levels, finest first."""
    found, why = [], ""
    for image in _images(group):
        ome = ome_of(image.attrs)
        if "image-label" in ome:
            raise SlideUnreadable(f"the OME-Zarr holds labels, no picture; {ACCEPTED}")
        for entry in ome.get("multiscales", ())[:1]:
            named = [(item, image[item["path"]]) for item in entry["datasets"][:MAX_LEVELS]]
            unfit = _unfit(entry, [level for _, level in named])
            why = why or unfit
            if not unfit:
                found.append((entry, sorted(named, key=lambda one: -_area(one[1]))))
    if not found:
        kind = "a plate of wells" if "plate" in ome_of(group.attrs) else why or "no picture (no multiscales)"
        raise SlideUnreadable(f"the OME-Zarr holds {kind}; {ACCEPTED}")
    return max(found, key=lambda picture: _area(picture[1][0][1]))


def _area(level: zarr.Array) -> int:
    return level.shape[-1] * level.shape[-2]


def _images(group: zarr.Group) -> Iterator[zarr.Group]:
    """The group itself, or the numbered pictures of Bio-Formats' layout."""
    ome = ome_of(group.attrs)
    if "multiscales" in ome:
        yield group
    elif "bioformats2raw.layout" in ome:
        for number in range(100):
            if str(number) not in group:
                return
            yield group[str(number)]


def _unfit(entry: Mapping[str, Any], levels: list[zarr.Array]) -> str:
    """Why these levels are no brightfield picture; empty when they are."""
    axes = _axes(entry, levels[0].ndim)
    if axes[-2:] != ["y", "x"] or sorted(axes[:-2]) != sorted(set(axes[:-2]) & {"t", "c", "z"}):
        return f"axes {''.join(axes)}"
    for level in levels:
        _require_codecs(level)
        many = dict(zip(axes, level.shape, strict=True))
        if level.dtype != np.uint8 or many.get("t", 1) != 1 or many.get("z", 1) != 1 or 0 in level.shape:
            return f"{''.join(axes)} {level.shape} {level.dtype}"
        if many.get("c", 1) not in (1, 3, 4):
            return f"{many['c']} channels"
        if int(np.prod(level.chunks)) > 4 * MAX_PLAIN_PX:
            return f"chunks of {level.chunks}, of which at most {4 * MAX_PLAIN_PX} values are read,"
    return ""


def _axes(entry: Mapping[str, Any], ndim: int) -> list[str]:
    axes = entry.get("axes")
    if axes is None:  # before 0.3 there were always five
        return list("tczyx")[-ndim:]
    return [str(axis["name"] if isinstance(axis, Mapping) else axis).lower() for axis in axes]


def _require_codecs(array: zarr.Array) -> None:
    for name in _codecs(array.metadata.to_dict()):
        if name.removeprefix("numcodecs.") not in CODECS:
            raise SlideUnreadable(f"the OME-Zarr is packed by {name[:60]!r}; read are {', '.join(sorted(CODECS))}")


def _codecs(metadata: Any) -> Iterator[str]:
    """Names of every codec in an array's metadata, those within shards too."""
    parts = [metadata.get("compressor"), *(metadata.get("filters") or ()), *(metadata.get("codecs") or ())]
    for part in parts:
        if not part:
            continue
        yield str(part.get("id") or part.get("name"))
        inner = part.get("configuration") or {}
        yield from _codecs({"codecs": [*inner.get("codecs", ()), *inner.get("index_codecs", ())]})


def _physical_size(entry: Mapping[str, Any], finest: Mapping[str, Any]) -> dict[str, str]:
    """`ome.mpp-x` and `ome.mpp-y`, from the finest level's scale; nothing where the axes have no unit of length."""
    axes = entry.get("axes") or ()
    scale = np.ones(len(axes))
    for part in (entry, finest):
        for change in part.get("coordinateTransformations", ()):
            if change.get("type") == "scale" and len(change.get("scale", ())) == len(axes):
                scale = scale * np.array(change["scale"], float)
    found = {}
    for axis, size in zip(axes, scale, strict=True):
        unit = UM_PER_UNIT.get(str(axis.get("unit")).lower()) if isinstance(axis, Mapping) else None
        name = str(axis.get("name")).lower() if isinstance(axis, Mapping) else ""
        if unit and name in ("x", "y"):
            found[f"ome.mpp-{name}"] = repr(float(size) * unit)
    return found
