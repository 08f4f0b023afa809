"""Slot decoding and batched masks give what the plain reference gives, whatever travels together."""

import numpy as np
import pytest
import torch

from model import decode, memory
from model.cache import SlotCache
from model.decode import SlotDecoder
from model.lanes import Lanes
from model.oracle import decode_one, masks_one_by_one
from model.questions import Shown
from tests.model.tiny import small_model, small_paper_model, tiles

QUERIES = ["tumour", "Where is the tumour?", "Where is the tumour? Where is the tumour?", "t", "area"]
MPPS = [None, 1.0, 0.5, 1.0, 2.0]


@pytest.fixture(scope="module", params=["self", "predict", "the paper's layout"])
def model(request):
    """Both conventions of the state; grouped heads, an untied output layer and Qwen's turns in the paper's layout."""
    if request.param == "the paper's layout":
        return small_paper_model(seg_bias=4.0)
    return small_model(seg_bias=4.0, seg_state=request.param)


@pytest.fixture(params=["in step", "one step ahead"], autouse=True)
def pace(request, monkeypatch):
    """A GPU runs one step ahead of the host, with rows and spans rounded up; the same must hold then."""
    if request.param == "one step ahead":
        monkeypatch.setitem(decode.PACES, "cpu", decode.Pace(rows=4, span=32, ahead=1))
    return request.param


def image_tokens(model, n, seed=0):
    with torch.inference_mode():
        return model.see(tiles(n, model.config.tile_px, seed)).tokens


def scripts(model, counts, seed=0):
    """One script a row, with so many `<SEG>` in it, of lengths up to beyond the limit; ended and padded by `<eos>`."""
    t, limit = model.tokenizer, model.config.max_answer_tokens
    rng = np.random.default_rng(seed)
    table = np.full((len(counts), limit + 4), t.eos)
    for row, count in zip(table, counts, strict=True):
        length = int(rng.integers(max(1, count), limit + 4))
        row[:length] = rng.integers(20, 200, length)
        row[rng.choice(length, count, replace=False)] = t.seg
    return torch.from_numpy(table)


def same(got, want, atol=1e-5):
    assert got.ids == want.ids
    torch.testing.assert_close(got.states, want.states, atol=atol, rtol=1e-4)
    assert got.p_seg == pytest.approx(want.p_seg, abs=1e-5)
    assert got.log_probs == pytest.approx(want.log_probs, abs=1e-4)


@pytest.mark.parametrize("slots", [1, 3, 16, None])
def test_slots_answer_as_the_oracle(model, slots):
    tokens = image_tokens(model, 7)
    answers = SlotDecoder(model, slots).decode(["Where is the tumour?"] * 7, [1.0] * 7, tokens)
    for i, got in enumerate(answers):
        same(got, decode_one(model, "Where is the tumour?", 1.0, tokens[i : i + 1]))


def test_a_short_script_after_a_long_one(model):
    """Rows that nobody has are stepped too where rows are rounded up, and what they held of an earlier call is over."""
    decoder = SlotDecoder(model, 8)
    for n, seed in ((8, 1), (1, 2)):
        script, tokens = scripts(model, [1] * n, seed), image_tokens(model, n, seed)
        answers = decoder.decode(["tumour"] * n, [1.0] * n, tokens, script=script)
        for i, got in enumerate(answers):
            same(got, decode_one(model, "tumour", 1.0, tokens[i : i + 1], script[i]))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_answers_with_none_one_and_many_seg(model, slots):
    """Words are prescribed, so that every count is there, at the limit and beyond it too."""
    counts = [0, 1, 3, 0, 1, 8, 2, 0]
    script, tokens = scripts(model, counts), image_tokens(model, 8)
    answers = SlotDecoder(model, slots).decode(["tumour"] * 8, [1.0] * 8, tokens, script=script)
    for i, got in enumerate(answers):
        same(got, decode_one(model, "tumour", 1.0, tokens[i : i + 1], script[i]))
    assert {min(2, len(a.states)) for a in answers} == {0, 1, 2}
    assert max(len(a.ids) for a in answers) == model.config.max_answer_tokens


@pytest.mark.parametrize("tile_first", [False, True])
def test_different_questions_share_the_slots(model, tile_first):
    """Ragged prompts, each with its own length and scale, answer as if each were alone."""
    tokens = image_tokens(model, 5)
    answers = SlotDecoder(model, 3).decode(QUERIES, MPPS, tokens, tile_first=[tile_first] * 5)
    for i, (query, mpp) in enumerate(zip(QUERIES, MPPS, strict=True)):
        same(answers[i], decode_one(model, query, mpp, tokens[i : i + 1], tile_first=tile_first))


@pytest.mark.parametrize("tile_first", [False, True])
def test_several_questions_about_a_tile_are_answered_each(model, tile_first):
    pictures = [0, 1, 2] * 3
    queries, tokens = sorted(QUERIES[:3] * 3), image_tokens(model, 3)[pictures]
    answers = SlotDecoder(model, 4).decode(queries, [1.0] * 9, tokens, pictures=pictures, tile_first=[tile_first] * 9)
    for i, query in enumerate(queries):
        same(answers[i], decode_one(model, query, 1.0, tokens[i : i + 1], tile_first=tile_first))


def test_a_shared_beginning_is_read_once(model, monkeypatch):
    """Nine questions about three tiles, tile first: three readings of a tile, not nine."""
    pictures, read = [0, 1, 2] * 3, []
    embed = type(model).embed
    monkeypatch.setattr(
        type(model), "embed", lambda self, ids, tokens, *more: read.append(ids) or embed(self, ids, tokens, *more)
    )
    tokens = image_tokens(model, 3)[pictures]
    SlotDecoder(model, 16).decode(
        [*["tumour"] * 3, *["area"] * 3, *["t"] * 3], [1.0] * 9, tokens, pictures=pictures, tile_first=[True] * 9
    )
    seen = sum(int((ids == model.tokenizer.image).sum()) for ids in read)
    assert seen == 3 * model.config.image_tokens


@pytest.mark.parametrize("tile_first", [False, True])
def test_exemplars_travel_with_questions_that_have_none(model, tile_first):
    tokens, reference = image_tokens(model, 6), image_tokens(model, 2, seed=1)
    pooled = torch.randn(2, model.config.language.dim, generator=torch.Generator().manual_seed(2))
    of = [0, None, 1, 0, None, 1]
    answers = SlotDecoder(model, 4).decode(
        ["tumour"] * 6, [1.0] * 6, tokens, shown=Shown(of, reference, pooled), tile_first=[tile_first] * 6
    )
    for i, e in enumerate(of):
        shown = {} if e is None else {"reference": reference[e : e + 1], "memory": pooled[e : e + 1]}
        same(answers[i], decode_one(model, "tumour", 1.0, tokens[i : i + 1], tile_first=tile_first, **shown))
    assert answers[0].ids != answers[1].ids or answers[0].p_seg != answers[1].p_seg


def test_order_of_tiles_does_not_matter(model):
    tokens = image_tokens(model, 6)
    order = np.random.default_rng(0).permutation(6)
    straight = SlotDecoder(model, 4).decode(["tumour"] * 6, [1.0] * 6, tokens)
    shuffled = SlotDecoder(model, 4).decode(["tumour"] * 6, [1.0] * 6, tokens[order])
    for place, i in enumerate(order):
        same(shuffled[place], straight[i])


def test_a_decoder_answers_the_same_again(model):
    """Lanes are kept between calls; nothing of an earlier call may be left in them."""
    tokens, decoder = image_tokens(model, 6), SlotDecoder(model, 3)
    first = decoder.decode(["tumour"] * 6, [1.0] * 6, tokens)
    decoder.decode(QUERIES, MPPS, image_tokens(model, 5, seed=3))
    for got, want in zip(decoder.decode(["tumour"] * 6, [1.0] * 6, tokens), first, strict=True):
        same(got, want)


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


def test_cancel_is_seen_within_a_step(model, monkeypatch):
    """Asked for during the third step, it stops before the fourth."""
    steps = []
    step = Lanes.step
    monkeypatch.setattr(Lanes, "step", lambda self, *a: steps.append(1) or step(self, *a))
    script = torch.full((2, 20), 30)
    with pytest.raises(InterruptedError):
        SlotDecoder(model).decode(
            ["tumour"] * 2, [1.0] * 2, image_tokens(model, 2), lambda: len(steps) >= 3, script=script
        )
    assert len(steps) == 3


def test_nothing_asked_is_nothing_answered(model):
    assert SlotDecoder(model).decode([], [], image_tokens(model, 1)[:0]) == []


def out_of_memory_above(limit, monkeypatch):
    """Lanes that fail as an allocator does when more than so many rows step at once, and what was tried."""
    tried = []
    step = Lanes.step

    def scarce(self, rows, *more):
        tried.append(rows)
        if rows > limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return step(self, rows, *more)

    monkeypatch.setattr(Lanes, "step", scarce)
    return tried


def test_slots_halve_when_memory_runs_out_and_no_tile_is_lost(model, monkeypatch):
    tokens = image_tokens(model, 11)
    script = scripts(model, [0, 1, 2] * 3 + [0, 1], seed=4)
    want = SlotDecoder(model, 8).decode(["tumour"] * 11, [1.0] * 11, tokens, script=script)
    tried = out_of_memory_above(3, monkeypatch)
    decoder = SlotDecoder(model, 8)
    for got, due in zip(decoder.decode(["tumour"] * 11, [1.0] * 11, tokens, script=script), want, strict=True):
        same(got, due)
    assert decoder.slots == 2
    assert max(tried) == 8


def test_no_room_for_a_single_row_is_said(model, monkeypatch):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(MemoryError, match="a single tile"):
        SlotDecoder(model, 4).decode(["tumour"] * 5, [1.0] * 5, image_tokens(model, 5))


def test_other_errors_are_not_taken_for_memory(model, monkeypatch):
    monkeypatch.setattr(Lanes, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        SlotDecoder(model, 4).decode(["tumour"] * 5, [1.0] * 5, image_tokens(model, 5))


def test_slots_fit_the_free_memory(model, monkeypatch):
    config = model.config
    one = SlotCache.bytes_per_slot(config.language, 50 + config.max_answer_tokens, torch.float32)
    one += config.max_answer_tokens * config.language.dim * 4
    for free, slots in ((0, 1), (5 * one / memory.SHARE, 4), (9 * one / memory.SHARE, 8), (1e12, 64)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: int(free) + 1)
        assert memory.fit_slots(model, 50) == slots


def test_rows_read_the_cache_without_copying_it():
    config = small_model().config.language
    cache = SlotCache(config, 4, 10, torch.device("cpu"), torch.float32)
    cache.aim(0, 2, torch.tensor([[3], [5]]), 6)
    key = torch.randn(2, 1, 1, 16)
    read, _ = cache.update(key, key, 0)
    assert read.untyped_storage().data_ptr() == cache.keys[0].untyped_storage().data_ptr()
    assert torch.equal(read[0, :, 3], key[0, :, 0])
    assert torch.equal(read[1, :, 5], key[1, :, 0])
    assert float(read.abs().sum()) == pytest.approx(float(key.abs().sum()))
