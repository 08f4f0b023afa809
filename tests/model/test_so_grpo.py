"""SO-GRPO on a real, very small model: answers as the engine draws them, gradients where they belong, no dropout."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.data.synthetic import synthetic_scenes
from model.oracle import decode_one
from model.training.loop import LoopConfig, train
from model.training.pools import ScenePool
from model.training.prompts import PromptMaker
from model.training.rollouts import roll_out
from model.training.so_grpo import RlSettings, SoGrpo, _log_probs, _states
from model.training.trainable import LoraSettings, Trainable, without_lora
from tests.model.tiny import small_model

LORA = Trainable(
    trained=("seg_adapter.*", "mask_decoder.*", "emission_head.*"), lora=LoraSettings(parts=("language_model.",))
)


@pytest.fixture(scope="module")
def maker():
    scenes = synthetic_scenes(np.random.default_rng(0), 12, size_px=64)
    return PromptMaker(ScenePool({"synthetic": [scenes]}, 64, {"synthetic": 1.0}), 16, 3)


def _pointing_model():
    """Random weights that like to say `<SEG>`, but are not sure, with LoRA in the language model."""
    model = small_model(seg_bias=3.0)
    with torch.no_grad():
        model.language_model.text_model.norm.weight.mul_(0.25)
    LORA.prepare(model)
    return model


def test_questions_depend_on_seed_and_number_alone(maker):
    stage = SoGrpo(maker, 32, seed=3, settings=RlSettings(epochs=2), per_step=2)
    first, again = stage.batch(1), stage.batch(1)
    assert torch.equal(first.images, again.images) and first.queries == again.queries
    assert stage.batch(3).queries == first.queries, "the second epoch asks the same"
    assert stage.batch(5).queries != first.queries
    assert [stage.batch(i).slot for i in range(4)] == [0, 1, 0, 1]


def test_places_are_named_of_present_and_absent_alike(maker):
    asking = replace(maker, place_share=1.0)
    named = {True: 0, False: 0}
    for seed in range(40):
        batch = asking.make(np.random.default_rng(seed), 0)
        for query, count in zip(batch.queries, batch.counts, strict=True):
            named[count > 0] += "Look in the" in query
    assert named[True] > 5 and named[False] > 5


def test_drawn_answers_are_what_the_policy_would_say(maker):
    """At a temperature near 0 the drawn answer is the plain reference's greedy one."""
    model, batch = _pointing_model(), maker.make(np.random.default_rng(1), 0)
    drawn = roll_out(model, batch, 2, temperature=1e-4)
    for row, question in enumerate(drawn.image_of.tolist()):
        tokens = drawn.tokens[question][None]
        expected = decode_one(
            model, batch.queries[question], batch.mpps[question], tokens, tile_first=batch.tile_first[question]
        )
        start, length = int(drawn.starts[row]), int(drawn.lengths[row])
        said = [i for i in drawn.ids[row, start : start + length].tolist() if i != model.tokenizer.eos]
        assert said == expected.ids


def test_answers_of_one_question_differ_and_the_generator_decides(maker):
    model, batch = _pointing_model(), maker.make(np.random.default_rng(1), 0)
    torch.manual_seed(4)
    first = roll_out(model, batch, 4)
    torch.manual_seed(4)
    assert roll_out(model, batch, 4).texts == first.texts
    assert len(set(first.texts[:4])) > 1


def test_log_probs_are_those_of_the_reference(maker):
    """Teacher-forced log-probabilities of `<SEG>` against the plain reference's, token by token, no cache."""
    model, batch = _pointing_model(), maker.make(np.random.default_rng(2), 0)
    drawn = roll_out(model, batch, 1)
    for row, start in enumerate(drawn.starts.tolist()):  # whatever was drawn, let it point after two tokens
        drawn.ids[row, start + 2] = model.tokenizer.seg
    log_probs, _ = _log_probs(model, drawn, _states(model, drawn))
    compared = 0
    for row, places in enumerate(drawn.seg_places(model.tokenizer.seg)):
        start, length = int(drawn.starts[row]), int(drawn.lengths[row])
        script = drawn.ids[row, start : start + length]
        q = int(drawn.image_of[row])
        expected = decode_one(
            model, batch.queries[q], batch.mpps[q], drawn.tokens[q][None], script, tile_first=batch.tile_first[q]
        )
        assert log_probs[row, places].tolist() == pytest.approx(expected.log_probs, abs=1e-4)
        compared += len(places)
    assert compared >= 3


def test_gradients_reach_all_that_learns_and_nothing_else(maker):
    model = _pointing_model()
    stage = SoGrpo(maker, 32, 0)
    loss, figures = stage.loss(model, stage.batch(0), 0)
    loss.backward()
    for begin in ("language_model.", "seg_adapter.", "mask_decoder."):
        reached = [w for n, w in model.named_parameters() if n.startswith(begin) and w.grad is not None]
        assert any(w.grad.abs().max() > 0 for w in reached), begin
    assert all(weight.grad is None for weight in model.pathology_encoder.parameters())
    assert not model.training, "dropout is off"
    assert figures["loss_kl"] == 0, "the policy is still its reference"


def test_the_policy_gradient_alone_is_not_zero(maker):
    model = _pointing_model()
    stage = SoGrpo(maker, 32, 0, RlSettings(differentiable=0, kl=0, value=0))
    loss, _ = stage.loss(model, stage.batch(0), 0)
    loss.backward()
    norms = [float(w.grad.norm()) for n, w in model.named_parameters() if ".lora_B" in n and "language" in n]
    assert max(norms) > 1e-4
    assert not any(w.grad is not None and w.grad.any() for w in model.seg_adapter.parameters())


def test_a_better_mask_lowers_the_differentiable_term(maker):
    """A step against its gradient raises the Dice of the matched masks."""
    model = _pointing_model()
    stage = SoGrpo(maker, 32, 0, RlSettings(kl=0, value=0, epochs=50, differentiable=1.0))
    batch = stage.batch(0)
    before = stage.loss(model, batch, 0)[1]["loss_soft"]
    assert before < 0, "it is the negative of a Dice"
    parts = [w for n, w in model.named_parameters() if n.startswith(("seg_adapter.", "mask_decoder."))]
    optimiser = torch.optim.Adam(parts, 3e-3)
    for step in range(1, 40):
        optimiser.zero_grad()
        stage.loss(model, batch, step)[0].backward()
        optimiser.step()
    assert stage.loss(model, batch, 49)[1]["loss_soft"] < before - 0.02


def test_the_reference_is_the_model_without_its_adapters(maker):
    model = _pointing_model()
    drawn = roll_out(model, maker.make(np.random.default_rng(0), 0), 1)
    with torch.no_grad():
        before = _log_probs(model, drawn, _states(model, drawn))[0]
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.normal_(0, 0.1)
        moved = _log_probs(model, drawn, _states(model, drawn))[0]
        with without_lora(model):
            reference = _log_probs(model, drawn, _states(model, drawn))[0]
    assert torch.allclose(before, reference, atol=1e-5)
    assert not torch.allclose(before, moved, atol=1e-3)


def test_warming_up_moves_the_value_head_alone(maker, tmp_path):
    model = _pointing_model()
    before = {n: w.detach().clone() for n, w in model.named_parameters()}
    stage = SoGrpo(maker, 32, 0, RlSettings(value_warmup=10))
    config = LoopConfig(steps=2, workers=0, warmup_steps=1, lr=1e-2, tensorboard=False)
    train(stage, model, config, tmp_path)
    assert all(torch.equal(before[n], w) for n, w in model.named_parameters())
    assert stage.modules()["value"].weight.abs().max() > 0


def test_a_stopped_run_draws_the_same_answers_again(maker, tmp_path):
    """Snapshots are due only where a step depends on nothing but the weights."""
    config = LoopConfig(
        steps=6, workers=0, warmup_steps=1, lr=1e-3, checkpoint_s=0.0, schedule="adaptive", tensorboard=False
    )
    whole, parted, resumed = (_pointing_model() for _ in range(3))
    train(SoGrpo(maker, 32, 0), whole, config, tmp_path / "whole")
    train(SoGrpo(maker, 32, 0), parted, replace(config, steps=4), tmp_path / "parted")
    train(SoGrpo(maker, 32, 0), resumed, config, tmp_path / "parted")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_standard_grpo_needs_no_value(maker):
    model = _pointing_model()
    stage = SoGrpo(maker, 32, 0, RlSettings(advantage="group", differentiable=0, value=0))
    batch = stage.batch(0)
    stage.loss(model, batch, 0)
    judged = stage._judged[0]
    per_answer = judged.advantages[judged.drawn.said].reshape(-1)
    assert per_answer.abs().max() > 0
    for row, n in enumerate(judged.drawn.lengths.tolist()):
        assert torch.allclose(judged.advantages[row, :n], judged.advantages[row, :1].expand(n)), "one for the answer"


@pytest.mark.parametrize(
    ("told", "named"),
    [({"advantage": "mc"}, "rl.advantage='mc'"), ({"rollouts": 0}, "rl.rollouts=0"),
     ({"advantage": "group", "rollouts": 1}, "at least 2"), ({"rewards": {"soft": 1, "dice": 1}}, "dice"),
     ({"gama": 1}, "gama")],
)  # fmt: skip
def test_settings_that_are_not_accepted_are_named(told, named):
    with pytest.raises(ValueError, match=named):
        RlSettings.from_json(told)
