"""The models of the decoding benchmark: the shipped one, and the paper's sizes with random weights."""

import importlib

import torch

from benchmarks.run import Unavailable
from benchmarks.workload import CHAIN, FOUND, NOT_FOUND, QUERY
from model import builders
from model.checkpoint import CheckpointError
from model.pathchat import PathChatSegR1
from model.predictor import PathChatPredictor, load_segmenter
from model.segmenter import SegmenterCard
from model.tokenizer import PathTokenizer

SMALL_PAPER = "tests.model.tiny:small_paper_model"
"""The paper's layout with a few layers of everything: what rehearses a GPU's run."""


def load(variant: str, device: torch.device, seed: int) -> PathChatPredictor:
    """A predictor by the name of its variant, `small-paper`, or `module:function` that makes a model.

    Raises:
        Unavailable: there is no such model, or no such device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Unavailable("no GPU is here")
    if variant.startswith("paper-"):
        return _behind(_paper(variant.removeprefix("paper-"), device, seed))
    factory = SMALL_PAPER if variant == "small-paper" else variant
    try:
        if ":" not in factory:
            return load_segmenter(variant)
        module, _, function = factory.partition(":")
        return _behind(getattr(importlib.import_module(module), function)().to(device, builders.dtype_on(device)))
    except (CheckpointError, ImportError, AttributeError, TypeError) as error:
        raise Unavailable(f"no model {variant!r}: {error}") from error


def _paper(size: str, device: torch.device, seed: int) -> PathChatSegR1:
    """Random weights, made where they are used: speed depends on sizes alone, and scripts say what is answered."""
    tokenizer = PathTokenizer.train([QUERY, CHAIN, FOUND, NOT_FOUND], 400)
    try:
        config = builders.paper_config(size)
    except ValueError as error:
        raise Unavailable(f"no variant 'paper-{size}': {error}") from error
    return builders.build(config, tokenizer, device, seed=seed)


def _behind(model: PathChatSegR1) -> PathChatPredictor:
    """A predictor with a card that says what little there is to say."""
    config = model.config
    return PathChatPredictor(model, SegmenterCard(config.name, "random", config.tile_px, config.default_mpp))
