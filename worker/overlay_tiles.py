"""Tiles of an overlay for a viewer: coloured, transparent PNG. Runs in a child that the gateway keeps.

It is handed whole shards of the OME-Zarr store as bytes and needs neither storage nor zarr-python, whose import alone
would make the first tile wait for half a second.

Source: Zarr v3, sharding codec 1.0, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/v1.0.html.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from worker.deep_zoom import USE, ZoomFrame

DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
ABSENT = 2**64 - 1
PNG_LEVEL = 3


class OverlayTiles:
    """Paints tiles; holds nothing."""

    def paint(self, frame: Sequence[int], layers: Sequence[Mapping[str, Any]]) -> bytes:
        """One tile, the layers one over the other.

        Args:
            frame: the fields of a ZoomFrame, in their order.
            layers: each with `metadata` (the array's zarr.json), `shards` ({(row, col): bytes}; absent ones are empty),
                `factor` ((x, y) level-0 pixels per pixel of the array), `least` (the smallest value that is shown),
                `color` (r, g, b) and `alpha` in [0, 255].

        Returns:
            PNG, RGBA with straight alpha.

        Raises:
            ValueError: the store is packed in a way that is not read here.
        """
        where = ZoomFrame(*frame)
        out = np.zeros((where.height, where.width, 4), np.uint8)
        for layer in layers:
            shown = _shown(where, layer)
            if shown.any():
                _lay_over(out, shown, layer["color"], layer["alpha"])
        return encode_png(out)


def _shown(frame: ZoomFrame, layer: Mapping[str, Any]) -> np.ndarray:
    """Where a layer covers a tile: (h, w) bool, by the array's pixel under the centre of each of the tile's."""
    array = Shards(layer["metadata"], layer["shards"])
    factor_x, factor_y = layer["factor"]
    cols = _under_centres(frame.x_px0, frame.step_px0, frame.width, factor_x, array.width)
    rows = _under_centres(frame.y_px0, frame.step_px0, frame.height, factor_y, array.height)
    part = array.read(rows[0], cols[0], rows[-1] + 1, cols[-1] + 1)
    return (part >= layer["least"])[np.ix_(rows - rows[0], cols - cols[0])]


def _under_centres(start_px0: int, step_px0: int, count: int, factor: float, limit: int) -> np.ndarray:
    """Indices of an array's pixels under the centres of `count` pixels; past the end it is the last one."""
    centres = (start_px0 + (np.arange(count) + 0.5) * step_px0) / factor
    return np.minimum(np.floor(centres + 1e-9).astype(np.int64), limit - 1)


def _lay_over(under: np.ndarray, shown: np.ndarray, color: Sequence[int], alpha: int) -> None:
    """Lay a colour over an (h, w, 4) picture of straight alpha, in place (Porter and Duff 1984, `over`)."""
    below = under[shown].astype(np.float32) / 255
    over = alpha / 255
    left = below[:, 3:] * (1 - over)
    total = over + left
    rgb = (np.float32(color) / 255 * over + below[:, :3] * left) / np.maximum(total, 1e-9)
    under[shown] = np.rint(np.concatenate([rgb, total], axis=1) * 255).astype(np.uint8)


class Shards:
    """A sharded (y, x) array in memory, as `worker.overlay` writes them.

    Args:
        metadata: the array's zarr.json.
        shards: {(row, col): bytes}.

    Attributes:
        height, width: of the array. shard_px: (rows, columns) of a shard.

    Raises:
        ValueError: it is packed in another way.
    """

    def __init__(self, metadata: bytes, shards: Mapping[tuple[int, int], bytes]):
        known = json.loads(metadata)
        self.height, self.width = known["shape"]
        self.shard_px = tuple(known["chunk_grid"]["configuration"]["chunk_shape"])
        self._dtype = np.dtype(DTYPES[known["data_type"]])
        self._shards = shards
        (sharding,) = known["codecs"]
        packing = sharding.get("configuration", {})
        self._chunk_px = tuple(packing.get("chunk_shape", ()))
        names = [codec["name"] for codec in packing.get("codecs", ())]
        ends = packing.get("index_location", "end") == "end" and len(packing.get("index_codecs", ())) == 2
        if sharding["name"] != "sharding_indexed" or names != ["bytes", "zstd"] or not ends:
            raise ValueError("only sharded arrays of bytes and zstd with their index at the end are read")

    def read(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """A box of the array, (h, w); 0 where nothing is stored."""
        out = np.zeros((bottom - top, right - left), self._dtype)
        height, width = self._chunk_px
        for row in range(top // height, -(-bottom // height)):
            for col in range(left // width, -(-right // width)):
                chunk = self._chunk(row, col)
                if chunk is not None:
                    y0, y1 = max(top, row * height), min(bottom, (row + 1) * height)
                    x0, x1 = max(left, col * width), min(right, (col + 1) * width)
                    part = chunk[y0 - row * height : y1 - row * height, x0 - col * width : x1 - col * width]
                    out[y0 - top : y1 - top, x0 - left : x1 - left] = part
        return out

    def _chunk(self, row: int, col: int) -> np.ndarray | None:
        """A chunk by its place in the array; None when it is not stored."""
        rows, cols = (shard // chunk for shard, chunk in zip(self.shard_px, self._chunk_px, strict=True))
        shard = self._shards.get((row // rows, col // cols))
        if shard is None:
            return None
        entries = rows * cols
        index = np.frombuffer(shard, "<u8", 2 * entries, len(shard) - 16 * entries - 4)  # a checksum follows
        offset, size = (int(value) for value in index[2 * (row % rows * cols + col % cols) :][:2])
        if offset == ABSENT:
            return None
        unpacked = math.prod(self._chunk_px) * self._dtype.itemsize
        values = imagecodecs.zstd_decode(shard[offset : offset + size], out=unpacked)
        return np.frombuffer(values, self._dtype).reshape(self._chunk_px)


def encode_png(image: np.ndarray) -> bytes:
    """An (h, w, 4) uint8 picture as PNG that says what it may be used for."""
    notes = PngInfo()
    notes.add_text("Comment", USE)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=PNG_LEVEL, pnginfo=notes)
    return stream.getvalue()
