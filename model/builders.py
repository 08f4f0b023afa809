"""Named variants: each holds only its numbers, the wiring is `PathChatSegR1`'s.

A model is built on the host in fp32, or where and as what it will compute, or `empty`, on no device at all, for weights
that are assigned to it: no size is ever held twice.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from model.config import LanguageConfig, PathChatConfig, SamConfig, VisionConfig
from model.data.concepts import CONCEPTS
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer

SILENT = (
    "adapter.up.weight", "matcher.outlet.weight", "mask_decoder.match.weight", "mask_decoder.match_evidence.weight",
)  # fmt: skip
"""Outlets that start at zero: what they add, a fresh model does without."""


def tiny_config(**changes: object) -> PathChatConfig:
    """The shipped CPU model: at most 12 M parameters, 224-px tiles."""
    names = tuple(concept.name for concept in CONCEPTS.values())
    config = PathChatConfig(name="tiny", dense_classes=tuple(CONCEPTS), targets=names)
    return replace(config, **changes)


def paper_config(size: str = "7b", **changes: object) -> PathChatConfig:
    """The paper's model: Qwen2.5-VL, RuiPath's ViT-L and MedSAM's ViT-B over tiles of 1024 px at 40×.

    Args:
        size: `7b` or `3b`, of the language model.
        changes: fields that differ.

    Raises:
        ValueError: no such size.

    Source: Liu et al. 2026, PathChat-SegR1, §3.1 and App. A; Bai et al. 2025, Qwen2.5-VL, Table 1.
    """
    qwen = {"mrope_section": (16, 24, 24), "rope_theta": 1e6, "rms_eps": 1e-6}
    languages = {
        "7b": LanguageConfig(3584, 28, 28, 4, 18_944, vocabulary=152_064, tied=False, **qwen),
        "3b": LanguageConfig(2048, 36, 16, 2, 11_008, vocabulary=151_936, tied=True, **qwen),
    }
    if size not in languages:
        raise ValueError(f"size={size!r}: accepted are {list(languages)}")
    config = PathChatConfig(
        name=f"paper-{size}",
        tile_px=1024,
        default_mpp=0.25,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        max_answer_tokens=192,
        prompt="qwen",
        vision=VisionConfig(
            dim=1024, depth=24, heads=16, mlp_ratio=4, patch_px=16, stem="patch", layer_scale=1e-5, drop_path=0.0,
            image_px=448, pos_px=224,
        ),
        language=languages[size],
        sam=SamConfig(
            dim=768, depth=12, heads=12, mlp_ratio=4.0, window=14, global_blocks=(2, 5, 8, 11), patch_px=16,
            stem="patch", out_dim=256, decoder_heads=8, decoder_mlp_dim=2048, multimask_outputs=3, high_res=False,
            image_px=1024, rel_pos=True, scheme="medsam", norm_eps=1e-6,
        ),
    )  # fmt: skip
    return replace(config, **changes)


VARIANTS: dict[str, Callable[..., PathChatConfig]] = {
    "tiny": tiny_config,
    "paper-3b": lambda **changes: paper_config("3b", **changes),
    "paper-7b": lambda **changes: paper_config("7b", **changes),
}


def dtype_on(device: torch.device | str) -> torch.dtype:
    """What weights are on a device: bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, unless `SLIDEREASON_BF16` (0 or 1) says else.

    With AMX, or by AVX512-BF16 on AMD. Measured on oneDNN's products of 1576 × 256 × 768, bfloat16 against float32 in
    GFLOP/s on one core: AMD EPYC with AVX512-BF16 216 against 100; Intel Xeon with AVX512-BF16 alone 83 against 155.
    """
    told = os.environ.get("SLIDEREASON_BF16")
    if told is not None:
        return told == "1"
    return bool(torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _made_by_amd()))


def _made_by_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def build(
    config: PathChatConfig,
    tokenizer: PathTokenizer,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    empty: bool = False,
    seed: int = 0,
) -> PathChatSegR1:
    """A freshly initialised model.

    Args:
        config: its numbers.
        tokenizer: text ↔ ids.
        device: where the weights are made; None makes them on the host in fp32 by torch's own generator, which you
            seed before you call.
        dtype: what they are made as; None is `dtype_on` the device.
        empty: no weights at all: they are on `meta`, to be assigned and then completed by `complete`.
        seed: of the weights, where a device is given.

    Raises:
        ValueError: the tokenizer has more tokens than the language model has rows.
    """
    if len(tokenizer) > config.language.vocabulary:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens, the language model {config.language.vocabulary} rows")
    if device is None and not empty:
        return PathChatSegR1(config, tokenizer)
    with torch.device("meta"):
        model = PathChatSegR1(config, tokenizer)
    if empty:
        return model if dtype is None else model.to(dtype)
    return materialise(model, device, dtype or dtype_on(device), seed)


@torch.no_grad()
def materialise(model: PathChatSegR1, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> PathChatSegR1:
    """Give an empty model random weights, made on their device as what they will be.

    Matrices are drawn from N(0, 1 / inputs), so that every layer keeps the size of what it is given and nothing
    overflows in bfloat16; norms start as the identity, biases at zero.
    """
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(SILENT):
            weight.zero_()
        elif name.endswith("lambda1"):
            weight.fill_(model.config.vision.layer_scale)
        elif weight.ndim > 1:
            weight.normal_(0, weight[0].numel() ** -0.5)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
    model.mask_decoder.positions.positional_encoding_gaussian_matrix.normal_()
    return model


def complete(model: PathChatSegR1) -> PathChatSegR1:
    """Compute what no checkpoint holds, after weights were assigned to an empty model.

    Raises:
        ValueError: some weights were never assigned; the message names them.
    """
    model.language_model.settle()
    tensors = (*model.named_parameters(), *model.named_buffers())
    if missing := sorted(name for name, tensor in tensors if tensor.is_meta):
        raise ValueError(f"weights were never assigned: {missing}")
    return model
