"""Slot decoding and batched masks give what the plain reference gives."""

import itertools

import numpy as np
import pytest
import torch

from model.decode import SlotDecoder
from model.oracle import decode_one, masks_one_by_one
from tests.model.tiny import small_model, tiles


@pytest.fixture(scope="module", params=["self", "predict"])
def model(request):
    return small_model(seg_bias=4.0, seg_state=request.param)


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_slots_answer_as_the_oracle(model, slots):
    images = tiles(7)
    tokens = model.see(images).tokens.detach()
    answers = SlotDecoder(model, slots).decode(["Where is the tumour?"] * 7, [1.0] * 7, tokens)
    plain = [decode_one(model, "Where is the tumour?", 1.0, tokens[i : i + 1]) for i in range(7)]
    assert [a.ids for a in answers] == [a.ids for a in plain]
    for got, want in zip(answers, plain, strict=True):
        torch.testing.assert_close(got.states, want.states, atol=1e-5, rtol=1e-4)
        assert got.p_seg == pytest.approx(want.p_seg, abs=1e-5)
        assert got.log_probs == pytest.approx(want.log_probs, abs=1e-4)


def test_different_questions_share_the_slots(model):
    """Ragged prompts, each with its own length and scale, answer as if each were alone."""
    queries = ["tumour", "Where is the tumour?", "Where is the tumour? Where is the tumour?", "t", "area"]
    mpps = [None, 1.0, 0.5, 1.0, 2.0]
    tokens = model.see(tiles(5)).tokens.detach()
    answers = SlotDecoder(model, 3).decode(queries, mpps, tokens)
    plain = [decode_one(model, q, m, tokens[i : i + 1]) for i, (q, m) in enumerate(zip(queries, mpps, strict=True))]
    assert [a.ids for a in answers] == [a.ids for a in plain]
    for got, want in zip(answers, plain, strict=True):
        torch.testing.assert_close(got.states, want.states, atol=1e-5, rtol=1e-4)


def test_some_answers_point_and_some_do_not():
    """The parity above must have seen tiles with none, one and several `<SEG>`."""
    counts = set()
    for seed, limit in itertools.product(range(12), (2, 3, 6, 14)):
        model = small_model(seed=seed, seg_bias=4.0, max_answer_tokens=limit)
        tokens = model.see(tiles(12, seed=seed)).tokens.detach()
        answers = SlotDecoder(model).decode(["tumour"] * 12, [None] * 12, tokens)
        counts |= {min(2, len(a.states)) for a in answers}
    assert counts == {0, 1, 2}


def test_order_of_tiles_does_not_matter(model):
    tokens = model.see(tiles(6)).tokens.detach()
    order = np.random.default_rng(0).permutation(6)
    straight = SlotDecoder(model, 4).decode(["tumour"] * 6, [1.0] * 6, tokens)
    shuffled = SlotDecoder(model, 4).decode(["tumour"] * 6, [1.0] * 6, tokens[order])
    assert [shuffled[list(order).index(i)].ids for i in range(6)] == [a.ids for a in straight]


def test_gathered_masks_equal_masks_one_by_one():
    model = small_model()
    images = tiles(3)
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([2, 0, 0, 1, 2])
    with torch.no_grad():
        together, _ = model.decode_masks(model.survey(images), index, states)
    for m, image in enumerate(index.tolist()):
        alone = masks_one_by_one(model, images[image : image + 1], states[m : m + 1])[0]
        assert float((together[m].sigmoid() - alone.sigmoid()).abs().max()) < 1e-5


def test_cancel_is_seen_while_decoding(model):
    calls = iter([False, False, True])
    with pytest.raises(InterruptedError):
        SlotDecoder(model).decode(["tumour"] * 2, [1.0] * 2, model.see(tiles(2)).tokens.detach(), lambda: next(calls))
