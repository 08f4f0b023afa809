"""One labelled picture, from whatever source: the common currency of readers, generator, chains and training."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Scene:
    """An image, and what is known to be in it and not in it.

    Attributes:
        id: unique within its source.
        source: `ebhi-seg`, `camelyon`, `bcss`, `glas`, `wsss4luad`, `synthetic`, …
        patient: whom it came from; splits never part a patient.
        image: (H, W, 3) uint8 RGB.
        masks: concept key → (H, W) bool; only concepts that are present.
        absent: concept keys known not to be in the image. What is in neither is unknown and never asked about.
        mpp: µm/px, None when unknown.
        organ: `colon`, `breast`, `lymph node`, `lung` or `synthetic`.
        licence: SPDX id or `research-only`.
        facts: morphology measured once on the original image, see `model/data/morphology.py`.
    """

    id: str
    source: str
    patient: str
    image: np.ndarray
    masks: dict[str, np.ndarray]
    absent: frozenset[str]
    mpp: float | None
    organ: str
    licence: str
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """One question about one image, with the answer that is expected.

    Attributes:
        query: the question in plain words.
        answer: the whole expected text, `<think>…</think>` and `<SEG>` included (no end token).
        targets: concept keys of the `<SEG>`s, in order; empty when the target is absent or unknown.
        concept: the concept that was asked about; None for a thing outside everything taught.
        kind: `named`, `implied`, `absent`, `unknown` or `exemplar`.
    """

    query: str
    answer: str
    targets: tuple[str, ...]
    concept: str | None
    kind: str
