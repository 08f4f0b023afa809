"""What the model is taught to find: one frozen `Concept` per target, and how they nest.

A key is the identity used by readers, generator, queries and chains; everything a person reads comes from the other
fields. `gland` and `tumour` are parents: their mask is the union of their children's.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from model.data.scene import Scene


@dataclass(frozen=True)
class Concept:
    """One target.

    Attributes:
        key: stable identifier.
        name: what a person calls it, singular.
        phrase: the words put before `<SEG>`, and used in every answer.
        plural: whether `phrase` takes a plural verb.
        appearance: neutral nouns (one, several) for what is seen before it is named.
        hallmark: what a textbook knows it by; true of the concept, not measured in a picture.
        synonyms: clean clinical synonyms; the query bank knows many more wordings.
        parents: keys of wider concepts that contain it.
        organs: where it is looked for; empty means anywhere.
    """

    key: str
    name: str
    phrase: str
    plural: bool
    appearance: tuple[str, str]
    hallmark: str
    synonyms: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()


_GLANDS = ("gland", "glands")
CONCEPTS: dict[str, Concept] = {
    concept.key: concept
    for concept in (
        Concept(
            "normal_gland", "normal gland", "normal glands", True, _GLANDS, "round even glands with basal nuclei",
            ("normal mucosa", "healthy crypts", "benign glands"), ("gland",), ("colon", "synthetic"),
        ),
        Concept(
            "malignant_gland", "adenocarcinoma", "adenocarcinoma", False, _GLANDS, "irregular fused invading glands",
            ("malignant glands", "invasive adenocarcinoma", "colorectal carcinoma"), ("gland", "tumour"),
            ("colon", "synthetic"),
        ),
        Concept(
            "low_grade", "low-grade dysplasia", "low-grade dysplasia", False, _GLANDS,
            "orderly glands with mildly crowded dark nuclei",
            ("low-grade intraepithelial neoplasia", "mild dysplasia", "low-grade adenoma"), ("gland",), ("colon",),
        ),
        Concept(
            "high_grade", "high-grade dysplasia", "high-grade dysplasia", False, _GLANDS,
            "disordered glands with stacked dark nuclei, not yet invasive",
            ("high-grade intraepithelial neoplasia", "severe dysplasia", "carcinoma in situ"), ("gland",), ("colon",),
        ),
        Concept(
            "polyp", "polyp", "polyp tissue", False, _GLANDS, "benign overgrown glands without dysplasia",
            ("hyperplastic polyp", "benign polyp", "inflammatory polyp"), ("gland",), ("colon",),
        ),
        Concept(
            "serrated", "serrated adenoma", "serrated adenoma", False, _GLANDS, "glands with saw-tooth lumens",
            ("serrated lesion", "sessile serrated lesion", "traditional serrated adenoma"), ("gland",), ("colon",),
        ),
        Concept(
            "gland", "gland", "glands", True, _GLANDS, "epithelium around a lumen",
            ("crypts", "glandular epithelium"), (), ("colon", "synthetic"),
        ),
        Concept(
            "tumour_nest", "tumour nest", "tumour nests", True, ("solid cell group", "solid cell groups"),
            "solid groups of large atypical cells", ("metastasis", "carcinoma nests", "solid tumour"), ("tumour",),
            ("lymph node", "breast", "synthetic"),
        ),
        Concept(
            "tumour", "tumour", "tumour", False, ("atypical cell group", "atypical cell groups"),
            "atypical cells growing without order", ("cancer", "carcinoma", "malignancy"),
        ),
        Concept(
            "lymphocytes", "lymphocytes", "lymphocytes", True, ("cluster of small dark cells", "small dark cells"),
            "small round dark nuclei with little cytoplasm", ("lymphoid infiltrate", "inflammatory cells"),
        ),
        Concept(
            "necrosis", "necrosis", "necrosis", False, ("patch of pale debris", "patches of pale debris"),
            "dead cells without nuclei and granular debris", ("necrotic tissue", "dead tissue"),
        ),
        Concept(
            "stroma", "stroma", "stroma", False, ("band of fibres", "bands of fibres"),
            "pink fibres with thin spindle nuclei", ("connective tissue", "fibrous tissue"),
        ),
        Concept(
            "vessel", "blood vessel", "blood vessels", True, ("thin-walled tube", "thin-walled tubes"),
            "a thin wall around red cells", ("vessels", "capillaries"),
        ),
        Concept(
            "fat", "fat", "fat", False, ("group of clear cells", "clear round cells"),
            "large empty round cells with thin walls", ("adipose tissue", "adipocytes"),
        ),
    )
}

DIAGNOSES: tuple[str, ...] = ("normal_gland", "polyp", "low_grade", "high_grade", "malignant_gland", "serrated")
"""The six of EBHI-SEG; an image carries exactly one."""

CHILDREN: dict[str, tuple[str, ...]] = {
    parent: tuple(c.key for c in CONCEPTS.values() if parent in c.parents) for parent in ("gland", "tumour")
}


def known_in(masks: Mapping[str, np.ndarray], absent: Set[str]) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Everything that may be asked about, parents worked out from their children.

    A parent is present with its own mask, or, when every child is known, as the union of the present ones; it is
    absent when every child is. What is in neither answer is unknown and may not be asked.

    Args:
        masks: concept key → (H, W) bool of what is present.
        absent: keys known to be absent.

    Returns:
        The present masks with parents added, and all absent keys.
    """
    present = {key: mask for key, mask in masks.items() if key in CONCEPTS}
    gone = set(absent) - present.keys()
    for parent, children in CHILDREN.items():
        if parent in present or parent in gone:
            continue
        if not all(child in present or child in gone for child in children):
            continue
        here = [present[child] for child in children if child in present]
        if here:
            present[parent] = np.logical_or.reduce(here)
        else:
            gone.add(parent)
    return present, frozenset(gone)


def askable(scene: Scene) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """`known_in` for a whole scene."""
    return known_in(scene.masks, scene.absent)


def most_specific(keys: Set[str]) -> list[str]:
    """The keys without those that are only parents of another one present, in the order of `CONCEPTS`."""
    covered = {parent for key in keys if key in CONCEPTS for parent in CONCEPTS[key].parents}
    return [key for key in CONCEPTS if key in keys and key not in covered]
