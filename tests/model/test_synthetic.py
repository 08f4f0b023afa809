"""Synthetic scenes: the same from the same seed, exact masks, structures told apart by their architecture."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.synthetic import MIN_SHARE, NEVER_DRAWN, PARENTS, masks_of, synthetic_scene, synthetic_scenes
from model.data.synthetic_layout import place_gland, place_sheet, place_vessel
from model.data.synthetic_shapes import Frame, random_blob, scattered_points
from model.data.synthetic_stain import random_stain
from model.data.synthetic_style import LABEL, LEAVES, plain_style, random_style
from model.data.synthetic_tissue import paint_tissue

FRAME = Frame(2000, 3000, 320, 320, 0.5)
CENTRE_UM = ((FRAME.x_px + 160) * FRAME.mpp, (FRAME.y_px + 160) * FRAME.mpp)
DARK = 100
"""Haematoxylin above which a pixel belongs to a nucleus in the plain style."""


def _sheet(kind: str, radius_um: float):
    rng = np.random.default_rng(4)
    return place_sheet(rng, kind, random_blob(rng, *CENTRE_UM, radius_um, rough=0.05))


def _structure(kind: str):
    """One structure in the middle of FRAME, wholly inside it."""
    rng = np.random.default_rng(11)
    if kind == "vessel":
        return place_vessel(rng, *CENTRE_UM)
    if kind in ("normal_gland", "malignant_gland"):
        return place_gland(rng, kind, *CENTRE_UM)
    return _sheet(kind, 55)


def _filled(kind: str) -> np.ndarray:
    """Dye of a frame that is nothing but one sheet."""
    structures = [] if kind == "stroma" else [_sheet(kind, 600)]
    return paint_tissue(FRAME, structures, plain_style(7))[0][30:-30, 30:-30]


def _nuclei(dye: np.ndarray) -> tuple[int, float]:
    """(number, median area in µm²) of dark pieces."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((dye[..., 0] > DARK).astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA] * FRAME.mpp**2
    return len(areas), float(np.median(areas)) if len(areas) else 0.0


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(np.random.default_rng(3), 45, 160, (0.5, 2.0))


def test_same_seed_same_scene():
    one, two, other = (synthetic_scene(np.random.default_rng(seed), 128, 0.8) for seed in (5, 5, 6))
    assert np.array_equal(one.image, two.image)
    assert one.masks.keys() == two.masks.keys()
    assert all(np.array_equal(one.masks[key], two.masks[key]) for key in one.masks)
    assert one.id == two.id != other.id
    assert not np.array_equal(one.image, other.image)


def test_scenes_from_one_generator_are_reproducible_and_distinct(scenes):
    again = synthetic_scenes(np.random.default_rng(3), 45, 160, (0.5, 2.0))
    assert [scene.id for scene in again] == [scene.id for scene in scenes]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    assert len({scene.id for scene in scenes}) == 45
    assert len({scene.patient for scene in scenes}) == 5


def test_scene_has_the_asked_shape_and_scale(scenes):
    scene = synthetic_scene(np.random.default_rng(0), 96, 1.7)
    assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
    assert scene.mpp == 1.7
    assert all(0.5 <= scene.mpp <= 2.0 for scene in scenes)
    assert all(mask.shape == (160, 160) and mask.dtype == bool for s in scenes for mask in s.masks.values())


def test_leaves_are_disjoint_and_parents_are_their_unions(scenes):
    for scene in scenes:
        count = sum(scene.masks[leaf].astype(int) for leaf in LEAVES if leaf in scene.masks)
        assert np.max(count) <= 1
        for parent, leaves in PARENTS.items():
            for leaf in leaves:
                if leaf in scene.masks:
                    assert not (scene.masks[leaf] & ~scene.masks[parent]).any()


def test_what_is_present_is_not_absent_and_is_large_enough(scenes):
    for scene in scenes:
        assert not scene.absent & scene.masks.keys()
        assert NEVER_DRAWN <= scene.absent
        assert all(mask.mean() >= MIN_SHARE for mask in scene.masks.values())


def test_a_speck_is_neither_present_nor_absent():
    labels = np.full((100, 100), LABEL["stroma"], np.uint8)
    labels[:5, :10] = LABEL["tumour_nest"]
    labels[10:20, :60] = LABEL["malignant_gland"]
    masks, absent = masks_of(labels)
    assert "tumour_nest" not in masks and "tumour_nest" not in absent
    assert masks["tumour"].sum() == 650 and masks["gland"].sum() == 600
    assert {"normal_gland", "fat", *NEVER_DRAWN} <= absent
    assert "stroma" in masks


def test_every_concept_is_drawn_often():
    scenes = synthetic_scenes(np.random.default_rng(12), 180, 96, (0.8, 2.0))
    for concept in (*LEAVES, *PARENTS):
        share = np.mean([concept in scene.masks for scene in scenes])
        assert share > 0.08, concept
        if concept != "stroma":
            assert np.mean([concept in scene.absent for scene in scenes]) > 0.1, concept


def test_stain_and_light_vary_between_scenes():
    medians = np.array([np.median(random_stain(np.random.default_rng(s)).table()[60, 60]) for s in range(30)])
    assert medians.std() > 8
    light = [random_style(np.random.default_rng(s)).base[:, 1].astype(int) for s in range(30)]
    redder = [base[LABEL["tumour_nest"]] > base[LABEL["malignant_gland"]] for base in light]
    assert 3 < sum(redder) < 27, "no structure is always the pinker one"


@pytest.mark.parametrize("kind", [leaf for leaf in LEAVES if leaf != "stroma"])
def test_nothing_is_drawn_outside_the_mask(kind):
    # Without its cells, which give way near other things, stroma shows every stray pixel.
    style = replace(plain_style(7), cellularity=1e-6)
    before, _ = paint_tissue(FRAME, [], style)
    after, labels = paint_tissue(FRAME, [_structure(kind)], style)
    mask = labels == LABEL[kind]
    assert 0.03 < mask.mean() < 0.9
    changed = (before != after).any(axis=-1)
    assert not (changed & ~mask).any()
    assert changed[mask].mean() > 0.9


@pytest.mark.parametrize("kind", [leaf for leaf in LEAVES if leaf != "stroma"])
def test_structures_have_their_size_in_um(kind):
    structure = _structure(kind)
    areas = []
    for mpp in (0.5, 1.0, 2.0):
        x, y = (int(centre / mpp) - 150 for centre in CENTRE_UM)
        _, labels = paint_tissue(Frame(x, y, 300, 300, mpp), [structure], plain_style(7))
        areas.append((labels == LABEL[kind]).sum() * mpp**2)
    assert areas[1] == pytest.approx(areas[0], rel=0.06)
    assert areas[2] == pytest.approx(areas[0], rel=0.12)


def test_lymphocytes_are_small_and_packed_and_tumour_nuclei_are_large():
    lymphocytes, tumour, stroma = _filled("lymphocytes"), _filled("tumour_nest"), _filled("stroma")
    assert (lymphocytes[..., 0] > DARK).mean() > 3 * (stroma[..., 0] > DARK).mean()
    opened = cv2.erode((tumour[..., 0] > 0.6 * DARK).astype(np.uint8), np.ones((13, 13), np.uint8))
    assert opened.any(), "a tumour nucleus holds a square of 6.5 µm"
    apart = replace(plain_style(7), lymph_spacing_um=14.0)
    single = paint_tissue(FRAME, [_sheet("lymphocytes", 600)], apart)[0]
    assert 15 < _nuclei(single)[1] < 45


def test_necrosis_holds_dust_and_no_whole_nucleus():
    dye = _filled("necrosis")
    number, _ = _nuclei(dye)
    assert number > 10
    whole = cv2.erode((dye[..., 0] > DARK).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    assert whole.mean() < 0.002
    grain = [cv2.Laplacian(_filled(kind)[..., 1], cv2.CV_32F).std() for kind in ("necrosis", "stroma")]
    assert grain[0] > 1.5 * grain[1]


def test_fat_is_clear_and_a_crypt_is_pale_inside_with_dark_nuclei_at_its_base():
    assert (_filled("fat")[..., :2].max(axis=-1) < 20).mean() > 0.6
    gland = _structure("normal_gland")
    dye, labels = paint_tissue(FRAME, [gland], plain_style(7))
    rows, columns = np.nonzero(labels == LABEL["normal_gland"])
    points = np.stack([columns + FRAME.x_px + 0.5, rows + FRAME.y_px + 0.5], axis=1) * FRAME.mpp
    rho, _ = gland.blob.locate(points)
    base = dye[rows, columns, 0][(rho > 0.75) & (rho < 0.97)].mean()
    middle = dye[rows, columns, 0][rho < 0.5].mean()
    assert base > 2.5 * middle


def test_malignant_gland_is_more_crowded_than_a_crypt():
    def darkness(kind: str, seed: int) -> float:
        gland = place_gland(np.random.default_rng(seed), kind, *CENTRE_UM)
        dye, labels = paint_tissue(FRAME, [gland], plain_style(7))
        return (dye[..., 0][labels == LABEL[kind]] > DARK).mean()

    malignant, normal = (np.mean([darkness(kind, s) for s in range(8)]) for kind in ("malignant_gland", "normal_gland"))
    assert malignant > 1.25 * normal


def test_overlapping_frames_draw_the_same_pixels():
    rng = np.random.default_rng(2)
    structures = [_sheet("necrosis", 70), _sheet("fat", 60), place_gland(rng, "malignant_gland", *CENTRE_UM)]
    style = plain_style(9)
    dye, labels = paint_tissue(FRAME, structures, style)
    moved = Frame(FRAME.x_px + 64, FRAME.y_px - 48, 320, 320, FRAME.mpp)
    dye_moved, labels_moved = paint_tissue(moved, structures, style)
    here, there = np.s_[40:232, 104:280], np.s_[88:280, 40:216]
    assert np.array_equal(labels[here], labels_moved[there])
    assert np.array_equal(dye[here], dye_moved[there])


def test_glass_has_no_dye():
    outline = np.array([[0, 0], [CENTRE_UM[0], 0], [CENTRE_UM[0], 9e3], [0, 9e3]], float)
    dye, labels = paint_tissue(FRAME, [], plain_style(1), [outline])
    assert not labels[:, 165:].any() and labels[:, :155].all()
    assert not dye[:, 165:, :2].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rho=st.floats(0.05, 1.0))
def test_locate_is_the_inverse_of_at(seed, rho):
    blob = random_blob(np.random.default_rng(seed), 50, -30, 40, 1.7, 0.1)
    theta = np.linspace(-3, 3, 9)
    found_rho, found_theta = blob.locate(blob.at(rho, theta))
    assert found_rho == pytest.approx(rho)
    assert found_theta == pytest.approx(theta)


@settings(max_examples=40, deadline=None)
@given(dx=st.integers(-500, 500), dy=st.integers(-500, 500), mpp=st.floats(0.2, 3), x=st.floats(-900, 900))
def test_a_frame_moves_points_by_whole_pixels(dx, dy, mpp, x):
    point = np.array([[x, 2 * x + 1]])
    moved = Frame(dx, dy, 9, 9, mpp).fixed(point) - Frame(0, 0, 9, 9, mpp).fixed(point)
    assert moved.tolist() == [[-16 * dx, -16 * dy]]


@settings(max_examples=30, deadline=None)
@given(x=st.floats(-500, 500), y=st.floats(-500, 500), seed=st.integers(0, 1 << 62))
def test_scattered_points_do_not_depend_on_the_box(x, y, seed):
    large, small = (x - 100, y - 100, x + 200, y + 200), (x, y, x + 60, y + 60)
    many, few = (scattered_points(box, 9.0, seed)[0] for box in (large, small))
    inside = {tuple(p) for p in many if x <= p[0] <= x + 60 and y <= p[1] <= y + 60}
    assert inside == {tuple(p) for p in few if x <= p[0] <= x + 60 and y <= p[1] <= y + 60}
    assert len(inside) > 20
