"""Weights into a stage and out of it: from the checkpoint it starts from, of earlier stages what they trained.

A model is made empty and each tensor read straight onto its device, as what it will be there: fp32 where it learns,
else as the stage's `frozen_dtype` says. So 8 processes that train a model of 16 GB need no 8 × 32 GB of the host.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.builders import build, complete
from model.checkpoint import CheckpointError, assign, open_checkpoint, shapes, weights_of, write_checkpoint
from model.config import PathChatConfig
from model.data.corpus import text_episodes
from model.data.queries import normalise_query
from model.pathchat import PathChatSegR1
from model.stored import Stored, Tensors, compare
from model.tokenizer import PathTokenizer
from model.training.devices import Devices
from model.training.trainable import Trainable, merge_lora

TRAINED = {
    "lm": ("language_model.",), "ssl": ("pathology_encoder.", "sam_encoder."),
    "pretrain": ("pathology_encoder.", "dense_head.", "projector."), "sft": ("",), "so-grpo": ("",),
}  # fmt: skip
"""What of a stage's checkpoint a later stage takes."""
CORPUS_SIZE = 20_000


def start_model(
    config: PathChatConfig, out: Path, init: Sequence[Path], seed: int, trainable: Trainable, devices: Devices
) -> PathChatSegR1:
    """The model that a stage begins with, on its device, nothing frozen yet.

    Args:
        config: what is built where no `init` holds a whole model.
        out: of this run; keeps the tokenizer.
        init: runs or checkpoint folders; one of `sft` or `so-grpo`, or one that names no stage, is taken whole, with
            its shape; of others what their stage trained.
        seed: of the tokenizer's corpus.
        trainable: tells as what each weight is held.
        devices: where the weights go; the first process makes the tokenizer.

    Raises:
        CheckpointError: an `init` is no checkpoint, or does not fit.
    """
    found = [path / "checkpoint" if (path / "checkpoint").is_dir() else path for path in init]
    whole = next((path for path in found if "" in TRAINED[stage_of(path)]), None)
    if whole is not None:
        config, tokenizer, tensors = open_checkpoint(whole)
        if devices.first:
            tokenizer.save(_made(out) / "tokenizer.json")
        model = build(config, tokenizer, empty=True)
        compare(f"checkpoint {whole.name}", shapes(tensors), shapes(weights_of(model)))
    else:
        tensors, tokenizer = {}, _tokenizer(config, out, found, seed, devices)
        model = build(config, tokenizer)
    held = dtypes(config, tokenizer, trainable)
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(held[name])
    model = model if whole is not None else model.to(devices.device)
    _put(model, tensors, devices.device)
    for path in found:
        if path != whole:
            take_from(model, path, devices.device)
    return complete(model)


def dtypes(config: PathChatConfig, tokenizer: PathTokenizer, trainable: Trainable) -> dict[str, torch.dtype]:
    """As what each weight of a model is held once `trainable` has prepared it; nothing is allocated."""
    shadow = build(config, tokenizer, empty=True)
    trainable.prepare(shadow)
    return {name.replace(".base_layer.", "."): weight.dtype for name, weight in shadow.named_parameters()}


def _put(model: PathChatSegR1, tensors: Tensors, device: torch.device) -> None:
    """Read tensors one by one into a model, each as what the model holds it."""
    own = weights_of(model)
    for name, tensor in tensors.items():
        assign(model, name, tensor.read().to(device, own[name].dtype))


def _tokenizer(
    config: PathChatConfig, out: Path, found: Sequence[Path], seed: int, devices: Devices
) -> PathTokenizer:  # fmt: skip
    """The first tokenizer there is, or one that the first process trains on the chains."""
    if devices.first:
        places = [path / "tokenizer.json" for path in found] + [out / "tokenizer.json"]
        there = next((path for path in places if path.is_file()), None)
        if there:
            tokenizer = PathTokenizer.load(there)
        else:
            episodes = text_episodes(np.random.default_rng([seed, 4]), CORPUS_SIZE)
            corpus = [text for e in episodes for text in (normalise_query(e.query), e.answer)]
            tokenizer = PathTokenizer.train(corpus, config.language.vocabulary)
        tokenizer.save(_made(out) / "tokenizer.json")
    devices.wait()
    return PathTokenizer.load(out / "tokenizer.json")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stage_of(checkpoint: Path) -> str:
    """The stage that left a checkpoint; `sft` where its card names none.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    card = checkpoint / "card.json"
    if not card.is_file():
        raise CheckpointError(f"init {checkpoint}: no checkpoint; a finished run or a checkpoint folder is accepted")
    return json.loads(card.read_text()).get("stage", "sft")


def take_from(model: PathChatSegR1, checkpoint: Path, device: torch.device) -> None:
    """Read into `model` what the stage of a finished run trained.

    Raises:
        CheckpointError: it does not fit.
    """
    stage, own = stage_of(checkpoint), weights_of(model)
    _, _, tensors = open_checkpoint(checkpoint)
    taken = {name: tensor for name, tensor in tensors.items() if name.startswith(TRAINED[stage])}
    misfits = sorted(k for k, v in taken.items() if k not in own or tuple(own[k].shape) != v.shape)
    if misfits:
        raise CheckpointError(f"checkpoint {checkpoint}: does not fit this model: {misfits}")
    _put(model, taken, device)
    print(f"took {len(taken)} tensors of stage {stage} from {checkpoint}")


def save_trained(folder: Path, model: PathChatSegR1, card: Mapping[str, Any]) -> str:
    """Fold what was added for training into the weights, and write a checkpoint, each weight as it is held.

    Returns:
        The revision.
    """
    tensors = {name: _stored(weight) for name, weight in weights_of(merge_lora(model)).items()}
    return write_checkpoint(folder, model.config, model.tokenizer, tensors, card)


def _stored(weight: Tensor) -> Stored:
    return Stored(tuple(weight.shape), weight.dtype, lambda: weight.detach().cpu())
