"""Activations that are computed again in the backward pass instead of kept: of each block only what it was given.

That of `transformers` is off in evaluation mode, in which SO-GRPO takes its steps, and SAM's encoder has none. This one
depends on whether gradients are asked for alone: decoding, which asks for none, is left as it is.

Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.pathchat import PathChatSegR1


def blocks_of(model: PathChatSegR1) -> Iterator[nn.Module]:
    """The repeated blocks of the language model and of both encoders."""
    yield from model.language_model.text_model.layers
    yield from model.pathology_encoder.vit.encoder.layer
    yield from model.sam_encoder.vit.blocks


def recompute_activations(model: PathChatSegR1) -> None:
    """Let every block recompute."""
    for block in blocks_of(model):
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable, *args: object, **kwargs: object) -> object:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
