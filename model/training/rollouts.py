"""Answers that the policy draws itself, as the engine of the service decodes them, and as one teacher-forced batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.decode import SlotDecoder
from model.pathchat import PathChatSegR1
from model.prompt import build_sequence, positions_of
from model.training.prompts import PromptBatch

PAD_TO = 32


@dataclass
class Rollouts:
    """R = B · n answers, those of one question next to each other.

    Attributes:
        tokens: (B, n, H) image tokens; features: MedSAM's, of B pictures. Neither encoder trains here.
        image_of: (R,) question of each answer.
        ids: (R, L); positions: (3, R, L); starts: (R,) place of the first answered token; lengths: (R,) answered
            tokens, the end token included.
        texts: R answers behind `<think>`.
    """

    tokens: Tensor
    features: list[Tensor]
    image_of: Tensor
    ids: Tensor
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    texts: list[str]

    @property
    def said(self) -> Tensor:
        """(R, T) bool: True at answered tokens."""
        return torch.arange(int(self.lengths.max()), device=self.ids.device) < self.lengths[:, None]

    @property
    def places(self) -> Tensor:
        """(R, T) places of the answered tokens in `ids`; those that nobody said repeat the last."""
        steps = torch.arange(int(self.lengths.max()), device=self.ids.device)
        return (self.starts[:, None] + steps).minimum((self.starts + self.lengths - 1)[:, None])

    def seg_places(self, seg: int) -> list[list[int]]:
        """For each answer the tokens of it that are `<SEG>`."""
        found = (self.ids.gather(1, self.places) == seg) & self.said
        return [row.nonzero()[:, 0].tolist() for row in found]


@torch.no_grad()
def roll_out(model: PathChatSegR1, batch: PromptBatch, n: int, temperature: float = 1.0) -> Rollouts:
    """Draw n answers to each question.

    Args:
        model: in evaluation mode.
        batch: B questions.
        n: answers a question.
        temperature: of the drawing.
    """
    seen = model.see(batch.images)
    of = [b for b in range(len(batch.queries)) for _ in range(n)]
    first = [batch.tile_first[b] for b in of]
    with _decoding(model):
        answers = SlotDecoder(model, slots=len(of)).decode(
            [batch.queries[b] for b in of], [batch.mpps[b] for b in of], seen.tokens[of],
            temperature=temperature, pictures=of, tile_first=first,
        )  # fmt: skip
    told = [answer.ids for answer in answers]
    limit, tokenizer = model.config.max_answer_tokens, model.tokenizer
    said = [ids if len(ids) == limit else [*ids, tokenizer.eos] for ids in told]
    prompts = [
        build_sequence(
            tokenizer, batch.queries[b], batch.mpps[b], model.config.image_grid, tile_first=batch.tile_first[b],
            style=model.config.prompt,
        ).ids
        for b in of
    ]  # fmt: skip
    ids, positions = _padded(model, prompts, said)
    device = model.device
    return Rollouts(
        tokens=seen.tokens,
        features=model.survey(batch.images),
        image_of=torch.tensor(of, device=device),
        ids=ids,
        positions=positions,
        starts=torch.tensor([len(prompt) for prompt in prompts], device=device),
        lengths=torch.tensor([len(answer) for answer in said], device=device),
        texts=[tokenizer.decode(ids) for ids in told],
    )


def _padded(model: PathChatSegR1, prompts: list[np.ndarray], said: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts with their answers as (R, L) ids and (3, R, L) positions, padded on the right."""
    t, grid = model.tokenizer, model.config.image_grid
    whole = [np.concatenate([prompt, np.array(answer, np.int64)]) for prompt, answer in zip(prompts, said, strict=True)]
    length = -(-max(map(len, whole)) // PAD_TO) * PAD_TO
    ids = np.full((len(whole), length), t.pad, np.int64)
    positions = np.zeros((3, len(whole), length), np.int64)
    for r, row in enumerate(whole):
        ids[r, : len(row)] = row
        positions[:, r, : len(row)] = positions_of(row, frozenset({t.image, t.ref}), grid)
    return torch.from_numpy(ids).to(model.device), torch.from_numpy(positions).to(model.device)


@contextmanager
def _decoding(model: PathChatSegR1) -> Iterator[None]:
    """The engine's attention and no compiled blocks while it decodes; training's again behind it."""
    text = model.language_model.text_model
    before = text.config._attn_implementation
    stance = torch.compiler.set_stance("force_eager")
    try:
        with stance:
            yield
    finally:
        text.set_attn_implementation(before)
