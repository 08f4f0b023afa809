"""The rewards of SO-GRPO: numbers worked out by hand, and the orderings that the paper's weights alone do not give."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.training.rewards import (
    in_spatial_state,
    length_penalty,
    marginal_gains,
    match_masks,
    place_reward,
    reward_answer,
    soft_dice,
    well_formed,
)

FOUND = " Dark glands lie in the upper left area. </think> Found in the upper left area: tumour <SEG>."
SILENT = " Nothing of this kind is seen in the area. </think> No tumour is found here."
HALF = np.zeros((8, 8), np.float32)
HALF[:, :4] = 1


def _outcome(text, quality, n_targets, query="Where is the tumour?"):
    """Rewards of an answer whose tokens are its words, with `<SEG>` among them."""
    words = text.replace("<SEG>.", "<SEG> .").split()
    seg_at = [i for i, word in enumerate(words) if word == "<SEG>"]
    before = [" ".join(words[:i]) for i in seg_at]
    quality = np.array(quality, float).reshape(len(seg_at), n_targets)
    masks = np.stack([HALF] * len(seg_at)) if seg_at else np.zeros((0, 8, 8), np.float32)
    return reward_answer(before, text, len(words) + 1, seg_at, quality, query, masks)


def test_a_good_answer_by_hand():
    outcome = _outcome(FOUND, [[0.9]], 1)
    assert outcome.parts["soft"] == pytest.approx(0.3 * 0.9)
    assert outcome.parts["sparse"] == pytest.approx(0.2 * 1.0)
    assert outcome.parts["format"] == pytest.approx(0.1)
    assert outcome.parts["length"] == 0
    assert outcome.total == pytest.approx(0.27 + 0.2 + 0.1)


def test_rewards_stand_where_they_were_earned():
    outcome = _outcome(FOUND, [[0.9]], 1)
    seg = FOUND.replace("<SEG>.", "<SEG> .").split().index("<SEG>")
    assert outcome.rewards[seg] == pytest.approx(0.3 * 0.9 + 0.2)
    assert outcome.rewards[-1] == pytest.approx(0.1)
    assert np.count_nonzero(outcome.rewards) == 2


def test_silence_about_what_is_absent_is_worth_a_perfect_mask():
    outcome = _outcome(SILENT, [], 0)
    assert outcome.parts["soft"] == pytest.approx(0.3)
    assert outcome.total == pytest.approx(0.3 + 0.1)


def test_silence_beats_a_false_emission():
    assert _outcome(SILENT, [], 0).total > _outcome(FOUND, [], 0).total
    assert _outcome(FOUND, [], 0).parts["sparse"] == pytest.approx(-0.2 * 0.5)


@given(st.floats(0, 1), st.floats(0, 1))
def test_one_mask_beats_two(first, second):
    two = FOUND.replace("<SEG>.", "<SEG> and tumour <SEG>.")
    best = max(first, second)
    assert _outcome(FOUND, [[best]], 1).total > _outcome(two, [[first], [second]], 1).total


@given(st.floats(0, 0.98))
def test_a_better_mask_is_worth_more(dice):
    assert _outcome(FOUND, [[dice + 0.01]], 1).total > _outcome(FOUND, [[dice]], 1).total


@given(st.floats(0, 1))
def test_pointing_at_what_is_there_beats_silence(dice):
    assert _outcome(FOUND, [[dice]], 1).total > _outcome(SILENT, [], 1).total


def test_two_targets_want_two_masks_matched_to_the_best():
    two = FOUND.replace("<SEG>.", "<SEG> and stroma <SEG>.")
    outcome = _outcome(two, [[0.2, 0.8], [0.7, 0.1]], 2)
    assert outcome.matched == {0: 1, 1: 0}
    assert outcome.parts["soft"] == pytest.approx(0.3 * 1.5)
    assert outcome.total > _outcome(FOUND, [[0.8, 0.2]], 2).total


def test_a_later_mask_earns_only_what_it_adds():
    """Of 0.8 and then 0.9 for one target the second adds 0.1, and costs as any `<SEG>` too many."""
    assert marginal_gains(np.array([[0.8], [0.9]])) == pytest.approx([0.8, 0.1])
    assert marginal_gains(np.array([[0.9], [0.8]])) == pytest.approx([0.9, 0.0])
    two = FOUND.replace("<SEG>.", "<SEG> and tumour <SEG>.")
    outcome = _outcome(two, [[0.8], [0.9]], 1)
    first, second = np.flatnonzero(outcome.rewards)[:2]
    assert outcome.rewards[first] == pytest.approx(0.3 * 0.8 + 0.2)
    assert outcome.rewards[second] == pytest.approx(0.3 * 0.1 - 0.2 * 0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5))
def test_gains_add_up_to_the_best_pairing(rows):
    quality = np.array(rows).reshape(len(rows), 2)
    best = sum(quality[k, n] for k, n in match_masks(quality).items())
    assert sum(marginal_gains(quality)) == pytest.approx(best, abs=1e-6)


def test_pointing_too_early_costs():
    early = " Tumour <SEG>. </think> Found."
    assert not in_spatial_state("Tumour")
    assert _outcome(early, [[0.9]], 1).parts["sparse"] == pytest.approx(-0.2 * 0.5)


def test_equal_masks_count_the_first():
    assert match_masks(np.array([[0.5], [0.5]])) == {0: 0}
    assert match_masks(np.zeros((0, 1))) == match_masks(np.zeros((2, 0))) == {}


@pytest.mark.parametrize(
    ("text", "has_target", "right"),
    [
        (FOUND, True, True), (SILENT, False, True), (FOUND, False, False), (SILENT, True, False),
        (FOUND.replace("</think>", ""), True, False),
        (" In the area <SEG>. </think> Found in the area: tumour.", True, False),
        (" In the area. </think> <SEG>.", True, False),
        (" a </think> b </think> tumour <SEG>.", True, False),
        ("</think> tumour <SEG>.", True, False),
    ],
)  # fmt: skip
def test_format(text, has_target, right):
    assert well_formed(text, has_target) is right


def test_length_costs_only_beyond_the_grace():
    assert length_penalty(50) == 0
    assert length_penalty(53) == pytest.approx(-0.01 * math.log(4))
    assert length_penalty(200) < length_penalty(100)


def test_place_is_nearness_to_what_the_query_names():
    """Centroid of the left half of 8 px at column -4/7 of [-1, 1], place at -2/3."""
    near = 1 - abs(-4 / 7 + 2 / 3) / math.sqrt(2)
    assert place_reward("Where? Look in the left area.", HALF) == pytest.approx(near)
    assert place_reward("Look in the right area.", HALF) == pytest.approx(1 - (4 / 7 + 2 / 3) / math.sqrt(2))
    corner = 1 - math.hypot(2 / 3, -4 / 7 + 2 / 3) / math.sqrt(2)
    assert place_reward("Look in the upper left area.", HALF) == pytest.approx(corner)


@pytest.mark.parametrize("query", ["Where is the tumour?", "Glands that may kill if left untreated?"])
def test_no_place_no_reward(query):
    assert place_reward(query, HALF) == 0


def test_no_mask_no_place_reward():
    assert place_reward("in the left area", np.zeros((8, 8), np.float32)) == 0


def test_hard_rewards_need_no_gradient_soft_ones_have_it():
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    dice = soft_dice(logits, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    assert float(dice.detach()) == pytest.approx(2 * 1.0 / (2 + 2))
    dice.sum().backward()
    assert (logits.grad[0, 0] > 0).all() and (logits.grad[0, 1] < 0).all()
