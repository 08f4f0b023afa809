"""Who trains, who validates, who tests: by a hash of the patient, so that no patient is ever on two sides."""

import hashlib
from collections.abc import Iterable

from model.data.scene import Scene

NAMES = ("train", "val", "test")
SEED = 308
"""Chosen before any training as a seed by which val and test hold all six EBHI diagnoses and train most of the rare."""
RATIOS = (8, 1, 1)
TEST_ONLY_SOURCES = frozenset({"glas", "wsss4luad", "monuseg", "monusac", "tnbc"})
TEST_ONLY_PATIENTS = frozenset({("bcss", "1008")})


def split_of_patient(patient: str, seed: int = SEED, ratios: tuple[int, int, int] = RATIOS) -> str:
    """The side of one patient; depends on nothing but its arguments.

    Args:
        patient: the patient's id within its source (prefix it with the source when sources are mixed).
        seed: another seed is another split.
        ratios: shares of train, val and test.

    Returns:
        `train`, `val` or `test`.
    """
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 * sum(ratios)
    for name, edge in zip(NAMES, (ratios[0], ratios[0] + ratios[1]), strict=False):
        if point < edge:
            return name
    return "test"


def split_of_scene(scene: Scene, seed: int = SEED, ratios: tuple[int, int, int] = RATIOS) -> str:
    """The side of a scene; sources and slides kept for testing are always `test`."""
    if scene.source in TEST_ONLY_SOURCES or (scene.source, scene.patient) in TEST_ONLY_PATIENTS:
        return "test"
    return split_of_patient(f"{scene.source}/{scene.patient}", seed, ratios)


def split_by_patient(
    scenes: Iterable[Scene], seed: int = SEED, ratios: tuple[int, int, int] = RATIOS
) -> dict[str, list[Scene]]:
    """Part scenes into `train`, `val` and `test`, keeping their order and every patient together."""
    parts: dict[str, list[Scene]] = {name: [] for name in NAMES}
    for scene in scenes:
        parts[split_of_scene(scene, seed, ratios)].append(scene)
    return parts
