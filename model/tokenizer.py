"""Byte-level BPE trained on the chains, with the special tokens of the answer grammar.

One spelling for everything: `<SEG>` asks for a mask, `<image>` and `<ref>` stand for image tokens of the tile and of an
exemplar, `<MEM>` for what was pooled under the exemplar's outline.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
THINK, END_THINK, SEG = "<think>", "</think>", "<SEG>"
IMAGE, REF, MEM = "<image>", "<ref>", "<MEM>"
SPECIAL = (PAD, BOS, EOS, THINK, END_THINK, SEG, IMAGE, REF, MEM)


class PathTokenizer:
    """Text ↔ ids; special tokens are whole ids wherever they are spelled."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.pad, self.bos, self.eos, self.think, self.end_think, self.seg, self.image, self.ref, self.mem = (
            tokenizer.token_to_id(token) for token in SPECIAL
        )

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "PathTokenizer":
        """Train a BPE of at most `vocabulary` tokens, bytes and special tokens included."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "PathTokenizer":
        """Read `tokenizer.json`."""
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        self._tokenizer.save(str(path))

    def encode(self, text: str, dropout: float = 0.0, rng: np.random.Generator | None = None) -> list[int]:
        """Text → ids.

        Args:
            text: anything; special tokens are recognised.
            dropout: chance per character that no merge crosses it, so that unseen spellings stay readable: BPE dropout
                (Provilkov et al. 2020), drawn from `rng` because the tokenizer's own cannot be seeded.
            rng: the only source of chance; needed with dropout.
        """
        pieces = [text]
        if dropout:
            cuts = [0, *(1 + np.flatnonzero(rng.random(max(0, len(text) - 1)) < dropout)), len(text)]
            pieces = [text[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
        return [i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text, special tokens spelled out, `<eos>` and `<pad>` left out."""
        dropped = {self.pad, self.eos, self.bos}
        return self._tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False)
