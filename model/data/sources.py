"""Every set that a data set can be built from, by the name that `--source NAME=FOLDER` takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.data.camelyon_slides import read_camelyon16, read_camelyon17
from model.data.crag import read_crag
from model.data.digestpath import read_digestpath
from model.data.glas_official import read_glas_official
from model.data.readers import (
    read_bcss,
    read_camelyon,
    read_ebhi,
    read_glas,
    read_monusac,
    read_monuseg,
    read_tnbc,
    read_wsss4luad,
)
from model.data.scene import Scene
from model.data.slide_tiles import Tiling
from model.data.splits import SEED, TEST_ONLY_PATIENTS, TEST_ONLY_SOURCES, split_of_patient, split_of_scene
from model.data.synthetic import synthetic_scenes
from model.data.wsss4luad_official import read_wsss4luad_official

SYNTHETIC = "synthetic"
_SYNTHETIC_AT_ONCE = 90
"""Scenes drawn together: ten canvases, so that memory does not grow with how many are asked for."""

PLAIN: dict[str, Callable[[Path], Iterator[Scene]]] = {
    "ebhi-seg": read_ebhi,
    "camelyon": read_camelyon,
    "bcss": read_bcss,
    "glas": read_glas,
    "glas-official": read_glas_official,
    "crag": read_crag,
    "digestpath": read_digestpath,
    "wsss4luad": read_wsss4luad,
    "wsss4luad-official": read_wsss4luad_official,
    "monuseg": read_monuseg,
    "monusac": read_monusac,
    "tnbc": read_tnbc,
}
"""Sets of pictures."""

SLIDES: dict[str, Callable[[Path, Tiling], Iterator[Scene]]] = {
    "camelyon16": read_camelyon16,
    "camelyon17": read_camelyon17,
}
"""Sets of slides, cut as a `Tiling` says."""

NAMES = (*PLAIN, *SLIDES, SYNTHETIC)
_SAME = (
    {"glas", "glas-official"},
    {"wsss4luad", "wsss4luad-official"},
    {"camelyon", "camelyon16"},
    {"camelyon", "camelyon17"},
)
"""Names that hold the same patients under different ids, so that no split could keep them apart."""
_PUBLISHED_SIDES = {("crag", "train"): "train", ("crag", "valid"): "test"}
"""Where no patient is known, the publisher's own side decides; its validation set tests."""


@dataclass(frozen=True)
class Source:
    """A set to read: its name, and its folder (of `synthetic`: how many scenes)."""

    name: str
    place: str

    @property
    def reader(self) -> str:
        """The reader's full name, for provenance."""
        read = {**PLAIN, **SLIDES, SYNTHETIC: synthetic_scenes}[self.name]
        return f"{read.__module__}.{read.__name__}"

    def scenes(self, tiling: Tiling, seed: int) -> Iterator[Scene]:
        """The scenes, one by one and in the same order every time.

        Args:
            tiling: how slides are cut.
            seed: of synthetic scenes.

        Raises:
            FileNotFoundError: the folder is not there, or nothing in it can be read as this set.
            ValueError: a file is not what the reader accepts.
        """
        if self.name == SYNTHETIC:
            yield from _synthetic(int(self.place), seed)
            return
        folder = Path(self.place)
        if not folder.is_dir():
            raise FileNotFoundError(f"source {self.name}: {folder} is not a folder")
        found = SLIDES[self.name](folder, tiling) if self.name in SLIDES else PLAIN[self.name](folder)
        scene = None
        for scene in found:
            yield scene
        if scene is None:
            raise FileNotFoundError(f"source {self.name}: no picture in {folder}; see docs/data.md for its layout")


def parse_source(text: str) -> Source:
    """A source from `NAME=FOLDER` or `synthetic=N`.

    Raises:
        ValueError: the name is unknown, or there is no folder or number.
    """
    name, equals, place = text.partition("=")
    if name not in NAMES or not equals or not place:
        raise ValueError(f"source {text!r}: NAME=FOLDER is accepted, NAME being {', '.join(NAMES)} (synthetic=N)")
    if name == SYNTHETIC and not (place.isdigit() and int(place)):
        raise ValueError(f"source {text!r}: synthetic=N is accepted, N being how many scenes")
    return Source(name, place)


def check_together(names: list[str]) -> None:
    """Refuse sources that hold the same patients.

    Raises:
        ValueError: two do, or one is named twice.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"source {name} is given twice; each is accepted once")
    for same in _SAME:
        if same <= set(names):
            raise ValueError(f"{' and '.join(sorted(same))} hold the same patients; one of them is accepted")


def side_of(scene: Scene, split_seed: int = SEED, train_on: frozenset[str] = frozenset()) -> str:
    """`train`, `val` or `test`: by `split_of_scene`, but for two kinds of source.

    Args:
        scene: what to place.
        split_seed: of the split by patient.
        train_on: sources kept for testing that are split like any other; patients kept for testing stay there.
    """
    if (scene.source, scene.patient) in _PUBLISHED_SIDES:
        return _PUBLISHED_SIDES[scene.source, scene.patient]
    if scene.source in train_on and (scene.source, scene.patient) not in TEST_ONLY_PATIENTS:
        return split_of_patient(f"{scene.source}/{scene.patient}", split_seed)
    return split_of_scene(scene, split_seed)


def may_train(source: str, patient: str, train_on: frozenset[str] = frozenset()) -> bool:
    """Whether a picture may be anywhere but in the test set."""
    return (source not in TEST_ONLY_SOURCES or source in train_on) and (source, patient) not in TEST_ONLY_PATIENTS


def _synthetic(count: int, seed: int) -> Iterator[Scene]:
    """Synthetic scenes in portions, each from a seed of its own."""
    for portion in range(0, count, _SYNTHETIC_AT_ONCE):
        rng = np.random.default_rng([seed, 41, portion])
        yield from synthetic_scenes(rng, min(_SYNTHETIC_AT_ONCE, count - portion))
