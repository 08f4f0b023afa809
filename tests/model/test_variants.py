"""The paper's sizes come from the parts that `tiny` is made of, and each part equals what it was taken from."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from model.builders import VARIANTS, build, complete, dtype_on, paper_config, tiny_config
from model.config import PathChatConfig, SamConfig, VisionConfig
from model.medsam import DensePositions, Norm2d, SamImageEncoder
from model.pixels import for_sam, normalise, resize
from model.prompt import SYSTEM, build_sequence
from model.segment_anything_modules import ImageEncoderViT, LayerNorm2d, PositionEmbeddingRandom
from model.vision import PathologyEncoder
from model.vlm import LanguageModel
from tests.model.tiny import (
    TEXTS,
    TurnTokenizer,
    small_config,
    small_model,
    small_paper_config,
    small_paper_model,
    tiles,
)

ANSWER = "<think> Looking for tumour. </think> Found in the area: tumour <SEG>."


@pytest.fixture(scope="module")
def paper():
    return small_paper_model(seg_bias=1.0)


# Numbers


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_survives_its_json(name):
    config = VARIANTS[name]()
    assert config.name == name
    assert PathChatConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_config_from_before_the_papers_sizes_still_means_tiny():
    """The shipped file names none of the later fields: their defaults are what `tiny` always was."""
    data = tiny_config().to_json()
    for part, names in {
        "vision": ("image_px", "pos_px", "pos_antialias", "registers", "swiglu"),
        "language": ("rope_theta", "rms_eps", "tied"),
        "sam": ("image_px", "rel_pos", "scheme"),
    }.items():
        for name in names:
            del data[part][name]
    del data["prompt"]
    config = PathChatConfig.from_json(data)
    assert config == tiny_config()
    assert (config.patch_grid, config.image_grid, config.mask_px) == (14, 7, 56)
    text = LanguageModel(small_config().language).text_model.config
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"], text.tie_word_embeddings) == (1e-5, 1e4, True)


@pytest.mark.parametrize(
    ("name", "language_m"), [("paper-7b", 7615.616512), ("paper-3b", 3085.938688)], ids=["7b", "3b"]
)
def test_the_papers_models_have_the_published_sizes(name, language_m):
    """Qwen2.5-VL without its vision tower, ViT-L/16, and SAM's ViT-B with 12 × 2 adapters of ratio 0.25."""
    model = build(VARIANTS[name](), TurnTokenizer.train(TEXTS, 400), empty=True)
    assert all(p.is_meta for p in model.parameters())
    size = {part: size_of(module) for part, module in model.named_children()}
    adapters = 12 * 2 * (2 * 768 * 192 + 768 + 192)
    assert size["language_model"] == round(language_m * 1e6)
    assert size["pathology_encoder"] == 303_301_632 + 24 * 2 * 1024  # LayerScale
    assert size["sam_encoder"] == 89_670_912 + adapters
    ours = size_of(model.mask_decoder.match) + size_of(model.mask_decoder.match_evidence)
    assert size["mask_decoder"] - ours - 256 == 4_058_340


def size_of(module):
    return sum(p.numel() for p in module.parameters())


def test_the_papers_grids():
    config = paper_config()
    assert (config.patch_grid, config.image_grid, config.image_tokens, config.mask_px) == (28, 14, 196, 256)
    assert config.language.dim // config.language.heads == 2 * sum(config.language.mrope_section)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, prompt="chat"), r"prompt='chat': accepted are \['plain', 'qwen'\]"),
        (lambda c: replace(c, sam=replace(c.sam, scheme="zscore")), r"sam.scheme='zscore': accepted are"),
        (lambda c: replace(c, vision=replace(c.vision, image_px=500)), "vision.image_px=500: accepted are multiples"),
        (lambda c: paper_config("72b"), r"size='72b': accepted are \['7b', '3b'\]"),
    ],
)
def test_a_number_that_no_part_takes_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(paper_config())


# The pathology encoder


def random_vit(config: VisionConfig, image_px: int, seed: int = 0) -> PathologyEncoder:
    torch.manual_seed(seed)
    encoder = PathologyEncoder(config, image_px).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.2)
    return encoder


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("patch_px", [14, 16])
def test_the_encoder_is_dinov2_without_cls_and_registers(registers, swiglu, patch_px):
    """Key by key the weights of `transformers`' model, and its output, at a size it was not trained at."""
    config = VisionConfig(
        dim=32, depth=2, heads=2, mlp_ratio=4, patch_px=patch_px, stem="patch", drop_path=0.0, pos_px=3 * patch_px,
        pos_antialias=registers > 0, registers=registers, swiglu=swiglu,
    )  # fmt: skip
    ours = random_vit(config, 5 * patch_px)
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 4, "use_swiglu_ffn": swiglu,
        "image_size": 3 * patch_px, "patch_size": patch_px,
    }  # fmt: skip
    theirs = (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=registers))
        if registers
        else Dinov2Model(Dinov2Config(**shape))
    ).eval()
    weights = {name: value for name, value in ours.vit.state_dict().items() if ".stem." not in name}
    told = theirs.load_state_dict(weights, strict=False)
    assert set(told.missing_keys) <= {"embeddings.mask_token"} and not told.unexpected_keys
    pixels = torch.randn(2, 3, 5 * patch_px, 5 * patch_px)
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 1 + registers :]
        torch.testing.assert_close(ours(pixels), expected, atol=1e-5, rtol=1e-4)


def test_positions_at_their_own_size_are_untouched():
    config = VisionConfig(dim=32, depth=1, heads=2, stem="patch", pos_px=48)
    encoder = random_vit(config, 64)
    assert encoder._positions(3) is encoder.vit.embeddings.position_embeddings
    assert encoder._positions(4).shape == (1, 17, 32)


# MedSAM's encoder


@pytest.mark.parametrize("adapter_ratio", [0.0, 0.25])
@pytest.mark.parametrize("window", [0, 5])
def test_the_encoder_with_fresh_adapters_is_segment_anythings(adapter_ratio, window):
    """Windows that do not divide the grid, relative positions, global blocks: the very weights, the very features."""
    config = SamConfig(
        dim=32, depth=3, heads=2, mlp_ratio=4.0, window=window, global_blocks=(1,), patch_px=16, stem="patch",
        adapter_ratio=adapter_ratio, out_dim=24, high_res=False, rel_pos=True,
    )  # fmt: skip
    ours = SamImageEncoder(config, 128).eval()
    theirs = ImageEncoderViT(
        img_size=128, patch_size=16, embed_dim=32, depth=3, num_heads=2, mlp_ratio=4.0, out_chans=24, use_rel_pos=True,
        window_size=window, global_attn_indexes=(1,),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    weights = {k.replace("patch_embed.proj.", "patch_embed.project."): v for k, v in theirs.state_dict().items()}
    told = ours.vit.load_state_dict(weights, strict=False)
    assert not told.unexpected_keys and all("_adapter." in name for name in told.missing_keys)
    assert bool(told.missing_keys) == (adapter_ratio > 0)
    pixels = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = theirs(pixels)
        torch.testing.assert_close(ours(pixels)[0], expected, atol=1e-4, rtol=1e-4)
        for block in theirs.blocks:
            block.attn.use_rel_pos = False
        assert not torch.allclose(theirs(pixels), expected, atol=1e-2)


def test_fp32_norms_are_sams_and_reduced_ones_keep_fp32_statistics():
    ours, theirs = Norm2d(8), LayerNorm2d(8)
    x = 30 + torch.randn(2, 8, 4, 4)
    assert torch.equal(ours(x), theirs(x))
    half = ours.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), theirs(x.bfloat16().float()), atol=0.02, rtol=0.02)


def test_the_dense_encoding_stays_fp32_in_a_reduced_model():
    ours, theirs = DensePositions(16), PositionEmbeddingRandom(16)
    theirs.load_state_dict(ours.state_dict())
    ours.to(torch.bfloat16)
    assert torch.equal(ours((6, 6)), theirs((6, 6)))
    assert torch.equal(ours.half().float()((6, 6)), theirs((6, 6)))


# Pixels


def test_pixels_are_resized_as_opencvs_area_would_and_not_at_all_where_they_fit():
    images = tiles(2, 64)
    assert torch.equal(resize(images, 64), images.permute(0, 3, 1, 2).float())
    halves = images.float().view(2, 32, 2, 32, 2, 3).mean((2, 4)).permute(0, 3, 1, 2)
    assert (resize(images, 32) - halves).abs().mean() < 1.0
    with pytest.raises(ValueError, match="64 × 32 px: accepted are square"):
        resize(images[:, :, :32], 64)


@pytest.mark.parametrize("edge_px", [64, 96])
def test_medsams_scheme_stretches_each_tile_between_its_least_and_most(edge_px):
    images = tiles(3, 64)
    images[1] = images[1] // 2 + 30
    got = for_sam(images, edge_px, "medsam", (0.5,) * 3, (0.5,) * 3)
    assert got.shape == (3, 3, edge_px, edge_px)
    for image, one in zip(images, got, strict=True):
        pixels = image.permute(2, 0, 1)[None].float()
        if edge_px != 64:
            pixels = F.interpolate(pixels, (edge_px, edge_px), mode="bicubic", antialias=True).clamp(0, 255)
        pixels = pixels[0].numpy()
        expected = (pixels - pixels.min()) / np.clip(pixels.max() - pixels.min(), 1e-8, None)
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-6)
    assert not for_sam(torch.full((1, 8, 8, 3), 7, dtype=torch.uint8), 8, "medsam", (0,) * 3, (1,) * 3).any()


def test_sams_scheme_is_its_mean_and_std_in_pixel_values():
    images = tiles(2, 32)
    expected = (images.numpy() - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    got = for_sam(images, 32, "sam", (0,) * 3, (1,) * 3)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_the_fixed_scheme_is_the_configs_mean_and_std():
    images, mean, std = tiles(2, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = (images.numpy() / 255 - np.array(mean)) / np.array(std)
    got = for_sam(images, 32, "fixed", mean, std)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert torch.equal(got, normalise(resize(images, 32), mean, std))


# The whole


def test_every_part_lives_on_its_own_grid(paper):
    config = paper.config
    seen, features = paper.see(tiles(2, 128)), paper.survey(tiles(2, 128))
    assert seen.patches.shape == (2, 16, 32) and seen.tokens.shape == (2, 4, 64) and seen.classes.shape == (2, 16, 0)
    assert features[0].shape == (2, 32, 6, 6)
    mask = torch.zeros(2, 128, 128)
    mask[:, :64] = 1
    reminded = paper.remind(seen, paper.see(tiles(2, 128, seed=1)), mask)
    assert reminded.match.shape == (2, 4, 8, 8)
    logits, iou = paper.decode_masks(features, torch.tensor([0, 1, 1]), torch.randn(3, 64), reminded.match[[0, 1, 1]])
    assert logits.shape == (3, config.mask_px, config.mask_px) == (3, 24, 24) and iou.shape == (3,)


def test_without_dense_classes_there_is_neither_head_nor_evidence(paper):
    assert paper.dense_head is None and paper.evidence is None
    assert not [name for name in paper.state_dict() if name.startswith(("dense_head", "evidence"))]


def test_an_untied_output_layer_has_weights_of_its_own(paper):
    qwen = paper.language_model.qwen
    assert qwen.lm_head.weight is not paper.language_model.text_model.embed_tokens.weight
    tied = small_model().language_model
    assert tied.qwen.lm_head.weight is tied.text_model.embed_tokens.weight


def test_bfloat16_weights_answer_nearly_as_fp32_ones():
    exact, reduced = small_paper_model(2), small_paper_model(2).to(torch.bfloat16)
    outputs = []
    for model in (exact, reduced):
        assert model.mask_decoder.positions.positional_encoding_gaussian_matrix.dtype == torch.float32
        s = build_sequence(model.tokenizer, "tumour", 1.0, 2, answer=ANSWER, style="qwen")
        ids, positions = torch.from_numpy(s.ids)[None], torch.from_numpy(s.positions)[:, None]
        with torch.no_grad():
            seen = model.see(tiles(1, 128))
            states = model.language_model(model.embed(ids, seen.tokens), positions)
            seg, rows = model.seg_states(states, ids)
            logits, iou = model.decode_masks(model.survey(tiles(1, 128)), rows, seg)
        outputs.append((seen.tokens, states, model.language_model.logits(states), logits, iou))
    for name, ours, theirs in zip(("tokens", "states", "words", "masks", "iou"), *outputs, strict=True):
        assert theirs.dtype == torch.bfloat16
        error = (ours - theirs.float()).square().mean().sqrt() / ours.square().mean().sqrt()
        assert error < 0.05, name  # bfloat16 keeps 8 bits; how products are summed is the processor's


def test_far_positions_keep_their_angles_in_a_reduced_model():
    language = LanguageModel(small_paper_config().language)
    exact = language.text_model.rotary_emb.inv_freq.clone()
    language.to(torch.bfloat16)
    assert torch.equal(language.text_model.rotary_emb.inv_freq, exact)


# Built on no device


@pytest.mark.parametrize("config", [small_paper_config(), small_config()], ids=["untied", "tied"])
def test_an_empty_model_that_was_given_weights_is_the_model(config):
    built = build(config, TurnTokenizer.train(TEXTS, 400), device="cpu", seed=3).eval()
    empty = build(config, built.tokenizer, empty=True).eval()
    weights = {k: v for k, v in built.state_dict().items() if not (config.language.tied and "lm_head" in k)}
    for name, tensor in weights.items():  # one at a time, as shards come
        empty.load_state_dict({name: tensor}, strict=False, assign=True)
    complete(empty)
    assert not any(p.is_meta for p in empty.parameters())
    s = build_sequence(built.tokenizer, "tumour", 1.0, config.image_grid, style=config.prompt)
    ids, positions = torch.from_numpy(s.ids)[None], torch.from_numpy(s.positions)[:, None]
    images = tiles(1, config.tile_px)
    outputs = []
    with torch.no_grad():
        for model in (built, empty):
            states = model.language_model(model.embed(ids, model.see(images).tokens), positions)
            outputs.append((model.language_model.logits(states), model.survey(images)[0]))
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_never_came_are_named():
    empty = build(small_paper_config(), TurnTokenizer.train(TEXTS, 400), empty=True)
    with pytest.raises(ValueError, match=r"never assigned: \[.*'memory.weight'"):
        complete(empty)


def test_random_weights_are_made_as_what_they_will_be():
    model = build(small_paper_config(), TurnTokenizer.train(TEXTS, 400), device="cpu", dtype=torch.bfloat16, seed=1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    again = build(small_paper_config(), model.tokenizer, device="cpu", dtype=torch.bfloat16, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not model.matcher.outlet.weight.any() and not model.mask_decoder.match.weight.any()
    assert not model.sam_encoder.vit.blocks[0].mlp_adapter.up.weight.any()
    rotary = LanguageModel(small_paper_config().language).text_model.rotary_emb
    assert torch.equal(model.language_model.text_model.rotary_emb.inv_freq, rotary.inv_freq)


def test_dtypes_by_device():
    assert dtype_on("cpu") == torch.float32
    assert dtype_on(torch.device("cuda", 1)) == torch.bfloat16


PEAK = """
import torch
from benchmarks.record import peak_memory_mb
from safetensors.torch import load_file, save_file
from model.builders import build, complete
from model.config import LanguageConfig
from tests.model.tiny import TEXTS, TurnTokenizer, small_paper_config
def peak(): return int(peak_memory_mb() * 2**20)
config = small_paper_config(language=LanguageConfig(
    dim=1024, depth=8, heads=8, kv_heads=2, mlp_dim=4096, mrope_section=(16, 24, 24), vocabulary=16000, tied=False))
tokenizer = TurnTokenizer.train(TEXTS, 400)
model = build(config, tokenizer, empty=True, dtype=torch.bfloat16)
sizes = {k: (v.shape, v.dtype) for k, v in model.state_dict().items()}
before = peak()
for name, (shape, dtype) in sizes.items():
    model.load_state_dict({name: torch.zeros(shape, dtype=dtype).add_(1)}, strict=False, assign=True)
complete(model)
print(peak() - before, sum(p.numel() * p.itemsize for p in model.parameters()))
"""


def test_building_and_loading_holds_one_copy():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size > 250e6
    assert grown < 1.1 * size


# Turns


def test_the_qwen_style_is_qwens_own_template(paper):
    t, grid = paper.tokenizer, 2
    s = build_sequence(t, "Where is the tumour?", 1.0, grid, answer=ANSWER, exemplar=True, style="qwen")
    seen, shown = "<image>" * 4, "<ref>" * 4
    spelled = (
        f"{SYSTEM}<|im_start|>user\n<|vision_start|>{shown}<|vision_end|><MEM>where is the tumour? Scale 1.0 µm/px."
        f"<|vision_start|>{seen}<|vision_end|><|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>"
    )
    assert t._tokenizer.decode(s.ids.tolist(), skip_special_tokens=False) == t._tokenizer.decode(
        t.encode(spelled), skip_special_tokens=False
    )
    assert s.ids.tolist() == t.encode(spelled)
    assert s.ids[s.answer_at - 1] == t.think and s.ids[-1] == t.eos


@pytest.mark.parametrize("exemplar", [False, True])
@pytest.mark.parametrize("tile_first", [False, True])
def test_positions_of_turns_are_qwens_rope_index(paper, exemplar, tile_first):
    t, qwen = paper.tokenizer, paper.language_model.qwen
    how = {"exemplar": exemplar, "tile_first": tile_first, "style": "qwen", "answer": ANSWER}
    s = build_sequence(t, "tumour", 1.0, paper.config.image_grid, **how)
    ids = torch.from_numpy(s.ids)[None]
    grid = paper.config.image_grid * qwen.config.vision_config.spatial_merge_size
    pictures = torch.tensor([[1, grid, grid]] * (1 + exemplar))
    expected, _ = qwen.model.get_rope_index(ids, ((ids == t.image) | (ids == t.ref)).int(), image_grid_thw=pictures)
    assert torch.equal(torch.from_numpy(s.positions)[:, None], expected)


def test_the_plain_style_knows_no_turns(paper):
    t = paper.tokenizer
    ids = build_sequence(t, "tumour", None, 2).ids.tolist()
    assert ids[0] == t.bos and t.encode("<|im_end|>")[0] not in ids


def test_gradients_reach_every_part_that_is_used():
    """Of four mask tokens one is decoded: the others' networks are SAM's, and stay as they were."""
    model = small_paper_model().train()
    s = build_sequence(model.tokenizer, "tumour", 1.0, 2, answer=ANSWER, exemplar=True, style="qwen")
    ids, positions = torch.from_numpy(s.ids)[None], torch.from_numpy(s.positions)[:, None]
    for outlet in (model.matcher.outlet, model.mask_decoder.match, model.mask_decoder.match_evidence):
        torch.nn.init.normal_(outlet.weight)
    images, outline = tiles(1, 128), torch.ones(1, 128, 128)
    outline[:, 64:] = 0
    reminded = model.remind(model.see(images), model.see(tiles(1, 128, seed=1)), outline)
    states = model.language_model(model.embed(ids, reminded.tokens, reminded.reference, reminded.memory), positions)
    seg, rows = model.seg_states(states, ids)
    logits, iou = model.decode_masks(model.survey(images), rows, seg, reminded.match)
    words = model.language_model.logits(states).square().mean()
    (logits.square().mean() + iou.sum() + words + model.emission_head(states[:, 0]).sum()).backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent and all("output_hypernetworks_mlps." in name and "mlps.0" not in name for name in silent)
