"""The shipped segmenter's promises, on a small untrained model, and checkpoints on disk."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.predictor import PathChatPredictor, load_segmenter, phrases_of
from model.second_look import as_if_present
from model.segmenter import Segmenter, SegmenterCard, TileBatch
from tests.model.tiny import small_model, tiles

CARD = SegmenterCard("small", "0", 64, 1.0)
SILENT = "<think> Looking for polyp tissue: benign glands. Two glands lie in the top area. This fits fat. </think> No."


def batch_of(n, forced=False, queries=None, size=64):
    return TileBatch(
        tiles(n, size).numpy(), np.full(n, 1.0, np.float32), queries or ["tumour"] * n, np.full(n, forced)
    )


@pytest.fixture(scope="module")
def predictor():
    """One of the first seeds whose model points at some of the tiles."""
    for seed in range(20):
        predictor = PathChatPredictor(small_model(seed, seg_bias=4.0, max_answer_tokens=8), CARD, bf16=False)
        if any(answer.emitted for answer in predictor.predict(batch_of(6))):
            return predictor
    raise AssertionError("no random model points at anything")


def test_it_is_a_segmenter(predictor):
    assert isinstance(predictor, Segmenter)


def test_masks_are_probabilities_in_the_tiles_frame(predictor):
    answers = predictor.predict(batch_of(6))
    assert any(a.emitted for a in answers)
    for a in answers:
        assert a.masks.shape == (len(a.phrases), 64, 64)
        assert a.masks.dtype == np.float16
        assert a.confidence.shape == (len(a.phrases),)
        assert ((a.masks >= 0) & (a.masks <= 1)).all()
        assert a.text.startswith("<think>")
        assert a.text.count("<SEG>") >= len(a.phrases)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3], [1, 2]])
def test_a_tile_is_answered_the_same_in_any_company(predictor, order):
    queries = ["tumour", "where?", "tumour", "Where is the tumour?", "area"]
    whole = predictor.predict(batch_of(5, queries=queries))
    images = tiles(5).numpy()[order]
    some = predictor.predict(
        TileBatch(images, np.ones(len(order), np.float32), [queries[i] for i in order], np.zeros(len(order), bool))
    )
    for i, answer in zip(order, some, strict=True):
        assert answer.text == whole[i].text
        np.testing.assert_allclose(answer.masks.astype(float), whole[i].masks.astype(float), atol=1e-3)


def test_a_wrong_tile_size_names_the_right_one(predictor):
    with pytest.raises(ValueError, match=r"\(64, 64, 3\)"):
        predictor.predict(batch_of(1, size=32))


def test_forcing_gives_silent_tiles_a_mask_that_is_marked():
    model = small_model(seg_bias=-0.9, max_answer_tokens=8)  # hardly ever says <SEG>
    predictor = PathChatPredictor(model, CARD, bf16=False)
    model.tokenizer.decode = lambda ids: SILENT  # what it said, so that there is something to look for
    (answer,) = predictor.predict(batch_of(1, forced=True))
    assert answer.forced
    assert not answer.emitted
    assert answer.masks.shape == (1, 64, 64)
    assert answer.phrases == ("polyp tissue",)
    assert predictor.predict(batch_of(1))[0].masks.shape[0] == 0


def test_second_look_keeps_what_was_seen():
    text, phrase = as_if_present(SILENT)
    assert phrase == "polyp tissue"
    assert "Two glands lie in the top area." in text
    assert "This fits polyp tissue." in text
    assert "fat" not in text
    assert text.endswith("<SEG>")


def test_what_was_never_taught_cannot_be_forced():
    assert as_if_present("<think> Looking for something I was not taught to recognise. </think> I cannot.") is None
    assert as_if_present("nothing of the kind") is None


def test_phrases_before_each_seg():
    text = "<think> x: y. </think> Found: tumour <SEG>; Present in the top area: fat <SEG>."
    assert phrases_of(text) == ["tumour", "fat"]


def test_a_checkpoint_comes_back_the_same(tmp_path):
    model = small_model()
    revision = save_checkpoint(tmp_path, model, dtype=torch.float32)
    again = load_checkpoint(tmp_path)
    assert again.config == model.config
    images = tiles(2)
    assert torch.equal(model.see(images).tokens, again.see(images).tokens)
    assert load_segmenter(str(tmp_path)).card.revision == revision


def test_a_checkpoint_that_does_not_fit_names_the_keys(tmp_path):
    save_checkpoint(tmp_path, small_model())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["emission_head.bias"]
    tensors["stranger"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"emission_head\.bias.*stranger"):
        load_checkpoint(tmp_path)


def test_an_unknown_model_says_what_is_installed():
    with pytest.raises(CheckpointError, match="installed are"):
        load_segmenter("enormous")
