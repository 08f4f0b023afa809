"""DINOv2 as Hugging Face publishes it (`facebook/dinov2-large`, with or without registers), in both layouts about.

The published one says `attention.attention.query` and `mlp.weights_in`; newer `transformers` say `attention.q_proj` and
`mlp.gate_proj`, as our own model does.

Source: huggingface.co/facebook/dinov2-large; Oquab et al. 2024, DINOv2.
"""

import re
from pathlib import Path
from typing import Any

from model.config import PathChatConfig
from model.importers.imported import Imported, Piece, Shapes, assemble, check_numbers
from model.importers.timm_vit import VIT, open_vit
from model.stored import CheckpointError, Stored, Tensors, read_json

PUBLISHED = {
    "attention.q_proj": ("attention.attention.query", 0, 1),
    "attention.k_proj": ("attention.attention.key", 0, 1),
    "attention.v_proj": ("attention.attention.value", 0, 1),
    "attention.o_proj": ("attention.output.dense", 0, 1),
    "mlp.gate_proj": ("mlp.weights_in", 0, 2),
    "mlp.up_proj": ("mlp.weights_in", 1, 2),
    "mlp.down_proj": ("mlp.weights_out", 0, 1),
}
NUMBERS = {
    "hidden_size": "dim", "num_hidden_layers": "depth", "num_attention_heads": "heads", "patch_size": "patch_px",
    "use_swiglu_ffn": "swiglu", "num_register_tokens": "registers",
}  # fmt: skip
PREFIX = re.compile(r"^dinov2(_with_registers)?\.")
UNUSED = ("embeddings.mask_token", "classifier.")


def read_dinov2(path: Path, config: PathChatConfig, own: Shapes) -> Imported:
    """Read a DINOv2 of Hugging Face.

    Args:
        path: a folder as published, or its file of weights.
        config: what it must fit.
        own: shape of each tensor of the model.

    Raises:
        CheckpointError: unreadable; not DINOv2; of another shape than `config`; the message names fields or keys.
    """
    where = f"vision {path.name}"
    found, files = open_vit(path)
    found = bare_dinov2(found)
    if not is_dinov2(found):
        raise CheckpointError(f"{where}: not a DINOv2; keys embeddings.…, encoder.layer.N.… are accepted")
    about = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    check_numbers(where, "vision", {"stem": "patch", **guess_dinov2(about)}, config.vision)
    ignored = {key for key in found if key.startswith(UNUSED)}
    published = any(".attention.attention." in key for key in found)
    pieces = {name: _piece(name, published) for name in own if name.startswith(VIT)}
    tensors = assemble(where, {k: v for k, v in found.items() if k not in ignored}, pieces, own)
    return Imported("dinov2", files, tensors, tuple(sorted(found.keys() - ignored)), tuple(sorted(ignored)))


def bare_dinov2(found: Tensors) -> dict[str, Stored]:
    """Keys without the name of the backbone, which a model with a classifier puts before them."""
    return {PREFIX.sub("", key): tensor for key, tensor in found.items()}


def is_dinov2(found: Tensors) -> bool:
    """Whether keys are those of `Dinov2Model`."""
    return "embeddings.cls_token" in found and any(key.startswith("encoder.layer.0.attention.") for key in found)


def guess_dinov2(about: dict[str, Any]) -> dict[str, Any]:
    """Fields of `VisionConfig` that its `config.json` tells."""
    return {ours: about[theirs] for theirs, ours in NUMBERS.items() if theirs in about}


def _piece(name: str, published: bool) -> Piece:
    key = name.removeprefix(VIT).replace("patch_embeddings.stem.project", "patch_embeddings.projection")
    for ours, (theirs, part, of) in PUBLISHED.items() if published else ():
        if f".{ours}." in key:
            return Piece(key.replace(ours, theirs), part, of)
    return Piece(key)
