"""A model on disk: `model.safetensors` (fp16 when shipped), `config.json`, `tokenizer.json`, `card.json`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model.builders import build
from model.config import PathChatConfig
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "card.json"


class CheckpointError(ValueError):
    """A checkpoint is missing a file, or its keys do not fit the model; the message names them."""


def weights_of(model: PathChatSegR1) -> dict[str, torch.Tensor]:
    """The state dict without the output layer, which is the word embedding again."""
    return {k: v for k, v in model.state_dict().items() if not k.endswith("lm_head.weight")}


def save_checkpoint(
    folder: Path, model: PathChatSegR1, *, dtype: torch.dtype = torch.float16, card: dict[str, Any] | None = None
) -> str:
    """Write a checkpoint.

    Args:
        folder: created when missing.
        model: what to save.
        dtype: type of the floating weights on disk.
        card: what `SegmenterCard` should tell besides: licence, figures.

    Returns:
        The revision: the first 12 hex digits of the weights' SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to(dtype).contiguous().clone() for k, v in weights_of(model).items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(model.config.to_json(), indent=1) + "\n")
    model.tokenizer.save(folder / TOKENIZER)
    (folder / CARD).write_text(json.dumps(card or {}, indent=1) + "\n")
    return revision_of(folder)


def revision_of(folder: Path) -> str:
    """Content hash of the weights, 12 hex digits."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12]


def load_checkpoint(folder: Path) -> PathChatSegR1:
    """Read a checkpoint into a fresh fp32 model in evaluation mode.

    Raises:
        CheckpointError: a file is missing, or keys are missing or unexpected; the message names them.
    """
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint {folder.name}: {name} is missing")
    config = PathChatConfig.from_json(json.loads((folder / CONFIG).read_text()))
    model = build(config, PathTokenizer.load(folder / TOKENIZER))
    load_weights(model, load_file(folder / WEIGHTS))
    return model.eval()


def load_weights(model: PathChatSegR1, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors into a model.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape.
    """
    own = weights_of(model)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if missing or unexpected or shapes:
        raise CheckpointError(f"checkpoint: missing {missing}, unexpected {unexpected}, of another shape {shapes}")
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
