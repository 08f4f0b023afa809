"""Questions by exemplar, for evaluation: "the same as in the example", without a name.

Three kinds. *Foreign*: matter painted into synthetic tissue, of families that never train, so that nothing but the
exemplar can tell what is meant. *Nuclei*: real, at 0.25 µm/px, of sets that never train and under a name that is never
taught. *Like*: what is taught by name, with the name removed. The exemplar is always of another patient.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.data.concepts import askable
from model.data.foreign import CONCEPT, heldout_pairs
from model.data.queries import sample_exemplar_query, sample_query
from model.data.readers import read_monusac, read_monuseg, read_tnbc
from model.data.scene import Scene
from model.evaluation.question import ABSENT_SHARE, Question

FOREIGN_QUESTIONS = 160
CROP_PX = 224
"""Edge of a crop of nuclei: 56 µm."""
MIN_SHARE, MIN_SHOWN_SHARE = 0.02, 0.05
"""Least share of a crop that nuclei cover: of a picture to be asked about, and of one that is shown."""
UNSURE = frozenset({"10_2"})
"""Pictures of TNBC where loose cells float that nobody outlined, so that nuclei are not known to be absent."""
_CALLED = {"calcium": "calcification", "mucin": "mucin", "pigment": "pigment"}
_READERS = {"monuseg": read_monuseg, "tnbc-nuclei": read_tnbc, "monusac": read_monusac}


def ask_foreign(split: str, seed: int, count: int = FOREIGN_QUESTIONS) -> list[Question]:
    """Questions about foreign matter; `val` and `test` differ in every picture.

    Args:
        split: `val` or `test`.
        seed: of pictures, exemplars and wordings.
        count: how many, 45 % of them about a picture that shows only other matter.
    """
    own_seed = 2 * seed + (split == "val")
    rng = np.random.default_rng([own_seed, 1])
    questions = []
    for number, pair in enumerate(heldout_pairs(count, own_seed)):
        name = f"{split}-{number:04d}"
        here = {} if pair.mask is None else {CONCEPT: pair.mask}
        scene = _foreign(name, pair.image, here)
        shown = _foreign(f"{name}-shown", pair.reference, {CONCEPT: pair.reference_mask})
        named = f"Outline the {_CALLED.get(pair.kind, pair.kind)}."
        query = sample_exemplar_query(rng, "heldout")
        questions.append(Question(scene, CONCEPT, query, pair.kind, shown, named))
    return questions


def _foreign(name: str, image: np.ndarray, masks: dict[str, np.ndarray]) -> Scene:
    """A painted picture; each is a patient of its own."""
    absent = frozenset({CONCEPT} - masks.keys())
    return Scene(name, "foreign", name, image, masks, absent, None, "synthetic", "synthetic")


def nuclei_crops(data: Path, seed: int) -> list[Scene]:
    """Crops of the sets of nuclei that are there: one a picture with nuclei, and all that hold none of TNBC's.

    TNBC outlines every nucleus, so where nothing is outlined (fat, collagen) there is none. MoNuSeg's pictures hold no
    such place, and MoNuSAC outlines four kinds of cell and no other, so that there absence is not known.
    """
    rng = np.random.default_rng([seed, 2])
    crops: list[Scene] = []
    for folder, read in _READERS.items():
        for scene in read(data / folder) if (data / folder).is_dir() else ():
            mask = scene.masks.get("nuclei")
            if mask is None or min(mask.shape) < CROP_PX:
                continue
            crops += _crop_with(scene, rng)
            if scene.source == "tnbc" and scene.id not in UNSURE:
                crops += _crops_without(scene)
    return crops


def _crop(scene: Scene, x: int, y: int) -> Scene:
    window = np.s_[y : y + CROP_PX, x : x + CROP_PX]
    mask = scene.masks["nuclei"][window].copy()
    there = {"nuclei": mask} if mask.any() else {}
    return Scene(
        f"{scene.id}_{x}_{y}", scene.source, scene.patient, scene.image[window].copy(), there,
        frozenset({"nuclei"} - there.keys()), scene.mpp, scene.organ, scene.licence,
    )  # fmt: skip


def _crop_with(scene: Scene, rng: np.random.Generator, tries: int = 50) -> list[Scene]:
    """One crop somewhere that holds nuclei enough, or none where none is found."""
    height, width = scene.image.shape[:2]
    for _ in range(tries):
        crop = _crop(scene, int(rng.integers(width - CROP_PX + 1)), int(rng.integers(height - CROP_PX + 1)))
        if crop.masks and crop.masks["nuclei"].mean() >= MIN_SHARE:
            return [crop]
    return []


def _crops_without(scene: Scene, step_px: int = 16) -> Iterator[Scene]:
    """Crops that hold no nucleus and do not overlap."""
    taken = scene.masks["nuclei"].copy()
    for y in range(0, taken.shape[0] - CROP_PX + 1, step_px):
        for x in range(0, taken.shape[1] - CROP_PX + 1, step_px):
            window = np.s_[y : y + CROP_PX, x : x + CROP_PX]
            if not taken[window].any():
                taken[window] = True
                yield _crop(scene, x, y)


def ask_nuclei(crops: Sequence[Scene], seed: int) -> list[Question]:
    """One question about each crop, by a crop of another patient, of whatever set; `kind` is the set of the picture."""
    rng = np.random.default_rng([seed, 3])
    shown = [crop for crop in crops if crop.masks and crop.masks["nuclei"].mean() >= MIN_SHOWN_SHARE]
    questions = []
    for crop in crops:
        others = [one for one in shown if (one.source, one.patient) != (crop.source, crop.patient)]
        if others:
            exemplar = others[int(rng.integers(len(others)))]
            query = sample_exemplar_query(rng, "heldout")
            questions.append(Question(crop, "nuclei", query, crop.source, exemplar, "Outline the nuclei."))
    return questions


def ask_like(
    scenes: Sequence[Scene], concepts: Sequence[str], seed: int, absent_share: float = ABSENT_SHARE
) -> list[Question]:
    """One question about each scene, by a scene of another patient that shows the concept; `kind` is the concept.

    Args:
        scenes: what to ask about and to show, of patients that never train.
        concepts: keys that may be asked for.
        seed: of lots, exemplars and wordings.
        absent_share: share of the questions about something that is known not to be there.
    """
    rng = np.random.default_rng([seed, 4])
    lots = rng.permutation(np.arange(len(scenes)) < round(absent_share * len(scenes)))
    showing = {key: [scene for scene in scenes if key in askable(scene)[0]] for key in concepts}
    questions = []
    for scene, wants_absent in zip(scenes, lots, strict=True):
        present, absent = askable(scene)
        others = {key: [one for one in showing[key] if one.patient != scene.patient] for key in concepts}
        here, gone = ([key for key in concepts if key in keys and others[key]] for keys in (present, absent))
        choices = gone if (wants_absent and gone) or not here else here
        if not choices:
            continue
        key = choices[int(rng.integers(len(choices)))]
        exemplar = others[key][int(rng.integers(len(others[key])))]
        query = sample_exemplar_query(rng, "heldout")
        named, _ = sample_query(key, rng, split="heldout", implied=False)
        questions.append(Question(scene, key, query, key, exemplar, named))
    return questions
