"""Questions to be answered by the policy itself, with what is true of them."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from model.data.episodes import sample_episode
from model.data.morphology import location_words
from model.data.scene import Episode
from model.training.pools import ScenePool, View


@dataclass
class PromptBatch:
    """B questions, one about each of B pictures.

    Attributes:
        slot: number of the micro-batch within a step.
        images: (B, S, S, 3) uint8.
        queries, mpps: the questions, and scales in µm/px, None where unknown.
        tile_first: whether the picture comes before the question.
        masks: (n, P, P) float32, the targets of all questions; counts: (B,) how many each has, 0 where it is absent.
    """

    slot: int
    images: Tensor
    queries: list[str]
    mpps: list[float | None]
    tile_first: list[bool]
    masks: Tensor
    counts: list[int]


@dataclass
class PromptMaker:
    """Draws questions as `sft` does, but without augmented wordings, exemplars and answers.

    Attributes:
        pool: of pictures; mask_px: edge of the targets; batch_size: questions a micro-batch.
        place_share: of the questions about what is there, how many also say where; of those about what is absent, as
            many name a place by chance, so that a place tells nothing about presence.
        tile_first_share: how often the image comes before the question.
    """

    pool: ScenePool
    mask_px: int
    batch_size: int
    place_share: float = 0.2
    tile_first_share: float = 0.25

    def make(self, rng: np.random.Generator, slot: int) -> PromptBatch:
        """One batch; `rng` is the only source of chance."""
        views = [self.pool.draw(rng) for _ in range(self.batch_size)]
        asked = [sample_episode(view.masks, view.absent, view.scene.facts, rng) for view in views]
        first = bool(rng.random() < self.tile_first_share)
        masks = [self._mask(view, key) for view, episode in zip(views, asked, strict=True) for key in episode.targets]
        return PromptBatch(
            slot=slot,
            images=torch.from_numpy(np.stack([view.image for view in views])),
            queries=[self._query(view, episode, rng) for view, episode in zip(views, asked, strict=True)],
            mpps=[view.mpp for view in views],
            tile_first=[first] * len(views),
            masks=torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, self.mask_px, self.mask_px),
            counts=[len(episode.targets) for episode in asked],
        )

    def _query(self, view: View, episode: Episode, rng: np.random.Generator) -> str:
        """The question, now and then with a place."""
        if rng.random() >= self.place_share:
            return episode.query
        shown = [view.masks[key] for key in episode.targets] or list(view.masks.values())
        where = location_words(shown[int(rng.integers(len(shown)))]) if shown else ""
        return f"{episode.query} Look in the {where} area." if where and "area" not in where else episode.query

    def _mask(self, view: View, key: str) -> np.ndarray:
        size = (self.mask_px, self.mask_px)
        return cv2.resize(view.masks[key].astype(np.float32), size, interpolation=cv2.INTER_AREA)
