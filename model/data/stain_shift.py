"""How far a tile's stain lies from the stains a model was trained on.

A tile's stain is its template (see `model/data/stain.py`) over its tissue alone: how much glass a tile holds says
nothing of its stain. The distance is the root mean square, over the six numbers, of the deviations from the training
pictures' mean in units of their standard deviation; a typical training picture lies at 1.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.data.stain import StainStatistics, z_score

STAIN_FILE = "stain.json"
"""Beside a checkpoint's weights."""

GLASS_MIN_LIGHT, GLASS_MAX_CHROMA = 85.0, 8.0
"""Glass is brighter than this in L and no more coloured than this in a and b."""
PADDING_MAX_LIGHT = 3.0
"""What scanners leave black was never stained."""
MIN_TISSUE = 0.05
"""Share of a tile; with less tissue its stain is not measured."""
EVERY_PX = 4
"""Pixels are sampled: thousands tell a stain as well as ten thousands, and a tile costs half a millisecond."""
LIMIT_QUANTILE = 0.99
"""Of the training pictures' own distances: what lies farther is called far."""


@dataclass(frozen=True)
class TrainedStain:
    """The stains a model was trained on.

    Attributes:
        mean, std: of the training pictures' templates over tissue: six numbers each, A and D of L, a, b.
        images: how many pictures they were measured on.
        limit_sd: distance that one in a hundred of these pictures exceeds; beyond it a stain is far.
        sources: pictures by source.

    Raises:
        ValueError: six numbers each are missing, a standard deviation or the limit is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int
    limit_sd: float
    sources: Mapping[str, int]

    def __post_init__(self):
        known = StainStatistics(self.mean, self.std, self.images)
        if not self.limit_sd > 0:
            raise ValueError(f"trained stain: limit_sd={self.limit_sd}: a positive number is accepted")
        object.__setattr__(self, "mean", known.mean)
        object.__setattr__(self, "std", known.std)

    def distance_sd(self, template: Sequence[float]) -> float:
        """How far a (6,) template is from the mean, in standard deviations."""
        deviations = z_score(np.asarray(template, float), StainStatistics(self.mean, self.std, self.images))
        return float(np.sqrt(np.mean(deviations**2)))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` is its inverse. Four decimals: far finer than any stain is told apart."""
        return {
            "mean": [round(value, 4) for value in self.mean],
            "std": [round(value, 4) for value in self.std],
            "images": self.images,
            "limit_sd": round(self.limit_sd, 4),
            "sources": dict(self.sources),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrainedStain | None":
        """What a card carries, turned back; None of an empty dict, which says that nothing is known.

        Raises:
            ValueError: a field is missing, unknown, or not what is accepted.
        """
        if not data:
            return None
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"trained stain: {error}; mean, std, images, limit_sd and sources are accepted") from error


def read_stain_file(folder: Path) -> dict[str, Any]:
    """What a checkpoint's folder says of the stains it was trained on; empty when it says nothing.

    Raises:
        ValueError: the file holds anything else; the message names it.
    """
    path = folder / STAIN_FILE
    if not path.is_file():
        return {}
    try:
        known = TrainedStain.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name}: {error}") from error
    return known.to_json() if known else {}


def tissue_template(image: np.ndarray) -> tuple[float, ...] | None:
    """The stain of a tile's tissue.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        Six numbers, mean and standard deviation of L, a and b over the tissue's pixels, to three decimals; None where
        hardly any of the tile is tissue.
    """
    sampled = np.ascontiguousarray(image[::EVERY_PX, ::EVERY_PX]).astype(np.float32) / 255
    lab = cv2.cvtColor(sampled, cv2.COLOR_RGB2LAB).reshape(-1, 3)  # [N, 3]
    light, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    glass = (light >= GLASS_MIN_LIGHT) & (chroma <= GLASS_MAX_CHROMA)
    tissue = lab[~glass & (light > PADDING_MAX_LIGHT)].astype(np.float64)
    if len(tissue) < MIN_TISSUE * len(lab):
        return None
    return tuple(round(float(value), 3) for value in (*tissue.mean(0), *tissue.std(0)))


def fit_trained_stain(pictures: Iterable[tuple[str, np.ndarray]]) -> TrainedStain:
    """Measure the stains of training pictures.

    Args:
        pictures: (source, (H, W, 3) uint8 RGB) of each, as large as the model's tiles; those without tissue are left
            out.

    Raises:
        ValueError: fewer than two pictures with tissue, or pictures all alike.
    """
    templates, sources = [], {}
    for source, image in pictures:
        template = tissue_template(image)
        if template is not None:
            templates.append(template)
            sources[source] = sources.get(source, 0) + 1
    if len(templates) < 2:
        raise ValueError(f"trained stain: {len(templates)} pictures with tissue: two or more are accepted")
    stacked = np.array(templates)  # [N, 6]
    known = StainStatistics(tuple(stacked.mean(0)), tuple(stacked.std(0)), len(stacked))
    distances = np.sqrt(np.mean(z_score(stacked, known) ** 2, axis=1))
    limit = float(np.quantile(distances, LIMIT_QUANTILE))
    return TrainedStain(known.mean, known.std, known.images, limit, dict(sorted(sources.items())))


def pooled_template(templates: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """One template of several tiles: the mean of each number, weighted; weights that are all 0 count alike."""
    weighed = np.asarray(weights, float)
    if weighed.sum() <= 0:
        weighed = np.ones(len(templates))
    return np.average(np.asarray(templates, float), axis=0, weights=weighed).tolist()
