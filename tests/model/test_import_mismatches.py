"""A source that does not fit is refused whole, and the message names the file and what is wrong with it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import save_checkpoint
from model.config import PathChatConfig, VisionConfig
from model.importers.compose import Sources, compose
from model.stored import CheckpointError
from model.tokenizer import PathTokenizer
from tests.model import published
from tests.model.tiny import TEXTS, TurnTokenizer, small_config, small_model, small_paper_config, small_paper_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
"""What `transformers` and PEFT say of each other's versions is not ours to mend."""
CONFIG = small_paper_config()
VIT = VisionConfig(dim=32, depth=2, heads=2, mlp_ratio=4, stem="patch", drop_path=0.0, image_px=64, pos_px=64)
Change = Callable[[dict], None]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    TurnTokenizer.train(TEXTS, 400).save(path)
    return path


@pytest.fixture(scope="module")
def sam_weights() -> published.Weights:
    return published.make_sam(CONFIG.sam).state_dict()


def refusal(config: PathChatConfig | None = CONFIG, **sources: Any) -> str:
    """What is said of a source that is refused."""
    with pytest.raises(CheckpointError) as told:
        compose(config, Sources(**sources))
    return str(told.value)


def without(*keys: str) -> Change:
    return lambda weights: [weights.pop(key) for key in keys]


def also(key: str, *shape: int) -> Change:
    return lambda weights: weights.update({key: torch.zeros(shape)})


def broken(weights: dict, change: Change) -> dict:
    weights = dict(weights)
    change(weights)
    return weights


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# SAM


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("image_encoder.blocks.1.mlp.lin1.bias"), "missing ['image_encoder.blocks.1.mlp.lin1.bias'], unexpec"),
        (without("mask_decoder.iou_token.weight"), "missing ['mask_decoder.iou_token.weight'], unexpected []"),
        (without("prompt_encoder.no_mask_embed.weight"), "missing ['prompt_encoder.no_mask_embed.weight'], unexpec"),
        (also("image_encoder.neck.4.weight", 1), "missing [], unexpected ['image_encoder.neck.4.weight'], of"),
        (also("text_encoder.weight", 2), "missing [], unexpected ['text_encoder.weight'], of"),
        (
            also("mask_decoder.iou_token.weight", 1, 9),
            "of another shape ['mask_decoder.iou_token.weight [1, 9] instead",
        ),
    ],
)
def test_keys_of_sam_are_named(tmp_path: Path, tokenizer: Path, sam_weights: dict, change: Change, message: str):
    torch.save(broken(sam_weights, change), tmp_path / "medsam.pth")
    told = refusal(sam=tmp_path / "medsam.pth", tokenizer=tokenizer)
    assert told.startswith("sam medsam.pth: ") and message in told


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("dim", 64, 32), ("depth", 4, 3), ("heads", 4, 2), ("mlp_ratio", 2.0, 4.0), ("window", 4, 5),
        ("out_dim", 64, 32), ("global_blocks", (1, 2), (1,)), ("image_px", 128, 96), ("rel_pos", False, True),
        ("multimask_outputs", 0, 3), ("decoder_depth", 3, 2), ("decoder_mlp_dim", 128, 64), ("stem", "conv", "patch"),
    ],
)  # fmt: skip
def test_numbers_of_sam_are_named(
    tmp_path: Path, tokenizer: Path, sam_weights: dict, field: str, value: object, found: object
):
    torch.save(sam_weights, tmp_path / "sam.pth")
    config = replace(CONFIG, sam=replace(CONFIG.sam, **{field: value}))
    told = refusal(config, sam=tmp_path / "sam.pth", tokenizer=tokenizer)
    assert f"sam sam.pth: sam.{field} is {found} in the file, {value} in the configuration" == told


def test_several_numbers_are_named_at_once(tmp_path: Path, tokenizer: Path, sam_weights: dict):
    torch.save(sam_weights, tmp_path / "sam.pth")
    config = replace(CONFIG, sam=replace(CONFIG.sam, depth=4, window=4))
    told = refusal(config, sam=tmp_path / "sam.pth", tokenizer=tokenizer)
    assert "sam.depth is 3 in the file, 4" in told and "sam.window is 5 in the file, 4" in told


# Qwen2.5-VL


@pytest.fixture()
def qwen(tmp_path: Path) -> Path:
    """In shards."""
    return published.write_qwen(tmp_path / "qwen", published.make_qwen(CONFIG.language), CONFIG.language)


@pytest.fixture()
def whole_qwen(tmp_path: Path) -> Path:
    """In one file."""
    made = published.make_qwen(CONFIG.language)
    return published.write_qwen(tmp_path / "qwen", made, CONFIG.language, shards="1GB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.layers.1.mlp.up_proj.weight"), "missing ['model.layers.1.mlp.up_proj.weight'], unexpected []"),
        (without("lm_head.weight"), "missing ['lm_head.weight'], unexpected []"),
        (also("model.layers.2.mlp.up_proj.weight", 1), "unexpected ['model.layers.2.mlp.up_proj.weight'], of another"),
        (also("score.weight", 1), "missing [], unexpected ['score.weight'], of another shape []"),
        (also("model.norm.weight", 9), "of another shape ['model.norm.weight [9] instead of [64]']"),
    ],
)
def test_keys_of_qwen_are_named(whole_qwen: Path, change: Change, message: str):
    path = whole_qwen / "model.safetensors"
    save_file(broken(load_file(path), change), path)
    told = refusal(language=whole_qwen)
    assert told.startswith("language qwen: ") and message in told


@pytest.mark.parametrize(
    ("theirs", "value", "message"),
    [
        ("hidden_size", 32, "language.dim is 32 in the file, 64 in the configuration"),
        ("num_hidden_layers", 3, "language.depth is 3 in the file, 2"),
        ("num_attention_heads", 8, "language.heads is 8 in the file, 4"),
        ("num_key_value_heads", 4, "language.kv_heads is 4 in the file, 2"),
        ("intermediate_size", 64, "language.mlp_dim is 64 in the file, 96"),
        ("vocab_size", 500, "language.vocabulary is 500 in the file, 420"),
        ("rms_norm_eps", 1e-5, "language.rms_eps is 1e-05 in the file, 1e-06"),
        ("rope_theta", 1e4, "language.rope_theta is 10000.0 in the file, 1000000.0"),
        ("rope_scaling", {"mrope_section": [4, 2, 2]}, "language.mrope_section is (4, 2, 2) in the file, (2, 3, 3)"),
        ("tie_word_embeddings", True, "language.tied is True in the file, False"),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "text_config"])
def test_numbers_of_qwens_config_are_named(qwen: Path, theirs: str, value: object, message: str, nested: bool):
    rewrite_json(qwen / "config.json", **({"text_config": {theirs: value}} if nested else {theirs: value}))
    told = refusal(language=qwen)
    assert told.startswith(f"language qwen: {message}") and ";" not in told


def test_another_model_is_not_qwen(qwen: Path):
    rewrite_json(qwen / "config.json", model_type="qwen2_vl")
    assert refusal(language=qwen) == f"{qwen / 'config.json'}: model_type='qwen2_vl'; accepted is 'qwen2_5_vl'"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00002-of-00009.safetensors"])
def test_a_missing_file_of_qwen_is_named(qwen: Path, name: str):
    (qwen / name).unlink()
    assert name in refusal(language=qwen)


def test_a_missing_shard_says_which_index_names_it(qwen: Path):
    for name in ("model-00002-of-00009.safetensors", "model-00005-of-00009.safetensors"):
        (qwen / name).unlink()
    told = refusal(language=qwen)
    assert "missing shards ['model-00002-of-00009.safetensors', 'model-00005-of-00009.safetensors']" in told
    assert str(qwen) in told and "model.safetensors.index.json" in told


def test_a_tokenizer_that_does_not_fit_is_named(qwen: Path, tmp_path: Path):
    rows = len(PathTokenizer.from_qwen(qwen / "tokenizer.json")) - 1
    rewrite_json(qwen / "config.json", vocab_size=rows)
    told = refusal(replace(CONFIG, language=replace(CONFIG.language, vocabulary=rows)), language=qwen)
    assert str(qwen / "tokenizer.json") in told and f"vocabulary={rows} rows do not suffice" in told
    (qwen / "tokenizer.json").write_text("{}")
    assert f"{qwen / 'tokenizer.json'}: cannot be read as a tokenizer" in refusal(language=qwen)
    assert "a tokenizer is needed: --language, --checkpoint or --tokenizer" in refusal(vision=tmp_path)


# Vision transformers


@pytest.fixture(scope="module")
def vit_weights() -> published.Weights:
    return published.make_timm_vit(VIT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.norm2.bias"), "missing ['blocks.1.norm2.bias'], unexpected [], of"),
        (without("blocks.0.attn.qkv.bias"), "missing ['blocks.0.attn.qkv.bias'], unexpected [], of"),
        (without("pos_embed"), "missing ['pos_embed'], unexpected [], of"),
        (without("blocks.1.ls2.gamma"), "missing ['blocks.1.ls2.gamma'], unexpected [], of"),
        (also("blocks.1.attn.q_norm.weight", 16), "missing [], unexpected ['blocks.1.attn.q_norm.weight'], of"),
        (also("pos_embed", 1, 50, 32), "of another shape ['pos_embed [1, 50, 32] instead of [1, 17, 32]']"),
        (also("blocks.0.attn.qkv.weight", 64, 32), "['blocks.0.attn.qkv.weight [64, 32] instead of [96, 32]']"),
    ],
)
def test_keys_of_a_timm_vit_are_named(tmp_path: Path, tokenizer: Path, vit_weights: dict, change: Change, message: str):
    torch.save(broken(vit_weights, change), tmp_path / "uni.bin")
    told = refusal(replace(CONFIG, vision=VIT), vision=tmp_path / "uni.bin", tokenizer=tokenizer)
    assert told.startswith("vision uni.bin: ") and message in told


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("dim", 64, 32), ("depth", 3, 2), ("heads", 4, 2), ("patch_px", 32, 16), ("registers", 4, 0),
        ("swiglu", True, False), ("stem", "conv", "patch"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("source", ["timm", "dinov2"])
def test_numbers_of_a_vit_are_named(
    tmp_path: Path, tokenizer: Path, vit_weights: dict, source: str, field: str, value: object, found: object
):
    """The heads are in no file of weights, only in the `config.json` beside it."""
    if source == "timm":
        published.write_timm_folder(tmp_path / "vit", vit_weights, heads=2)
    else:
        published.write_dinov2(tmp_path / "vit", published.make_dinov2(VIT))
    config = replace(CONFIG, vision=replace(VIT, **{field: value}))
    told = refusal(config, vision=tmp_path / "vit", tokenizer=tokenizer)
    if (source, field) == ("dinov2", "registers"):  # its config.json does not know of them, the keys do
        assert "missing ['embeddings.register_tokens']" in told
    else:
        assert told == f"vision vit: vision.{field} is {found} in the file, {value} in the configuration"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layernorm.bias"), "missing ['layernorm.bias'], unexpected []"),
        (
            without("encoder.layer.1.attention.attention.key.bias"),
            "missing ['encoder.layer.1.attention.attention.key.bias'], unexpected []",
        ),
        (also("encoder.layer.2.norm1.bias", 32), "unexpected ['encoder.layer.2.norm1.bias'], of another"),
        (also("layernorm.bias", 9), "of another shape ['layernorm.bias [9] instead of [32]']"),
    ],
)
def test_keys_of_dinov2_are_named(tmp_path: Path, tokenizer: Path, change: Change, message: str):
    folder = published.write_dinov2(tmp_path / "dinov2", published.make_dinov2(VIT))
    save_file(broken(load_file(folder / "model.safetensors"), change), folder / "model.safetensors")
    told = refusal(replace(CONFIG, vision=VIT), vision=folder, tokenizer=tokenizer)
    assert told.startswith("vision dinov2: ") and message in told


@pytest.mark.parametrize("role", ["vision", "sam"])
def test_one_kind_given_for_another_is_refused(
    tmp_path: Path, tokenizer: Path, vit_weights: dict, sam_weights: dict, role: str
):
    torch.save(sam_weights if role == "vision" else vit_weights, tmp_path / "other.pth")
    told = refusal(**{role: tmp_path / "other.pth"}, tokenizer=tokenizer)
    assert told.startswith(f"{role} other.pth: not a ") and "are accepted" in told


# PEFT


@pytest.fixture()
def adapter(tmp_path: Path) -> Path:
    base = published.make_qwen(CONFIG.language)
    published.write_adapter(tmp_path / "adapter", base, r=4, target_modules=["q_proj"])
    return tmp_path / "adapter"


PEFT_BEFORE, Q = "base_model.model.model.language_model.", "layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{PEFT_BEFORE}{Q}.lora_B.weight"), f"model.language_model.{Q}: missing ['lora_B']"),
        (
            also(f"{PEFT_BEFORE}{Q}.lora_A.weight", 4, 9),
            f"of another shape ['model.language_model.{Q} [64, 9] instead of ",
        ),
        (also(f"{PEFT_BEFORE}{Q}.lora_A.weight", 3, 64), f"model.language_model.{Q}: rank 3 and 4 instead of 4"),
        (also("base_model.model.score.weight", 2), "weights of ['base_model.model.score.weight'] were not imported"),
        (also("base_model.model.lm_head.weight", 2), "['base_model.model.lm_head.weight [2] instead of [420, 64]']"),
    ],
)
def test_keys_of_an_adapter_are_named(qwen: Path, adapter: Path, change: Change, message: str):
    path = adapter / "adapter_model.safetensors"
    save_file(broken(load_file(path), change), path)
    told = refusal(language=qwen, adapter=adapter)
    assert told.startswith("adapter adapter: ") and message in told


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "use_dora=True; accepted is False"),
        ({"bias": "lora_only"}, "bias='lora_only'; accepted is 'none'"),
        ({"lora_bias": True}, "lora_bias=True; accepted is False"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed the base weights; accepted are"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changed the base weights"),
    ],
)
def test_what_is_no_plain_addition_is_refused(tmp_path: Path, qwen: Path, lora: dict, message: str):
    base = published.make_qwen(CONFIG.language)
    peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], **lora)).save_pretrained(
        tmp_path / "other"
    )
    assert f"adapter other: {message}" in refusal(language=qwen, adapter=tmp_path / "other")


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, qwen: Path):
    kind = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    peft.get_peft_model(published.make_qwen(CONFIG.language), kind).save_pretrained(tmp_path / "ia3")
    assert refusal(language=qwen, adapter=tmp_path / "ia3") == "adapter ia3: peft_type='IA3'; accepted is 'LORA'"


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_an_adapter_tells_its_rank_and_scale(qwen: Path, adapter: Path, field: str):
    rewrite_json(adapter / "adapter_config.json", **{field: None})
    assert refusal(language=qwen, adapter=adapter) == "adapter adapter: adapter_config.json must tell r and lora_alpha"


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_an_adapter_is_an_object(qwen: Path, adapter: Path, field: str):
    rewrite_json(adapter / "adapter_config.json", **{field: [1]})
    assert refusal(language=qwen, adapter=adapter).startswith(f"adapter adapter: {field}=[1]; an object")


def test_an_adapter_needs_the_weights_that_it_belongs_to(tmp_path: Path, adapter: Path, tokenizer: Path):
    published.write_sam(tmp_path / "sam.pth", published.make_sam(CONFIG.sam))
    told = refusal(sam=tmp_path / "sam.pth", tokenizer=tokenizer, adapter=adapter)
    assert "q_proj" in told and "were not imported" in told


def test_an_adapter_of_the_vision_tower_is_named(tmp_path: Path, qwen: Path):
    base = published.make_qwen(CONFIG.language)
    published.write_adapter(tmp_path / "adapter", base, r=4, target_modules=["gate_proj"])
    told = refusal(language=qwen, adapter=tmp_path / "adapter")
    assert re.search(r"weights of \['model\.visual\.blocks\.0\.mlp\.gate_proj'\] were not imported", told)


# Ours


def test_a_checkpoint_of_another_shape_is_named(tmp_path: Path):
    save_checkpoint(tmp_path / "tiny", small_model())
    told = refusal(checkpoint=tmp_path / "tiny")
    assert told.startswith("checkpoint tiny: missing [") and "more" in told
    deeper = small_config(sam=replace(small_config().sam, depth=1))
    told = refusal(deeper, checkpoint=tmp_path / "tiny")
    assert "missing [], unexpected ['sam_encoder.vit.blocks.1." in told


def test_a_configuration_is_needed(tokenizer: Path, tmp_path: Path):
    assert refusal(None, sam=tmp_path / "sam.pth", tokenizer=tokenizer).startswith("a configuration is needed")


def test_a_configuration_with_too_few_rows_is_refused(tokenizer: Path, tmp_path: Path):
    config = replace(CONFIG, language=replace(CONFIG.language, vocabulary=300))
    told = refusal(config, sam=tmp_path / "sam.pth", tokenizer=tokenizer)
    assert re.fullmatch(r"tokenizer has \d+ tokens, the language model 300 rows", told)


def test_a_source_replaces_its_part_of_a_checkpoint(tmp_path: Path, sam_weights: dict):
    """What fits: nothing stays of the part, everything stays of the others."""
    model = small_paper_model()
    save_checkpoint(tmp_path / "start", model, dtype=torch.float32)
    torch.save(sam_weights, tmp_path / "sam.pth")
    made = compose(None, Sources(checkpoint=tmp_path / "start", sam=tmp_path / "sam.pth"))
    own, replaced = model.state_dict(), made.imported["sam"].tensors
    assert len(replaced) > 50 and made.fresh == ()
    for name, tensor in made.tensors.items():
        assert torch.equal(tensor.read(), own[name]) == (name not in replaced), name
    assert set(made.imported["checkpoint"].used) == own.keys() - replaced.keys()
    assert set(made.imported["checkpoint"].ignored) == replaced.keys()


def test_no_decoder_means_nobodys(tmp_path: Path):
    save_checkpoint(tmp_path / "start", small_paper_model())
    made = compose(None, Sources(checkpoint=tmp_path / "start", decoder=False))
    assert made.fresh and all(name.startswith("mask_decoder.decoder.") for name in made.fresh)


def test_a_vit_whose_shapes_are_no_vits_is_named(tmp_path: Path, tokenizer: Path, vit_weights: dict):
    flat = broken(vit_weights, also("patch_embed.proj.weight", 32, 768))
    torch.save(flat, tmp_path / "flat.bin")
    told = refusal(replace(CONFIG, vision=VIT), vision=tmp_path / "flat.bin", tokenizer=tokenizer)
    assert told.startswith("vision flat.bin: not a ViT of timm")
    torch.save(broken(vit_weights, also("pos_embed", 32)), tmp_path / "positions.bin")
    told = refusal(replace(CONFIG, vision=VIT), vision=tmp_path / "positions.bin", tokenizer=tokenizer)
    assert "of another shape ['pos_embed [32] instead of [1, 17, 32]']" in told
