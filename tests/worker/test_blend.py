"""Blending: a partition of unity that does not care about order, silence that counts, and second looks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.segmenter import TileAnswer
from tests.worker.overlay_job import make_block, make_plan, make_tile
from worker.blend import BlockBlend, block_part, block_window, needs_second_look, tile_probability
from worker.types import Tile

T = 64
PLAN = make_plan(175, 150, block_px=128, tile_px=T)
BLOCK = make_block(PLAN, 0, 0)


def half(value: float = 1.0) -> np.ndarray:
    """A tile whose right half is marked."""
    probability = np.zeros((T, T), np.float32)
    probability[:, T // 2 :] = value
    return probability


@pytest.mark.parametrize("tile_px", [64, 255, 256])
def test_window_is_positive_symmetrical_and_highest_in_the_middle(tile_px):
    window = block_window(tile_px)
    assert window.shape == (tile_px, tile_px) and window.dtype == np.float32
    assert window.min() > 0 and window.max() <= 1
    assert np.array_equal(window, window[::-1]) and np.array_equal(window, window[:, ::-1])
    assert np.array_equal(window, window.T)
    assert window[tile_px // 2, tile_px // 2] == window.max()


@given(value=st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_tiles_that_agree_are_blended_to_what_they_say(value):
    blend = BlockBlend(BLOCK, T)
    for tile in BLOCK.tiles:
        blend.add(tile, np.full((T, T), value / 255, np.float32))
    assert np.array_equal(blend.result(), np.full((128, 128), value, np.uint8))


@given(seed=st.integers(0, 2**16), data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_order_of_tiles_changes_no_bit(seed, data):
    rng = np.random.default_rng(seed)
    votes = {tile.key: None if rng.random() < 0.3 else rng.random((T, T)) for tile in BLOCK.tiles}
    first, second = BlockBlend(BLOCK, T), BlockBlend(BLOCK, T)
    for tile in BLOCK.tiles:
        first.add(tile, votes[tile.key])
    for tile in data.draw(st.permutations(BLOCK.tiles)):
        second.add(tile, votes[tile.key])
    assert np.array_equal(first.result(), second.result())
    assert [first.agreement(tile) for tile in BLOCK.tiles] == [second.agreement(tile) for tile in BLOCK.tiles]


@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_the_sums_follow_the_formula(seed):
    rng = np.random.default_rng(seed)
    blend = BlockBlend(BLOCK, T)
    votes, weights = np.zeros((128, 128)), np.zeros((128, 128))
    for tile in BLOCK.tiles:
        probability = rng.random((T, T))
        blend.add(tile, probability)
        in_block, in_tile = block_part(BLOCK, tile)
        votes[in_block] += probability[in_tile] * block_window(T)[in_tile]
        weights[in_block] += block_window(T)[in_tile]
    # one step of rounding, and the window's own quantisation
    assert np.abs(blend.result() - 255 * votes / weights).max() < 1.0


def test_a_silent_tile_votes_zero_with_full_weight():
    left, right = make_tile(PLAN, 0, 0), make_tile(PLAN, 0, 1)
    alone, contested = BlockBlend(BLOCK, T), BlockBlend(BLOCK, T)
    for blend in (alone, contested):
        blend.add(left, np.ones((T, T)))
    contested.add(right, None)
    assert alone.result()[25, 56] == 255
    # Both windows are equal halfway through the overlap of columns 48..63.
    assert contested.result()[25, 55:57].tolist() == pytest.approx([128, 128], abs=16)
    assert contested.result()[25, 25] == 255


def test_where_no_tile_voted_the_probability_is_zero():
    blend = BlockBlend(BLOCK, T)
    blend.add(make_tile(PLAN, 0, 0), np.ones((T, T)))
    assert blend.result()[:T, :T].min() == 255
    assert blend.result()[T:].max() == 0 and blend.result()[:, T:].max() == 0


def test_a_tile_reaching_over_the_block_votes_only_inside():
    tile = Tile(9, 9, -25, 100, T)
    blend = BlockBlend(BLOCK, T)
    blend.add(tile, np.ones((T, T)))
    assert np.count_nonzero(blend.result()) == 39 * 28


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_outside_the_unit_interval_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        BlockBlend(BLOCK, T).add(make_tile(PLAN, 0, 0), None, weight)


def test_a_lighter_tile_moves_the_blend_less():
    heavy, light = BlockBlend(BLOCK, T), BlockBlend(BLOCK, T)
    for blend, weight in ((heavy, 1.0), (light, 0.25)):
        blend.add(make_tile(PLAN, 0, 0), None)
        blend.add(make_tile(PLAN, 0, 1), np.ones((T, T)), weight)
    assert heavy.result()[12, 56] > light.result()[12, 56] > 0


def test_a_tile_votes_once():
    blend = BlockBlend(BLOCK, T)
    blend.add(make_tile(PLAN, 0, 0), None)
    with pytest.raises(ValueError, match="voted before"):
        blend.add(make_tile(PLAN, 0, 0), None)


def test_a_probability_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="64"):
        BlockBlend(BLOCK, T).add(make_tile(PLAN, 0, 0), np.zeros((T // 2, T // 2)))


def test_agreement_is_the_iou_in_the_overlaps():
    left, right, below = make_tile(PLAN, 0, 0), make_tile(PLAN, 0, 1), make_tile(PLAN, 1, 0)
    blend = BlockBlend(BLOCK, T)
    blend.add(left, half())
    assert blend.agreement(left) is None
    blend.add(right, np.ones((T, T)))
    # The overlap of 16 columns lies in the marked half of both.
    assert blend.agreement(left) == 1.0
    blend.add(below, None)
    # Below, the left tile marks 16 rows of 32 columns and nobody agrees.
    assert blend.agreement(left) == pytest.approx(16 * 64 / (16 * 64 + 16 * 32))
    assert blend.agreement(below) == 0.0


def test_silent_tiles_agree_with_each_other():
    blend = BlockBlend(BLOCK, T)
    for tile in BLOCK.tiles:
        blend.add(tile, None)
    assert {blend.agreement(tile) for tile in BLOCK.tiles} == {1.0}


def test_a_halo_tile_testifies_without_voting():
    halo = make_tile(PLAN, 0, 3)
    assert halo.x_px >= BLOCK.x_px + BLOCK.width_px
    blend = BlockBlend(BLOCK, T)
    blend.add(make_tile(PLAN, 0, 2), None)
    blend.add(halo, np.ones((T, T)))
    assert blend.result().max() == 0
    assert blend.agreement(make_tile(PLAN, 0, 2)) == 0.0


def test_a_second_look_where_a_mask_crosses_into_a_silent_tile():
    silent = make_tile(PLAN, 1, 1)
    crossing, away = {"1_0": half(), "1_1": None}, {"1_0": half()[:, ::-1], "1_1": None}
    assert needs_second_look(silent, crossing, PLAN.stride_px)
    assert not needs_second_look(silent, away, PLAN.stride_px)
    assert not needs_second_look(silent, {"1_0": None, "1_1": None}, PLAN.stride_px)
    assert not needs_second_look(silent, {"5_5": np.ones((T, T))}, PLAN.stride_px)


def test_a_few_crossing_pixels_are_no_reason_for_a_second_look():
    silent = make_tile(PLAN, 1, 1)
    touch = np.zeros((T, T), np.float32)
    touch[:, 48:] = 0.4
    touch[:4, 48:52] = 0.9
    assert not needs_second_look(silent, {"1_0": touch}, PLAN.stride_px, min_share=0.02)
    assert needs_second_look(silent, {"1_0": touch}, PLAN.stride_px, min_share=0.01)
    assert needs_second_look(silent, {"1_0": touch}, PLAN.stride_px, threshold=0.3)


def test_the_masks_of_an_answer_become_their_union_weighted_by_belief():
    masks = np.stack([half(0.8), half(0.6)[:, ::-1]]).astype(np.float16)
    emitted = tile_probability(TileAnswer("", masks, p_seg=1.0))
    forced = tile_probability(TileAnswer("", masks, p_seg=0.25, forced=True))
    assert emitted[0, 50] == pytest.approx(0.8, abs=1e-3) and emitted[0, 10] == pytest.approx(0.6, abs=1e-3)
    assert np.allclose(forced, emitted * 0.25)
    assert tile_probability(TileAnswer("", np.zeros((0, T, T), np.float16))) is None
