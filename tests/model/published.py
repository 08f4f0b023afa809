"""Small files in exactly the formats that weights are published in, each written by the code that publishes them.

timm alone is not installed: its state dict is spelled out here, and so is its forward pass.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

import model.segment_anything_modules  # noqa: F401  (registers segment-anything without torchvision)
from model.config import LanguageConfig, SamConfig, VisionConfig
from model.tokenizer import QWEN_MARKS
from model.vlm import qwen_config
from tests.model.tiny import TEXTS

Weights = dict[str, Tensor]


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0, spread: float = 0.2) -> nn.Module:
    """Every weight drawn anew, norms and biases too, so that none can stand for another."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.normal_(0, spread, generator=generator)
    return module.eval()


# SAM


def make_sam(config: SamConfig, seed: int = 0) -> nn.Module:
    """segment-anything's own `Sam`, random."""
    sam = randomise(build_sam(config), seed)
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies.normal_(generator=torch.Generator().manual_seed(seed))
    return sam


def build_sam(config: SamConfig) -> nn.Module:
    """segment-anything's own `Sam`, put together as its `build_sam.py` does."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = config.image_px // config.patch_px
    return Sam(
        ImageEncoderViT(
            img_size=config.image_px, patch_size=config.patch_px, embed_dim=config.dim, depth=config.depth,
            num_heads=config.heads, mlp_ratio=config.mlp_ratio, out_chans=config.out_dim, use_rel_pos=config.rel_pos,
            window_size=config.window, global_attn_indexes=config.global_blocks,
            norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
        ),
        PromptEncoder(config.out_dim, (grid, grid), (config.image_px, config.image_px), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=config.out_dim,
            transformer=TwoWayTransformer(2, config.out_dim, config.decoder_heads, config.decoder_mlp_dim),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=config.out_dim,
        ),
    )  # fmt: skip


def write_sam(path: Path, sam: nn.Module, wrapped: bool = False, prefix: str = "") -> Path:
    """A `.pth` as published; `wrapped` and with a prefix as MedSAM's training leaves it."""
    weights = {prefix + key: value for key, value in sam.state_dict().items()}
    optimiser = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"model": weights, "optimizer": optimiser, "epoch": 7} if wrapped else weights, path)
    return path


# Qwen2.5-VL


def make_qwen(config: LanguageConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen:
    """`transformers`' own model, its vision tower included."""
    return randomise(Qwen(qwen_config(config)), seed).to(dtype)


def write_qwen(folder: Path, qwen: Qwen, config: LanguageConfig, hub: bool = True, shards: str = "60KB") -> Path:
    """A folder as on the hub (`model.layers.…`, a flat `config.json`), or as newer `transformers` lay it out."""
    qwen.save_pretrained(folder, max_shard_size=shards, save_original_format=hub)
    if hub:
        (folder / "config.json").write_text(json.dumps(flat_config(config), indent=2))
    write_qwen_tokenizer(folder / "tokenizer.json")
    return folder


def flat_config(config: LanguageConfig) -> dict[str, Any]:
    """`config.json` as Qwen2.5-VL was published with: flat, and the positions' sections by an older name."""
    vision = qwen_config(config).vision_config
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": 128_000,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.depth,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(config.mrope_section)},
        "tie_word_embeddings": config.tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision.depth, "hidden_size": vision.hidden_size, "num_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size, "out_hidden_size": vision.out_hidden_size,
        },
        "vocab_size": config.vocabulary,
    }  # fmt: skip


def write_qwen_tokenizer(path: Path, vocabulary: int = 380) -> Path:
    """A byte-level BPE whose marks come after its words, as Qwen2.5's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(list(QWEN_MARKS))
    tokenizer.save(str(path))
    return path


# timm


def timm_shapes(config: VisionConfig, positions: str = "class") -> dict[str, tuple[int, ...]]:
    """Keys and shapes of timm's VisionTransformer.

    Args:
        config: its shape; position embeddings for `pos_px`.
        positions: which tokens have one: `class` and patches, only `patches` (`no_embed_class`), or `all`, registers
            too.
    """
    dim, patches = config.dim, (config.pos_px // config.patch_px) ** 2
    hidden = dim * config.mlp_ratio
    narrow = (int(hidden * 2 / 3) + 7) // 8 * 8 if config.swiglu else hidden
    extra = {"class": 1, "patches": 0, "all": 1 + config.registers}[positions]
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "pos_embed": (1, extra + patches, dim)}
    if config.registers:
        shapes["reg_token"] = (1, config.registers, dim)
    shapes |= {"patch_embed.proj.weight": (dim, 3, config.patch_px, config.patch_px), "patch_embed.proj.bias": (dim,)}
    linear = {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.fc1": (narrow * (1 + config.swiglu), dim),
        "mlp.fc2": (dim, narrow),
    }
    for block in (f"blocks.{i}." for i in range(config.depth)):
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        shapes |= {f"{block}{scale}.gamma": (dim,) for scale in ("ls1", "ls2")}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def make_timm_vit(config: VisionConfig, positions: str = "class", seed: int = 0) -> Weights:
    """The state dict of timm's VisionTransformer, random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = timm_shapes(config, positions)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def run_timm_vit(weights: Mapping[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """What timm's VisionTransformer computes: (B, 3, H, W) → patch tokens (B, N, D) after the last norm."""
    w = weights
    x = F.conv2d(
        pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], w["patch_embed.proj.weight"].shape[2:]
    )
    x = x.flatten(2).transpose(1, 2)
    b, n, d = x.shape
    place, first = w["pos_embed"], w["cls_token"].expand(b, -1, -1)
    registers = w["reg_token"].expand(b, -1, -1) if "reg_token" in w else x[:, :0]
    if place.shape[1] == n:
        x = torch.cat([first, registers, x + place], 1)
    elif place.shape[1] == 1 + n:
        x = torch.cat([first + place[:, :1], registers, x + place[:, 1:]], 1)
    else:
        x = torch.cat([first, registers, x], 1) + place
    depth = len([key for key in w if key.endswith(".norm1.weight")])
    for i in range(depth):
        x = _timm_block({key.removeprefix(f"blocks.{i}."): value for key, value in w.items()}, x, heads)
    return F.layer_norm(x, (d,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 1 + registers.shape[1] :]


def _timm_block(w: Mapping[str, Tensor], x: Tensor, heads: int) -> Tensor:
    b, n, d = x.shape
    y = F.layer_norm(x, (d,), w["norm1.weight"], w["norm1.bias"], 1e-6)
    qkv = F.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"]).view(b, n, 3, heads, d // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
    scores = (q @ k.transpose(-1, -2) * (d // heads) ** -0.5).softmax(-1)
    y = F.linear((scores @ v).transpose(1, 2).reshape(b, n, d), w["attn.proj.weight"], w["attn.proj.bias"])
    x = x + y * w.get("ls1.gamma", 1.0)
    y = F.layer_norm(x, (d,), w["norm2.weight"], w["norm2.bias"], 1e-6)
    y = F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"])
    if len(w["mlp.fc1.weight"]) == 2 * w["mlp.fc2.weight"].shape[1]:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    else:
        y = F.gelu(y)
    return x + F.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"]) * w.get("ls2.gamma", 1.0)


def write_timm_folder(folder: Path, weights: Weights, heads: int) -> Path:
    """A folder as timm publishes on the hub: `pytorch_model.bin` and timm's own `config.json`."""
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    about = {
        "architecture": "vit_large_patch16_224",
        "num_classes": 0,
        "model_args": {"img_size": 224, "init_values": 1e-05, "num_heads": heads},
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "input_size": [3, 224, 224]},
    }
    (folder / "config.json").write_text(json.dumps(about))
    return folder


# DINOv2


def make_dinov2(config: VisionConfig, seed: int = 0) -> nn.Module:
    """`transformers`' own model, with its mask token."""
    shape = {
        "hidden_size": config.dim, "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "mlp_ratio": config.mlp_ratio, "use_swiglu_ffn": config.swiglu, "image_size": config.pos_px,
        "patch_size": config.patch_px,
    }  # fmt: skip
    if config.registers:
        about = Dinov2WithRegistersConfig(**shape, num_register_tokens=config.registers)
        return randomise(Dinov2WithRegistersModel(about), seed)
    return randomise(Dinov2Model(Dinov2Config(**shape)), seed)


def write_dinov2(folder: Path, dinov2: nn.Module, hub: bool = True) -> Path:
    """A folder as on the hub (`attention.attention.query`), or as newer `transformers` lay it out."""
    dinov2.save_pretrained(folder, save_original_format=hub)
    return folder


# PEFT


def write_adapter(folder: Path, base: nn.Module, safe: bool = True, seed: int = 0, **lora: Any) -> Weights:
    """An adapter by PEFT itself, on `base`, which it changes; the state dict of what PEFT merges."""
    adapted = get_peft_model(base, LoraConfig(**lora))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.3, generator=generator)
    adapted.save_pretrained(folder, safe_serialization=safe)
    return {key: value.detach().clone() for key, value in adapted.merge_and_unload().state_dict().items()}


def rewrite_keys(path: Path, rename: Callable[[str], str | None]) -> None:
    """The same safetensors with other keys; None drops one."""
    renamed = {rename(key): value for key, value in load_file(path).items()}
    save_file({key: value for key, value in renamed.items() if key is not None}, path, metadata={"format": "pt"})


# Sizes


def write_sizes(path: Path, shapes: Mapping[str, Iterable[int]]) -> Path:
    """A file of any size without its numbers: tensors that all show one and the same zero take a few bytes each."""
    torch.save({name: torch.zeros((), dtype=torch.float16).expand(*shape) for name, shape in shapes.items()}, path)
    return path
