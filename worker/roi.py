"""GeoJSON → what a job is given as polygons: its region of interest, and the outline of its exemplar."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shapely.geometry import LinearRing, MultiPolygon, Polygon, box
from shapely.validation import explain_validity, make_valid

from worker.errors import BadRequest, TooLarge
from worker.types import Ring

ACCEPTED = (
    "a GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection of them, as [[[x, y], …]] in level-0 pixels, "
    "each ring closed, with at least 4 positions"
)
MAX_FEATURES = 10_000
UNMISTAKABLE = ("Valid Geometry", "Ring Self-intersection", "Interior is disconnected")
"""What an outline may be: it may touch itself, since that leaves no doubt about what lies inside."""


def parse_roi(value: Any, max_vertices: int = 10_000, field: str = "roi") -> tuple[Ring, ...]:
    """Read a region of interest as people draw it.

    A polygon with holes is cut into pieces without any, so that no part of a hole is looked at: the rings that come
    back cover exactly what was drawn.

    Args:
        value: decoded JSON: Polygon, MultiPolygon, Feature or FeatureCollection, level-0 pixels (x, y).
        max_vertices: limit on the positions of all rings together.
        field: what errors call it.

    Returns:
        Exterior rings, each closed (first point repeated at its end); never empty.

    Raises:
        BadRequest: not such a GeoJSON, a ring without area, or a number that is not finite.
        TooLarge: more than `max_vertices` positions.

    Source: RFC 7946, §3.1.6.
    """
    pieces = [piece for polygon in _parse(value, max_vertices, field) for piece in _without_holes(polygon)]
    return tuple(_closed(piece.exterior) for piece in pieces)


def parse_mask(value: Any, max_vertices: int = 10_000, field: str = "exemplar.mask") -> tuple[tuple[Ring, ...], ...]:
    """Read an outline with its holes; arguments are `parse_roi`'s.

    Returns:
        Polygons, each its exterior ring and its holes, every ring closed; never empty.

    Raises:
        BadRequest, TooLarge: as `parse_roi`; or a polygon crosses itself, so that inside and outside are in doubt.
    """
    polygons = _parse(value, max_vertices, field)
    for polygon in polygons:
        found, _, place = explain_validity(polygon).partition("[")
        if found not in UNMISTAKABLE:
            wrong = "it crosses itself" if found == "Self-intersection" else found.lower()
            at = ", ".join(place.rstrip("]").split())
            raise BadRequest(
                f"{field}: {wrong} at ({at}); accepted are polygons that do not cross themselves, holes inside",
                field=field,
            )
    return tuple((_closed(polygon.exterior), *map(_closed, polygon.interiors)) for polygon in polygons)


def _parse(value: Any, max_vertices: int, field: str) -> list[Polygon]:
    """Every polygon in a GeoJSON; each encloses an area."""
    found: list[Polygon] = []
    with _called(field):
        budget = max_vertices
        for number, rings in enumerate(_polygons_in(value)):
            budget -= sum(len(ring) for ring in rings if isinstance(ring, list)) if isinstance(rings, list) else 0
            if budget < 0 or number >= MAX_FEATURES:
                raise TooLarge(f"more than {max_vertices} vertices; simplify it, up to {max_vertices} are accepted")
            found.append(_polygon(rings))
            if make_valid(found[-1]).area <= 0:
                raise BadRequest(f"a ring encloses no area; accepted is {ACCEPTED}")
        if not found:
            raise BadRequest(f"no polygon; accepted is {ACCEPTED}")
    return found


@contextmanager
def _called(field: str) -> Iterator[None]:
    """Errors from inside say whose they are."""
    try:
        yield
    except BadRequest as error:
        raise type(error)(f"{field}: {error.message}", field=field) from None


def _closed(ring: LinearRing) -> Ring:
    return tuple((float(x), float(y)) for x, y in ring.coords)


def _polygons_in(value: Any) -> Iterator[list]:
    """Yield the rings of every polygon inside a GeoJSON object, without recursion (it may be hostile)."""
    todo = deque([value])
    while todo:
        item = todo.popleft()
        if not isinstance(item, dict):
            raise BadRequest(f"it must be {ACCEPTED}")
        kind, coordinates = item.get("type"), item.get("coordinates")
        if kind == "FeatureCollection" and isinstance(item.get("features"), list) and item is value:
            todo.extend(item["features"])
        elif kind == "Feature" and isinstance(item.get("geometry"), dict):
            todo.appendleft(item["geometry"])
        elif kind == "Polygon" and isinstance(coordinates, list):
            yield coordinates
        elif kind == "MultiPolygon" and isinstance(coordinates, list):
            yield from coordinates
        else:
            raise BadRequest(f"it holds {str(kind)[:40]!r}; accepted is {ACCEPTED}")


def _polygon(rings: Any) -> Polygon:
    """One polygon with its holes, checked."""
    if not isinstance(rings, list) or not rings:
        raise BadRequest(f"a polygon has no ring; accepted is {ACCEPTED}")
    exterior, *holes = [_ring(ring) for ring in rings]
    return Polygon(exterior, holes)


def _ring(ring: Any) -> list[tuple[float, float]]:
    """One closed ring of finite positions; a third ordinate (z) is dropped as RFC 7946 allows."""
    if not isinstance(ring, list) or len(ring) < 3:
        raise BadRequest(f"a ring is too short; accepted is {ACCEPTED}")
    points = []
    for position in ring:
        if not isinstance(position, list) or len(position) < 2 or not all(_is_number(value) for value in position[:2]):
            raise BadRequest(f"a position is not [x, y] in finite numbers; accepted is {ACCEPTED}")
        points.append((float(position[0]), float(position[1])))
    if points[0] != points[-1]:
        points.append(points[0])
    if len(points) < 4:
        raise BadRequest(f"a ring is too short; accepted is {ACCEPTED}")
    return points


def _is_number(value: Any) -> bool:
    # JSON integers are unbounded in Python: beyond 1e15 no slide can reach and float() may overflow
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)


def _without_holes(polygon: Polygon) -> Iterator[Polygon]:
    """Cut a polygon through its holes until no piece has any; the pieces cover the same area."""
    todo: list[Any] = [polygon if polygon.is_valid else make_valid(polygon)]
    while todo:
        shape = todo.pop()
        if isinstance(shape, Polygon):
            if shape.area > 0 and not shape.interiors:
                yield shape
            elif shape.area > 0:
                x0, y0, x1, y1 = shape.bounds
                cut = Polygon(shape.interiors[0]).centroid.x
                todo += [shape.intersection(box(x0, y0, cut, y1)), shape.intersection(box(cut, y0, x1, y1))]
        elif isinstance(shape, MultiPolygon) or hasattr(shape, "geoms"):
            todo.extend(shape.geoms)
