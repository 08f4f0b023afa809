"""One question about one picture: which concept to ask about, in which words, and the answer that is due."""

from collections.abc import Mapping, Set

import numpy as np

from model.data.chains import (
    MIN_SHARE,
    answer_absent,
    answer_exemplar,
    answer_present,
    answer_unknown,
)
from model.data.concepts import CONCEPTS, known_in
from model.data.queries import sample_exemplar_query, sample_query, sample_unknown_query
from model.data.scene import Episode

ABSENT_SHARE = 0.45
UNKNOWN_SHARE = 0.12
WEIGHTS = {"gland": 0.4, "tumour": 0.6, "tumour_nest": 0.5}
"""How often a concept is asked about against the others (1): parents are easy, and a diagnosis decides more."""


def sample_episode(
    masks: Mapping[str, np.ndarray],
    absent: Set[str],
    facts: Mapping[str, Mapping[str, float]],
    rng: np.random.Generator,
    split: str = "train",
    absent_share: float = ABSENT_SHARE,
    unknown_share: float = UNKNOWN_SHARE,
) -> Episode:
    """Ask something of a picture as it looks after augmentation.

    A mask that augmentation left too small to be sure of (under `MIN_SHARE`, but not empty) is not asked about; an
    empty one is absent. Parents are asked about like any concept.

    Args:
        masks: concept key → (H, W) bool after augmentation, as in `Scene.masks`, emptied masks included.
        absent: keys known to be absent.
        facts: the scene's facts, measured or empty.
        rng: the only source of chance.
        split: which wordings: `train` or `heldout`.
        absent_share: of the questions about taught things, how many ask for an absent one.
        unknown_share: how many questions are about things never taught.

    Returns:
        The episode; `targets` is empty unless the target is there.
    """
    present, gone = present_and_absent(masks, absent)
    if rng.random() < unknown_share or not (present or gone):
        query = sample_unknown_query(rng, split)
        return Episode(query, answer_unknown(query, rng), (), None, "unknown")
    if gone and (not present or rng.random() < absent_share):
        concept = choose_concept(sorted(gone), rng)
        query, _ = sample_query(concept, rng, split)
        return Episode(query, answer_absent(concept, present, facts, rng), (), concept, "absent")
    concept = choose_concept(sorted(present), rng)
    query, kind = sample_query(concept, rng, split)
    return Episode(query, answer_present(present, concept, facts, rng), (concept,), concept, kind)


def sample_exemplar_episode(
    masks: Mapping[str, np.ndarray],
    concept: str,
    present: bool,
    facts: Mapping[str, Mapping[str, float]],
    rng: np.random.Generator,
    split: str = "train",
) -> Episode:
    """Ask for what an exemplar shows, the name removed.

    Args:
        masks: concept key → (H, W) bool of the queried picture after augmentation; holds `concept` when `present`.
        concept: what the exemplar shows; need not be a taught one.
        present: whether it is in the queried picture.
        facts: the queried scene's facts, measured or empty.
        rng: the only source of chance.
        split: which wordings.
    """
    query = sample_exemplar_query(rng, split)
    answer = answer_exemplar(masks, concept, facts, rng, present)
    return Episode(query, answer, (concept,) if present else (), concept, "exemplar")


def present_and_absent(
    masks: Mapping[str, np.ndarray], absent: Set[str]
) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """What may be asked about after augmentation: masks large enough to be sure of, and what is surely not there."""
    here = {key: mask for key, mask in masks.items() if mask.any()}
    emptied = {key for key in masks if key not in here and key in CONCEPTS}
    present, gone = known_in(here, set(absent) | emptied)
    return {key: mask for key, mask in present.items() if mask.mean() >= MIN_SHARE}, gone


def choose_concept(keys: list[str], rng: np.random.Generator) -> str:
    """One of several keys, by `WEIGHTS`."""
    weights = np.array([WEIGHTS.get(key, 1.0) for key in keys])
    return keys[int(rng.choice(len(keys), p=weights / weights.sum()))]
