"""The parts fit together as the paper's figure says."""

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from model import attention
from model.appearance import MEASURES, appearance
from model.builders import build, tiny_config
from model.matcher import Comparison
from model.medsam import Adapter
from model.prompt import build_sequence
from model.stem import build_stem
from model.tokenizer import PathTokenizer
from tests.model.tiny import TEXTS, small_model, tiles

ANSWER = "<think> Looking for tumour. </think> Found in the area: tumour <SEG>."


@pytest.fixture(scope="module")
def model():
    return small_model()


def _row(model, query="Where is the tumour?", **how):
    s = build_sequence(model.tokenizer, query, 1.0, model.config.image_grid, **how)
    return torch.from_numpy(s.ids)[None], torch.from_numpy(s.positions)[:, None], s


def test_tiny_fits_the_budget():
    model = build(tiny_config(), PathTokenizer.train(TEXTS, 400))
    assert sum(p.numel() for p in model.parameters()) <= 12_000_000


def test_our_forward_is_qwens_own_forward(model):
    """Image tokens scattered by us and positions passed by us give what `transformers` gives with its own plumbing."""
    ids, positions, _ = _row(model, answer=ANSWER)
    tokens = model.see(tiles(1)).tokens.detach()
    qwen = model.language_model.qwen
    qwen.config.image_token_id = qwen.model.config.image_token_id = model.tokenizer.image
    with torch.no_grad():
        ours = model.language_model.logits(model.language_model(model.embed(ids, tokens), positions))
        theirs = qwen(
            input_ids=ids,
            position_ids=positions,
            mm_token_type_ids=(ids == model.tokenizer.image).int(),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[tokens[0]])},
        ).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_positions_of_the_image_are_qwens_rope_index(model):
    ids, positions, _ = _row(model, answer=ANSWER)
    qwen = model.language_model.qwen
    grid = model.config.image_grid * qwen.config.vision_config.spatial_merge_size
    expected, _ = qwen.model.get_rope_index(
        ids, (ids == model.tokenizer.image).int(), image_grid_thw=torch.tensor([[1, grid, grid]])
    )
    assert torch.equal(positions, expected)


def test_written_out_attention_is_the_fused_one():
    q, k, v = (torch.randn(2, 3, 17, 8) for _ in range(3))
    fused = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attention.attend(q, k, v), fused(q, k, v), atol=1e-5, rtol=1e-4)
    causal = attention.attend(q, k, v, causal=True)
    torch.testing.assert_close(causal, fused(q, k, v, is_causal=True), atol=1e-5, rtol=1e-4)


def test_written_out_attention_serves_the_whole_model():
    fused, written = small_model(), small_model()
    written.language_model.qwen.set_attn_implementation(attention.NAME)
    written.pathology_encoder.vit.set_attn_implementation(attention.NAME)
    for block in written.sam_encoder.vit.blocks:
        block.written_out = True
    ids, positions, _ = _row(fused, answer=ANSWER)
    with torch.no_grad():
        outputs = []
        for model in (fused, written):
            seen = model.see(tiles(1))
            states = model.language_model(model.embed(ids, seen.tokens), positions)
            outputs.append((states, model.decode_masks(model.survey(tiles(1)), torch.tensor([0]), states[:, -1])[0]))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_fresh_adapter_changes_nothing():
    assert float(Adapter(8, 0.25)(torch.randn(3, 8)).detach().abs().max()) == 0


@pytest.mark.parametrize("state", ["self", "predict"])
def test_seg_states_are_taken_where_the_config_says(state):
    model = small_model(seg_state=state)
    ids, _, _ = _row(model, answer=ANSWER)
    states = torch.arange(ids.shape[1]).float()[None, :, None].expand(-1, -1, 32)
    got, rows = model.seg_states(states, ids)
    place = ids[0].tolist().index(model.tokenizer.seg)
    assert got[0, 0] == place - (state == "predict")
    assert rows.tolist() == [0]


def test_memory_is_what_lies_under_the_outline(model):
    patches = torch.randn(1, model.config.patch_grid**2, 32)
    mask = torch.zeros(1, 64, 64)
    mask[:, :16, 16:32] = 1  # the second patch of the first row
    torch.testing.assert_close(model.remember(patches, mask), model.memory(patches[:, 1]), atol=1e-5, rtol=1e-4)


def test_image_tokens_land_in_their_places(model):
    ids, _, s = _row(model, exemplar=True)
    n = model.config.image_tokens
    tokens, ref, mem = torch.full((1, n, 32), 7.0), torch.full((1, n, 32), 8.0), torch.full((1, 32), 9.0)
    embeds = model.embed(ids, tokens, ref, mem)[0, :, 0]
    assert embeds[1 : 1 + n].tolist() == [8.0] * n
    assert embeds[1 + n] == 9.0
    assert (embeds == 7.0).sum() == n


def test_an_answer_must_start_thinking(model):
    with pytest.raises(ValueError, match="<think>"):
        build_sequence(model.tokenizer, "tumour", 1.0, 2, answer="Yes.")


def test_unknown_stem_names_what_is_accepted():
    with pytest.raises(ValueError, match="'conv' with patch_px=16, or 'patch'"):
        build_stem("mlp", (8, 8, 8, 8), 16, 32)


def test_gradients_reach_every_part():
    model = small_model().train()
    ids, positions, _ = _row(model, answer=ANSWER, exemplar=True)
    images = tiles(1)
    seen = model.see(images)
    # Away from zero: behind outlets that start there, nothing would be reached at the first step.
    torch.nn.init.normal_(model.matcher.outlet.weight)
    torch.nn.init.normal_(model.mask_decoder.match.weight)
    reminded = model.remind(seen, model.see(tiles(1, seed=1)), half_mask())
    embeds = model.embed(ids, reminded.tokens, reminded.reference, reminded.memory)
    states = model.language_model(embeds, positions)
    seg, rows = model.seg_states(states, ids)
    logits, iou = model.decode_masks(model.survey(images), rows, seg, reminded.match)
    loss = logits.square().mean() + iou.sum() + model.emission_head(states[:, 0]).sum()
    (loss + seen.classes.square().mean() + model.language_model.logits(states).square().mean()).backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None}
    # mask_token exists in DINOv2 only for masked training.
    assert silent <= {"pathology_encoder.vit.embeddings.mask_token"}
    assert np.isfinite(float(loss.detach()))


def half_mask(size=64):
    mask = torch.zeros(1, size, size)
    mask[:, :, : size // 2] = 1
    return mask


def test_a_fresh_exemplar_changes_no_mask_and_no_image_token(model):
    """The matcher's outlets start at zero: weights from before it keep their answers."""
    seen = model.see(tiles(1))
    reminded = model.remind(seen, model.see(tiles(1, seed=1)), half_mask())
    torch.testing.assert_close(reminded.tokens, seen.tokens, rtol=0, atol=0)
    states, index = torch.randn(1, 32), torch.tensor([0])
    features = model.survey(tiles(1))
    with_match, _ = model.decode_masks(features, index, states, reminded.match)
    torch.testing.assert_close(with_match, model.decode_masks(features, index, states)[0], rtol=0, atol=0)


def test_a_tile_matches_itself_where_the_outline_is(model):
    """Every place resembles itself most, so both votes are the outline."""
    seen = model.see(tiles(1))
    comparisons = (model.matcher.looks, model.matcher.tokens)
    with torch.no_grad():
        for comparison in comparisons:
            comparison.sharpness.fill_(5.0)
        match = model.remind(seen, seen, half_mask()).match[0]
        for comparison in comparisons:
            comparison.sharpness.fill_(2.3)
    half = model.config.patch_grid  # in cells of appearance, two a patch
    for vote, closest in (match[:2], match[2:]):
        assert vote[:, :half].mean() > vote[:, half:].mean()
        torch.testing.assert_close(closest[:, :half], torch.ones_like(closest[:, :half]), atol=1e-4, rtol=0)


def test_what_resembles_nothing_shown_is_voted_down():
    """Without a voter outside, the least unlike of the exemplar's places would decide."""
    comparison = Comparison(torch.nn.Identity())
    with torch.no_grad():
        comparison.sharpness.fill_(5.0)
    shown, stranger = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.1]]])
    (known,), (unknown,) = (comparison(ours, shown, torch.ones(1, 1))[0] for ours in (shown, stranger))
    assert known[0] > 0.99 and unknown[0] < -0.99


def test_appearance_is_what_is_measured_in_each_cell():
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cell = pixels[0, :, 8:16, 16:24]
    measures = appearance(pixels, 8)
    assert measures.shape == (1, 16, MEASURES)
    torch.testing.assert_close(measures[0, 4 + 2, :3], cell.mean((1, 2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(measures[0, 4 + 2, 3:6], cell.std((1, 2), unbiased=False), atol=1e-4, rtol=1e-3)
    plain = appearance(torch.zeros(1, 3, 32, 32), 8)
    assert measures[..., 6:9].mean() > 10 * plain[..., 6:9].mean()
    torch.testing.assert_close(measures[0, :, 9:].mean(0), torch.zeros(9), atol=1e-5, rtol=0)


def test_how_an_exemplar_looks_is_told_without_its_outline(model):
    drawn, plain = tiles(1, seed=1), tiles(1, seed=2)
    assert torch.equal(model.see(drawn, plain).looks, model.see(plain).looks)
    assert torch.equal(model.see(drawn, plain).tokens, model.see(drawn).tokens)
