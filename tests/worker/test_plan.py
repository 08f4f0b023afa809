"""Planning: one global grid, blocks that partition the overlay, and limits."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import BadRequest, MppUnknown, TooLarge
from worker.plan import block_of, plan_tiles, tile_at, wanted_tiles
from worker.types import JobSpec, SlideInfo, TilePlan


def info_of(width: int, height: int, mpp_x: float | None = 0.5, mpp_y: float | None = None) -> SlideInfo:
    mpp_y = mpp_x if mpp_y is None else mpp_y
    return SlideInfo(width, height, ((width, height),), (1.0,), mpp_x, mpp_y, "openslide.mpp", None, "made")


def spec_of(**fields: object) -> JobSpec:
    return JobSpec(slide_path="slide", slide_id="id", queries=("tumour",), **{"mpp": 1.0, "overlap": 0.25, **fields})


def all_blocks(plan: TilePlan):
    return [block_of(plan, key) for key in plan.block_keys]


@st.composite
def requests(draw):
    info = info_of(
        draw(st.integers(1, 6000)),
        draw(st.integers(1, 6000)),
        draw(st.sampled_from([0.25, 0.499, 0.5, 1.0])),
        draw(st.sampled_from([0.25, 0.5, 1.1])),
    )
    spec = spec_of(
        mpp=draw(st.sampled_from([0.5, 1.0, 1.7])),
        overlap=draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75])),
        grid_offset_px=(draw(st.integers(-400, 400)), draw(st.integers(-400, 400))),
        block_px=draw(st.sampled_from([None, 512, 1024])),
    )
    tissue = None
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        tissue = rng.random((draw(st.integers(1, 40)), draw(st.integers(1, 40)))) < 0.1
    if draw(st.booleans()):
        x, y = draw(st.integers(0, info.width_px0 - 1)), draw(st.integers(0, info.height_px0 - 1))
        w, h = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
        spec = replace(spec, roi=(((x, y), (x + w, y), (x + w, y + h), (x, y + h)),))
    return info, spec, tissue, draw(st.sampled_from([64, 100, 256]))


def painted(plan: TilePlan, wanted: np.ndarray | None = None) -> np.ndarray:
    """The overlay's pixels that a tile covers."""
    out = np.zeros((plan.height_px, plan.width_px), bool)
    for row, col in np.argwhere(wanted_tiles(plan) if wanted is None else wanted):
        tile = tile_at(plan, int(row), int(col))
        out[max(0, tile.y_px) : tile.y_px + tile.size_px, max(0, tile.x_px) : tile.x_px + tile.size_px] = True
    return out


@settings(max_examples=60, deadline=None)
@given(requests())
def test_the_grid_covers_every_pixel_of_the_overlay(request):
    info, spec, _, tile_px = request
    plan = plan_tiles(info, replace(spec, roi=()), None, tile_px, 1.0)
    assert painted(plan).all()
    assert plan.n_tiles == plan.rows * plan.cols
    assert plan.n_skipped == 0
    assert plan.width_px * plan.scale_x >= info.width_px0 - 1e-3 > (plan.width_px - 1) * plan.scale_x - 1


@settings(max_examples=60, deadline=None)
@given(requests())
def test_every_pixel_of_the_roi_is_covered(request):
    info, spec, _, tile_px = request
    plan = plan_tiles(info, spec, None, tile_px, 1.0)
    covered = painted(plan)
    for ring in spec.roi:
        (x0, y0), (x1, y1) = ring[0], ring[2]
        # pixels of which more than a thousandth lies in the ROI
        cols = slice(int(x0 / plan.scale_x + 1e-3), max(1, int(np.ceil(x1 / plan.scale_x - 1e-3))))
        rows = slice(int(y0 / plan.scale_y + 1e-3), max(1, int(np.ceil(y1 / plan.scale_y - 1e-3))))
        assert covered[rows, cols].all()


@settings(max_examples=60, deadline=None)
@given(requests())
def test_each_wanted_tile_is_owned_by_exactly_one_block(request):
    info, spec, tissue, tile_px = request
    plan = plan_tiles(info, spec, tissue, tile_px, 1.0)
    owned = [key for block in all_blocks(plan) for key in block.owned]
    wanted = {f"{row}_{col}" for row, col in np.argwhere(wanted_tiles(plan))}
    assert sorted(owned) == sorted(wanted)
    assert len(wanted) == plan.n_tiles == plan.rows * plan.cols - plan.n_skipped


@settings(max_examples=60, deadline=None)
@given(requests())
def test_blocks_partition_the_overlay_and_hold_every_tile_that_touches_them(request):
    info, spec, tissue, tile_px = request
    plan = plan_tiles(info, spec, tissue, tile_px, 1.0)
    seen = np.zeros((plan.height_px, plan.width_px), np.uint8)
    wanted = wanted_tiles(plan)
    busy = set(plan.block_keys)
    for row in range(-(-plan.height_px // plan.block_px)):
        for col in range(-(-plan.width_px // plan.block_px)):
            block = block_of(plan, f"{row}_{col}")
            rows = slice(block.y_px, block.y_px + block.height_px)
            cols = slice(block.x_px, block.x_px + block.width_px)
            seen[rows, cols] += 1
            touching = {
                tile.key
                for tile in (tile_at(plan, int(r), int(c)) for r, c in np.argwhere(wanted))
                if tile.x_px < cols.stop
                and tile.x_px + tile.size_px > cols.start
                and tile.y_px < rows.stop
                and tile.y_px + tile.size_px > rows.start
            }
            assert {tile.key for tile in block.tiles} == touching
            assert (block.key in busy) == bool(touching)
            assert [(t.row, t.col) for t in block.tiles] == sorted((t.row, t.col) for t in block.tiles)
            assert block.owned <= touching
    assert (seen == 1).all()


@settings(max_examples=40, deadline=None)
@given(requests())
def test_the_halo_is_the_wanted_neighbours_that_are_not_in_the_block(request):
    info, spec, tissue, tile_px = request
    plan = plan_tiles(info, spec, tissue, tile_px, 1.0)
    wanted = {(int(r), int(c)) for r, c in np.argwhere(wanted_tiles(plan))}
    for block in all_blocks(plan)[:4]:
        mine = {(tile.row, tile.col) for tile in block.tiles}
        around = {(r + dy, c + dx) for r, c in mine for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
        # Tiles that share no pixel have nothing to say about each other, and each costs a look of the model.
        expected = (around & wanted) - mine if plan.stride_px < plan.tile_px else set()
        assert {(tile.row, tile.col) for tile in block.halo} == expected


@settings(max_examples=40, deadline=None)
@given(requests(), st.sampled_from([512, 1024, 2048]))
def test_tile_ids_and_places_depend_neither_on_roi_nor_tissue_nor_blocks(request, block_px):
    info, spec, tissue, tile_px = request
    one = plan_tiles(info, spec, tissue, tile_px, 1.0)
    other = plan_tiles(info, replace(spec, roi=(), block_px=block_px), None, tile_px, 1.0)
    places = {tile.key: tile for block in all_blocks(other) for tile in block.tiles}
    for block in all_blocks(one):
        for tile in block.tiles:
            assert places[tile.key] == tile


@settings(max_examples=40, deadline=None)
@given(requests())
def test_a_plan_survives_json(request):
    info, spec, tissue, tile_px = request
    plan = plan_tiles(info, spec, tissue, tile_px, 1.0)
    assert TilePlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("shift", "start"), [((0, 0), (0, 0)), ((64, 85), (-128, -107)), ((192, -1), (0, -1)), ((-192, 193), (0, -191))]
)
def test_a_shifted_grid_starts_at_or_before_the_overlay(shift, start):
    plan = plan_tiles(info_of(4000, 3000), spec_of(grid_offset_px=shift), None, 256, 1.0)
    assert plan.stride_px == 192
    assert plan.offset_px == start
    assert tile_at(plan, 0, 0).x_px == start[0]
    assert painted(plan).all()


def test_factors_along_x_and_y_differ_where_mpp_does():
    plan = plan_tiles(info_of(4000, 4000, 0.25, 0.5), spec_of(mpp=1.0), None, 256, 1.0)
    assert (plan.scale_x, plan.scale_y) == (4.0, 2.0)
    assert (plan.width_px, plan.height_px) == (1000, 2000)


def test_unknown_mpp_names_the_override():
    with pytest.raises(MppUnknown) as caught:
        plan_tiles(info_of(100, 100, None), spec_of(), None, 256, 1.0)
    assert caught.value.field == "mpp_override"
    assert "mpp_override" in str(caught.value)
    plan = plan_tiles(info_of(100, 100, None), spec_of(mpp_override=0.5), None, 256, 1.0)
    assert (plan.width_px, plan.height_px) == (50, 50)


def test_the_models_mpp_is_the_default_but_never_far_finer_than_the_slide():
    assert plan_tiles(info_of(900, 900, 0.5), spec_of(mpp=None), None, 256, 1.3).mpp == 1.3
    assert plan_tiles(info_of(900, 900, 29.0), spec_of(mpp=None), None, 256, 1.0).mpp == 29.0
    # asked for, it is done
    assert plan_tiles(info_of(900, 900, 29.0), spec_of(mpp=10.0), None, 256, 1.0).width_px == 2610


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mpp": 0.0}, "mpp"),
        ({"mpp": float("nan")}, "mpp"),
        ({"mpp": -1.0}, "mpp"),
        ({"overlap": 0.8}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"tile_size_px": 8}, "tile_size_px"),
        ({"block_px": 500}, "block_px"),
        ({"block_px": 0}, "block_px"),
        ({"mpp_override": 0.0}, "mpp_override"),
        ({"roi": (((0, 0), (1, 1)),)}, "roi"),
        ({"roi": (((0, 0), (5, float("inf")), (1, 1)),)}, "roi"),
        ({"roi": (((5000, 0), (6000, 0), (6000, 500)),)}, "roi"),
        ({"roi": (((-50, 0), (-10, 0), (-10, 500)),)}, "roi"),
        ({"roi": (((0, 0), (100, 100), (200, 200)),)}, "roi"),
    ],
)
def test_refusals_name_the_field(fields, field):
    with pytest.raises(BadRequest) as caught:
        plan_tiles(info_of(4000, 3000), spec_of(**fields), None, 256, 1.0)
    assert caught.value.field == field


def test_too_many_tiles_are_refused():
    with pytest.raises(TooLarge) as caught:
        plan_tiles(info_of(200_000, 200_000, 0.25), spec_of(mpp=0.25), None, 64, 1.0)
    assert caught.value.field == "mpp"
    with pytest.raises(TooLarge):
        plan_tiles(info_of(200_000, 200_000, 0.25), spec_of(mpp=1e-5), None, 64, 1.0)


def test_an_roi_partly_outside_is_looked_at_where_it_lies_on_the_slide():
    plan = plan_tiles(info_of(4000, 3000), spec_of(roi=(((-900, -900), (100, -900), (100, 100)),)), None, 256, 1.0)
    assert {tuple(cell) for cell in np.argwhere(wanted_tiles(plan))} == {(0, 0)}


def test_a_self_crossing_roi_is_mended_not_refused():
    bow = (((0, 0), (1000, 1000), (1000, 0), (0, 1000)),)
    plan = plan_tiles(info_of(4000, 3000), spec_of(roi=bow), None, 256, 1.0)
    assert 0 < plan.n_tiles < plan.rows * plan.cols


def test_tiles_that_only_touch_the_roi_are_left_out():
    # with overlap 0 the tiles are [0, 512), [512, 1024) … in level-0 pixels
    roi = (((512, 512), (1024, 512), (1024, 1024), (512, 1024)),)
    plan = plan_tiles(info_of(4096, 4096), spec_of(roi=roi, overlap=0.0), None, 256, 1.0)
    assert [tuple(cell) for cell in np.argwhere(wanted_tiles(plan))] == [(1, 1)]


@pytest.mark.parametrize(("share", "looked_at"), [(0.0, False), (0.015, False), (0.025, True), (1.0, True)])
def test_a_tile_needs_two_percent_of_tissue(share, looked_at):
    tissue = np.zeros((256, 256), bool)
    tissue.reshape(-1)[: round(share * tissue.size)] = True
    plan = plan_tiles(info_of(512, 512), spec_of(overlap=0.0), tissue, 256, 1.0)
    assert plan.n_tiles == int(looked_at)


def test_tissue_is_measured_on_the_part_of_a_tile_that_lies_on_the_slide():
    # one column of 5 px hangs over the edge; all of it is tissue
    tissue = np.zeros((261, 261), bool)
    tissue[:, 256:] = True
    plan = plan_tiles(info_of(522, 522), spec_of(overlap=0.0), tissue, 256, 1.0)
    assert wanted_tiles(plan).tolist() == [[False, True], [False, True]]


def test_glass_leaves_nothing_to_look_at():
    plan = plan_tiles(info_of(4000, 3000), spec_of(), np.zeros((300, 400), bool), 256, 1.0)
    assert plan.n_tiles == 0
    assert plan.block_keys == ()


@pytest.mark.parametrize(("side", "edge"), [(1000, 1024), (4096, 1024), (4097, 2048), (16384, 2048), (16385, 4096)])
def test_blocks_grow_with_the_slide(side, edge):
    assert plan_tiles(info_of(side, 300, 1.0), spec_of(), None, 256, 1.0).block_px == edge


@pytest.mark.parametrize("key", ["9_9", "-1_0", "0", "a_b", "0_0_0", ""])
def test_a_block_that_is_not_there_is_refused(key):
    plan = plan_tiles(info_of(900, 900), spec_of(), None, 256, 1.0)
    with pytest.raises(BadRequest):
        block_of(plan, key)


def test_a_slide_of_100000_px_is_planned_at_once_and_in_little_memory():
    tissue = np.zeros((2048, 2048), bool)
    tissue[200:1800, 300:1700] = True
    spec = spec_of(mpp=0.25, roi=(((0, 0), (99_000, 5000), (50_000, 99_000)),))
    tracemalloc.start()
    began = time.monotonic()
    plan = plan_tiles(info_of(100_000, 100_000, 0.25), spec, tissue, 256, 1.0)
    took = time.monotonic() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (plan.rows, plan.cols) == (521, 521)
    assert took < 20, "vectorised planning takes a fraction of a second; a loop over tiles takes minutes"
    assert peak < 400 * 2**20
    assert len(str(plan.to_json())) < 100_000
    owned = sum(len(block_of(plan, key).owned) for key in plan.block_keys)
    assert owned == plan.n_tiles > 50_000
