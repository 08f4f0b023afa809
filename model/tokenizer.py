"""Byte-level BPE with the special tokens of the answer grammar: trained on the chains, or Qwen2.5's with ours added.

One spelling for everything: `<SEG>` asks for a mask, `<image>` and `<ref>` stand for image tokens of the tile and of an
exemplar, `<MEM>` for what was pooled under the exemplar's outline. Qwen2.5 has its own words for the beginning, the end
and the tile's image.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
THINK, END_THINK, SEG = "<think>", "</think>", "<SEG>"
IMAGE, REF, MEM = "<image>", "<ref>", "<MEM>"
SPECIAL = (PAD, BOS, EOS, THINK, END_THINK, SEG, IMAGE, REF, MEM)
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", THINK, END_THINK, SEG, "<|image_pad|>", REF, MEM)
"""The same nine in a tokenizer of Qwen2.5-VL."""
QWEN_MARKS = (*QWEN[:3], QWEN[6], "<|vision_start|>", "<|vision_end|>")
"""What Qwen2.5-VL's own tokenizer has of what the prompt needs."""


class PathTokenizer:
    """Text ↔ ids; special tokens are whole ids wherever they are spelled.

    Which words its special tokens are, `SPECIAL` or `QWEN`, is told by which of them it knows.

    Raises:
        ValueError: it knows neither all of the one nor all of the other; the message names what is missing.
    """

    def __init__(self, tokenizer: Tokenizer):
        words = SPECIAL if tokenizer.token_to_id(BOS) is not None else QWEN
        if unknown := [word for word in words if tokenizer.token_to_id(word) is None]:
            raise ValueError(f"tokenizer.json: special tokens {unknown} are missing")
        self._tokenizer = tokenizer
        self.pad, self.bos, self.eos, self.think, self.end_think, self.seg, self.image, self.ref, self.mem = (
            tokenizer.token_to_id(word) for word in words
        )

    @property
    def unsaid(self) -> list[int]:
        """Ids that only a prompt may hold, since something else is put in their places; an answer never says them."""
        return [self.image, self.ref, self.mem]

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
        """Read a `tokenizer.json` of ours.

        Raises:
            ValueError: it is no tokenizer, or its special tokens are not ours; the message names the file.
        """
        return cls(_read(path))

    @classmethod
    def from_qwen(cls, path: Path, rows: int | None = None) -> "PathTokenizer":
        """Read Qwen2.5-VL's own `tokenizer.json` and give our words the next ids, on spare rows of the embedding.

        Args:
            path: `tokenizer.json` as published with the weights: 151,665 tokens.
            rows: rows of the word embedding, which the last id must not reach.

        Raises:
            ValueError: it is no tokenizer of Qwen2.5-VL, or the rows do not suffice.
        """
        tokenizer = _read(path)
        if unknown := [word for word in QWEN_MARKS if tokenizer.token_to_id(word) is None]:
            raise ValueError(f"{path}: not a tokenizer of Qwen2.5-VL, which would know {unknown}")
        tokenizer.add_special_tokens([word for word in QWEN if tokenizer.token_to_id(word) is None])
        last = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if rows is not None and last >= rows:
            raise ValueError(f"{path}: with our words its last id is {last}; vocabulary={rows} rows do not suffice")
        return cls(tokenizer)

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
        """Ids → text, special tokens spelled out; those of beginning, end and padding left out."""
        dropped = {self.pad, self.eos, self.bos}
        return self._tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False)


def _read(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path}: cannot be read as a tokenizer: {error}") from error
