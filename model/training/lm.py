"""Stage `lm`: the language model alone learns to read questions and to write chains, before it sees a picture.

Trains: the language model. Data: questions and answers over made-up blobs (`model/data/corpus.py`). Loss: next token of
question and answer. Only `tiny` has it: it has no pretrained language model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.data.corpus import text_episodes
from model.data.queries import normalise_query
from model.pathchat import PathChatSegR1
from model.prompt import positions_of
from model.tokenizer import PathTokenizer
from model.training.losses import next_token_loss


@dataclass
class Lm:
    """See the module's docstring."""

    tokenizer: PathTokenizer
    batch_size: int
    seed: int
    bpe_dropout: float = 0.02
    name: str = "lm"

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Ids (B, L) and positions (3, B, L) of `<bos> question <think> …`, padded."""
        rng = np.random.default_rng([self.seed, 3, step])
        t = self.tokenizer
        rows = [
            [t.bos, *t.encode(normalise_query(e.query), self.bpe_dropout, rng), *t.encode(e.answer), t.eos]
            for e in text_episodes(rng, self.batch_size)
        ]
        length = -(-max(map(len, rows)) // 32) * 32
        ids = np.full((len(rows), length), t.pad, np.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        positions = np.broadcast_to(positions_of(ids[0], frozenset(), 1)[:, None], (3, *ids.shape)).copy()
        return torch.from_numpy(ids), torch.from_numpy(positions)

    def loss(self, model: PathChatSegR1, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Mean next-token loss of what is not padding."""
        ids, positions = batch
        states = model.language_model(model.language_model.embed(ids), positions)
        where = ids[:, 1:] != self.tokenizer.pad
        labels = ids[:, 1:][where]
        loss = next_token_loss(model.language_model.logits(states[:, :-1][where]), labels, torch.ones(len(labels)))
        return loss, {"text": float(loss.detach())}

    def parameters(self, model: PathChatSegR1) -> list[nn.Parameter]:
        """The language model."""
        return list(model.language_model.parameters())
