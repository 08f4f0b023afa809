"""The window of an exemplar: a tile's worth of its slide around the outline, and what cannot be shown."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from model import exemplar as model_exemplar
from tests.worker.overlay_job import make_info
from worker import window
from worker.errors import BadRequest, MppUnknown
from worker.types import ExemplarSpec
from worker.window import check_place, place_window

INFO = make_info(4000, 3000)


def square(x: float, y: float, edge: float) -> tuple:
    return ((x, y), (x + edge, y), (x + edge, y + edge), (x, y + edge), (x, y))


def outlined(*polygons: tuple, **more) -> ExemplarSpec:
    """An exemplar of polygons given as tuples of rings."""
    return ExemplarSpec("/slides/ref.tif", "ref", polygons, **more)


def test_the_gateway_asks_for_what_the_model_asks_for():
    assert window.MIN_SHARE == model_exemplar.MIN_SHARE


def test_the_window_is_a_tile_at_the_jobs_scale_around_the_outline():
    found = place_window(outlined((square(1900, 1400, 200),)), INFO, 1.0, 256)
    assert (INFO.mpp_x, found.mpp_x) == (0.5, 0.5)
    assert found.frame_px0 == (2000 - 256, 1500 - 256, 512, 512)
    assert found.outline.area == found.whole_px0 == 200 * 200
    assert found.share == pytest.approx(200**2 / 512**2)


def test_the_scale_is_that_of_the_exemplars_own_slide():
    fine = place_window(outlined((square(1900, 1400, 200),), mpp_override=0.25), INFO, 1.0, 256)
    assert fine.frame_px0[2:] == (1024, 1024)
    oblong = place_window(outlined((square(1900, 1400, 200),)), replace(INFO, mpp_x=0.5, mpp_y=0.25), 1.0, 256)
    assert oblong.frame_px0[2:] == (512, 1024)


@pytest.mark.parametrize(("x", "y", "corner"), [(0, 0, (0, 0)), (3950, 2950, (3488, 2488)), (-30, 1000, (0, 744))])
def test_at_an_edge_the_window_stays_on_the_slide(x: int, y: int, corner: tuple[int, int]):
    assert place_window(outlined((square(x, y, 60),)), INFO, 1.0, 256).frame_px0[:2] == pytest.approx(corner, abs=40)


def test_a_picture_smaller_than_a_tile_is_centred():
    found = place_window(outlined((square(10, 10, 50),)), make_info(200, 100), 0.5, 256)
    assert found.frame_px0 == (-28, -78, 256, 256)


def test_a_picture_of_exactly_a_tile_is_shown_as_it_is():
    found = place_window(outlined((square(3, 5, 20),)), make_info(256, 256), 0.5, 256)
    assert found.frame_px0 == (0, 0, 256, 256)


def test_holes_are_kept_and_overlapping_polygons_joined():
    ring, hole = square(1900, 1400, 200), square(1950, 1450, 100)
    assert place_window(outlined((ring, hole)), INFO, 1.0, 256).outline.area == 200**2 - 100**2
    twice = outlined((square(1900, 1400, 100),), (square(1950, 1400, 100),))
    assert place_window(twice, INFO, 1.0, 256).outline.area == 150 * 100


def test_of_an_outline_larger_than_a_tile_the_densest_part_is_shown():
    """A long thin bar with a block at one end: the window goes to the block."""
    bar = ((200, 1495), (3000, 1495), (3000, 1505), (200, 1505), (200, 1495))
    found = place_window(outlined((bar,), (square(2700, 1350, 300),)), INFO, 1.0, 256)
    x, y, width, height = found.frame_px0
    assert shapely.box(x, y, x + width, y + height).covers(shapely.box(2700, 1350, 3000, 1650))
    assert found.outline.area < found.whole_px0


def test_an_outline_that_fills_every_window_is_shown_around_its_centre():
    found = place_window(outlined((square(500, 500, 2000),)), INFO, 1.0, 256)
    assert found.share == 1
    x, y = found.frame_px0[:2]
    assert abs(x + 256 - 1500) < 64 and abs(y + 256 - 1500) < 64


def test_the_roi_holds_the_window_and_cuts_the_outline():
    wide = outlined((square(1900, 1400, 200),), roi=(square(1950, 1000, 1000),))
    found = place_window(wide, INFO, 1.0, 256)
    assert found.frame_px0[0] == 1950
    assert found.outline.area == 150 * 200
    small = place_window(replace(wide, roi=(square(1850, 1350, 300),)), INFO, 1.0, 256)
    assert small.frame_px0[:2] == (2000 - 256, 1500 - 256)
    assert small.roi.area == 300 * 300


@pytest.mark.parametrize(
    ("spec", "field", "says"),
    [
        (outlined((square(5000, 100, 50),)), "exemplar.mask", "0 <= x <= 4000"),
        (outlined((square(100, 100, 500),), (square(100, -60, 50),)), "exemplar.mask", "outside"),
        (outlined((square(100, 100, 50),), roi=(square(9000, 9000, 50),)), "exemplar.roi", "outside"),
        (outlined((square(100, 100, 50),), roi=(square(900, 900, 50),)), "exemplar.roi", "nothing of exemplar.mask"),
        (outlined((square(100, 100, 20),)), "exemplar.mask", "0.2%"),
        (outlined((square(100, 100, 50),), mpp_override=float("nan")), "exemplar.mpp_override", "positive"),
    ],
)
def test_what_cannot_be_shown_is_named(spec: ExemplarSpec, field: str, says: str):
    with pytest.raises(BadRequest, match=says) as raised:
        place_window(spec, INFO, 1.0, 256)
    assert raised.value.field == field


def test_a_slide_without_mpp_names_the_exemplars_override():
    with pytest.raises(MppUnknown) as raised:
        check_place(outlined((square(100, 100, 50),)), replace(INFO, mpp_x=None, mpp_y=None))
    assert raised.value.field == "exemplar.mpp_override"


@given(
    x=st.floats(-100, 3900), y=st.floats(-100, 2900), width=st.floats(110, 3000), height=st.floats(110, 3000),
    mpp=st.floats(0.3, 4.0),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_window_elsewhere_holds_much_more(x: float, y: float, width: float, height: float, mpp: float):
    """For rectangles the best window is known: as much of each side as fits."""
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y))
    visible = shapely.intersection(shapely.box(x, y, x + width, y + height), shapely.box(0, 0, 4000, 3000)).bounds
    edge = 128 * mpp / 0.5
    best = min(edge, visible[2] - visible[0]) * min(edge, visible[3] - visible[1])
    try:
        found = place_window(outlined((corners,)), INFO, mpp, 128)
    except BadRequest:
        assert best < 0.002 * edge**2 * 1.1
        return
    assert found.outline.area >= 0.85 * best - 2 * edge
    assert found.outline.area <= best * (1 + 1e-9)


def test_a_window_does_not_depend_on_the_order_of_polygons():
    rng = np.random.default_rng(3)
    polygons = [(square(*rng.uniform(100, 2500, 2), 80.0),) for _ in range(12)]
    frames = {place_window(outlined(*order), INFO, 1.0, 256).frame_px0 for order in (polygons, polygons[::-1])}
    assert len(frames) == 1
