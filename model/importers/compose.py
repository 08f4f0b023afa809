"""A checkpoint from parts: what each source gives, and fresh weights for what none has."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import EXACT, open_checkpoint, shapes, shapes_of, write_checkpoint
from model.config import PathChatConfig
from model.importers.dinov2 import bare_dinov2, is_dinov2, read_dinov2
from model.importers.fresh import fresh_tensor
from model.importers.imported import Imported, Shapes
from model.importers.peft_lora import read_lora
from model.importers.qwen import read_qwen, read_qwen_tokenizer
from model.importers.sam import DECODER, read_sam
from model.importers.timm_vit import open_vit, read_timm_vit
from model.shards import cast, sha256_of
from model.stored import CheckpointError, Stored, compare, open_folder
from model.tokenizer import PathTokenizer


@dataclass(frozen=True)
class Sources:
    """Where the parts come from; what is None is not given.

    Attributes:
        checkpoint: folder of ours, the start; the others replace parts of it.
        language: folder of Qwen2.5-VL.
        vision: file or folder of a timm ViT or a DINOv2.
        sam: file of SAM or MedSAM.
        adapter: folder of a PEFT adapter, merged last.
        tokenizer: `tokenizer.json`, ours or Qwen2.5-VL's, where neither `language` nor `checkpoint` brings one.
        decoder: take the mask decoder of `sam` or `checkpoint` too; without, it starts anew.
    """

    checkpoint: Path | None = None
    language: Path | None = None
    vision: Path | None = None
    sam: Path | None = None
    adapter: Path | None = None
    tokenizer: Path | None = None
    decoder: bool = True


@dataclass(frozen=True)
class Composed:
    """Everything of a checkpoint, its weights unread.

    Attributes:
        config, tokenizer: as in a checkpoint.
        tensors: every weight of the model.
        imported: what each source gave, by its role.
        fresh: names of the weights that no source gave.
    """

    config: PathChatConfig
    tokenizer: PathTokenizer
    tensors: dict[str, Stored]
    imported: dict[str, Imported]
    fresh: tuple[str, ...]


def compose(config: PathChatConfig | None, sources: Sources, seed: int = 0) -> Composed:
    """Put a checkpoint together; nothing is read but headers.

    Args:
        config: the model's numbers; None takes those of `sources.checkpoint`.
        sources: at least one part.
        seed: of the fresh weights.

    Raises:
        CheckpointError: a source is unreadable or does not fit; no tokenizer. The message names files, fields and keys.
    """
    if sources.checkpoint is not None and config is None:
        config, _, _ = open_checkpoint(sources.checkpoint)
    if config is None:
        raise CheckpointError("a configuration is needed: name a variant, a file, or a checkpoint to start from")
    tokenizer = choose_tokenizer(config, sources)
    try:
        own = shapes_of(config, tokenizer)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    imported = read_parts(config, own, sources)
    tensors = {name: tensor for part in imported.values() for name, tensor in part.tensors.items()}
    if sources.adapter is not None:
        imported["adapter"] = read_lora(sources.adapter, tensors)
        tensors |= imported["adapter"].tensors
    fresh = tuple(name for name in own if name not in tensors)
    tensors |= {name: fresh_tensor(name, own[name], config, seed) for name in fresh}
    for part in imported.values():
        config = replace(config, **part.told)
    return Composed(config, tokenizer, {name: tensors[name] for name in own}, imported, fresh)


def read_parts(config: PathChatConfig, own: Shapes, sources: Sources) -> dict[str, Imported]:
    """What every source but the adapter gives, by its role; later ones replace earlier ones."""
    readers = {
        "checkpoint": lambda path: read_own(path, own),
        "language": lambda path: read_qwen(path, config, own),
        "vision": lambda path: read_vision(path, config, own),
        "sam": lambda path: read_sam(path, config, own, sources.decoder),
    }
    given = {role: getattr(sources, role) for role in readers}
    parts = {role: readers[role](path) for role, path in given.items() if path is not None}
    if "checkpoint" in parts:
        later = {name for role, part in parts.items() if role != "checkpoint" for name in part.tensors}
        if not sources.decoder:
            later |= {name for name in own if name.startswith(DECODER)}
        parts["checkpoint"] = _without(parts["checkpoint"], later)
    return parts


def _without(part: Imported, names: set[str]) -> Imported:
    """What is left of a checkpoint of ours when other sources give some of its tensors, or nobody shall."""
    left = {name: tensor for name, tensor in part.tensors.items() if name not in names}
    return replace(part, tensors=left, used=tuple(sorted(left)), ignored=tuple(sorted(part.tensors.keys() - left)))


def read_own(folder: Path, own: Shapes) -> Imported:
    """Read a checkpoint of ours.

    Raises:
        CheckpointError: it is of another shape than the model; the message names the keys.
    """
    _, _, tensors = open_checkpoint(folder)
    compare(f"checkpoint {folder.name}", shapes(tensors), own)
    return Imported("slidereason", open_folder(folder)[1], tensors, tuple(sorted(tensors)))


def read_vision(path: Path, config: PathChatConfig, own: Shapes) -> Imported:
    """Read a ViT in whichever of the two layouts it is."""
    found = bare_dinov2(open_vit(path)[0])
    return (read_dinov2 if is_dinov2(found) else read_timm_vit)(path, config, own)


def choose_tokenizer(config: PathChatConfig, sources: Sources) -> PathTokenizer:
    """The tokenizer that is given, else that of the language model, else that of the checkpoint.

    Raises:
        CheckpointError: there is none, or it cannot be read; the message says which.
    """
    if sources.tokenizer is not None:
        try:
            return PathTokenizer.load(sources.tokenizer)
        except ValueError:
            return _qwen_tokenizer(sources.tokenizer, config)
    if sources.language is not None:
        return read_qwen_tokenizer(sources.language, config.language)
    if sources.checkpoint is not None:
        return open_checkpoint(sources.checkpoint)[1]
    raise CheckpointError("a tokenizer is needed: --language, --checkpoint or --tokenizer brings one")


def _qwen_tokenizer(path: Path, config: PathChatConfig) -> PathTokenizer:
    try:
        return PathTokenizer.from_qwen(path, config.language.vocabulary)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def write_composed(folder: Path, made: Composed, *, licence: str, dtype: torch.dtype | None = None) -> str:
    """Write a checkpoint part by part, holding one tensor at a time.

    Args:
        folder: created when missing.
        made: what to write.
        licence: of the weights, for the card.
        dtype: of the floating weights; None keeps each source's own.

    Returns:
        The revision.
    """
    tensors = {name: cast(t, torch.float32 if name.endswith(EXACT) else dtype) for name, t in made.tensors.items()}
    return write_checkpoint(folder, made.config, made.tokenizer, tensors, card_of(made, licence))


def card_of(made: Composed, licence: str) -> dict[str, Any]:
    """What the card of an imported checkpoint tells: where each part is from, what was left out, what is untrained."""
    return {
        "licence": licence,
        "figures": {},
        "provenance": {
            role: {
                "format": part.form,
                "files": {file.name: sha256_of(file) for file in part.files},
                "used": len(part.used),
                "ignored": list(part.ignored),
            }
            for role, part in made.imported.items()
        },
        "fresh": list(made.fresh),
    }
