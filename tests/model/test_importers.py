"""Public weights become ours key by key, from small files in exactly the formats that they are published in."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

from model.builders import paper_config
from model.checkpoint import load_checkpoint, save_checkpoint, shapes_of
from model.config import PathChatConfig, VisionConfig
from model.importers.compose import Composed, Sources, compose, write_composed
from model.importers.imported import Imported
from model.importers.recognise import inspect_weights
from model.tokenizer import SEG, PathTokenizer
from model.vlm import qwen_config
from tests.model import published
from tests.model.tiny import TEXTS, TurnTokenizer, small_paper_config, small_paper_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
"""What `transformers` and PEFT say of each other's versions is not ours to mend."""
LANGUAGE = small_paper_config().language
PLAIN_VIT = VisionConfig(
    dim=32, depth=2, heads=2, mlp_ratio=4, patch_px=16, stem="patch", layer_scale=0.1, drop_path=0.0, image_px=64,
    pos_px=64,
)  # fmt: skip
REGISTERS = replace(PLAIN_VIT, registers=3)
SWIGLU = replace(PLAIN_VIT, registers=3, swiglu=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    TurnTokenizer.train(TEXTS, 400).save(path)
    return path


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL in shards as on the hub; read only."""
    return published.write_qwen(tmp_path_factory.mktemp("qwen"), published.make_qwen(LANGUAGE), LANGUAGE)


def read_all(made: Composed, role: str) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in made.imported[role].tensors.items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def assert_accounted(part: Imported, keys: Mapping[str, Tensor] | set[str], *ignored: str) -> None:
    """Every key of the source is used or listed as ignored; ignored are exactly those that begin as told."""
    assert set(part.ignored) == {key for key in keys if key.startswith(ignored or ("-",))}
    assert set(part.used) == set(keys) - set(part.ignored)


def ours(made: Composed, folder: Path):
    """The model, by way of the disk."""
    write_composed(folder, made, licence="test", dtype=None)
    return load_checkpoint(folder)


def with_vit(vision: VisionConfig, **changes: object) -> PathChatConfig:
    return small_paper_config(vision=vision, **changes)


# SAM and MedSAM


def sam_name(key: str) -> str:
    """Our name of SAM's key."""
    part, _, rest = key.partition(".")
    if part == "image_encoder":
        return "sam_encoder.vit." + rest.replace("patch_embed.proj.", "patch_embed.project.")
    if part == "mask_decoder":
        return "mask_decoder.decoder." + rest
    return {
        "pe_layer.positional_encoding_gaussian_matrix": "mask_decoder.positions.positional_encoding_gaussian_matrix",
        "no_mask_embed.weight": "mask_decoder.no_mask.weight",
    }[rest]


UNPROMPTED = ("prompt_encoder.point", "prompt_encoder.not_a_point", "prompt_encoder.mask_downscaling")


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_sam_key_by_key(tmp_path: Path, tokenizer: Path, wrapped: bool, prefix: str):
    sam = published.make_sam(small_paper_config().sam)
    path = published.write_sam(tmp_path / "medsam_vit_b.pth", sam, wrapped, prefix)
    made = compose(small_paper_config(), Sources(sam=path, tokenizer=tokenizer))
    weights, part = sam.state_dict(), made.imported["sam"]
    assert_accounted(part, weights, *UNPROMPTED)
    assert_equal(read_all(made, "sam"), {sam_name(key): weights[key] for key in part.used})
    mine = {name for name in made.tensors if name.startswith(("sam_encoder.", "mask_decoder."))}
    assert set(part.fresh) == mine - part.tensors.keys()
    assert all("_adapter." in name or name.startswith("mask_decoder.match") for name in part.fresh)
    assert set(made.fresh) == made.tensors.keys() - part.tensors.keys()


def test_imported_sam_sees_and_decodes_as_segment_anything(tmp_path: Path, tokenizer: Path):
    config = small_paper_config()
    sam = published.make_sam(config.sam)
    path = published.write_sam(tmp_path / "sam.pth", sam)
    model = ours(compose(config, Sources(sam=path, tokenizer=tokenizer)), tmp_path / "out")
    pixels, prompts = torch.randn(2, 3, 96, 96), torch.randn(3, 32)
    rows = torch.tensor([0, 1, 1])
    with torch.no_grad():
        features = sam.image_encoder(pixels)
        torch.testing.assert_close(model.sam_encoder(pixels)[0], features, atol=1e-4, rtol=1e-4)
        logits, iou = model.mask_decoder([features], rows, prompts)
        for row, prompt, mask, quality in zip(rows, prompts, logits, iou, strict=True):
            expected, scores = sam.mask_decoder(
                image_embeddings=features[row : row + 1],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompt[None, None],
                dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, 6, 6),
                multimask_output=False,
            )
            torch.testing.assert_close(mask, expected[0, 0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(quality, scores[0, 0], atol=1e-4, rtol=1e-4)


def test_the_decoder_can_start_anew(tmp_path: Path, tokenizer: Path):
    sam = published.make_sam(small_paper_config().sam)
    path = published.write_sam(tmp_path / "sam.pth", sam)
    made = compose(small_paper_config(), Sources(sam=path, tokenizer=tokenizer, decoder=False))
    decoder = {name for name in made.tensors if name.startswith("mask_decoder.decoder.")}
    assert decoder and decoder <= set(made.fresh)
    assert_accounted(made.imported["sam"], sam.state_dict(), *UNPROMPTED, "mask_decoder.")


# Qwen2.5-VL


@pytest.mark.parametrize("hub", [True, False], ids=["hub", "newer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen_key_by_key(tmp_path: Path, hub: bool, dtype: torch.dtype):
    qwen = published.make_qwen(LANGUAGE, dtype=dtype)
    folder = published.write_qwen(tmp_path / "qwen", qwen, LANGUAGE, hub)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("model.layers.0.mlp.up_proj.weight" in index) == hub == ("visual.patch_embed.proj.weight" in index)
    made = compose(small_paper_config(), Sources(language=folder))
    part = made.imported["language"]
    assert_accounted(part, index.keys(), "visual." if hub else "model.visual.")
    weights = {k: v for k, v in qwen.state_dict().items() if not k.startswith("model.visual.")}
    assert_equal(read_all(made, "language"), {f"language_model.qwen.{key}": v for key, v in weights.items()})
    assert len(part.files) == len(set(index.values())) > 2


@pytest.mark.parametrize("hub", [True, False], ids=["hub", "newer"])
def test_imported_qwen_says_what_transformers_does(tmp_path: Path, hub: bool):
    """`transformers` loads the same folder, so that the folder is one; three axes of positions that all differ."""
    folder = published.write_qwen(tmp_path / "qwen", published.make_qwen(LANGUAGE), LANGUAGE, hub)
    theirs = Qwen.from_pretrained(folder, dtype=torch.float32).eval()
    model = ours(compose(small_paper_config(), Sources(language=folder)), tmp_path / "out")
    ids = torch.randint(0, 400, (2, 9))
    positions = torch.randint(0, 30, (3, 2, 9)).cumsum(-1)
    with torch.no_grad():
        expected = theirs(input_ids=ids, position_ids=positions).logits
        language = model.language_model
        logits = language.logits(language(language.embed(ids), positions))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_tied_qwen_needs_no_output_layer_and_ignores_one(tmp_path: Path):
    language = replace(LANGUAGE, tied=True)
    config = small_paper_config(language=language)
    folder = published.write_qwen(tmp_path / "qwen", published.make_qwen(language), language, shards="1GB")
    assert_accounted(compose(config, Sources(language=folder)).imported["language"], keys_of(folder), "visual.")
    path = folder / "model.safetensors"
    published.rewrite_keys(path, lambda key: {"visual.merger.ln_q.weight": "lm_head.weight"}.get(key, key))
    assert_accounted(compose(config, Sources(language=folder)).imported["language"], keys_of(folder), "visual.", "lm_")


def keys_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_qwens_tokenizer_keeps_its_ids_and_gets_our_words_behind_them(qwen_folder: Path):
    theirs = PathTokenizer.from_qwen(qwen_folder / "tokenizer.json")
    made = compose(small_paper_config(), Sources(language=qwen_folder)).tokenizer
    assert made.encode(TEXTS[0]) == theirs.encode(TEXTS[0])
    plain = json.loads((qwen_folder / "tokenizer.json").read_text())
    last = max(entry["id"] for entry in plain["added_tokens"])
    assert made.seg > last and made.encode(SEG) == [made.seg]
    assert made.encode("<|im_end|>") == [made.eos] and made.eos <= last


# Vision transformers


def vit_names(key: str, weight: Tensor) -> dict[str, Tensor]:
    """Our tensors of timm's key."""
    vit, place = "pathology_encoder.vit.", key.replace("blocks.", "encoder.layer.")
    if key.startswith("patch_embed.proj."):
        leaf = key.rpartition(".")[2]
        parts = ("projection", "stem.project")
        return {f"{vit}embeddings.patch_embeddings.{part}.{leaf}": weight for part in parts}
    whole = {"cls_token": "cls_token", "reg_token": "register_tokens", "pos_embed": "position_embeddings"}
    if key in whole:
        return {f"{vit}embeddings.{whole[key]}": weight}
    if ".attn.qkv." in key:
        parts = [place.replace("attn.qkv", f"attention.{x}_proj") for x in "qkv"]
        return {vit + name: weight.chunk(3)[i] for i, name in enumerate(parts)}
    if key.startswith("norm."):
        return {f"{vit}layernorm.{key.removeprefix('norm.')}": weight}
    for theirs, mine in (("attn.", "attention.o_"), ("ls1.gamma", "layer_scale1.lambda1"),
                         ("ls2.gamma", "layer_scale2.lambda1")):  # fmt: skip
        place = place.replace(theirs, mine)
    return {vit + place: weight}


@pytest.mark.parametrize("vision", [PLAIN_VIT, REGISTERS], ids=["plain", "registers"])
def test_timm_key_by_key(tmp_path: Path, tokenizer: Path, vision: VisionConfig):
    weights = published.make_timm_vit(vision)
    head = {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
    torch.save(weights | head, tmp_path / "pytorch_model.bin")
    made = compose(with_vit(vision), Sources(vision=tmp_path / "pytorch_model.bin", tokenizer=tokenizer))
    assert_accounted(made.imported["vision"], weights | head, "head.")
    expected = {name: part for key, weight in weights.items() for name, part in vit_names(key, weight).items()}
    assert_equal(read_all(made, "vision"), expected)
    assert made.imported["vision"].form == "timm-vit"


@pytest.mark.parametrize(
    ("vision", "positions"),
    [
        (PLAIN_VIT, "class"),
        (PLAIN_VIT, "patches"),
        (REGISTERS, "class"),
        (REGISTERS, "patches"),
        (REGISTERS, "all"),
        (SWIGLU, "patches"),
    ],
    ids=["plain", "plain-patches", "registers", "registers-patches", "registers-all", "swiglu"],
)
@pytest.mark.parametrize("scaled", [True, False], ids=["layerscale", "none"])
def test_an_imported_vit_sees_as_timm_does(
    tmp_path: Path, tokenizer: Path, vision: VisionConfig, positions: str, scaled: bool
):
    weights = published.make_timm_vit(vision, positions)
    weights = {key: value for key, value in weights.items() if scaled or not key.endswith(".gamma")}
    torch.save(weights, tmp_path / "vit.bin")
    made = compose(with_vit(vision), Sources(vision=tmp_path / "vit.bin", tokenizer=tokenizer))
    assert_accounted(made.imported["vision"], weights)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        seen = ours(made, tmp_path / "out").pathology_encoder(pixels)
    torch.testing.assert_close(seen, published.run_timm_vit(weights, pixels, vision.heads), atol=1e-5, rtol=1e-4)


def test_dinov2s_own_teacher_is_the_same_vit(tmp_path: Path, tokenizer: Path):
    """As its training writes it: backbone and heads of the teacher, SwiGLU as `w12` and `w3`."""
    weights = published.make_timm_vit(SWIGLU)
    dialect = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3.", "reg_token": "register_tokens"}
    teacher = {}
    for key, value in weights.items():
        for theirs, spelled in dialect.items():
            key = key.replace(theirs, spelled)
        teacher[f"backbone.{key}"] = value
    heads = {"backbone.mask_token": torch.zeros(1, 32), "dino_head.mlp.0.weight": torch.zeros(4, 32)}
    torch.save({"teacher": teacher | heads, "iteration": 9}, tmp_path / "teacher.pth")
    torch.save(weights, tmp_path / "plain.bin")
    plain, taught = (
        compose(with_vit(SWIGLU), Sources(vision=tmp_path / name, tokenizer=tokenizer))
        for name in ("plain.bin", "teacher.pth")
    )
    assert_equal(read_all(taught, "vision"), read_all(plain, "vision"))
    assert set(taught.imported["vision"].ignored) == {"mask_token", "dino_head.mlp.0.weight"}


def test_timms_folder_tells_how_pixels_are_normalised(tmp_path: Path, tokenizer: Path):
    folder = published.write_timm_folder(tmp_path / "uni", published.make_timm_vit(PLAIN_VIT), heads=2)
    config = compose(with_vit(PLAIN_VIT), Sources(vision=folder, tokenizer=tokenizer)).config
    assert (config.mean, config.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
    assert config.vision == PLAIN_VIT


def test_a_dinov2_with_a_classifier_gives_its_backbone(tmp_path: Path, tokenizer: Path):
    dinov2 = published.make_dinov2(PLAIN_VIT)
    weights = {f"dinov2.{key}": value for key, value in dinov2.state_dict().items()}
    torch.save(weights | {"classifier.weight": torch.ones(3, 64), "classifier.bias": torch.ones(3)}, tmp_path / "c.bin")
    made = compose(with_vit(PLAIN_VIT), Sources(vision=tmp_path / "c.bin", tokenizer=tokenizer))
    assert {"classifier.weight", "classifier.bias"} <= set(made.imported["vision"].ignored)
    tensor = made.tensors["pathology_encoder.vit.layernorm.weight"].read()
    assert torch.equal(tensor, dinov2.state_dict()["layernorm.weight"])
    assert inspect_weights(tmp_path / "c.bin").form == "dinov2"


@pytest.mark.parametrize("hub", [True, False], ids=["hub", "newer"])
@pytest.mark.parametrize("vision", [PLAIN_VIT, REGISTERS, SWIGLU], ids=["plain", "registers", "swiglu"])
def test_dinov2_key_by_key(tmp_path: Path, tokenizer: Path, vision: VisionConfig, hub: bool):
    dinov2 = published.make_dinov2(vision)
    folder = published.write_dinov2(tmp_path / "dinov2", dinov2, hub)
    assert ("encoder.layer.0.attention.attention.query.weight" in keys_of(folder)) == hub
    made = compose(with_vit(vision), Sources(vision=folder, tokenizer=tokenizer))
    assert_accounted(made.imported["vision"], keys_of(folder), "embeddings.mask_token")
    expected = {f"pathology_encoder.vit.{k}": v for k, v in dinov2.state_dict().items() if "mask_token" not in k}
    both = ("patch_embeddings.projection", "patch_embeddings.stem.project")
    expected |= {k.replace(*both): v for k, v in expected.items() if both[0] in k}
    assert_equal(read_all(made, "vision"), expected)
    assert made.imported["vision"].form == "dinov2"
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states = dinov2(pixels).last_hidden_state[:, 1 + vision.registers :]
        seen = ours(made, tmp_path / "out").pathology_encoder(pixels)
    torch.testing.assert_close(seen, states, atol=1e-5, rtol=1e-4)


# PEFT

WORDS = tuple(f"base_model.model.{module}.base_layer." for module in ("lm_head", "model.language_model.embed_tokens"))
"""Unchanged weights that PEFT saves beside an adapter of words."""
LANGUAGE_ONLY = {"exclude_modules": r".*visual.*"}
ADAPTERS = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "every-layer": {"r": 3, "lora_alpha": 16, "target_modules": "all-linear", **LANGUAGE_ONLY},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["o_proj", "up_proj"], **LANGUAGE_ONLY},
    "patterns": {
        "r": 4, "target_modules": ["q_proj", "down_proj"], **LANGUAGE_ONLY, "alpha_pattern": {"down_proj": 3},
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 5},
    },
    "words": {"r": 2, "target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "replaced": {"r": 2, "target_modules": ["gate_proj"], "modules_to_save": ["lm_head"], **LANGUAGE_ONLY},
}  # fmt: skip


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_adapter_is_what_peft_merges(tmp_path: Path, qwen_folder: Path, name: str, safe: bool):
    base = published.make_qwen(LANGUAGE)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    merged = published.write_adapter(tmp_path / "adapter", base, safe, **ADAPTERS[name])
    made = compose(small_paper_config(), Sources(language=qwen_folder, adapter=tmp_path / "adapter"))
    changed = {f"language_model.qwen.{key}" for key, value in merged.items() if not torch.equal(value, before[key])}
    part = made.imported["adapter"]
    assert part.tensors.keys() == changed and changed
    for key, value in merged.items():
        if not key.startswith("model.visual."):
            found = made.tensors[f"language_model.qwen.{key}"].read()
            torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-6, msg=key)
    if safe:
        assert_accounted(part, load_file(tmp_path / "adapter" / "adapter_model.safetensors"), *WORDS)


def test_an_adapter_of_the_older_layout_is_merged_alike(tmp_path: Path, qwen_folder: Path):
    published.write_adapter(tmp_path / "newer", published.make_qwen(LANGUAGE), r=4, target_modules=["q_proj"])
    published.write_adapter(tmp_path / "older", published.make_qwen(LANGUAGE), r=4, target_modules=["q_proj"])
    path = tmp_path / "older" / "adapter_model.safetensors"
    published.rewrite_keys(path, lambda key: key.replace("model.language_model.", "model."))
    newer, older = (
        compose(small_paper_config(), Sources(language=qwen_folder, adapter=tmp_path / name))
        for name in ("newer", "older")
    )
    assert_equal(read_all(older, "adapter"), read_all(newer, "adapter"))
    assert len(older.imported["adapter"].tensors) == 2


def test_an_adapter_is_merged_into_a_checkpoint_of_ours(tmp_path: Path):
    model = small_paper_model()
    save_checkpoint(tmp_path / "start", model, dtype=torch.bfloat16)
    published.write_adapter(tmp_path / "adapter", published.make_qwen(LANGUAGE), r=4, target_modules=["q_proj"])
    made = compose(None, Sources(checkpoint=tmp_path / "start", adapter=tmp_path / "adapter"))
    name = "language_model.qwen.model.language_model.layers.1.self_attn.q_proj.weight"
    halves = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    module = "base_model.model.model.language_model.layers.1.self_attn.q_proj"
    a, b = halves[f"{module}.lora_A.weight"], halves[f"{module}.lora_B.weight"]
    start = model.state_dict()[name].bfloat16()
    assert torch.equal(made.tensors[name].read(), (start + b @ a * (8 / 4)).bfloat16())
    assert made.fresh == () and made.config == model.config


# Sizes


def test_the_published_sizes_are_what_the_papers_model_takes(tmp_path: Path):
    """Every key and shape of SAM's ViT-B (314), of Qwen2.5-VL-7B and of a ViT-L of timm, without their numbers."""
    config = paper_config("7b")
    with torch.device("meta"):
        sam = published.build_sam(config.sam).state_dict()
        qwen = Qwen(qwen_config(config.language)).state_dict()
    assert len(sam) == 314
    published.write_sizes(tmp_path / "sam_vit_b_01ec64.pth", sizes(sam))
    folder = tmp_path / "Qwen2.5-VL-7B-Instruct"
    folder.mkdir()
    on_hub = {key.replace("model.language_model.", "model."): shape for key, shape in sizes(qwen).items()}
    published.write_sizes(folder / "pytorch_model.bin", on_hub)
    (folder / "config.json").write_text(json.dumps(published.flat_config(config.language)))
    published.write_qwen_tokenizer(folder / "tokenizer.json")
    vit = published.timm_shapes(config.vision)
    published.write_sizes(tmp_path / "uni.bin", vit)
    sources = Sources(language=folder, vision=tmp_path / "uni.bin", sam=tmp_path / "sam_vit_b_01ec64.pth")
    made = compose(config, sources)
    assert len(made.imported["sam"].used) == 299 and len(made.imported["vision"].used) == len(vit)
    assert {k: t.shape for k, t in made.tensors.items()} == shapes_of(config, made.tokenizer)
    parts = {name.partition(".")[0] for name in made.fresh}
    assert parts == {"projector", "sam_encoder", "seg_adapter", "mask_decoder", "memory", "matcher", "emission_head"}
    assert all("_adapter." in name for name in made.fresh if name.startswith("sam_encoder."))


def sizes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}
