"""What the ablations train on and are measured on, at the scale of a model that is smaller than the shipped one.

Scenes are shrunk once, so that a tile of the small model shows as much tissue as one of the shipped model. What was
measured on them (`Scene.facts`) was measured before.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from model.builders import tiny_config
from model.data.concepts import DIAGNOSES
from model.data.readers import data_folder, read_ebhi, read_glas
from model.data.scene import Scene
from model.data.splits import split_of_scene
from model.data.synthetic import synthetic_scene
from model.evaluation.manifest import ManifestRow, read_manifest
from model.evaluation.manifests import first_of_each_patient, write_manifest
from model.evaluation.question import Question, ask
from model.training.ablation_arms import Budget
from model.training.pools import ScenePool
from model.training.settings import TrainSettings

FULL_PX = tiny_config().tile_px
"""Edge of the shipped model's tiles."""
GLAS_PER_PATIENT = 4
SYNTHETIC_TESTS = 6
"""Pictures to measure on where no real ones are wanted."""
_TEST_SEED = 909


def shrunk(scene: Scene, edge_px: int) -> Scene:
    """A scene at `edge_px / FULL_PX` of its size; µm/px grows as much. Facts stay those of the whole picture."""
    if edge_px == FULL_PX:
        return scene
    height, width = scene.image.shape[:2]
    size = (round(width * edge_px / FULL_PX), round(height * edge_px / FULL_PX))
    alike: dict[int, np.ndarray] = {}
    for mask in scene.masks.values():
        if id(mask) not in alike:
            share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            alike[id(mask)] = share >= 0.5
    return replace(
        scene, image=cv2.resize(scene.image, size, interpolation=cv2.INTER_AREA),
        masks={key: alike[id(mask)] for key, mask in scene.masks.items()},
        mpp=scene.mpp and scene.mpp * FULL_PX / edge_px,
    )  # fmt: skip


def small_pool(settings: TrainSettings, data: Path | None) -> ScenePool:
    """The training scenes of the shipped model, shrunk.

    Raises:
        FileNotFoundError: none of the sources is there.
    """
    told, edge_px = settings.data, settings.model.tile_px
    pool = ScenePool.load("train", FULL_PX, told.synthetic_scenes, settings.seed, data, weights=told.weights)
    small = copy.copy(pool)
    small.size_px, small.stain = edge_px, told.stain
    small.groups = {
        name: [[shrunk(scene, edge_px) for scene in part] for part in parts] for name, parts in pool.groups.items()
    }
    return small


def digest(pool: ScenePool) -> str:
    """`sha256:…` of the names, pixels and masks of a pool's scenes."""
    told = hashlib.sha256()
    for name in sorted(pool.groups):
        for part in pool.groups[name]:
            for scene in part:
                told.update(f"{scene.source}/{scene.id}".encode())
                told.update(np.ascontiguousarray(scene.image).data)
                for key, mask in sorted(scene.masks.items()):
                    told.update(key.encode() + np.packbits(mask).tobytes())
    return f"sha256:{told.hexdigest()}"


def test_rows(folder: Path, budget: Budget, data: Path | None) -> dict[str, list[ManifestRow]]:
    """The questions that every arm is asked, from manifests that are written where they are missing.

    Args:
        folder: of the manifests.
        budget: tells whether pictures are real, and how many questions are asked about each.
        data: folder of the data sets; None is `SLIDEREASON_DATASETS`.

    Returns:
        Set → rows: `ebhi`, of patients that do not train, and `glas`, another laboratory's, which never trains; or
        `synthetic`.

    Raises:
        FileNotFoundError: EBHI-SEG is not there.
    """
    data = data or data_folder()
    plans: dict[str, Callable[[], list[Question]]] = {"synthetic": lambda: _synthetic(budget)}
    if budget.real:
        plans = {"ebhi": lambda: _ebhi(data, budget)}
        if (data / "glas").is_dir():
            plans["glas"] = lambda: _glas(data)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, plan in plans.items():
        path = folder / f"{name}-{budget.per_picture}.jsonl"
        if not path.is_file():
            write_manifest(path, plan())
        rows[name] = read_manifest(path)
    return rows


def _ebhi(data: Path, budget: Budget) -> list[Question]:
    """Diagnoses that are there or not, of the patients kept for testing."""
    scenes = [scene for scene in read_ebhi(data / "ebhi-seg") if split_of_scene(scene) == "test"]
    if not scenes:
        raise FileNotFoundError(f"no pictures of EBHI-SEG in {data}; `--data` names the folder")
    return ask(scenes, DIAGNOSES, 0, per_picture=budget.per_picture)


def _glas(data: Path) -> list[Question]:
    """Glands, and cancer of them that is there or not."""
    few = first_of_each_patient(read_glas(data / "glas"), GLAS_PER_PATIENT)
    return ask(few, ("gland", "malignant_gland"), 0)


def _synthetic(budget: Budget) -> list[Question]:
    rng = np.random.default_rng(_TEST_SEED)
    scenes = [synthetic_scene(rng, FULL_PX) for _ in range(SYNTHETIC_TESTS)]
    return ask(scenes, ("gland", "tumour", "stroma"), 0, per_picture=budget.per_picture)
