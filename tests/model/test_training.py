"""Losses against numbers worked out by hand; batches from (seed, step) alone; a killed run goes on bit for bit."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from model.data.concepts import CONCEPTS
from model.data.synthetic import synthetic_scenes
from model.exemplar import outlined
from model.training.augment import random_view, restain
from model.training.cli import freeze
from model.training.episodes import EpisodeMaker
from model.training.lm import Lm
from model.training.loop import Average, LoopConfig, learning_rate, train
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


def test_rate_warms_up_holds_and_decays():
    config = LoopConfig(steps=100, lr=1.0, warmup_steps=10, decay_steps=50)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert all(before >= after for before, after in zip(rates[50:], rates[51:], strict=False))
    assert rates[-1] == pytest.approx(0.02)


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


def test_what_is_frozen_is_named_by_how_it_begins():
    model = small_model()
    freeze(model, ["sam_encoder."])
    assert not any(weight.requires_grad for weight in model.sam_encoder.parameters())
    assert all(weight.requires_grad for weight in model.pathology_encoder.parameters())
    with pytest.raises(KeyError, match="no part 'sam.encoder'"):
        freeze(model, ["sam.encoder"])


@pytest.mark.parametrize("name", ["lm", "pretrain", "sft"])
def test_each_stage_lowers_its_loss(name, pool, maker, tmp_path):
    model = small_model()
    stage = {
        "lm": Lm(model.tokenizer, 4, 0),
        "pretrain": Pretrain(pool, tuple(CONCEPTS), 4, 4, 0),
        "sft": Sft(maker, 0),
    }[name]
    config = LoopConfig(steps=40, lr=3e-3, warmup_steps=2, decay_steps=1, workers=0, bf16=False)
    train(stage, model, config, tmp_path)
    with torch.no_grad():
        trained = [float(stage.loss(model, stage.batch(step), 0)[0]) for step in range(100, 106)]
        fresh = [float(stage.loss(small_model(), stage.batch(step), 0)[0]) for step in range(100, 106)]
    assert np.mean(trained) < 0.9 * np.mean(fresh)


class Line:
    """A stage small enough to look into: fit a line."""

    name = "line"

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        x = torch.rand(8, 1, generator=generator)
        return x, 3 * x + 1

    def loss(self, model, batch, step):
        loss = (model(batch[0]) - batch[1]).square().mean() + 0 * torch.rand(())
        return loss, {"loss": float(loss.detach())}

    def parameters(self, model):
        return list(model.parameters())


def _line_model():
    torch.manual_seed(1)
    return nn.Linear(1, 1)


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path):
    whole, parted = _line_model(), _line_model()
    config = LoopConfig(steps=60, workers=0, bf16=False, decay_steps=1)
    average = train(Line(), whole, config, tmp_path / "whole")
    train(Line(), parted, LoopConfig(steps=25, workers=0, bf16=False, decay_steps=1), tmp_path / "parted")
    fresh = _line_model()
    resumed = train(Line(), fresh, config, tmp_path / "parted")
    # the last step of the short run was taken at its decayed rate, which is the only difference allowed
    assert learning_rate(24, LoopConfig(steps=25, decay_steps=1)) == learning_rate(24, config)
    assert torch.equal(whole.weight, fresh.weight)
    assert all(torch.equal(average.weights[k], resumed.weights[k]) for k in average.weights)


def test_metrics_are_written_and_evaluation_sees_the_average(tmp_path):
    model, seen = _line_model(), []

    def evaluate(averaged, step):
        seen.append((step, float(averaged.weight.detach())))
        return {"weight": seen[-1][1]}

    train(Line(), model, LoopConfig(steps=40, workers=0, bf16=False), tmp_path, evaluate, 20)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in seen] == [20, 40]
    assert any("loss" in row for row in rows)
    assert seen[-1][1] != pytest.approx(float(model.weight.detach()), abs=1e-9)


def test_parts_may_learn_faster(tmp_path):
    """A step of Adam is the rate, whatever the gradient, so that paces can be read off the weights."""
    model = _line_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = LoopConfig(steps=1, warmup_steps=1, decay_steps=1, weight_decay=0, workers=0, faster={"weight": 5})
    train(Line(), model, config, tmp_path)
    moved = {name: float((weight.detach() - before[name]).abs().max()) for name, weight in model.named_parameters()}
    assert moved["weight"] == pytest.approx(5 * moved["bias"], rel=1e-3)


def test_average_follows():
    model = _line_model()
    average = Average(model, 0.5)
    before = float(average.weights["weight"])
    with torch.no_grad():
        model.weight += 1.0
    average.update(model, step=1000)
    assert float(average.weights["weight"]) == pytest.approx(before + 0.5)
