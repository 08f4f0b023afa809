"""What the decoding benchmark asks: tiles of which a known share shows the target, and scripts of stated lengths."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import Work
from model.data.synthetic import synthetic_scenes
from model.pathchat import PathChatSegR1
from model.tokenizer import PathTokenizer

TARGET, QUERY = "tumour_nest", "Where are the tumour nests?"
MEDIAN_TOKENS, SIGMA, LEAST_TOKENS = 60, 0.35, 20
CHAIN = (
    " Looking for tumour nests. Dark crowded cells lie in the upper left area, with pale stroma between them; a gland "
    "with an open lumen lies right of the center. The nuclei are large and vary in size."
)
FOUND, NOT_FOUND = " </think> Found in the area: tumour nest <SEG>.", " </think> No tumour nest is found here."


def natural(seed: int, tiles: int, share: float, tile_px: int, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic scenes of which `share` show the target by their ground truth, and the others not one pixel of it.

    Returns:
        images (tiles, tile_px, tile_px, 3) uint8 in random order, and (tiles,) bool: which show it.
    """
    rng = np.random.default_rng(seed)
    wanted = round(share * tiles)
    have: list[np.ndarray] = []
    lack: list[np.ndarray] = []
    while len(have) < wanted or len(lack) < tiles - wanted:
        for scene in synthetic_scenes(rng, 18, tile_px, (mpp, mpp)):
            if TARGET in scene.masks:
                have.append(scene.image)
            elif TARGET in scene.absent:
                lack.append(scene.image)
    images = np.stack([*have[:wanted], *lack[: tiles - wanted]])
    order = rng.permutation(tiles)
    return images[order], order < wanted


def enlarged(seed: int, tiles: int, tile_px: int) -> np.ndarray:
    """Tiles of any size for a model with random weights: synthetic scenes of 256 px, laid out and mirrored."""
    rng = np.random.default_rng(seed)
    scenes = [scene.image for scene in synthetic_scenes(rng, min(tiles, 36), 256, (1.0, 1.0))]
    times = -(-tile_px // 256)
    out = []
    for _ in range(tiles):
        parts = [[scenes[i] for i in rng.integers(0, len(scenes), times)] for _ in range(times)]
        out.append(np.concatenate([np.concatenate(row, 1) for row in parts])[:tile_px, :tile_px])
    return np.stack(out)


def chain_lengths(seed: int, tiles: int, most: int) -> np.ndarray:
    """(tiles,) tokens of each answer: lognormal, median 60, σ 0.35, clipped to 20 and to the model's limit."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SIGMA, tiles)
    return np.clip(drawn.round().astype(int), min(LEAST_TOKENS, most), most)


def stated(lengths: np.ndarray) -> str:
    """A distribution of lengths in words."""
    least, low, median, high, most = np.percentile(lengths, [0, 10, 50, 90, 100])
    return f"{least:.0f} to {most:.0f} tokens, median {median:.0f}, 10–90 % {low:.0f}–{high:.0f}"


def scripts(tokenizer: PathTokenizer, lengths: np.ndarray, share: float, seed: int) -> Tensor:
    """Answers of given lengths of which `share` end in one `<SEG>`: (N, L + 1) int64, padded with `<eos>`.

    The tiles that point at 10 % also point at 50 % and 100 %.
    """
    points = np.random.default_rng(seed).permutation(len(lengths)) < round(share * len(lengths))
    chain = tokenizer.encode(CHAIN)
    out = torch.full((len(lengths), int(lengths.max()) + 1), tokenizer.eos)
    for row, (length, point) in enumerate(zip(lengths, points, strict=True)):
        end = tokenizer.encode(FOUND if point else NOT_FOUND)[-length:]
        body = (chain * (length // len(chain) + 1))[: length - len(end)]
        out[row, :length] = torch.tensor([*body, *end])
    return out


def scripted(model: PathChatSegR1, images: np.ndarray, share: float, seed: int) -> Work:
    """The question with a script for every tile."""
    lengths = chain_lengths(seed, len(images), model.config.max_answer_tokens)
    script = scripts(model.tokenizer, lengths, share, seed).to(model.device)  # at one address: graphs read it there
    return Work(images, QUERY, model.config.default_mpp, script)


def evenly(lengths: np.ndarray, points: np.ndarray, n: int) -> list[int]:
    """N tiles that stand for all: evenly spaced by whether they point and by the length of their answer."""
    order = np.lexsort((lengths, points))
    return sorted(order[np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)].tolist())
