"""The fast path for tiled TIFF and SVS: the same pixels as OpenSlide, several times faster.

It reads a tile's bytes at its offset and decodes them itself. What it may serve is narrow (8-bit RGB or YCbCr, JPEG,
deflate, LZW or raw, one plane) and checked: at opening, tiles of each level are compared with OpenSlide's, and a level
that differs by a single value is left to OpenSlide. Where a level's downsample is no whole number (4443 → 2221),
OpenSlide interpolates between the stored pixels; the fast path gives the stored pixels themselves.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
import tifffile

from worker.errors import SlideUnreadable
from worker.slide_readers import OpenSlideReader

CACHE_BYTES = 48 * 2**20
VENDORS = ("aperio", "generic-tiff")
JPEG, LZW, RAW = 7, 5, 1
DEFLATE = (8, 32946)
RGB, YCBCR = 2, 6
MAX_TILE_PX = 4096 * 4096


@dataclass(frozen=True)
class TiledLevel:
    """Where the tiles of one level lie in the file, and how they are packed.

    Attributes:
        width_px, height_px: size of the level; tile_w, tile_h: of its tiles; columns: tiles in a row.
        offsets, byte_counts: of each tile, row by row; both 0 where a sparse file leaves a tile out.
        compression, photometric, predictor: TIFF tags 259, 262, 317.
        tables: JPEG tables shared by the tiles, without SOI and EOI.
    """

    width_px: int
    height_px: int
    tile_w: int
    tile_h: int
    columns: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    compression: int
    photometric: int
    predictor: int
    tables: bytes


class DirectTiff:
    """Tiled levels of one TIFF, read by offset. Thread-safe; keeps the latest tiles decoded."""

    def __init__(self, path: Path, levels: dict[int, TiledLevel]):
        self._levels = levels
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0

    def serves(self, level: int) -> bool:
        """Whether this level is read here, and not by OpenSlide."""
        return level in self._levels

    def drop(self, level: int) -> None:
        """Leave a level to OpenSlide."""
        self._levels.pop(level, None)

    def sample_positions(self, level: int) -> list[tuple[int, int]]:
        """Corners (x, y) of the first and of the middle tile that the file holds."""
        layout = self._levels[level]
        present = [index for index, count in enumerate(layout.byte_counts) if count > 0] or [0]
        chosen = {present[0], present[len(present) // 2]}
        return [(index % layout.columns * layout.tile_w, index // layout.columns * layout.tile_h) for index in chosen]

    def close(self) -> None:
        """Free the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._cache.clear()

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of one level; the rectangle lies inside the level.

        Returns:
            (height, width, 3) uint8 RGB.

        Raises:
            SlideUnreadable: a tile's bytes are missing or broken.
        """
        layout = self._levels[level]
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // layout.tile_h, (y + height - 1) // layout.tile_h + 1):
            for col in range(x // layout.tile_w, (x + width - 1) // layout.tile_w + 1):
                tile = self._tile(level, layout, row * layout.columns + col)
                left, top = col * layout.tile_w, row * layout.tile_h
                x0, x1 = max(x, left), min(x + width, left + layout.tile_w)
                y0, y1 = max(y, top), min(y + height, top + layout.tile_h)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _tile(self, level: int, layout: TiledLevel, index: int) -> np.ndarray:
        if layout.byte_counts[index] == 0:
            return np.broadcast_to(np.uint8(255), (layout.tile_h, layout.tile_w, 3))
        key = (level, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tile = self._decode(layout, index)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tile
                self._cached_bytes += tile.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, layout: TiledLevel, index: int) -> np.ndarray:
        shape = (layout.tile_h, layout.tile_w, 3)
        data = os.pread(self._file, layout.byte_counts[index], layout.offsets[index])
        try:
            if len(data) != layout.byte_counts[index]:
                raise ValueError("the file ends before the tile does")
            tile = _unpack(layout, data)
            if tile.shape != shape:
                raise ValueError(f"the tile decodes to {tile.shape}, not {shape}")
        except Exception as error:  # codecs raise types of their own
            raise SlideUnreadable(f"tile {index} of the slide is broken: {error}") from error
        return tile


def _unpack(layout: TiledLevel, data: bytes) -> np.ndarray:
    if layout.compression == JPEG:
        return simplejpeg.decode_jpeg(_whole_jpeg(layout, data), "RGB", fastdct=False, fastupsample=False)
    size = layout.tile_h * layout.tile_w * 3
    if layout.compression == LZW:
        data = imagecodecs.lzw_decode(data, out=size)
    elif layout.compression in DEFLATE:
        data = imagecodecs.zlib_decode(data, out=size)
    tile = np.frombuffer(data, np.uint8, count=size).reshape(layout.tile_h, layout.tile_w, 3)
    if layout.predictor == 2:
        tile = np.cumsum(tile, axis=1, dtype=np.uint8)
    return tile


def _whole_jpeg(layout: TiledLevel, data: bytes) -> bytes:
    """A tile's abbreviated JPEG stream with its tables, and an Adobe marker that states the colour space.

    TIFF keeps the colour space in its own tag, and libjpeg would guess; APP14 says 0 for RGB, 1 for YCbCr.
    """
    transform = 1 if layout.photometric == YCBCR else 0
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return data[:2] + marker + layout.tables + data[2:]


def open_direct_tiff(path: Path, reader: OpenSlideReader) -> DirectTiff | None:
    """The fast path for the levels of a slide that it can prove to serve.

    Args:
        path: the slide's file.
        reader: the same slide in OpenSlide, the reference.

    Returns:
        None when no level qualifies.
    """
    if reader.vendor not in VENDORS:
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            levels = _find_levels(tiff, reader)
    except Exception:  # whatever tifffile stumbles over, OpenSlide has opened it already
        return None
    direct = DirectTiff(path, levels)
    for level in list(levels):
        if not _is_identical(direct, reader, level):
            direct.drop(level)
    if not levels:
        direct.close()
        return None
    return direct


def _find_levels(tiff: tifffile.TiffFile, reader: OpenSlideReader) -> dict[int, TiledLevel]:
    pages = [page for page in (entry.aspage() for entry in tiff.pages) if page.is_tiled]
    found: dict[int, TiledLevel] = {}
    for level, size in enumerate(reader.level_dimensions):
        matching = [page for page in pages if (page.imagewidth, page.imagelength) == size]
        # two pages of one size cannot be told apart by size alone
        if len(matching) == 1 and _is_plain(matching[0]) and _is_whole(matching[0], reader.vendor):
            found[level] = _layout(matching[0])
    return found


def _is_plain(page: tifffile.TiffPage) -> bool:
    packing = (page.compression == JPEG and page.photometric in (RGB, YCBCR) and page.predictor == 1) or (
        page.compression in (RAW, LZW, *DEFLATE) and page.photometric == RGB and page.predictor in (1, 2)
    )
    return (
        packing
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and page.fillorder == 1
        and not page.extrasamples
        and page.imagedepth == 1
        and page.tilewidth * page.tilelength <= MAX_TILE_PX
    )


def _is_whole(page: tifffile.TiffPage, vendor: str) -> bool:
    """Whether no tile is absent, or absent tiles are simply transparent (Aperio's are drawn from coarser levels)."""
    absent = [offset for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True) if count == 0]
    return not absent or (vendor == "generic-tiff" and not any(absent))


def _layout(page: tifffile.TiffPage) -> TiledLevel:
    tables = page.jpegtables or b""
    return TiledLevel(
        width_px=page.imagewidth,
        height_px=page.imagelength,
        tile_w=page.tilewidth,
        tile_h=page.tilelength,
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=tuple(page.dataoffsets),
        byte_counts=tuple(page.databytecounts),
        compression=int(page.compression),
        photometric=int(page.photometric),
        predictor=int(page.predictor),
        tables=tables[2:-2] if tables else b"",
    )


def _is_identical(direct: DirectTiff, reader: OpenSlideReader, level: int) -> bool:
    """Compare parts of two tiles with OpenSlide, where OpenSlide does not interpolate."""
    width, height = reader.level_dimensions[level]
    edge = 64
    for x, y in direct.sample_positions(level):
        x, y = reader.whole_position(level, x, y)
        w, h = min(edge, width - x), min(edge, height - y)
        try:
            mine, theirs = direct.read_level(level, x, y, w, h), reader.read_level(level, x, y, w, h)
        except SlideUnreadable:
            return False
        if not np.array_equal(mine, theirs):
            return False
    return True
