"""Stage `sft`: reasoning chains and masks together.

Trains: everything (`tiny` has nothing pretrained to freeze), or what the config names: of the paper's model LoRA in the
language model and the pathology encoder, the adapters of MedSAM's encoder, the mask decoder and the Seg-Adapter. Data:
every shippable scene, 45 % of the questions about what is absent, a share about things never taught, a share asked by
exemplar. Loss: Eq. 2 with λ's 1 : 2 BCE : 0.5 Dice, and besides the IoU head's squared error, the emission head's
cross-entropy and the dense class supervision.

Source: Liu et al. 2026, PathChat-SegR1, §3.3, Eq. 2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.pathchat import PathChatSegR1, Reminded, Seen
from model.training.episodes import EpisodeBatch, EpisodeMaker
from model.training.losses import chain_loss, dense_class_loss, iou_head_loss, mask_loss


@dataclass(frozen=True)
class SftWeights:
    """λ of each term."""

    text: float = 1.0
    mask: float = 1.0
    iou: float = 0.2
    emission: float = 1.0
    dense: float = 1.0
    match: float = 1.0


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
        reminded = self._remind(model, batch, seen)
        states = model.language_model(self._embeds(model, batch, seen, reminded), batch.positions)
        rows = torch.arange(len(batch.prompt_end))
        emission = model.emission_head(states[rows, batch.prompt_end])[:, 0].float()
        parts = {
            "text": chain_loss(model.language_model.logits, states, batch.ids, batch.weight),
            "emission": F.binary_cross_entropy_with_logits(emission, batch.present),
            "dense": dense_class_loss(seen.classes, batch.dense, batch.known),
            **self._mask_losses(model, batch, states, reminded),
            **_match_loss(reminded, batch.sought),
        }
        total = sum(getattr(self.weights, name) * value for name, value in parts.items())
        figures = {name: float(value.detach()) for name, value in parts.items()}
        figures["emission_hit"] = float(((emission > 0) == (batch.present > 0.5)).float().mean())
        return total, figures

    def _remind(self, model: PathChatSegR1, batch: EpisodeBatch, seen: Seen) -> Reminded | None:
        if batch.references is None:
            return None
        shown = model.see(batch.references, batch.plain)
        return model.remind(seen.rows(batch.image_of), shown, batch.outlines)

    def _embeds(self, model: PathChatSegR1, batch: EpisodeBatch, seen: Seen, reminded: Reminded | None) -> Tensor:
        if reminded is None:
            return model.embed(batch.ids, seen.tokens[batch.image_of])
        return model.embed(batch.ids, reminded.tokens, reminded.reference, reminded.memory)

    def _mask_losses(
        self, model: PathChatSegR1, batch: EpisodeBatch, states: Tensor, reminded: Reminded | None
    ) -> dict[str, Tensor]:
        seg, rows = model.seg_states(states, batch.ids)
        if not len(seg):
            return {}
        match = None if reminded is None else reminded.match[rows]
        logits, iou = model.decode_masks(model.survey(batch.images), batch.image_of[rows], seg, match)
        return {"mask": mask_loss(logits, batch.masks), "iou": iou_head_loss(iou, logits, batch.masks)}

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """Everything."""
        return list(model.parameters())


def _match_loss(reminded: Reminded | None, sought: Tensor | None) -> dict[str, Tensor]:
    """Teaches the matcher itself: both votes on each cell against the share of the cell that is looked for."""
    if reminded is None:
        return {}
    vote = (reminded.match[:, ::2].flatten(2).float() + 1) / 2  # [R, 2, n] in [0, 1]
    with torch.autocast(vote.device.type, enabled=False):
        return {"match": F.binary_cross_entropy(vote.clamp(1e-4, 1 - 1e-4), sought[:, None].expand_as(vote))}
