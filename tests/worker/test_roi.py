"""GeoJSON regions of interest become rings that cover what was drawn, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon
from shapely.ops import unary_union

from worker.errors import BadRequest, TooLarge
from worker.roi import parse_roi

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]
FAR = [[200, 0], [300, 0], [300, 100], [200, 100], [200, 0]]


def covered(rings) -> Polygon:
    return unary_union([Polygon(ring) for ring in rings])


@pytest.mark.parametrize(
    ("value", "rings"),
    [
        ({"type": "Polygon", "coordinates": [SQUARE]}, 1),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE], [FAR]]}, 2),
        ({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "properties": {}}, 1),
        (
            {
                "type": "FeatureCollection",
                "features": [
                    {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}},
                    {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[FAR]]}},
                ],
            },
            2,
        ),
    ],
)
def test_every_form_that_people_draw_is_accepted(value: dict, rings: int) -> None:
    found = parse_roi(value)
    assert len(found) == rings
    assert all(ring[0] == ring[-1] for ring in found)
    assert covered(found).area == pytest.approx(10_000 * rings)


def test_holes_are_cut_out_exactly() -> None:
    other = [[60, 55], [90, 55], [90, 80], [60, 80], [60, 55]]
    found = parse_roi({"type": "Polygon", "coordinates": [SQUARE, HOLE, other]})
    wanted = Polygon(SQUARE, [HOLE, other])
    assert covered(found).symmetric_difference(wanted).area == pytest.approx(0, abs=1e-6)


def test_an_open_ring_is_closed_and_heights_are_dropped() -> None:
    found = parse_roi({"type": "Polygon", "coordinates": [[[0, 0, 5], [10, 0, 5], [10, 10, 5]]]})
    assert covered(found).area == pytest.approx(50)


@pytest.mark.parametrize(
    "value",
    [
        None, [], "POLYGON((0 0))", {}, {"type": "Point", "coordinates": [1, 2]}, {"type": "Polygon"},
        {"type": "Polygon", "coordinates": []}, {"type": "Polygon", "coordinates": [[]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [5, 0], [9, 0], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], ["5", 0], [9, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [True, 0], [9, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 0], [9, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [10**400, 0], [9, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": 5}, {"type": "MultiPolygon", "coordinates": [5]},
        {"type": "FeatureCollection", "features": []}, {"type": "Feature", "geometry": None},
        {"type": "FeatureCollection", "features": [{"type": "FeatureCollection", "features": []}]},
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_what_would_be_accepted(value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_roi(value)
    assert caught.value.field == "roi"
    assert "Polygon" in caught.value.message


def test_the_limit_on_vertices_counts_all_rings() -> None:
    value = {"type": "MultiPolygon", "coordinates": [[SQUARE], [FAR]]}
    assert len(parse_roi(value, max_vertices=10)) == 2
    with pytest.raises(TooLarge):
        parse_roi(value, max_vertices=9)


numbers = st.integers(-1000, 1000)


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_any_ring_gives_rings_of_positive_area_or_a_refusal(points: list[tuple[int, int]]) -> None:
    try:
        found = parse_roi({"type": "Polygon", "coordinates": [[list(point) for point in points]]})
    except BadRequest:
        return
    assert all(Polygon(ring).area > 0 and Polygon(ring).is_valid for ring in found)
    xs = [x for x, _ in points]
    assert min(xs) <= min(x for ring in found for x, _ in ring)
    assert max(x for ring in found for x, _ in ring) <= max(xs)
