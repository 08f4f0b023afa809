"""Tiles are read ahead, in order, within bounds; one that cannot be read is handed out with its reason."""

import threading
from pathlib import Path

import numpy as np
import pytest

from worker.batches import read_tile, read_tiles
from worker.errors import SlideUnreadable, TileFailed
from worker.plan import plan_tiles, tile_at
from worker.slides import open_slide
from worker.types import JobSpec, TilePlan


@pytest.fixture(scope="module")
def slide(pyramid_slide: Path):
    with open_slide(pyramid_slide) as opened:
        yield opened


@pytest.fixture(scope="module")
def plan(slide) -> TilePlan:
    return plan_tiles(slide.info, JobSpec("slide", "id", ("tumour",), mpp=1.0), None, 128, 1.0)


def tiles_of(plan: TilePlan):
    return [tile_at(plan, row, col) for row in range(plan.rows) for col in range(plan.cols)]


class CountingSlide:
    """A slide that notes how far ahead of the consumer it is read, and breaks where told."""

    def __init__(self, broken: set[int] = frozenset()):
        self.lock, self.begun, self.broken = threading.Lock(), 0, broken

    def read_px0(self, x_px0, y_px0, width_px0, height_px0, out_width, out_height):
        with self.lock:
            self.begun += 1
        if int(x_px0) in self.broken:
            raise SlideUnreadable("the slide's data is broken here")
        return np.full((out_height, out_width, 3), int(x_px0) % 256, np.uint8)


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 32), (4, 3)])
def test_tiles_come_in_order_and_are_the_same_as_read_alone(slide, plan, threads, ahead):
    tiles = tiles_of(plan)
    got = list(read_tiles(slide, plan, tiles, threads, ahead))
    assert [tile for tile, _ in got] == tiles
    for tile, pixels in got[:: len(got) // 7]:
        assert pixels.shape == (128, 128, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, read_tile(slide, plan, tile))


def test_neighbours_show_the_same_pixels_where_they_overlap(slide, plan):
    shared = plan.tile_px - plan.stride_px
    for row, col in ((1, 1), (2, 3)):
        left, right = (
            read_tile(slide, plan, tile_at(plan, row, col)),
            read_tile(slide, plan, tile_at(plan, row, col + 1)),
        )
        np.testing.assert_array_equal(left[:, -shared:], right[:, :shared])


def test_a_broken_tile_is_reported_and_the_others_are_read(plan):
    tiles = tiles_of(plan)
    broken_x = tiles[1].x_px * 2
    got = dict(read_tiles(CountingSlide({broken_x}), plan, tiles[: plan.cols]))
    failed = [tile for tile, pixels in got.items() if isinstance(pixels, TileFailed)]
    assert failed == [tiles[1]]
    assert got[tiles[1]].subject == tiles[1].key
    assert "broken here" in str(got[tiles[1]])


def test_no_more_is_read_ahead_than_allowed(plan):
    counting = CountingSlide()
    reading = read_tiles(counting, plan, tiles_of(plan), threads=2, ahead=4)
    for taken in range(1, 6):
        next(reading)
        assert counting.begun <= taken + 4
    reading.close()


def test_stopping_early_leaves_no_thread_behind(plan):
    reading = read_tiles(CountingSlide(), plan, tiles_of(plan))
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-tiles")]


def test_nothing_to_read_is_nothing(slide, plan):
    assert list(read_tiles(slide, plan, [])) == []
