"""Weights of parts that no source has: random, each from its own name and the seed, made when they are asked for."""

import hashlib
import math

import torch

from model.builders import SILENT
from model.config import PathChatConfig
from model.stored import Stored

SAME = ("patch_embeddings.projection.", "patch_embeddings.stem.project.")
"""Two names of one layer."""


def fresh_tensor(name: str, shape: tuple[int, ...], config: PathChatConfig, seed: int) -> Stored:
    """One tensor as an untrained model has it, fp32.

    Matrices are drawn from N(0, 1 / inputs), what starts silent is zero, norms are the identity, biases zero. The same
    name, shape and seed give the same values, whatever else is made.
    """
    key = hashlib.sha256(f"{seed}:{name.replace(*SAME)}".encode()).digest()

    def read() -> torch.Tensor:
        if name.endswith(SILENT):
            return torch.zeros(shape)
        if name.endswith("lambda1"):
            return torch.full(shape, config.vision.layer_scale)
        if name.endswith("sharpness"):
            return torch.full(shape, math.log(10.0))
        if name.endswith("nobody"):
            return torch.full(shape, 0.5)
        if len(shape) < 2:
            return torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        inputs = 1 if name.endswith("gaussian_matrix") else math.prod(shape[1:])
        return torch.randn(shape, generator=generator) * inputs**-0.5

    return Stored(shape, torch.float32, read)
