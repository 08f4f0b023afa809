"""Views and questions → the tensors of a training step."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from model.data.episodes import sample_episode, sample_exemplar_episode
from model.data.foreign import CONCEPT, add_matter, random_matter
from model.data.unnamed import unnamed_part
from model.exemplar import MIN_SHARE, outlined
from model.matcher import FINER
from model.prompt import build_sequence
from model.tokenizer import PathTokenizer
from model.training.augment import blank_out, restain
from model.training.pools import ScenePool, View
from model.training.pretrain import dense_targets

PAD_TO = 32
FOREIGN_MPP = (0.2, 4.0)
"""Scales that are stated beside foreign matter."""


@dataclass
class EpisodeBatch:
    """B pictures, R questions about them, M masks that the answers ask for.

    Attributes:
        images: (B, S, S, 3) uint8; references: the same for exemplars, or None; plain: exemplars before their outline
            was drawn on them; outlines: (B, S, S) float32.
        image_of: (R,) picture of each question.
        ids: (R, L); positions: (3, R, L); weight: (R, L) loss weight of predicting the token at that place.
        prompt_end: (R,) place of `<think>`, whose state decides the emission head.
        present: (R,) 1 when the answer carries a `<SEG>`.
        masks: (M, P, P) float32 targets at the decoder's size, in order of row and place.
        dense, known: dense class targets, see `dense_targets`.
        sought: (R, n) share of each cell of appearance that an exemplar's like covers; None without exemplars.
    """

    images: Tensor
    references: Tensor | None
    plain: Tensor | None
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
    sought: Tensor | None = None


@dataclass
class EpisodeMaker:
    """Draws training batches.

    Attributes:
        questions: per picture; tile_first_share: how often the image comes before the question; bpe_dropout: of the
            question's words; exemplar_share: of steps that ask by an exemplar; foreign_share, unnamed_share: of those
            questions, about foreign matter and about parts of real pictures that have no name; style: of the
            prompt, see `PathChatConfig.prompt`.
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
    exemplar_share: float = 0.3
    foreign_share: float = 0.5
    unnamed_share: float = 0.15
    style: str = "plain"

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
        """Each picture is asked about what another one shows under its outline: something named, foreign or unnamed."""
        shown, asked, references = [], [], []
        for view in views:
            episode, lot = None, rng.random()
            if lot >= self.foreign_share + self.unnamed_share:
                episode = self._taught(view, rng)
            elif lot >= self.foreign_share:
                episode = self._unnamed(view, rng)
            view, reference, concept, present = episode or self._foreign(view, rng)
            shown.append(view)
            references.append(reference)
            facts = view.scene.facts if concept != CONCEPT else {}
            asked.append((len(asked), sample_exemplar_episode(view.masks, concept, present, facts, rng)))
        return self._tensors(shown, asked, references, rng)

    def _taught(self, view: View, rng: np.random.Generator) -> tuple | None:
        """A taught concept, its name removed; None when no picture could be found that shows it."""
        here, gone = sorted(view.masks), sorted(view.absent)
        present = bool(here) and (not gone or rng.random() < 0.55)
        keys = here if present else gone
        if not keys:
            return None
        concept = keys[int(rng.integers(len(keys)))]
        reference = self.pool.draw(rng, concept=concept)
        mask = reference.masks.get(concept)
        if mask is None or mask.mean() < MIN_SHARE:
            return None
        return view, (reference.image, mask), concept, present

    def _unnamed(self, view: View, rng: np.random.Generator) -> tuple | None:
        """A part of a real picture, shown in one view of it and sought in another; None where one does not hold it."""
        part = unnamed_part(view.scene.image, rng)
        if part is None:
            return None
        shown, sought = (self.pool.view(view.scene, rng, part) for _ in range(2))
        if not (shown.masks and sought.masks):
            return None
        return sought, (shown.image, shown.masks[CONCEPT]), CONCEPT, True

    def _foreign(self, view: View, rng: np.random.Generator) -> tuple:
        """A class that was never seen and never will be again, often beside another one."""
        size = view.image.shape[0]
        matter, other = random_matter(rng), random_matter(rng)
        shown = [np.zeros((size, size), bool)]
        while not shown[0].any():
            reference, shown = add_matter(self.pool.draw(rng).image, [matter, other][: 1 + (rng.random() < 0.5)], rng)
        present = rng.random() < 0.55
        beside = [other] if rng.random() < 0.6 else []
        image, masks = add_matter(view.image, [matter, *beside] if present else beside, rng)
        present = present and bool(masks[0].any())
        free = ~np.logical_or.reduce([np.zeros((size, size), bool), *masks])
        left = {key: mask & free for key, mask in view.masks.items()}
        left = {key: mask for key, mask in left.items() if mask.mean() >= MIN_SHARE}
        if present:
            left[CONCEPT] = masks[0]
        # What was painted over may be cut to a sliver, so nothing else is said of the named concepts.
        # Matter has no scale of its own: any may be stated.
        mpp = float(np.exp(rng.uniform(*np.log(FOREIGN_MPP)))) if rng.random() < 0.5 else view.mpp
        view = View(restain(image, rng, 0.5), left, frozenset(), mpp, view.scene)
        return view, (restain(reference, rng, 0.5), shown[0]), CONCEPT, present

    def _tensors(
        self, views: list[View], asked: list, references: list | None, rng: np.random.Generator
    ) -> EpisodeBatch:
        tile_first = bool(rng.random() < self.tile_first_share)
        sequences = [
            build_sequence(
                self.tokenizer, episode.query, views[b].mpp, self.image_grid, answer=episode.answer,
                exemplar=references is not None, tile_first=tile_first, dropout=self.bpe_dropout, rng=rng,
                style=self.style,
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
            plain=_stack([image for image, _ in references]) if references else None,
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
            sought=_stack([self._sought(views[b], episode.targets) for b, episode in asked]) if references else None,
        )

    def _sought(self, view: View, targets: tuple[str, ...]) -> np.ndarray:
        mask = np.logical_or.reduce([np.zeros(view.image.shape[:2], bool), *(view.masks[key] for key in targets)])
        size = (FINER * self.patch_grid, FINER * self.patch_grid)
        return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel()

    def _mask(self, view: View, key: str) -> np.ndarray:
        size = (self.mask_px, self.mask_px)
        return cv2.resize(view.masks[key].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def _stack(arrays: list[np.ndarray], edge: int = 0) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros(0, edge, edge)
