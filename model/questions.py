"""Questions as the language model reads them: tokens, positions, and what each shares with others."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.pathchat import PathChatSegR1
from model.prompt import build_sequence


@dataclass(frozen=True)
class Shown:
    """Exemplars for the language model.

    Attributes:
        of: for each question the index of its exemplar, None where it has none.
        reference: (E, n, H) image tokens of the exemplars; memory: (E, H) what lies under their outlines.
    """

    of: Sequence[int | None]
    reference: Tensor
    memory: Tensor


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        tile: its row among the image tokens; exemplar: its row among the exemplars, or None.
        ids: (L,) int64; positions: (3, L) int64.
        head: what its first `head_length` tokens are; equal heads have equal keys and values.
    """

    tile: int
    exemplar: int | None
    ids: np.ndarray
    positions: np.ndarray
    head: Hashable
    head_length: int

    @property
    def next_position(self) -> int:
        """Position of the first answered token, the same in all three axes."""
        return int(self.positions[0, -1]) + 1


class Questions(Sequence[Question]):
    """N prompts with the image tokens they speak of."""

    def __init__(self, prompts: list[Question], tokens: Tensor, shown: Shown | None):
        self._prompts, self._tokens, self._shown = prompts, tokens, shown
        self._first: dict[Hashable, int] = {}
        for i, prompt in enumerate(prompts):
            self._first.setdefault(prompt.head, i)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Question:
        return self._prompts[index]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.ids) for p in self._prompts)

    def order(self, index: int) -> tuple[int, int]:
        """Sorts questions so that equal heads stand together, and else as they came."""
        return self._first[self[index].head], index

    @classmethod
    def build(
        cls,
        model: PathChatSegR1,
        queries: Sequence[str],
        mpps: Sequence[float | None],
        tokens: Tensor,
        *,
        pictures: Sequence[Hashable] | None = None,
        tile_first: Sequence[bool] | None = None,
        shown: Shown | None = None,
        answers: Sequence[str] | None = None,
    ) -> "Questions":
        """Write N prompts.

        Args:
            model: gives tokenizer and grid.
            queries, mpps: N questions and scales in µm/px, None where unknown.
            tokens: (N, n, H) image tokens.
            pictures: N names of tiles; questions with the same name and exemplar have the same image tokens.
            tile_first: N times whether the tile comes before the question; None means never.
            shown: the exemplars, if any.
            answers: N whole answers from `<think>` on, to be read after the prompts; None leaves them open.
        """
        n = len(queries)
        pictures, tile_first = pictures or range(n), tile_first if tile_first is not None else [False] * n
        of = shown.of if shown is not None else [None] * n
        built: dict[Hashable, tuple] = {}
        prompts = []
        for i, (query, mpp, exemplar, first) in enumerate(zip(queries, mpps, of, tile_first, strict=True)):
            answer = None if answers is None else answers[i]
            key = (query, mpp, exemplar is not None, bool(first), answer)
            if key not in built:
                s = build_sequence(
                    model.tokenizer, query, mpp, model.config.image_grid, exemplar=key[2], tile_first=key[3],
                    answer=answer, style=model.config.prompt,
                )  # fmt: skip
                image = np.flatnonzero(s.ids == model.tokenizer.image)
                built[key] = s.ids, s.positions, int(image[-1]) + 1 if first else int(image[0])
            ids, positions, head_length = built[key]
            head = ("tile", pictures[i], exemplar) if first else ("query", query, mpp, exemplar)
            prompts.append(Question(i, exemplar, ids, positions, head, head_length))
        return cls(prompts, tokens, shown)

    def embed(
        self, model: PathChatSegR1, asked: Sequence[Question], begins: Sequence[int], ends: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """`ids[begin:end]` of R questions as embeddings (R, L, H), padded on the right, and positions (3, R, L)."""
        t, device = model.tokenizer, self._tokens.device
        length = max(e - b for b, e in zip(begins, ends, strict=True))
        ids = np.full((len(asked), length), t.pad, np.int64)
        positions = np.zeros((3, len(asked), length), np.int64)
        for r, (q, b, e) in enumerate(zip(asked, begins, ends, strict=True)):
            ids[r, : e - b], positions[:, r, : e - b] = q.ids[b:e], q.positions[:, b:e]
        seen = [q.tile for r, q in enumerate(asked) if (ids[r] == t.image).any()]
        reminded = [q.exemplar for r, q in enumerate(asked) if (ids[r] == t.mem).any()]
        embeds = model.embed(
            torch.from_numpy(ids).to(device),
            self._tokens[seen] if seen else None,
            self._shown.reference[reminded] if reminded else None,
            self._shown.memory[reminded] if reminded else None,
        )
        return embeds, torch.from_numpy(positions).to(device)
