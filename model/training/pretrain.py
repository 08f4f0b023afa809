"""Stage `pretrain`: the pathology encoder learns, patch by patch, what each concept looks like, or to be read.

Trains: the pathology encoder, with the dense class head and the projector as far as its objectives need them. Data:
every shippable scene. Losses:

`dense`: binary cross-entropy per patch and concept, over the concepts that are known to be present or absent. `tiny`
has no pretrained encoder, so this comes before its language model sees a picture.

`text`: the next token of the reasoning chains, conditioned on the picture; the paper's. The language model is frozen
and only passes the gradient on to the image tokens. Questions are those of `sft`, without exemplars, as what an
exemplar needs does not learn here.

Source: Liu et al. 2026, PathChat-SegR1, §3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from model.pathchat import PathChatSegR1
from model.training.augment import blank_out, mix_patches
from model.training.losses import chain_loss, dense_class_loss
from model.training.pools import ScenePool, View

if TYPE_CHECKING:
    from model.training.episodes import EpisodeBatch, EpisodeMaker

OBJECTIVES = ("dense", "text")


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


def objectives_of(told: str | Sequence[str]) -> tuple[str, ...]:
    """A config's `objective`: one word or a list of them.

    Raises:
        ValueError: no such objective, or none at all.
    """
    objectives = (told,) if isinstance(told, str) else tuple(told)
    if not objectives or not set(objectives) <= set(OBJECTIVES):
        raise ValueError(f"pretrain.objective={told!r}: accepted are {list(OBJECTIVES)}, or a list of them")
    return objectives


@dataclass
class Pretrain:
    """See the module's docstring.

    Attributes:
        pool: where pictures are drawn from.
        concepts: of the dense class head, in order.
        grid: patch tokens along one edge of a tile.
        batch_size: pictures of a micro-batch.
        seed: of the batches.
        mix: how often the pictures of a batch are mixed, see `mix_patches`; not for `text`.
        objectives: some of `OBJECTIVES`; their losses are added.
        maker: asks about the pictures; only `text` needs it.

    Raises:
        ValueError: there is nothing to learn an objective from.
    """

    pool: ScenePool
    concepts: tuple[str, ...]
    grid: int
    batch_size: int
    seed: int
    objectives: tuple[str, ...] = ("dense",)
    maker: "EpisodeMaker | None" = None
    mix: float = 0.0
    name: str = "pretrain"

    def __post_init__(self):
        if "dense" in self.objectives and not self.concepts:
            raise ValueError("pretrain.objective: the model has no dense classes; accepted is 'text'")
        if "text" in self.objectives and self.maker is None:
            raise ValueError("pretrain.objective: 'text' needs a maker of questions")

    def batch(self, step: int) -> "tuple[Tensor, Tensor, Tensor] | EpisodeBatch":
        """Images (B, S, S, 3) uint8, dense targets, known concepts; or for `text` questions about pictures."""
        rng = np.random.default_rng([self.seed, 1, step])
        if "text" in self.objectives:
            return self.maker.make(rng)
        views = [self.pool.draw(rng) for _ in range(self.batch_size)]
        images = np.stack([blank_out(view.image, rng) for view in views])
        target, known = dense_targets(views, self.concepts, self.grid)
        if self.mix and rng.random() < self.mix:
            images, target, known = mix_patches(images, target, known, rng)
        return torch.from_numpy(images), torch.from_numpy(target), torch.from_numpy(known)

    def loss(self, model: PathChatSegR1, batch: "tuple | EpisodeBatch", step: int) -> tuple[Tensor, dict[str, float]]:
        """The sum of its objectives."""
        # A loader hands a tuple on as a list.
        of_episodes = not isinstance(batch, (tuple, list))
        images, target, known = (batch.images, batch.dense, batch.known) if of_episodes else batch
        seen = model.see(images)
        parts = {}
        if "dense" in self.objectives:
            parts["dense"] = dense_class_loss(seen.classes, target, known)
        if "text" in self.objectives:
            states = model.language_model(model.embed(batch.ids, seen.tokens[batch.image_of]), batch.positions)
            parts["text"] = chain_loss(model.language_model.logits, states, batch.ids, batch.weight)
        return sum(parts.values()), {name: float(part.detach()) for name, part in parts.items()}

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """The encoder, and what stands between it and its objectives: the dense head, the projector."""
        heads = {"dense": model.dense_head, "text": model.projector}
        parts = [model.pathology_encoder, *(heads[name] for name in self.objectives)]
        return [weight for part in parts for weight in part.parameters()]
