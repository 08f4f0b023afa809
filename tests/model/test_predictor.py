"""The shipped segmenter's promises, on a small untrained model, and checkpoints on disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.builders import fast_bf16
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.evaluation.views import cut
from model.exemplar import Exemplar
from model.predictor import PathChatPredictor, choose_device, load_segmenter, phrases_of
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


def exemplar(seed, edge=32):
    mask = np.zeros((64, 64), bool)
    mask[:edge, 8:40] = True
    return Exemplar(tiles(1, seed=seed)[0].numpy(), mask)


def everything(model):
    """Rows that differ in all that a row may: tile, question, scale, exemplar, order, words prescribed or not."""
    pictures = [0, 1, 0, 2, 1, 3, 0, 2]
    first, second = exemplar(7), exemplar(8, edge=60)
    return {
        "images": tiles(4).numpy()[pictures],
        "mpp": np.array([1, 1, np.nan, 0.5, 1, 1, 1, 2], np.float32),
        "queries": ["tumour", "tumour", "area", "where?", "t", "Where is the tumour?", "where?", "tumour"],
        "forced": np.zeros(8, bool),
        "exemplars": [None, first, None, second, first, None, second, None],
        "tile_first": np.array([0, 0, 1, 1, 0, 1, 1, 0], bool),
    }


def rows_of(whole, rows):
    return TileBatch(**{k: v[rows] if isinstance(v, np.ndarray) else [v[r] for r in rows] for k, v in whole.items()})


@pytest.fixture(scope="module", params=["self", "predict"])
def awake(request):
    """A predictor whose matcher speaks, its outlets away from zero, and whose masks are not all grey."""
    model = small_model(1, seg_bias=4.0, max_answer_tokens=8, seg_state=request.param)
    with torch.no_grad():
        model.matcher.outlet.weight.normal_(0, 0.5)
        model.mask_decoder.match.weight.normal_(0, 0.5)
        model.mask_decoder.decoder.output_hypernetworks_mlps[0].layers[-1].weight.normal_(0, 4.0)
    return PathChatPredictor(model, CARD, bf16=False)


def scripts(model, counts):
    table = torch.full((len(counts), 10), model.tokenizer.eos)
    for row, count in enumerate(counts):
        table[row, :5] = torch.arange(5) + 20 + row
        table[row, 5 - count : 5] = model.tokenizer.seg
    return table


@pytest.mark.parametrize("counts", [None, [0, 1, 3, 2, 0, 1, 5, 1]], ids=["own words", "0, 1 and many <SEG>"])
@pytest.mark.parametrize("order", [[0], [5, 2, 6], [7, 6, 5, 4, 3, 2, 1, 0], [3, 3, 1]], ids=str)
@pytest.mark.parametrize("slots", [2, None])
def test_every_kind_of_row_is_answered_as_if_alone(awake, counts, order, slots):
    """Against one tile at a time: exemplars, both orders, several questions about a tile, unknown scales."""
    whole = everything(awake.model)
    script = None if counts is None else scripts(awake.model, counts)
    awake.decoder.slots = slots
    some = awake.predict(rows_of(whole, order), script=None if script is None else script[order])
    for row, answer in zip(order, some, strict=True):
        (alone,) = awake.predict(rows_of(whole, [row]), script=None if script is None else script[[row]])
        assert answer.text == alone.text
        assert answer.p_seg == pytest.approx(alone.p_seg, abs=1e-5)
        np.testing.assert_allclose(answer.confidence, alone.confidence, atol=1e-5)
        np.testing.assert_allclose(answer.masks.astype(float), alone.masks.astype(float), atol=1e-3)  # fp16 steps
        assert counts is None or len(answer.masks) == counts[row]


def test_pictures_of_mixed_sizes_are_answered_as_if_alone(awake):
    """Pictures are cut into tiles, and tiles of all of them share the batches."""
    pictures = [tiles(1, size=size, seed=size)[0].numpy() for size in (64, 96, 150)]
    cuts = [cut(picture, None, 64, 1.0).tiles for picture in pictures]
    together = np.concatenate(cuts)
    n = len(together)
    answers = awake.predict(TileBatch(together, np.full(n, np.nan, np.float32), ["tumour"] * n, np.zeros(n, bool)))
    for tile, answer in zip(together, answers, strict=True):
        (alone,) = awake.predict(TileBatch(tile[None], np.array([np.nan]), ["tumour"], np.zeros(1, bool)))
        assert answer.text == alone.text
        np.testing.assert_allclose(answer.masks.astype(float), alone.masks.astype(float), atol=1e-3)


def test_an_exemplar_changes_the_mask(awake):
    whole = everything(awake.model)
    whole["exemplars"] = [exemplar(7), exemplar(8), None] + [None] * 5
    script = scripts(awake.model, [1] * 8)
    first, second, without = (
        awake.predict(rows_of(whole | {"exemplars": [e] * 8}, [0]), script=script[:1])[0].masks[0].astype(float)
        for e in whole["exemplars"][:3]
    )
    assert abs(first - without).max() > 0.01
    assert abs(first - second).max() > 0.01


def test_a_picture_asked_twice_is_encoded_once(awake, monkeypatch):
    seen, surveyed = [], []
    see, survey = awake.model.see, awake.model.survey
    monkeypatch.setattr(awake.model, "see", lambda images: seen.append(len(images)) or see(images))
    monkeypatch.setattr(awake.model, "survey", lambda images: surveyed.append(len(images)) or survey(images))
    whole = everything(awake.model) | {"exemplars": ()}
    awake.predict(TileBatch(**whole), script=scripts(awake.model, [0, 1, 0, 0, 2, 0, 0, 0]))
    assert sum(seen) == 4
    assert sum(surveyed) == 1  # rows 1 and 4 show the same picture, and no other points at anything


def test_an_exemplar_of_another_size_is_refused(awake):
    big = Exemplar(np.zeros((96, 96, 3), np.uint8), np.ones((96, 96), bool))
    with pytest.raises(ValueError, match=r"exemplar is \(96, 96, 3\).*\(64, 64, 3\)"):
        awake.predict(rows_of(everything(awake.model) | {"exemplars": [big] * 8}, [0]))


def test_confidence_is_calibrated_and_the_raw_one_kept():
    model = small_model(calibration=(2.0, -0.5))
    predictor = PathChatPredictor(model, CARD, bf16=False)
    (answer,) = predictor.predict(batch_of(1), script=scripts(model, [1]))
    raw = np.clip(answer.raw_confidence, 1e-6, 1 - 1e-6)
    np.testing.assert_allclose(answer.confidence, 1 / (1 + np.exp(0.5 - 2 * np.log(raw / (1 - raw)))), rtol=1e-5)


def test_masks_asked_for_by_exemplar_have_a_calibration_of_their_own():
    """Without a slope only the offset is left of a confidence."""
    model = small_model(calibration=(0.0, 0.5), calibration_by_exemplar=(0.0, -0.5))
    predictor = PathChatPredictor(model, CARD, bf16=False)
    batch = replace(batch_of(2), exemplars=[exemplar(7), None])
    shown, asked = predictor.predict(batch, script=scripts(model, [1, 1]))
    assert shown.confidence == pytest.approx([1 / (1 + np.exp(0.5))])
    assert asked.confidence == pytest.approx([1 / (1 + np.exp(-0.5))])


def test_an_unknown_device_says_what_is_accepted():
    with pytest.raises(ValueError, match="accepted here are auto, cpu"):
        choose_device("abacus")


@pytest.mark.parametrize(
    ("told", "amx", "avx512", "amd", "fast"),
    [
        (None, True, True, False, True), (None, False, True, False, False), (None, False, True, True, True),
        (None, False, False, True, False), ("1", False, False, False, True), ("0", True, True, True, False),
    ],
)  # fmt: skip
def test_encoders_run_in_bfloat16_where_that_is_faster(monkeypatch, told, amx, avx512, amd, fast):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("model.builders._made_by_amd", lambda: amd)
    monkeypatch.delenv("SLIDEREASON_BF16", raising=False)
    if told is not None:
        monkeypatch.setenv("SLIDEREASON_BF16", told)
    assert fast_bf16() is fast
    assert PathChatPredictor(small_model(), CARD).bf16 is fast


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
