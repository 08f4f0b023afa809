"""The scenes a stage draws from, weighted by source and, within EBHI-SEG, by diagnosis.

Sources are read whole, but for a set that `slidereason dataset build` made: of its 100,000 pictures each is read when
it is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.data.concepts import DIAGNOSES, askable
from model.data.foreign import CONCEPT as UNNAMED
from model.data.readers import data_folder, read_bcss, read_camelyon, read_ebhi, trainable
from model.data.sample import Sample, read_samples, scene_of
from model.data.scene import Scene
from model.data.splits import split_of_scene
from model.data.synthetic import synthetic_scenes
from model.training.augment import random_view, restain


@dataclass(frozen=True)
class View:
    """One augmented training picture: (S, S, 3) uint8, masks and absences by concept, µm/px, and where it is from."""

    image: np.ndarray
    masks: dict[str, np.ndarray]
    absent: frozenset[str]
    mpp: float | None
    scene: Scene


class BuiltScenes(Sequence[Scene]):
    """The pictures of a built set, each read when it is asked for.

    Args:
        path: its `train.jsonl` or `val.jsonl`.
    """

    def __init__(self, path: Path):
        self.folder = path.parent
        first: dict[tuple[str, str], Sample] = {}
        for sample in read_samples(path, check_files=False):
            first.setdefault((sample.source, sample.scene), sample)
        self.samples = list(first.values())

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> Scene:
        return scene_of(self.samples[place], self.folder)


ZOOM = {"ebhi-seg": (0.75, 1.15), "synthetic": (0.7, 1.0), "camelyon": (0.6, 2.0), "bcss": (0.8, 4.0)}
"""Scene pixels per view pixel, by source."""


class ScenePool:
    """Real and synthetic scenes of one split, drawn by weight."""

    WEIGHTS = {"ebhi-seg": 0.6, "synthetic": 0.26, "camelyon": 0.07, "bcss": 0.07}
    SOURCES = (*WEIGHTS, "built")

    def __init__(
        self, groups: dict[str, list[Sequence[Scene]]], size_px: int, weights: Mapping[str, float] | None = None
    ):
        self.groups = {name: [g for g in parts if len(g)] for name, parts in groups.items()}
        self.size_px = size_px
        self.stain = 1.0  # strength of `restain` on every view
        self.balance = 0.5  # parts of a source are drawn by their size to this power: 0 alike, 1 as they come
        weights = weights or self.WEIGHTS
        self.names = [name for name in weights if self.groups.get(name)]
        share = np.array([weights[name] for name in self.names])
        self.share = share / share.sum()

    @classmethod
    def load(
        cls, split: str, size_px: int, synthetic: int, seed: int, data: Path | None = None, facts: bool = True,
        weights: Mapping[str, float] | None = None,
    ) -> "ScenePool":  # fmt: skip
        """Read the scenes of some sources.

        Args:
            split: `train` or `val`.
            size_px: edge of the views.
            synthetic: how many scenes are made.
            seed: of those.
            data: folder of the data sets, or of a built one; None is `SLIDEREASON_DATASETS`.
            facts: measure every scene.
            weights: source → share of the draws, and no other source is read; None or empty: `WEIGHTS`. All but
                `built`, which holds what its builder let in, leave out what may not train weights that are shipped.

        Raises:
            KeyError: there is no such source.
            FileNotFoundError: none of the sources holds a scene.
        """
        weights = weights or cls.WEIGHTS
        if odd := sorted(set(weights) - set(cls.SOURCES)):
            raise KeyError(f"data.weights: no source {odd[0]!r}; there are {sorted(cls.SOURCES)}")
        data = data or data_folder()
        groups = {name: _read(name, split, size_px, synthetic, seed, data, facts) for name in weights}
        if not any(len(part) for parts in groups.values() for part in parts):
            raise FileNotFoundError(f"no scenes of {sorted(weights)} in {data}; `--data` names the folder")
        return cls(groups, size_px, weights)

    def sizes(self) -> dict[str, int]:
        """Scenes by source."""
        return {name: sum(map(len, parts)) for name, parts in self.groups.items()}

    def pick(self, rng: np.random.Generator) -> Scene:
        """One scene, by source and part."""
        parts = self.groups[self.names[int(rng.choice(len(self.names), p=self.share))]]
        weight = np.array([len(part) for part in parts]) ** self.balance
        part = parts[int(rng.choice(len(parts), p=weight / weight.sum()))]
        return part[int(rng.integers(len(part)))]

    def draw(self, rng: np.random.Generator, concept: str | None = None) -> View:
        """One augmented view; with a concept, one that shows it (tried a few times)."""
        for _ in range(12):
            view = self.view(self.pick(rng), rng)
            if view.masks and (concept is None or concept in view.masks):
                break
        return view

    def view(
        self, scene: Scene, rng: np.random.Generator, unnamed: np.ndarray | None = None, restained: bool = True
    ) -> View:
        """Augment one scene.

        Args:
            scene: any.
            rng: the only source of chance.
            unnamed: (H, W) bool, a part of it without a name, becomes the only one that is known.
            restained: in another stain, too.
        """
        if unnamed is not None:
            scene = replace(scene, masks={UNNAMED: unnamed}, absent=frozenset())
        image, masks, absent, factor = random_view(scene, self.size_px, rng, ZOOM.get(scene.source, (0.8, 1.2)))
        present, gone = askable_view(masks, scene, absent)
        mpp = scene.mpp * factor if scene.mpp else (float(rng.uniform(0.8, 2.2)) if rng.random() < 0.25 else None)
        return View(restain(image, rng, self.stain) if restained else image, present, gone, mpp, scene)


def _read(
    name: str, split: str, size_px: int, synthetic: int, seed: int, data: Path, facts: bool
) -> list[Sequence[Scene]]:
    """One source, in parts that are drawn alike."""

    def keep(scenes) -> list[Scene]:
        return [s for s in scenes if trainable(s) and split_of_scene(s) == split]

    if name == "ebhi-seg":
        ebhi = keep(read_ebhi(data / "ebhi-seg", facts=facts))
        return [[s for s in ebhi if key in s.masks] for key in DIAGNOSES]
    if name == "camelyon":
        return [keep(read_camelyon(data / "camelyon", facts=facts))]
    if name == "bcss":
        bcss = [s for s in read_bcss(data / "slides" / "bcss", mpp=0.5, tile_px=1024, facts=facts) if trainable(s)]
        return [bcss if split == "train" else []]
    if name == "built":
        return [BuiltScenes(data / f"{split}.jsonl")]
    return [synthetic_scenes(np.random.default_rng([seed, 77]), synthetic, size_px)]


def askable_view(masks: dict, scene: Scene, absent: frozenset[str]) -> tuple[dict, frozenset[str]]:
    """What may be asked of a view: parents from children; what was cropped to a sliver is unknown, not absent."""
    present, gone = askable(Scene(scene.id, scene.source, scene.patient, scene.image, masks, absent, None, "", ""))
    present |= {key: mask for key, mask in masks.items() if key == UNNAMED}
    return present, gone - (scene.masks.keys() - present.keys())
