"""Words for measured values: the bands that the template speaks in, and how far a free text may stray from them.

The edges are those of `model/data/chains.py` (a test holds them together). What a word *allows* is wider, as a
person's "dense" and the measure's need not part at the same per mille, and "darker" is also true of the much darker.
"""

import math
from dataclasses import dataclass

INF = math.inf


@dataclass(frozen=True)
class Band:
    """One word for a range of values.

    Attributes:
        word: what the template says.
        high: the template says it below this, and from the previous band's `high` on.
        least, most: values outside of these contradict the word.
    """

    word: str
    high: float
    least: float
    most: float


BANDS: dict[str, tuple[Band, ...]] = {
    "piece_share": (
        Band("small", 0.06, -INF, 0.075),
        Band("medium", 0.15, 0.045, 0.19),
        Band("large", INF, 0.1, INF),
    ),
    "darker": (
        Band("paler than around", -0.05, -INF, 0.0),
        Band("as bright as around", 0.05, -0.1, 0.1),
        Band("darker than around", 0.16, 0.0, INF),
        Band("much darker than around", INF, 0.11, INF),
    ),
    "nuclei": (
        Band("sparse", 0.3, -INF, 0.36),
        Band("moderate", 0.42, 0.24, 0.48),
        Band("dense", INF, 0.36, INF),
    ),
    "solidity": (
        Band("irregular", 0.85, -INF, 0.9),
        Band("wavy", 0.93, 0.8, 0.96),
        Band("smooth", INF, 0.9, INF),
    ),
    "lumen": (
        Band("closed", 0.01, -INF, 0.025),
        Band("narrow", 0.05, 0.004, 0.08),
        Band("open", INF, 0.03, INF),
    ),
}
"""Fact of `measure` → bands, in rising order."""


def word_for(fact: str, value: float) -> str:
    """What the template calls a value.

    Args:
        fact: a key of `BANDS`.
        value: as `measure` gives it.
    """
    return next(band.word for band in BANDS[fact] if value < band.high or band.high == INF)


def band_of(fact: str, word: str) -> Band:
    """The band of one of the template's words."""
    return next(band for band in BANDS[fact] if band.word == word)
