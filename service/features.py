"""The regions file of a job, read line by line: filter, page, shift; never the whole of it in memory."""

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from worker.artifacts import REGIONS, JobReader
from worker.errors import BadRequest

PIECE_BYTES = 1 << 16
AREA = "Area µm^2"
FEATURE = b'{"type": "Feature",'


@dataclass(frozen=True)
class Filter:
    """Which features, and in which frame.

    Attributes:
        bbox: (x0, y0, x1, y1) in the frame of the answer; features whose own box touches it stay.
        min_area_um2: smaller ones go.
        shift_px0: (dx, dy) taken from every coordinate (the bounds' corner, or zero).
    """

    bbox: tuple[float, float, float, float] | None = None
    min_area_um2: float = 0.0
    shift_px0: tuple[float, float] = (0.0, 0.0)

    def apply(self, feature: dict[str, Any]) -> dict[str, Any] | None:
        """The feature in the frame asked for; None when it is filtered out."""
        if feature["properties"]["measurements"].get(AREA, 0.0) < self.min_area_um2:
            return None
        if self.shift_px0 != (0.0, 0.0):
            geometry = feature["geometry"]
            shifted = _shift(geometry["coordinates"], *self.shift_px0)
            feature = {**feature, "geometry": {**geometry, "coordinates": shifted}}
        if self.bbox is not None and not _touch(box_of(feature["geometry"]["coordinates"]), self.bbox):
            return None
        return feature


def read_bbox(text: str | None) -> tuple[float, float, float, float] | None:
    """`x0,y0,x1,y1` → numbers.

    Raises:
        BadRequest: not four finite numbers in order.
    """
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
        if abs(x0) + abs(y0) + abs(x1) + abs(y1) < 1e15 and x0 <= x1 and y0 <= y1:
            return x0, y0, x1, y1
    except ValueError:
        pass
    raise BadRequest("bbox must be x0,y0,x1,y1 in level-0 pixels with x0 <= x1 and y0 <= y1", field="bbox")


def read_lines(reader: JobReader, start: int = 0) -> Iterator[bytes]:
    """Lines of the regions file from a byte on, each with its end; never more than a line and a piece are held."""
    begun: list[bytes] = []
    for piece in reader.chunks(REGIONS, start):
        first, *more = piece.split(b"\n")
        begun.append(first)
        for following in more:
            yield b"".join(begun) + b"\n"
            begun = [following]
    if any(begun):
        yield b"".join(begun)


def read_features(reader: JobReader, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Features with the byte offset of their line; the file holds one per line."""
    offset = start
    for line in read_lines(reader, start):
        here, offset = offset, offset + len(line)
        text = line.strip().rstrip(b",")
        if text.startswith(FEATURE):
            yield here, json.loads(text)


def page(reader: JobReader, wanted: Filter, cursor: str | None, limit: int | None) -> Iterator[dict[str, Any] | str]:
    """The features that pass, up to `limit`; then, when there are more, the next cursor as a string.

    Raises:
        BadRequest: the cursor is not one of this file.
    """
    start = _read_cursor(reader, cursor) if cursor else 0
    return _page(reader, wanted, start, limit)


def _page(reader: JobReader, wanted: Filter, start: int, limit: int | None) -> Iterator[dict[str, Any] | str]:
    count = 0
    for offset, feature in read_features(reader, start):
        shown = wanted.apply(feature)
        if shown is None:
            continue
        if count == limit:
            yield base64.urlsafe_b64encode(str(offset).encode()).decode().rstrip("=")
            return
        count += 1
        yield shown


def read_head(reader: JobReader) -> dict[str, Any]:
    """What the file says about all its features, from its first line."""
    return json.loads(next(read_lines(reader)).rstrip() + b"]}")["slidereason"]


def collection(
    head: dict[str, Any], features: Iterable[dict[str, Any] | str], next_link: Callable[[str], dict[str, str]]
) -> Iterator[bytes]:
    """A FeatureCollection in pieces.

    Args:
        head: from `read_head`.
        features: from `page`.
        next_link: function of a cursor that makes the link of the next page.
    """
    piece = bytearray(b'{"type": "FeatureCollection", "slidereason": ' + json.dumps(head).encode() + b', "features": [')
    count, cursor, links = 0, None, []
    for feature in features:
        if isinstance(feature, str):
            cursor = feature
            links.append(next_link(cursor))
            continue
        piece += b",\n" if count else b"\n"
        piece += json.dumps(feature).encode()
        count += 1
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    tail = {"numberReturned": count, "next_cursor": cursor, "links": links}
    yield bytes(piece) + b"\n], " + json.dumps(tail).encode()[1:] + b"\n"


def find_feature(reader: JobReader, region_id: str) -> dict[str, Any] | None:
    """The feature with this id."""
    needle = region_id.encode()
    for line in read_lines(reader):
        if line.startswith(FEATURE) and needle in line:
            feature = json.loads(line.strip().rstrip(b","))
            if feature.get("id") == region_id:
                return feature
    return None


def gzipped(reader: JobReader) -> Iterator[bytes]:
    """The file as gzip, in pieces; the same file always makes the same bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    for piece in reader.chunks(REGIONS):
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def box_of(coordinates: Any) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of nested GeoJSON coordinates."""
    points = list(_points(coordinates))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _points(coordinates: Any) -> Iterator[tuple[float, float]]:
    if isinstance(coordinates[0], int | float):
        yield coordinates[0], coordinates[1]
        return
    for part in coordinates:
        yield from _points(part)


def _shift(coordinates: Any, dx: float, dy: float) -> Any:
    if isinstance(coordinates[0], int | float):
        return [coordinates[0] - dx, coordinates[1] - dy]
    return [_shift(part, dx, dy) for part in coordinates]


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _read_cursor(reader: JobReader, cursor: str) -> int:
    try:
        offset = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        offset = 0
    known = reader.stat(REGIONS)
    if known and 0 < offset < known.size and b"".join(reader.chunks(REGIONS, offset - 1, offset)) == b"\n":
        return offset
    raise BadRequest("cursor must be one that a page of this list returned", field="cursor")
