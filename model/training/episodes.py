"""Views and questions → the tensors of a training step."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from model.data.episodes import sample_episode, sample_exemplar_episode
from model.prompt import build_sequence
from model.tokenizer import PathTokenizer
from model.training.augment import blank_out
from model.training.pools import ScenePool, View
from model.training.pretrain import dense_targets

PAD_TO = 32


@dataclass
class EpisodeBatch:
    """B pictures, R questions about them, M masks that the answers ask for.

    Attributes:
        images: (B, S, S, 3) uint8; references: the same for exemplars, or None; outlines: (B, S, S) float32.
        image_of: (R,) picture of each question.
        ids: (R, L); positions: (3, R, L); weight: (R, L) loss weight of predicting the token at that place.
        prompt_end: (R,) place of `<think>`, whose state decides the emission head.
        present: (R,) 1 when the answer carries a `<SEG>`.
        masks: (M, P, P) float32 targets at the decoder's size, in order of row and place.
        dense, known: dense class targets, see `dense_targets`.
    """

    images: Tensor
    references: Tensor | None
    outlines: Tensor | None
    image_of: Tensor
    ids: Tensor
    positions: Tensor
    weight: Tensor
    prompt_end: Tensor
    present: Tensor
    masks: Tensor
    dense: Tensor
    known: Tensor


@dataclass
class EpisodeMaker:
    """Draws training batches.

    Attributes:
        questions: per picture; tile_first_share: how often the image comes before the question; bpe_dropout: of the
            question's words; exemplar_share: of steps that ask by an exemplar.
    """

    pool: ScenePool
    tokenizer: PathTokenizer
    concepts: tuple[str, ...]
    patch_grid: int
    image_grid: int
    mask_px: int
    batch_size: int
    questions: int = 2
    tile_first_share: float = 0.25
    bpe_dropout: float = 0.03
    exemplar_share: float = 0.12

    def make(self, rng: np.random.Generator) -> EpisodeBatch:
        """One batch; `rng` is the only source of chance."""
        views = [self.pool.draw(rng) for _ in range(self.batch_size)]
        if rng.random() < self.exemplar_share:
            return self._exemplars(views, rng)
        asked = [
            (b, sample_episode(view.masks, view.absent, view.scene.facts, rng))
            for b, view in enumerate(views)
            for _ in range(self.questions)
        ]
        return self._tensors(views, asked, None, rng)

    def _exemplars(self, views: list[View], rng: np.random.Generator) -> EpisodeBatch:
        """Each picture is asked about what another picture shows under its outline."""
        asked, references = [], []
        for b, view in enumerate(views):
            here, gone = sorted(view.masks), sorted(view.absent)
            present = bool(here) and (not gone or rng.random() < 0.55)
            keys = here if present else gone
            concept = keys[int(rng.integers(len(keys)))] if keys else "gland"
            reference = self.pool.draw(rng, concept=concept)
            if concept not in reference.masks:  # rare: no picture shows it, so show something that is known here
                concept = next(iter(reference.masks), None)
                present = concept in view.masks
                if concept is None or not (present or concept in view.absent):
                    reference, concept, present = view, next(iter(view.masks), "gland"), bool(view.masks)
            references.append((reference.image, reference.masks.get(concept, np.zeros(view.image.shape[:2], bool))))
            asked.append((b, sample_exemplar_episode(view.masks, concept, present, view.scene.facts, rng)))
        return self._tensors(views, asked, references, rng)

    def _tensors(
        self, views: list[View], asked: list, references: list | None, rng: np.random.Generator
    ) -> EpisodeBatch:
        tile_first = bool(rng.random() < self.tile_first_share)
        sequences = [
            build_sequence(
                self.tokenizer, episode.query, views[b].mpp, self.image_grid, answer=episode.answer,
                exemplar=references is not None, tile_first=tile_first, dropout=self.bpe_dropout, rng=rng,
            )
            for b, episode in asked
        ]
        length = -(-max(len(s.ids) for s in sequences) // PAD_TO) * PAD_TO
        rows = len(asked)
        ids = np.full((rows, length), self.tokenizer.pad, np.int64)
        positions = np.zeros((3, rows, length), np.int64)
        weight = np.zeros((rows, length), np.float32)
        for r, s in enumerate(sequences):
            ids[r, : len(s.ids)] = s.ids
            positions[:, r, : len(s.ids)] = s.positions
            weight[r, s.answer_at : len(s.ids)] = 1.0
        dense, known = dense_targets(views, self.concepts, self.patch_grid)
        pictures = np.stack([blank_out(view.image, rng) for view in views])
        return EpisodeBatch(
            images=torch.from_numpy(pictures),
            references=_stack([outlined(*reference) for reference in references]) if references else None,
            outlines=_stack([m.astype(np.float32) for _, m in references]) if references else None,
            image_of=torch.tensor([b for b, _ in asked]),
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            weight=torch.from_numpy(weight),
            prompt_end=torch.tensor([s.answer_at - 1 for s in sequences]),
            present=torch.tensor([float(bool(episode.targets)) for _, episode in asked]),
            masks=_stack([self._mask(views[b], key) for b, episode in asked for key in episode.targets], self.mask_px),
            dense=torch.from_numpy(dense),
            known=torch.from_numpy(known),
        )

    def _mask(self, view: View, key: str) -> np.ndarray:
        size = (self.mask_px, self.mask_px)
        return cv2.resize(view.masks[key].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The exemplar with its outline drawn on it, 2 px of pure green, a colour that H&E does not have."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, (0, 255, 0), 2)


def _stack(arrays: list[np.ndarray], edge: int = 0) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros(0, edge, edge)



