"""Eq. 1 against numbers worked out by hand; nothing masked is seen; both encoders learn."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from model.data.synthetic import synthetic_scenes
from model.training.mae import FLAT, MaskedHead, draw_masks, fill_hidden, mae_loss, patch_targets
from model.training.pools import ScenePool
from model.training.ssl import Ssl, _pixels, embeddings, pool_statistics, rank_of, stain_consistency
from tests.model.tiny import small_config, small_model, small_paper_config, small_paper_model

EAST, NORTH, WEST = ([[1.0, 0, 0, 0, 0, 0]], [[0, 2.0, 0, 0, 0, 0]], [[-3.0, 0, 0, 0, 0, 0]])


def pool_of(size_px: int, scenes: int = 12) -> ScenePool:
    made = synthetic_scenes(np.random.default_rng(0), scenes, size_px=size_px)
    return ScenePool({"synthetic": [made]}, size_px, {"synthetic": 1.0})


@pytest.fixture(scope="module")
def pool():
    return pool_of(64)


@pytest.fixture(scope="module")
def statistics(pool):
    return pool_statistics(pool)


@pytest.fixture(scope="module", params=["tiny", "paper"])
def layout(request, pool, statistics):
    """A stage and its model: convolutional stems on one grid; or patch stems, windows, registers and two grids."""
    if request.param == "tiny":
        return Ssl(pool, statistics, small_config(), 4, seed=0), small_model()
    return Ssl(pool_of(128, 4), statistics, small_paper_config(), 2, seed=0), small_paper_model()


# Eq. 1


def consistency(a, b, s1, s2, alpha=1.0):
    return float(stain_consistency(*(torch.tensor(x) for x in (a, b, s1, s2)), alpha))


def test_the_first_term_by_hand():
    """Two pictures: ‖(3, 4)‖² = 25 at cos 0, ‖(1, 0)‖² = 1 at cos −1: α/2 · (1·25 + 2·1)."""
    got = consistency([[3.0, 4.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], EAST + EAST, NORTH + WEST, alpha=0.5)
    assert got == pytest.approx(0.5 / 2 * (1 * 25 + 2 * 1))


def test_places_of_a_picture_are_averaged():
    """One picture, two places: squares 25 and 1, Cos 1."""
    got = consistency([[[3.0, 4.0], [1.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]], EAST, NORTH)
    assert got == pytest.approx((25 + 1) / 2)


def test_one_stain_costs_nothing_and_stains_further_apart_cost_more():
    a, b = [[1.0, 0.0]], [[0.0, 0.0]]
    diagonal = [[1.0, 1.0, 0, 0, 0, 0]]
    costs = [consistency(a, b, EAST, other) for other in (EAST, diagonal, NORTH, WEST)]
    assert costs == pytest.approx([0, 1 - math.sqrt(0.5), 1, 2], abs=1e-6)


def test_descending_brings_the_views_together():
    z_a, z_b = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 0.0]], requires_grad=True)
    stain_consistency(z_a, z_b, torch.tensor(EAST), torch.tensor(NORTH), 1.0).backward()
    assert z_a.grad.tolist() == [[2.0, 0.0]] and z_b.grad.tolist() == [[-2.0, 0.0]]


# Embeddings


def test_embeddings_are_standardised_over_pictures_place_by_place():
    """One place, one channel, ±1 about 2; the views agree: z is ±1."""
    z_a, z_b = embeddings(torch.tensor([[[1.0]], [[3.0]], [[1.0]], [[3.0]]]), "dense")
    assert z_a.flatten().tolist() == pytest.approx([-1, 1]) and torch.equal(z_a, z_b)


@pytest.mark.parametrize("match", ["dense", "pooled"])
def test_neither_shrinking_nor_an_offset_nor_a_sense_of_place_brings_views_nearer(match):
    torch.manual_seed(0)
    tokens, place = torch.randn(6, 5, 8), torch.randn(1, 5, 8)
    expected, got = embeddings(tokens, match), embeddings(0.1 * tokens + 3 + 2 * place, match)
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), atol=1e-4, rtol=1e-3)
    assert expected[0].shape == (3, 5 if match == "dense" else 1, 8)
    assert float(torch.cat(expected).square().sum(-1).mean()) == pytest.approx(1, abs=1e-4)


def test_rank_counts_directions():
    eye = torch.eye(4)[:, None]
    assert rank_of(eye) == pytest.approx(4) and rank_of(eye[:, :, :1] * torch.ones(4)) == pytest.approx(1)


# Masked autoencoding


def test_masks_hide_three_quarters_of_every_picture_each_its_own():
    masks = draw_masks(np.random.default_rng(0), 6, 14, 0.75)
    assert masks.shape == (6, 14, 14) and masks.sum((1, 2)).tolist() == [147] * 6
    assert len({mask.tobytes() for mask in masks}) == 6


def test_the_reconstruction_loss_counts_masked_patches_alone():
    predicted, target = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
    assert float(mae_loss(predicted, target, torch.tensor([[True, False]]))) == pytest.approx((1 + 9) / 2)
    assert float(mae_loss(predicted, target, torch.tensor([[[True, True]]]))) == pytest.approx((1 + 9 + 81 + 81) / 4)
    assert float(mae_loss(target, target, torch.tensor([[True, True]]))) == 0


def test_targets_are_patches_with_each_colour_standardised():
    pixels = torch.zeros(1, 3, 2, 4)
    pixels[0, 1, :, 2:] = torch.tensor([[5.0, 7.0], [5.0, 7.0]])  # second patch, green: ±1 about 6
    target = patch_targets(pixels, 2)
    assert target.shape == (1, 2, 12) and not target[0, 0].any()
    scale = 1 / math.sqrt(1 + FLAT)
    assert target[0, 1].tolist() == pytest.approx([0] * 4 + [-scale, scale, -scale, scale] + [0] * 4)


def test_targets_do_not_change_with_a_linear_change_of_colour():
    pixels = torch.randn(2, 3, 8, 8)
    changed = pixels * torch.tensor([2.0, 1.5, 1.2]).view(1, 3, 1, 1) + 0.3
    torch.testing.assert_close(patch_targets(changed, 4), patch_targets(pixels, 4), atol=2e-3, rtol=1e-2)


def test_masked_patches_are_filled_with_the_mean_of_visible_ones():
    pixels = torch.tensor([[[[2.0, 4.0], [100.0, 100.0]]]]).expand(1, 3, 2, 2)
    hidden = torch.tensor([[[False, False], [True, True]]])
    assert fill_hidden(pixels, hidden)[0, 0].tolist() == [[2, 4], [3, 3]]


def test_the_token_stands_in_behind_the_stem_and_leaves_it():
    torch.manual_seed(0)
    head, project = MaskedHead(5, 5, 2), torch.nn.Conv2d(3, 5, 2, stride=2)
    pixels, hidden = torch.randn(1, 3, 4, 4), torch.tensor([[[True, False], [False, False]]])
    plain = project(pixels)
    with head.standing_in(project, hidden):
        masked = project(pixels)
    assert torch.equal(masked[0, :, 0, 0], head.token) and torch.equal(masked[0, :, 1], plain[0, :, 1])
    assert torch.equal(project(pixels), plain)


@pytest.mark.parametrize("name", ["pathology", "sam"])
def test_masked_pixels_change_nothing_that_is_predicted(layout, name):
    stage, model = layout
    batch = stage.batch(0)
    hidden = batch.hidden_sam if name == "sam" else batch.hidden_pathology
    pixels = _pixels(model, name, batch.images_a)
    edge = pixels.shape[-1] // hidden.shape[-1]
    where = hidden.repeat_interleave(edge, 1).repeat_interleave(edge, 2)[:, None]
    with torch.no_grad():
        before = stage.predict(model, name, pixels, hidden)
        other = pixels + torch.randn_like(pixels)
        masked_changed = stage.predict(model, name, torch.where(where, other, pixels), hidden)
        seen_changed = stage.predict(model, name, torch.where(where, pixels, other), hidden)
    assert before.shape == (len(pixels), hidden[0].numel(), 3 * edge**2)
    assert torch.equal(before, masked_changed)
    assert not torch.allclose(before, seen_changed, atol=1e-3)


# Batches


def test_a_batch_is_a_function_of_seed_and_index(pool, statistics):
    def batch(seed: int, index: int):
        return Ssl(pool, statistics, small_config(), 3, seed, keep_classes=1.0).batch(index)

    first, again = batch(1, 7), batch(1, 7)
    for part in fields(first):
        assert torch.equal(getattr(first, part.name), getattr(again, part.name)), part.name
    for other in (batch(2, 7), batch(1, 8)):
        assert not torch.equal(first.images_a, other.images_a)
        assert not torch.equal(first.hidden_sam, other.hidden_sam)


def test_both_views_show_the_same_tissue_in_two_stains(layout):
    stage, _ = layout
    batch, c = stage.batch(3), stage.config
    assert batch.images_a.shape == (stage.batch_size, c.tile_px, c.tile_px, 3) and batch.images_a.dtype == torch.uint8
    assert batch.stains_a.shape == (stage.batch_size, 6) and not torch.allclose(batch.stains_a, batch.stains_b)
    grids = [hidden.shape[1:] for hidden in (batch.hidden_pathology, batch.hidden_sam)]
    assert grids == [(c.patch_grid,) * 2, (c.sam_px // 16,) * 2]
    assert batch.hidden_sam.float().mean() == pytest.approx(0.75) and batch.target is None
    for a, b in zip(batch.images_a.float(), batch.images_b.float(), strict=True):
        same = np.corrcoef(a.mean(-1).flatten(), b.mean(-1).flatten())[0, 1]
        assert same > 0.8 and not torch.equal(a, b)


def test_fewer_pictures_may_be_masked(pool, statistics):
    stage = Ssl(pool, statistics, small_config(), 4, 0, mae_share=0.5)
    batch = stage.batch(0)
    assert len(batch.images_a) == 4 and len(batch.hidden_sam) == len(batch.hidden_pathology) == 2
    assert torch.isfinite(stage.loss(small_model(), batch, 0)[0])


def test_a_plain_view_keeps_its_stain():
    pool = pool_of(64, 1)
    scene = pool.groups["synthetic"][0][0]
    rng = np.random.default_rng(0)
    view = pool.view(pool.pick(rng), rng, restained=False)
    assert np.abs(view.image.mean((0, 1)) - scene.image.mean((0, 1))).max() < 25
    assert view.masks.keys() and view.image.shape == (64, 64, 3)


def test_statistics_are_the_real_scenes_where_there_are_any(pool, statistics):
    scenes = pool.groups["synthetic"][0]
    both = ScenePool({"synthetic": [scenes], "bcss": [scenes[:3], scenes[:3]]}, 64)
    assert statistics.images == 12 and pool_statistics(both).images == 3
    assert pool_statistics(pool, most=5).images == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": "cls"}, r"ssl.match='cls': accepted are \['dense', 'pooled'\]"),
        ({"batch_size": 1}, "ssl.batch_size=1: at least 2"),
        ({"mask_ratio": 0.0}, "ssl.mask_ratio=0.0: accepted is more than 0"),
        ({"mae_share": 1.5}, "ssl.mae_share=1.5: accepted is more than 0"),
        ({"keep_classes": 1.0, "config": small_paper_config()}, "the model has no dense classes"),
    ],
)
def test_an_option_that_is_not_accepted_is_named(pool, statistics, options, message):
    with pytest.raises(ValueError, match=message):
        Ssl(pool, statistics, **({"config": small_config(), "batch_size": 2, "seed": 0} | options))


# Training


def test_the_loss_is_eq_1_for_both_encoders_and_gradients_reach_them(layout):
    stage, model = layout
    model.zero_grad()
    loss, figures = stage.loss(model, stage.batch(0), 0)
    parts = [figures[f"{name}_{part}"] for name in ("pathology", "sam") for part in ("stain", "mae")]
    assert float(loss.detach()) == pytest.approx(sum(parts), rel=1e-5) and min(parts) > 0
    loss.backward()
    trained = {id(p) for p in stage.parameters(model)}
    for name, parameter in model.named_parameters():
        if "high_res" in name:
            continue  # read by the mask decoder alone
        encoder = name.startswith(("sam_encoder.", "pathology_encoder."))
        assert (id(parameter) in trained) == encoder
        assert (parameter.grad is not None) == encoder, name
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.modules().parameters())


@pytest.mark.parametrize("match", ["dense", "pooled"])
def test_alpha_scales_the_stain_term_alone(pool, statistics, match):
    model, figures = small_model(), []
    for alpha in (1.0, 3.0):
        stage = Ssl(pool, statistics, small_config(), 3, 0, alpha=alpha, match=match)
        figures.append(stage.loss(model, stage.batch(0), 0)[1])
    for name in ("pathology", "sam"):
        assert figures[1][f"{name}_stain"] == pytest.approx(3 * figures[0][f"{name}_stain"], rel=1e-4)
        assert figures[1][f"{name}_mae"] == pytest.approx(figures[0][f"{name}_mae"])


def test_one_stain_for_both_views_leaves_only_the_reconstruction(pool, statistics):
    stage, model = Ssl(pool, statistics, small_config(), 3, 0), small_model()
    batch = stage.batch(0)
    object.__setattr__(batch, "stains_b", batch.stains_a)
    figures = stage.loss(model, batch, 0)[1]
    assert abs(figures["pathology_stain"]) < 1e-6 and abs(figures["sam_stain"]) < 1e-6 < figures["sam_mae"]


def test_classes_are_kept_where_asked(pool, statistics):
    model = small_model()
    stage = Ssl(pool, statistics, small_config(), 3, 0, keep_classes=2.0)
    loss, figures = stage.loss(model, stage.batch(0), 0)
    assert figures["dense"] > 0
    without = sum(value for name, value in figures.items() if name.endswith(("_stain", "_mae")))
    assert float(loss.detach()) == pytest.approx(without + figures["dense"], rel=1e-5)
    assert {id(p) for p in model.dense_head.parameters()} <= {id(p) for p in stage.parameters(model)}


def test_training_lowers_both_terms(pool, statistics):
    stage, model = Ssl(pool, statistics, small_config(), 4, 0), small_model().train()
    optimiser = torch.optim.AdamW([*stage.parameters(model), *stage.modules().parameters()], 2e-3)
    batch, losses = stage.batch(0), []
    for step in range(20):
        loss, figures = stage.loss(model, batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(figures)
    for part in ("pathology_stain", "sam_stain"):
        assert losses[-1][part] < 0.6 * losses[0][part], part
    for part in ("pathology_mae", "sam_mae", "loss"):
        assert losses[-1][part] < 0.97 * losses[0][part], part


def test_what_only_training_needs_starts_from_the_seed(pool, statistics):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [Ssl(pool, statistics, small_config(), 2, seed).modules().state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    assert not torch.equal(heads[0]["sam.token"], heads[2]["sam.token"])
