"""timm's vision transformers, and DINOv2's own files, which are laid out alike: UNI, RuiPath, `vit_large_patch16_224`.

Before the keys are renamed, dialects are brought to one: which tokens have a position, LayerScale or none, SwiGLU as
`fc1`/`fc2` or `w12`/`w3`. `qkv` is split into its three parts.

Source: timm `models/vision_transformer.py`; Oquab et al. 2024, DINOv2; Darcet et al. 2024, registers.
"""

from pathlib import Path
from typing import Any

import torch

from model.config import PathChatConfig, VisionConfig
from model.importers.imported import Imported, Piece, Shapes, assemble, check_numbers, depth_of, without_prefix
from model.stored import CheckpointError, Stored, Tensors, open_folder, open_tensors, read_json

VIT = "pathology_encoder.vit."
NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings.stem.project": "patch_embed.proj",
    "layernorm": "norm",
    "encoder.layer": "blocks",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.down_proj": "mlp.fc2",
}
"""Parts of our names and of theirs, as far as they are one to one."""
SPLIT = {
    "attention.q_proj": ("attn.qkv", 0, 3),
    "attention.k_proj": ("attn.qkv", 1, 3),
    "attention.v_proj": ("attn.qkv", 2, 3),
    "mlp.gate_proj": ("mlp.fc1", 0, 2),
    "mlp.up_proj": ("mlp.fc1", 1, 2),
}
"""Ours that are one part of several of theirs: key, which part, of how many."""
UNUSED = ("head.", "fc_norm.", "mask_token", "dino_head.", "ibot_head.")


def read_timm_vit(path: Path, config: PathChatConfig, own: Shapes) -> Imported:
    """Read a ViT.

    Args:
        path: `.bin`, `.pth` or `.safetensors`, wrapped and prefixed as training left it; or a folder with timm's
            `config.json` beside the weights, whose normalisation is then taken over.
        config: what it must fit.
        own: shape of each tensor of the model.

    Raises:
        CheckpointError: unreadable; no ViT; of another shape than `config`; the message names fields or keys.
    """
    where = f"vision {path.name}"
    found, files = open_vit(path)
    if not is_timm_vit(found):
        raise CheckpointError(f"{where}: not a ViT of timm; keys patch_embed.proj.…, blocks.N.… are accepted")
    about = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    told = guess_timm_vit(found) | _heads(about)
    pixels = config.vision.pos_px or config.vision_px
    numbers = ("dim", "depth", "heads", "patch_px", "registers", "swiglu")
    known = {name: told[name] for name in numbers if name in told}
    check_numbers(where, "vision", {"stem": "patch", **known}, config.vision)
    ignored = {key for key in found if key.startswith(UNUSED)}
    plain = one_dialect({k: v for k, v in found.items() if k not in ignored}, config.vision, pixels)
    mine = [name for name in own if name.startswith(VIT)]
    tensors = assemble(where, plain, {name: _piece(name) for name in mine}, own)
    used = tuple(sorted(found.keys() - ignored))
    return Imported("timm-vit", files, tensors, used, tuple(sorted(ignored)), told=normalisation(about))


def open_vit(path: Path) -> tuple[dict[str, Stored], tuple[Path, ...]]:
    """The tensors of a file or folder, without prefixes; of a training run's student or teacher only the backbone."""
    tensors, files = open_folder(path) if path.is_dir() else (open_tensors(path), (path,))
    tensors = without_prefix(tensors, ("module.", "_orig_mod.", "model.", "encoder.", "trunk."))
    if any(key.startswith("backbone.") for key in tensors):
        tensors = {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}
    return tensors, files


def is_timm_vit(found: Tensors) -> bool:
    """Whether keys are those of timm's VisionTransformer."""
    patches = found.get("patch_embed.proj.weight")
    return patches is not None and len(patches.shape) == 4 and any(key.startswith("blocks.0.attn.") for key in found)


def guess_timm_vit(found: Tensors) -> dict[str, Any]:
    """Fields of `VisionConfig` that the shapes tell. The heads are not among them."""
    dim, _, _, patch_px = found["patch_embed.proj.weight"].shape
    registers = next((found[k].shape[1] for k in ("reg_token", "register_tokens") if k in found), 0)
    told = {"dim": dim, "depth": depth_of(found, "blocks."), "patch_px": patch_px, "registers": registers}
    first, second = (found.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    packed = first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
    told["swiglu"] = packed or "blocks.0.mlp.w12.weight" in found
    if first and not told["swiglu"]:
        told["mlp_ratio"] = first.shape[0] / dim
    if len(found["pos_embed"].shape if "pos_embed" in found else ()) == 3:
        tokens = found["pos_embed"].shape[1]
        edges = [int((tokens - extra) ** 0.5) for extra in (0, 1, 1 + registers) if tokens >= extra]
        squares = [e for e, extra in zip(edges, (0, 1, 1 + registers), strict=False) if e * e == tokens - extra]
        told |= {"pos_px": squares[0] * patch_px} if squares else {}
    return told


def _heads(about: dict[str, Any]) -> dict[str, Any]:
    heads = (about.get("model_args") or {}).get("num_heads")
    return {} if heads is None else {"heads": heads}


def normalisation(about: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` where timm's `config.json` tells them."""
    told = about.get("pretrained_cfg") or {}
    return {name: tuple(told[name]) for name in ("mean", "std") if len(told.get(name) or ()) == 3}


def one_dialect(found: Tensors, config: VisionConfig, pixels: int) -> dict[str, Stored]:
    """The keys of a timm ViT with class position, registers without, LayerScale, and SwiGLU as `fc1`, `fc2`."""
    names = {"register_tokens": "reg_token", "mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}
    plain = {}
    for key, tensor in found.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        plain[key] = tensor
    if not any(".gamma" in key for key in plain):
        ones = Stored((config.dim,), torch.float32, lambda: torch.ones(config.dim))
        plain |= {f"blocks.{i}.{scale}.gamma": ones for i in range(config.depth) for scale in ("ls1", "ls2")}
    return plain | _positions(plain, config, (pixels // config.patch_px) ** 2)


def _positions(found: Tensors, config: VisionConfig, patches: int) -> dict[str, Stored]:
    """Positions of class and patches, whether the file has them for patches only, with the class, or with registers.

    A position that timm adds to a register is part of that register here. Another number of positions is left as it
    is, and named as of another shape.
    """
    if "pos_embed" not in found or len(found["pos_embed"].shape) != 3:
        return {}
    positions, registers = found["pos_embed"], config.registers
    whole = (1, 1 + patches, config.dim)
    tokens = positions.shape[1]
    if tokens == patches:
        nowhere = torch.zeros(1, 1, config.dim, dtype=positions.dtype)
        return {"pos_embed": Stored(whole, positions.dtype, lambda: torch.cat([nowhere, positions.read()], 1))}
    if not registers or tokens != 1 + registers + patches or "reg_token" not in found:
        return {}
    token, after = found["reg_token"], slice(1, 1 + registers)

    def without_registers() -> torch.Tensor:
        all_of_them = positions.read()
        return torch.cat([all_of_them[:, :1], all_of_them[:, 1 + registers :]], 1)

    return {
        "pos_embed": Stored(whole, positions.dtype, without_registers),
        "reg_token": Stored(token.shape, token.dtype, lambda: token.read() + positions.read()[:, after]),
    }


def _piece(name: str) -> Piece:
    """Where our tensor is in a timm ViT."""
    key, part, of = name.removeprefix(VIT), 0, 1
    for ours, (theirs, index, parts) in SPLIT.items():
        if ours in key:
            key, part, of = key.replace(ours, theirs), index, parts
    for ours, theirs in NAMES.items():
        if key.startswith(ours) or f".{ours}" in key:
            key = key.replace(ours, theirs)
    return Piece(key, part, of)
