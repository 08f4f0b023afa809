"""Labels: united over blocks exactly as over the whole, numbered by first pixel, with pyramids that invent nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.worker.overlay_job import discs, finish, make_plan, segment_blocks
from worker.components import (
    component_shares,
    first_pixels,
    local_components,
    quantised_threshold,
    touching_pairs,
    unite,
)
from worker.pyramid import OVERLAY, halve_mean, halve_mode, levels_of, open_level
from worker.types import Block, JobSpec, Tile


def spec_of(queries: int = 1, **changes) -> JobSpec:
    return JobSpec("slide", "slide", tuple(f"query {i}" for i in range(queries)), **{"min_region_um2": 1.0, **changes})


def whole_labels(picture: np.ndarray, min_area_px: float) -> np.ndarray:
    """The plain reference: scipy on the whole picture, dense numbers by first pixel, small ones dropped."""
    labels, count = ndimage.label(np.rint(picture * 255) >= 128)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    table = np.zeros(count + 1, np.uint32)
    kept = [label for label in range(1, count + 1) if areas[label] >= min_area_px]
    table[kept] = np.arange(1, len(kept) + 1)
    return table[labels]


@pytest.mark.parametrize("seed", range(3))
def test_labels_over_blocks_equal_labels_over_the_whole(tmp_path, seed):
    rng = np.random.default_rng(seed)
    plan = make_plan(1300, 900)
    noise = ndimage.gaussian_filter(rng.random((900, 1300)), 6)
    picture = (noise > 0.5).astype(np.float32) * 0.9
    segment_blocks(tmp_path, plan, spec_of(min_region_um2=60.0), [picture])
    folder, regions = finish(tmp_path, plan, spec_of(min_region_um2=60.0))
    expected = whole_labels(picture, 60)
    assert np.array_equal(open_level(folder / OVERLAY, "labels/0", 0)[:], expected)
    assert len(regions) == expected.max() > 20


def test_the_pyramids_follow_from_the_finest_level(tmp_path):
    plan = make_plan(2500, 1111, block_px=1024)
    picture = discs(2500, 1111, (1020, 500, 333), (1800, 1023, 180), (60, 60, 50))
    segment_blocks(tmp_path, plan, spec_of(), [picture])
    folder, _ = finish(tmp_path, plan, spec_of())
    levels = levels_of(plan)
    assert [level.owned for level in levels] == [True, True, False, False]
    labels = open_level(folder / OVERLAY, "labels/0", 0)[:]
    probability = np.rint(picture * 255).astype(np.uint8)
    for level in levels[1:]:
        labels, probability = halve_mode(labels), halve_mean(probability)
        assert np.array_equal(open_level(folder / OVERLAY, "labels/0", level.index)[:], labels)
        root = tmp_path if level.owned else folder
        assert np.array_equal(open_level(root / OVERLAY, "probability/0", level.index)[:], probability)


def test_nothing_found_leaves_nothing_written(tmp_path):
    plan = make_plan(600, 600)
    segment_blocks(tmp_path, plan, spec_of(), [discs(600, 600, (300, 300, 3))])
    folder, regions = finish(tmp_path, plan, spec_of(min_region_um2=500.0))
    assert regions == []
    assert not list((folder / OVERLAY / "labels").rglob("c"))
    assert open_level(folder / OVERLAY, "labels/0", 0)[:].max() == 0


def test_blocks_that_meet_only_at_a_corner_stay_apart(tmp_path):
    plan = make_plan(1024, 1024)
    picture = np.zeros((1024, 1024), np.float32)
    picture[400:512, 400:512] = picture[512:600, 512:600] = 1
    segment_blocks(tmp_path, plan, spec_of(), [picture])
    _, regions = finish(tmp_path, plan, spec_of())
    assert [region.area_um2 for region in regions] == [112 * 112, 88 * 88]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_union_over_any_split_equals_the_whole(data):
    seed = data.draw(st.integers(0, 2**16))
    rows, cols = data.draw(st.integers(2, 24)), data.draw(st.integers(2, 24))
    cut = data.draw(st.integers(1, cols - 1))
    mask = np.random.default_rng(seed).random((rows, cols)) < 0.55
    left, n_left = local_components(mask[:, :cut].astype(np.uint8) * 255, 0.5)
    right, n_right = local_components(mask[:, cut:].astype(np.uint8) * 255, 0.5)
    right = np.where(right > 0, right + n_left, 0)
    group_of, groups = unite(n_left + n_right, touching_pairs(left[:, -1], right[:, 0]))
    united = np.concatenate([[-1], group_of])[np.hstack([left, right])]
    expected, count = ndimage.label(mask)
    assert groups == count
    pairs = {(int(a), int(b)) for a, b in zip(united[mask], expected[mask], strict=True)}
    assert len(pairs) == count


@given(seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_local_components_are_numbered_by_their_first_pixel(seed):
    mask = np.random.default_rng(seed).random((30, 31)) < 0.5
    labels, count = local_components(mask.astype(np.uint8) * 200, 0.5)
    expected, expected_count = ndimage.label(mask)
    assert count == expected_count
    assert np.array_equal(labels, expected)
    firsts = first_pixels(labels, count)
    assert np.all(np.diff(firsts) > 0)
    assert np.array_equal(labels.ravel()[firsts], np.arange(1, count + 1))


@pytest.mark.parametrize(("threshold", "value"), [(0.0, 1), (0.5, 128), (0.2, 51), (1.0, 255)])
def test_the_threshold_in_bytes(threshold, value):
    assert quantised_threshold(threshold) == value


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 9), cols=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_halving_by_mode_takes_the_most_frequent_label(seed, rows, cols):
    labels = np.random.default_rng(seed).integers(0, 3, (rows, cols)).astype(np.uint32)
    halved = halve_mode(labels)
    assert halved.shape == (-(-rows // 2), -(-cols // 2)) and halved.dtype == np.uint32
    for row in range(halved.shape[0]):
        for col in range(halved.shape[1]):
            ys, xs = (min(2 * row + d, rows - 1) for d in (0, 1)), [min(2 * col + d, cols - 1) for d in (0, 1)]
            cell = [labels[y, x] for y in ys for x in xs]
            most = max(cell.count(value) for value in cell)
            best = {value for value in cell if cell.count(value) == most}
            assert halved[row, col] in (best - {0} or {0})


def test_halving_by_mean_rounds():
    assert halve_mean(np.array([[0, 1, 255], [1, 0, 255]], np.uint8)).tolist() == [[1, 255]]


def test_shares_say_who_made_a_component_and_who_only_saw_it():
    block = Block(2, 3, 1536, 1024, 512, 512, (), (), frozenset())
    probability = np.zeros((512, 512), np.uint8)
    probability[100:200, 100:200] = 255
    probability[400:420, 400:420] = 255
    labels, _ = local_components(probability, 0.5)
    tile = Tile(5, 8, 1536 + 20, 1024 + 20, 256)
    view = probability[20:276, 20:276] / 255
    made = component_shares(labels, block, tile, view, 0.5)
    assert list(made) == ["2_3/1"]
    assert 0.5 * 10_000 * 0.3 < made["2_3/1"] < 0.5 * 10_000
    assert component_shares(labels, block, tile, view, 1.0)["2_3/1"] == pytest.approx(2 * made["2_3/1"], abs=0.01)
    assert component_shares(labels, block, tile, None, 0.0) == {"2_3/1": 0.0}
    assert component_shares(labels, block, Tile(0, 0, 0, 0, 256), view, 1.0) == {}
