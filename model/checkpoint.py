"""A model on disk: `model.safetensors` or shards of it with an index, `config.json`, `tokenizer.json`, `card.json`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.builders import build, complete
from model.config import PathChatConfig
from model.data.stain_shift import read_stain_file
from model.pathchat import PathChatSegR1
from model.shards import INDEX, WEIGHTS, revision_of_shards, sha256_of, write_shards
from model.stored import CheckpointError, Stored, Tensors, compare, open_folder, read_json
from model.tokenizer import PathTokenizer

CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "card.json"
EXACT = "positional_encoding_gaussian_matrix"
"""The frequencies of the mask decoder's positions: kept in fp32 on disk too, or far positions would blur."""


def weights_of(model: PathChatSegR1) -> dict[str, Tensor]:
    """The state dict, without the output layer where that is the word embedding again."""
    tied = model.config.language.tied
    return {k: v for k, v in model.state_dict().items() if not (tied and k.endswith("lm_head.weight"))}


def shapes_of(config: PathChatConfig, tokenizer: PathTokenizer) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this model holds; nothing is allocated."""
    return {k: tuple(v.shape) for k, v in weights_of(build(config, tokenizer, empty=True)).items()}


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

    def stored(name: str, weight: Tensor) -> Stored:
        kind = torch.float32 if name.endswith(EXACT) else dtype
        return Stored(tuple(weight.shape), kind, lambda: weight.detach().to("cpu", kind))

    tensors = {name: stored(name, weight) for name, weight in weights_of(model).items()}
    return write_checkpoint(folder, model.config, model.tokenizer, tensors, card or {})


def write_checkpoint(
    folder: Path, config: PathChatConfig, tokenizer: PathTokenizer, tensors: Tensors, card: Mapping[str, Any]
) -> str:
    """Write a checkpoint tensor by tensor, without a model; returns its revision."""
    folder.mkdir(parents=True, exist_ok=True)
    revision = write_shards(folder, tensors)
    (folder / CONFIG).write_text(json.dumps(config.to_json(), indent=1) + "\n")
    tokenizer.save(folder / TOKENIZER)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
    return revision


def revision_of(folder: Path) -> str:
    """Content hash of the weights, 12 hex digits.

    Of shards it is taken from the hashes that the index tells, as reading 15 GB at every start would be slow;
    `verify_checkpoint` holds them against the files.
    """
    if not (folder / INDEX).is_file():
        return sha256_of(folder / WEIGHTS)[:12]
    index = read_json(folder / INDEX)
    told = index.get("metadata", {}).get("sha256")
    return revision_of_shards(told or {n: sha256_of(folder / n) for n in set(index["weight_map"].values())})


def read_config(path: Path) -> PathChatConfig:
    """Read a `config.json` of ours.

    Raises:
        CheckpointError: it is missing, not ours, or holds a value that no part takes; the message names file and field.
    """
    data = read_json(path)
    try:
        return PathChatConfig.from_json(data)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: {error.args[0]} is missing; a configuration of SlideReason is accepted"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def open_checkpoint(folder: Path) -> tuple[PathChatConfig, PathTokenizer, dict[str, Stored]]:
    """Numbers, tokenizer and unread weights of a checkpoint.

    Raises:
        CheckpointError: a file is missing or cannot be read; the message names it.
    """
    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise CheckpointError(f"checkpoint {folder.name}: {name} is missing")
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise CheckpointError(f"checkpoint {folder.name}: {WEIGHTS} is missing, and so is {INDEX}")
    tensors, _ = open_folder(folder)
    try:
        return read_config(folder / CONFIG), PathTokenizer.load(folder / TOKENIZER), tensors
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder.name}: {error}") from error


def load_checkpoint(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PathChatSegR1:
    """Read a checkpoint into a model in evaluation mode, tensor by tensor: it is never held twice.

    Args:
        folder: one file of weights, or shards.
        device: where the weights go.
        dtype: what they are there.

    Raises:
        CheckpointError: a file is missing, or keys are missing, unexpected or of another shape; the message names them.
    """
    config, tokenizer, tensors = open_checkpoint(folder)
    model = build(config, tokenizer, empty=True, dtype=dtype)
    own = weights_of(model)
    compare(f"checkpoint {folder.name}", shapes(tensors), shapes(own))
    for name, tensor in tensors.items():
        assign(model, name, tensor.read().to(device, own[name].dtype))
    return complete(model).eval()


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put one tensor where a model has that parameter or buffer, instead of it."""
    place, _, leaf = name.rpartition(".")
    module = model.get_submodule(place)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=module._parameters[leaf].requires_grad)
    else:
        module._buffers[leaf] = tensor


def verify_checkpoint(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a checkpoint, one line each; nothing when all is well.

    One tensor is held at a time.

    Raises:
        CheckpointError: it cannot be read at all; the message names the file.
    """
    config, tokenizer, tensors = open_checkpoint(folder)
    if not (folder / CARD).is_file():
        yield f"{CARD} is missing"
    try:
        read_stain_file(folder)
    except ValueError as error:
        yield str(error)
    try:
        compare("weights", shapes(tensors), shapes_of(config, tokenizer))
    except ValueError as error:
        yield str(error)
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor.read()).all()):
            yield f"{name}: not all values are finite"
    if (folder / INDEX).is_file():
        told = read_json(folder / INDEX).get("metadata", {}).get("sha256", {})
        for file in sorted(told):
            if sha256_of(folder / file) != told[file]:
                yield f"{file}: its SHA-256 is not the one that {INDEX} tells"
