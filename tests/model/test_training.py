"""Losses against numbers worked out by hand; batches from (seed, step) alone; a killed run goes on bit for bit."""

import math

import numpy as np
import pytest
import torch

from model.data.concepts import CONCEPTS
from model.data.synthetic import synthetic_scenes
from model.exemplar import outlined
from model.training.augment import mix_patches, random_view, restain
from model.training.episodes import EpisodeMaker
from model.training.lm import Lm
from model.training.loop import LoopConfig, train
from model.training.losses import dense_class_loss, dice_loss, iou_head_loss, mask_loss, next_token_loss
from model.training.pools import ScenePool
from model.training.pretrain import Pretrain, dense_targets
from model.training.sft import Sft
from tests.model.tiny import small_model


@pytest.fixture(scope="module")
def pool():
    scenes = synthetic_scenes(np.random.default_rng(0), 18, size_px=64)
    return ScenePool({"synthetic": [scenes]}, 64, {"synthetic": 1.0})


@pytest.fixture
def maker(pool):
    model = small_model()
    return EpisodeMaker(pool, model.tokenizer, tuple(CONCEPTS), 4, 2, 16, batch_size=4)


def test_dice_loss_by_hand():
    logits = torch.tensor([[[100.0, -100.0]]])
    assert float(dice_loss(logits, torch.tensor([[[1.0, 1.0]]]))) == pytest.approx(1 - (2 * 1 + 1) / (1 + 2 + 1))


def test_mask_loss_weighs_its_terms():
    logits, target = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    expected = 2 * math.log(2) + 0.5 * (1 - (2 * 2 + 1) / (2 + 4 + 1))
    assert float(mask_loss(logits, target)) == pytest.approx(expected)


def test_iou_head_learns_the_actual_iou():
    logits = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]])
    target = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    assert float(iou_head_loss(torch.tensor([0.5]), logits, target)) == pytest.approx((0.5 - 1 / 3) ** 2)


def test_next_token_loss_counts_only_weighted_places():
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    loss = next_token_loss(logits, torch.tensor([1, 1]), torch.tensor([1.0, 0.0]))
    assert float(loss) == pytest.approx(math.log(2))


def test_unknown_concepts_cost_nothing():
    logits = torch.full((1, 3, 2), 9.0)
    target, known = torch.zeros(1, 3, 2), torch.tensor([[0.0, 1.0]])
    assert float(dense_class_loss(logits, target, known)) == pytest.approx(math.log1p(math.exp(9.0)), rel=1e-4)
    assert float(dense_class_loss(logits, target, torch.zeros(1, 2))) == 0


def test_dense_targets_are_shares_of_patches(pool):
    view = pool.draw(np.random.default_rng(3))
    target, known = dense_targets([view], tuple(CONCEPTS), 4)
    key = next(iter(view.masks))
    column = list(CONCEPTS).index(key)
    assert target[0, :, column].mean() == pytest.approx(view.masks[key].mean(), abs=1e-6)
    assert known[0, column] == 1
    assert all(known[0, list(CONCEPTS).index(k)] == 1 for k in view.absent if k in CONCEPTS)


def test_views_keep_picture_and_mask_together(pool):
    """A structure painted into the picture is where its mask says, however the view was turned."""
    scene = pool.groups["synthetic"][0][0]
    mask = np.zeros((64, 64), bool)
    mask[10:30, 20:50] = True
    image = np.where(mask[..., None], np.uint8(200), np.uint8(20)).repeat(3, -1)
    painted = type(scene)(scene.id, "x", "p", image, {"fat": mask}, frozenset(), 1.0, "", "")
    for seed in range(20):
        view, masks, _, _ = random_view(painted, 64, np.random.default_rng(seed), (0.7, 1.3))
        seen = view[..., 0] > 110
        if "fat" in masks:
            assert (seen == masks["fat"]).mean() > 0.97


def test_restaining_keeps_shape_and_type():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    out = restain(image, np.random.default_rng(1))
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    assert (out != image).any()


def test_outline_is_green_and_only_at_the_edge():
    image, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    drawn = outlined(image, mask)
    assert (drawn[8, 8:24] == (0, 255, 0)).all()
    assert (drawn[16, 16] == 0).all()


def test_batches_come_from_seed_and_step_alone(maker):
    stage = Sft(maker, seed=3)
    for step in (0, 5):
        one, two = stage.batch(step), stage.batch(step)
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.images, two.images)
    assert not torch.equal(stage.batch(0).images, stage.batch(1).images)


def test_every_mask_has_its_seg_and_the_other_way_round(maker):
    for step in range(12):
        batch = Sft(maker, seed=0).batch(step)
        assert int((batch.ids == maker.tokenizer.seg).sum()) == len(batch.masks)
        assert float(batch.present.sum()) == len(batch.masks)


def test_exemplar_steps_carry_references(maker):
    maker.exemplar_share = 1.0
    batch = Sft(maker, seed=0).batch(0)
    assert batch.references.shape == batch.images.shape
    assert bool((batch.ids == maker.tokenizer.mem).any(1).all())
    loss, figures = Sft(maker, seed=0).loss(small_model().train(), batch, 0)
    assert math.isfinite(float(loss.detach()))
    assert figures["text"] > 0


def test_parts_without_a_name_are_shown_and_sought(pool):
    """Never beside a name: what is asked for is the one thing that is known of the picture."""
    model = small_model()
    maker = EpisodeMaker(
        pool, model.tokenizer, tuple(CONCEPTS), 4, 2, 16, batch_size=6, exemplar_share=1.0, foreign_share=0.0,
        unnamed_share=1.0,
    )  # fmt: skip
    found = [maker.make(np.random.default_rng(seed)) for seed in range(3)]
    assert all(batch.present.all() for batch in found), "a part of a picture is always in it"
    assert all((batch.outlines.mean((1, 2)) >= 0.008).all() for batch in found)
    assert not any(batch.known.any() for batch in found)


@pytest.mark.parametrize("name", ["lm", "pretrain", "sft"])
def test_each_stage_lowers_its_loss(name, pool, maker, tmp_path):
    model = small_model()
    stage = {
        "lm": Lm(model.tokenizer, 4, 0),
        "pretrain": Pretrain(pool, tuple(CONCEPTS), 4, 4, 0),
        "sft": Sft(maker, 0),
    }[name]
    config = LoopConfig(steps=40, lr=3e-3, warmup_steps=2, decay_steps=1, workers=0, tensorboard=False)
    train(stage, model, config, tmp_path)
    with torch.no_grad():
        trained = [float(stage.loss(model, stage.batch(step), 0)[0]) for step in range(100, 106)]
        fresh = [float(stage.loss(small_model(), stage.batch(step), 0)[0]) for step in range(100, 106)]
    assert np.mean(trained) < 0.9 * np.mean(fresh)


def test_mixed_pictures_keep_each_patch_with_its_label():
    """Pictures of one grey each, which is also the label of all their patches."""
    images = np.stack([np.full((32, 32, 3), grey, np.uint8) for grey in range(4)])
    target = np.stack([np.full((16, 1), grey, np.float32) for grey in range(4)])
    known = np.array([[1, 1], [1, 1], [0, 1], [1, 1]], np.float32)
    mixed, labels, sure = mix_patches(images, target, known, np.random.default_rng(0))
    assert np.array_equal(mixed[:, ::8, ::8, 0].reshape(4, 16), labels[..., 0])
    assert any(len(np.unique(picture)) > 1 for picture in mixed)
    assert (sure[2] == [0, 1]).all(), "what was not known stays unknown"
    strangers = [i for i in range(4) if (labels[i] == 2).any() and i != 2]
    assert all(sure[i, 0] == 0 for i in strangers), "with a part of unknown content the picture is not known either"


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.5), (1.0, 0.1)])
def test_parts_of_a_source_are_drawn_by_size_to_a_power(pool, balance, share):
    scenes = pool.groups["synthetic"][0]
    parted = ScenePool({"synthetic": [scenes[:1], scenes[1:10]]}, 64, {"synthetic": 1.0})
    parted.balance = balance
    rng = np.random.default_rng(0)
    rare = np.mean([parted.pick(rng).id == scenes[0].id for _ in range(600)])
    assert rare == pytest.approx(share, abs=0.06)
