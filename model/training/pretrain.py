"""Stage `pretrain`: the pathology encoder learns, patch by patch, what each concept looks like.

Trains: the pathology encoder and the dense class head. Data: every shippable scene. Loss: binary cross-entropy per
patch and concept, over the concepts that are known to be present or absent. `tiny` has no pretrained encoder, so this
comes before the language model sees a picture.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.pathchat import PathChatSegR1
from model.training.augment import blank_out
from model.training.losses import dense_class_loss
from model.training.pools import ScenePool, View


def dense_targets(views: list[View], concepts: tuple[str, ...], grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of every patch that each concept covers, and which concepts are known.

    Returns:
        (B, N, C) float32 and (B, C) float32.
    """
    target = np.zeros((len(views), grid, grid, len(concepts)), np.float32)
    known = np.zeros((len(views), len(concepts)), np.float32)
    for b, view in enumerate(views):
        for c, key in enumerate(concepts):
            if key in view.masks:
                mask = view.masks[key]
                edge = mask.shape[0] // grid
                target[b, :, :, c] = mask.reshape(grid, edge, grid, edge).mean((1, 3))
            known[b, c] = key in view.masks or key in view.absent
    return target.reshape(len(views), grid * grid, len(concepts)), known


@dataclass
class Pretrain:
    """See the module's docstring."""

    pool: ScenePool
    concepts: tuple[str, ...]
    grid: int
    batch_size: int
    seed: int
    name: str = "pretrain"

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, S, S, 3) uint8, dense targets, known concepts."""
        rng = np.random.default_rng([self.seed, 1, step])
        views = [self.pool.draw(rng) for _ in range(self.batch_size)]
        images = np.stack([blank_out(view.image, rng) for view in views])
        target, known = dense_targets(views, self.concepts, self.grid)
        return torch.from_numpy(images), torch.from_numpy(target), torch.from_numpy(known)

    def loss(self, model: PathChatSegR1, batch: tuple, step: int) -> tuple[Tensor, dict[str, float]]:
        """Dense class loss."""
        images, target, known = batch
        loss = dense_class_loss(model.see(images).classes, target, known)
        return loss, {"dense": float(loss.detach())}

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """The encoder and its dense head."""
        return [*model.pathology_encoder.parameters(), *model.dense_head.parameters()]
