"""Text alone: questions and answers to train the tokenizer on, and the language model before it sees a picture."""

import numpy as np

from model.data.concepts import CONCEPTS, DIAGNOSES
from model.data.episodes import sample_episode
from model.data.scene import Episode

_EDGE = 24
_TISSUE = tuple(key for key in CONCEPTS if key not in DIAGNOSES and key not in ("gland", "tumour"))


def text_episodes(rng: np.random.Generator, n: int, split: str = "train") -> list[Episode]:
    """Episodes over made-up pictures of a few blobs, with facts drawn over the ranges that real ones have.

    Args:
        rng: the only source of chance.
        n: how many.
        split: which wordings; the language model may only ever see `train`.
    """
    return [_text_episode(rng, split) for _ in range(n)]


def text_corpus(rng: np.random.Generator, n: int, split: str = "train") -> list[str]:
    """`query`, a line break, `answer`, n times: what a tokenizer needs to have seen."""
    return [f"{episode.query}\n{episode.answer}" for episode in text_episodes(rng, n, split)]


def _text_episode(rng: np.random.Generator, split: str) -> Episode:
    """One episode over one made-up picture."""
    diagnosis = DIAGNOSES[int(rng.integers(len(DIAGNOSES)))]
    others = rng.choice(len(_TISSUE), size=int(rng.integers(0, 3)), replace=False)
    keys = [_TISSUE[int(i)] for i in others]
    if not keys or rng.random() < 0.7:
        keys = [diagnosis, *keys]
    masks = {key: _blobs(rng) for key in keys}
    absent = set(CONCEPTS) - set(keys) - {"gland", "tumour"}
    return sample_episode(masks, absent, {key: _facts(rng) for key in keys}, rng, split)


def _blobs(rng: np.random.Generator) -> np.ndarray:
    """(24, 24) bool: one to nine squares anywhere, or a field nearly full."""
    mask = np.zeros((_EDGE, _EDGE), bool)
    if rng.random() < 0.1:
        mask[int(rng.integers(0, 4)) :] = True
        return mask
    for _ in range(int(rng.integers(1, 10))):
        size = int(rng.integers(2, 10))
        y, x = rng.integers(0, _EDGE - size, 2)
        mask[y : y + size, x : x + size] = True
    return mask


def _facts(rng: np.random.Generator) -> dict[str, float]:
    """The facts that chains read, over the ranges seen in EBHI-SEG."""
    return {
        "darker": float(rng.uniform(-0.15, 0.3)),
        "nuclei": float(rng.uniform(0.1, 0.7)),
        "solidity": float(rng.uniform(0.7, 1.0)),
        "lumen": float(rng.uniform(0.0, 0.1)),
    }
