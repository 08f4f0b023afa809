"""Stage `sft`: reasoning chains and masks together.

Trains: everything (`tiny` has nothing pretrained to freeze). Data: every shippable scene, 45 % of the questions about
what is absent, a share about things never taught, a share asked by exemplar. Loss: Eq. 2 with λ's 1 : 2 BCE : 0.5 Dice,
and besides the IoU head's squared error, the emission head's cross-entropy and the dense class supervision.

Source: Liu et al. 2026, PathChat-SegR1, §3.3, Eq. 2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.pathchat import PathChatSegR1
from model.training.episodes import EpisodeBatch, EpisodeMaker
from model.training.losses import dense_class_loss, iou_head_loss, mask_loss, next_token_loss


@dataclass(frozen=True)
class SftWeights:
    """λ of each term."""

    text: float = 1.0
    mask: float = 1.0
    iou: float = 0.2
    emission: float = 1.0
    dense: float = 1.0


@dataclass
class Sft:
    """See the module's docstring."""

    maker: EpisodeMaker
    seed: int
    weights: SftWeights = SftWeights()
    name: str = "sft"

    def batch(self, step: int) -> EpisodeBatch:
        """The batch of one step, from (seed, step) alone."""
        return self.maker.make(np.random.default_rng([self.seed, 2, step]))

    def loss(self, model: PathChatSegR1, batch: EpisodeBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Eq. 2 and the supports of `tiny`."""
        seen = model.see(batch.images)
        states = model.language_model(self._embeds(model, batch, seen.tokens), batch.positions)
        text = self._text_loss(model, batch, states)
        rows = torch.arange(len(batch.prompt_end))
        emission = model.emission_head(states[rows, batch.prompt_end])[:, 0].float()
        parts = {
            "text": text,
            "emission": F.binary_cross_entropy_with_logits(emission, batch.present),
            "dense": dense_class_loss(seen.classes, batch.dense, batch.known),
            **self._mask_losses(model, batch, states),
        }
        total = sum(getattr(self.weights, name) * value for name, value in parts.items())
        figures = {name: float(value.detach()) for name, value in parts.items()}
        figures["emission_hit"] = float(((emission > 0) == (batch.present > 0.5)).float().mean())
        return total, figures

    def _embeds(self, model: PathChatSegR1, batch: EpisodeBatch, tokens: Tensor) -> Tensor:
        if batch.references is None:
            return model.embed(batch.ids, tokens[batch.image_of])
        shown = model.see(batch.references)
        memory = model.remember(shown.patches, batch.outlines)
        return model.embed(batch.ids, tokens[batch.image_of], shown.tokens, memory)

    def _text_loss(self, model: PathChatSegR1, batch: EpisodeBatch, states: Tensor) -> Tensor:
        where = batch.weight[:, 1:] > 0
        logits = model.language_model.logits(states[:, :-1][where])
        return next_token_loss(logits, batch.ids[:, 1:][where], batch.weight[:, 1:][where])

    def _mask_losses(self, model: PathChatSegR1, batch: EpisodeBatch, states: Tensor) -> dict[str, Tensor]:
        seg, rows = model.seg_states(states, batch.ids)
        if not len(seg):
            return {}
        logits, iou = model.decode_masks(model.survey(batch.images), batch.image_of[rows], seg)
        return {"mask": mask_loss(logits, batch.masks), "iou": iou_head_loss(iou, logits, batch.masks)}

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """Everything."""
        return list(model.parameters())
