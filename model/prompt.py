"""How a question, a tile and an answer become one sequence, with a position in three axes for every token.

Query first: `<bos> [<ref>×n <MEM>] question scale <image>×n <think> … <eos>`; tile first puts the image before the
question. The style `qwen` says the same in the turns that Qwen2.5-VL was trained on. Text positions advance together on
all axes; image tokens share one time and spread over rows and columns (Bai et al. 2025, Qwen2.5-VL, §2.1).
"""

from dataclasses import dataclass

import numpy as np

from model.data.queries import normalise_query
from model.tokenizer import PathTokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What Qwen2.5-VL's own template begins with."""


@dataclass(frozen=True)
class Sequence:
    """Token ids with their three positions.

    Attributes:
        ids: (L,) int64.
        positions: (3, L) int64: time, row, column.
        answer_at: index of the first token that is answered (the one after `<think>`); its logits come from the one
            before.
    """

    ids: np.ndarray
    positions: np.ndarray
    answer_at: int


def scale_words(mpp: float | None) -> str:
    """How the prompt states the tile's scale."""
    if mpp is None or not np.isfinite(mpp):
        return " Scale unknown."
    return f" Scale {mpp:.1f} µm/px." if mpp < 10 else f" Scale {mpp:.0f} µm/px."


def positions_of(ids: np.ndarray, grid_tokens: frozenset[int], grid: int) -> np.ndarray:
    """(L,) ids → (3, L) positions; each run of `grid²` image or reference tokens is laid out as a square."""
    out = np.empty((3, len(ids)), np.int64)
    rows, cols = np.divmod(np.arange(grid * grid), grid)
    place, i = 0, 0
    while i < len(ids):
        if int(ids[i]) in grid_tokens:
            n = grid * grid
            out[0, i : i + n] = place
            out[1, i : i + n] = place + rows
            out[2, i : i + n] = place + cols
            place, i = place + grid, i + n
        else:
            out[:, i] = place
            place, i = place + 1, i + 1
    return out


def build_sequence(
    tokenizer: PathTokenizer,
    query: str,
    mpp: float | None,
    grid: int,
    *,
    answer: str | None = None,
    exemplar: bool = False,
    tile_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
    style: str = "plain",
) -> Sequence:
    """One sequence of the model.

    Args:
        tokenizer: text ↔ ids.
        query: the question.
        mpp: µm/px of the tile, None when unknown.
        grid: image tokens along one edge of a tile.
        answer: the whole expected text, starting with `<think>`; None leaves the prompt open after `<think>`.
        exemplar: whether a reference comes first.
        tile_first: image before question.
        dropout: BPE dropout of the question; rng: its source of chance.
        style: `PathChatConfig.prompt`: `plain` or `qwen`.

    Returns:
        The sequence; with an answer it ends in `<eos>`.
    """
    t = tokenizer
    reference, tile = [t.ref] * grid**2, [t.image] * grid**2
    question = t.encode(normalise_query(query), dropout, rng) + t.encode(scale_words(mpp))
    if style == "qwen":
        start, end = t.encode("<|vision_start|>"), t.encode("<|vision_end|>")
        reference, tile = start + reference + end, start + tile + end
    said = tile + question if tile_first else question + tile
    if exemplar:
        said = [*reference, t.mem, *said]
    if style == "qwen":
        opening, closing = SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        prompt = [*t.encode(opening), *said, *t.encode(closing), t.think]
    else:
        prompt = [t.bos, *said, t.think]
    ids = list(prompt)
    if answer is not None:
        words = t.encode(answer)
        if not words or words[0] != t.think:
            raise ValueError("answer: must start with <think>")
        ids += [*words[1:], t.eos]
    array = np.array(ids, np.int64)
    return Sequence(array, positions_of(array, frozenset({t.image, t.ref}), grid), len(prompt))
