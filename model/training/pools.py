"""The scenes a stage draws from, weighted by source and, within EBHI-SEG, by diagnosis."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.data.concepts import DIAGNOSES, askable
from model.data.foreign import CONCEPT as UNNAMED
from model.data.readers import data_folder, read_bcss, read_camelyon, read_ebhi, trainable
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


class ScenePool:
    """Real and synthetic scenes of one split, drawn by weight."""

    WEIGHTS = {"ebhi-seg": 0.6, "synthetic": 0.26, "camelyon": 0.07, "bcss": 0.07}

    def __init__(self, groups: dict[str, list[list[Scene]]], size_px: int, weights: dict[str, float] | None = None):
        self.groups = {name: [g for g in parts if g] for name, parts in groups.items()}
        self.size_px = size_px
        weights = weights or self.WEIGHTS
        self.names = [name for name in weights if self.groups.get(name)]
        share = np.array([weights[name] for name in self.names])
        self.share = share / share.sum()

    @classmethod
    def load(cls, split: str, size_px: int, synthetic: int, seed: int, data: Path | None = None, facts: bool = True):
        """Read every set whose licence lets its weights be shipped; `data` defaults to `SLIDEREASON_DATASETS`."""
        data = data or data_folder()

        def keep(scenes) -> list[Scene]:
            return [s for s in scenes if trainable(s) and split_of_scene(s) == split]

        ebhi = keep(read_ebhi(data / "ebhi-seg", facts=facts))
        by_diagnosis = [[s for s in ebhi if key in s.masks] for key in DIAGNOSES]
        bcss = [s for s in read_bcss(data / "slides" / "bcss", mpp=0.5, tile_px=1024, facts=facts) if trainable(s)]
        groups = {
            "ebhi-seg": by_diagnosis,
            "camelyon": [keep(read_camelyon(data / "camelyon", facts=facts))],
            "bcss": [bcss if split == "train" else []],
            "synthetic": [synthetic_scenes(np.random.default_rng([seed, 77]), synthetic, size_px)],
        }
        return cls(groups, size_px)

    def sizes(self) -> dict[str, int]:
        """Scenes by source."""
        return {name: sum(map(len, parts)) for name, parts in self.groups.items()}

    def draw(self, rng: np.random.Generator, concept: str | None = None) -> View:
        """One augmented view; with a concept, one that shows it (tried a few times)."""
        for _ in range(12):
            source = self.names[int(rng.choice(len(self.names), p=self.share))]
            parts = self.groups[source]
            weight = np.sqrt([len(part) for part in parts])
            part = parts[int(rng.choice(len(parts), p=weight / weight.sum()))]
            view = self.view(part[int(rng.integers(len(part)))], rng)
            if view.masks and (concept is None or concept in view.masks):
                break
        return view

    def view(self, scene: Scene, rng: np.random.Generator, unnamed: np.ndarray | None = None) -> View:
        """Augment one scene; `unnamed` (H, W) bool, a part of it without a name, becomes the only one that is known."""
        if unnamed is not None:
            scene = replace(scene, masks={UNNAMED: unnamed}, absent=frozenset())
        zoom = {"ebhi-seg": (0.75, 1.15), "synthetic": (0.7, 1.0), "camelyon": (0.6, 2.0), "bcss": (0.8, 4.0)}
        image, masks, absent, factor = random_view(scene, self.size_px, rng, zoom.get(scene.source, (0.8, 1.2)))
        present, gone = askable_view(masks, scene, absent)
        mpp = scene.mpp * factor if scene.mpp else (float(rng.uniform(0.8, 2.2)) if rng.random() < 0.25 else None)
        return View(restain(image, rng), present, gone, mpp, scene)


def askable_view(masks: dict, scene: Scene, absent: frozenset[str]) -> tuple[dict, frozenset[str]]:
    """What may be asked of a view: parents from children; what was cropped to a sliver is unknown, not absent."""
    present, gone = askable(Scene(scene.id, scene.source, scene.patient, scene.image, masks, absent, None, "", ""))
    present |= {key: mask for key, mask in masks.items() if key == UNNAMED}
    return present, gone - (scene.masks.keys() - present.keys())
