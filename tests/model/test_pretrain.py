"""What the encoder learns from before anything is asked: classes of patches, or chains that a frozen model reads."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.data.concepts import CONCEPTS
from model.data.synthetic import synthetic_scenes
from model.training.augment import blank_out
from model.training.episodes import EpisodeMaker
from model.training.loop import LoopConfig, train
from model.training.losses import chain_loss, dense_class_loss
from model.training.pools import ScenePool
from model.training.pretrain import Pretrain, dense_targets, objectives_of
from model.training.settings import TrainSettings
from model.training.sft import Sft
from model.training.stage import build_stage
from model.training.trainable import Trainable
from tests.model.tiny import small_model


@pytest.fixture(scope="module")
def pool() -> ScenePool:
    return ScenePool({"synthetic": [synthetic_scenes(np.random.default_rng(0), 18, size_px=64)]}, 64, {"synthetic": 1})


@pytest.fixture(scope="module")
def maker(pool) -> EpisodeMaker:
    return EpisodeMaker(pool, small_model().tokenizer, tuple(CONCEPTS), 4, 2, 16, batch_size=3, exemplar_share=0.0)


def _stage(pool, maker, *objectives: str) -> Pretrain:
    return Pretrain(pool, tuple(CONCEPTS), 4, 3, seed=7, objectives=objectives, maker=maker)


def test_classes_alone_are_learnt_from_unless_told_otherwise(pool):
    stage, rng = Pretrain(pool, tuple(CONCEPTS), 4, 3, seed=7), np.random.default_rng([7, 1, 5])
    views = [pool.draw(rng) for _ in range(3)]
    images = np.stack([blank_out(view.image, rng) for view in views])
    target, known = dense_targets(views, tuple(CONCEPTS), 4)
    for mine, theirs in zip(stage.batch(5), (images, target, known), strict=True):
        assert (mine.numpy() == theirs).all()
    assert set(stage.loss(small_model(), stage.batch(5), 0)[1]) == {"dense"}


def test_chain_loss_by_hand():
    """Two rows; the token at a place is predicted by the state before it, and only weighted places count."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], [[0.0, 0.0], [9.0, 0.0], [0.0, 0.0]]])
    ids = torch.tensor([[0, 0, 1], [1, 1, 0]])
    weight = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])  # a weight on the first place has nothing before it
    expected = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0)) + math.log(2.0)) / 3
    assert float(chain_loss(lambda states: states, logits, ids, weight)) == pytest.approx(expected, rel=1e-6)


def test_text_is_the_chains_term_of_eq_2(pool, maker):
    model = small_model()
    batch = maker.make(np.random.default_rng(3))
    _, told = _stage(pool, maker, "text").loss(model, batch, 0)
    _, of_sft = Sft(maker, seed=0).loss(model, batch, 0)
    assert told["text"] == pytest.approx(of_sft["text"], rel=1e-6)


def test_both_objectives_are_added(pool, maker):
    model, batch = small_model(), maker.make(np.random.default_rng(3))
    total, told = _stage(pool, maker, "dense", "text").loss(model, batch, 0)
    dense = dense_class_loss(model.see(batch.images).classes, batch.dense, batch.known)
    assert told["dense"] == pytest.approx(float(dense.detach()), rel=1e-6)
    assert float(total.detach()) == pytest.approx(told["dense"] + told["text"], rel=1e-6)


def test_the_frozen_language_model_teaches_encoder_and_projector(pool, maker, tmp_path):
    model = small_model()
    Trainable(trained=("pathology_encoder.*", "projector.*")).prepare(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    stage = _stage(pool, maker, "text")
    first = stage.loss(model, stage.batch(0), 0)[1]["text"]
    same = stage.batch(0)
    stage.batch = lambda index: same
    config = LoopConfig(steps=25, lr=3e-2, decay_steps=1, warmup_steps=1, workers=0, tensorboard=False)
    train(stage, model, config, tmp_path)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"pathology_encoder", "projector"}
    assert stage.loss(model.eval(), stage.batch(0), 0)[1]["text"] < first - 0.005


def test_the_word_in_the_config_decides(tmp_path):
    told = {
        "seed": 1, "data": {"synthetic_scenes": 9, "weights": {"synthetic": 1}, "exemplar_share": 1.0},
        "pretrain": {"batch_size": 2, "steps": 1, "objective": ["dense", "text"]},
    }  # fmt: skip
    settings, model = TrainSettings.from_json(told), small_model()
    stage = build_stage(settings.stage("pretrain"), model, settings, tmp_path, tmp_path)
    assert stage.objectives == ("dense", "text")
    assert all(stage.batch(step).references is None for step in range(6)), "what an exemplar needs does not learn here"
    assert set(stage.loss(model, stage.batch(0), 0)[1]) == {"dense", "text"}
    told["pretrain"]["objective"] = "masks"
    odd = TrainSettings.from_json(told)
    with pytest.raises(ValueError, match="pretrain.objective='masks'.*'dense', 'text'"):
        build_stage(odd.stage("pretrain"), model, odd, tmp_path, tmp_path)


def test_an_objective_that_nothing_teaches_is_refused(pool, maker):
    assert objectives_of("text") == ("text",)
    with pytest.raises(ValueError, match="accepted are"):
        objectives_of([])
    with pytest.raises(ValueError, match="no dense classes"):
        replace(_stage(pool, maker, "dense"), concepts=())
    with pytest.raises(ValueError, match="maker"):
        replace(_stage(pool, maker, "text"), maker=None)
