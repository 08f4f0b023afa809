"""GeoJSON → the exterior rings of a job's region of interest, in level-0 pixels."""

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

from shapely.geometry import MultiPolygon, Polygon, box
from shapely.validation import make_valid

from worker.errors import BadRequest, TooLarge
from worker.types import Ring

ACCEPTED = (
    "a GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection of them, as [[[x, y], …]] in level-0 pixels, "
    "each ring closed, with at least 4 positions"
)
MAX_FEATURES = 10_000


def parse_roi(value: Any, max_vertices: int = 10_000) -> tuple[Ring, ...]:
    """Read a region of interest as people draw it.

    A polygon with holes is cut into pieces without any, so that no part of a hole is looked at: the rings that come
    back cover exactly what was drawn.

    Args:
        value: decoded JSON: Polygon, MultiPolygon, Feature or FeatureCollection, level-0 pixels (x, y).
        max_vertices: limit on the positions of all rings together.

    Returns:
        Exterior rings, each closed (first point repeated at its end); never empty.

    Raises:
        BadRequest: not such a GeoJSON, a ring without area, or a number that is not finite (`field` is `roi`).
        TooLarge: more than `max_vertices` positions.

    Source: RFC 7946, §3.1.6.
    """
    pieces: list[Polygon] = []
    budget = max_vertices
    for number, rings in enumerate(_polygons_in(value)):
        budget -= sum(len(ring) for ring in rings if isinstance(ring, list)) if isinstance(rings, list) else 0
        if budget < 0 or number >= MAX_FEATURES:
            raise TooLarge(
                f"the roi has more than {max_vertices} vertices; simplify it, up to {max_vertices} are accepted",
                field="roi",
            )
        found = list(_without_holes(_polygon(rings)))
        if not found:
            raise BadRequest(f"a ring of the roi encloses no area; accepted is {ACCEPTED}", field="roi")
        pieces += found
    if not pieces:
        raise BadRequest(f"the roi is empty; accepted is {ACCEPTED}", field="roi")
    return tuple(tuple((float(x), float(y)) for x, y in piece.exterior.coords) for piece in pieces)


def _polygons_in(value: Any) -> Iterator[list]:
    """Yield the rings of every polygon inside a GeoJSON object, without recursion (it may be hostile)."""
    todo = deque([value])
    while todo:
        item = todo.popleft()
        if not isinstance(item, dict):
            raise BadRequest(f"the roi must be {ACCEPTED}", field="roi")
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
            raise BadRequest(f"the roi holds {str(kind)[:40]!r}; accepted is {ACCEPTED}", field="roi")


def _polygon(rings: Any) -> Polygon:
    """One polygon with its holes, checked."""
    if not isinstance(rings, list) or not rings:
        raise BadRequest(f"a polygon of the roi has no ring; accepted is {ACCEPTED}", field="roi")
    exterior, *holes = [_ring(ring) for ring in rings]
    return Polygon(exterior, holes)


def _ring(ring: Any) -> list[tuple[float, float]]:
    """One closed ring of finite positions; a third ordinate (z) is dropped as RFC 7946 allows."""
    if not isinstance(ring, list) or len(ring) < 3:
        raise BadRequest(f"a ring of the roi is too short; accepted is {ACCEPTED}", field="roi")
    points = []
    for position in ring:
        if not isinstance(position, list) or len(position) < 2 or not all(_is_number(value) for value in position[:2]):
            raise BadRequest(
                f"a position of the roi is not [x, y] in finite numbers; accepted is {ACCEPTED}", field="roi"
            )
        points.append((float(position[0]), float(position[1])))
    if points[0] != points[-1]:
        points.append(points[0])
    if len(points) < 4:
        raise BadRequest(f"a ring of the roi is too short; accepted is {ACCEPTED}", field="roi")
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
