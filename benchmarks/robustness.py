"""How far masks and decisions hold on slides that look otherwise: unseen stains, artefacts by strength, other sources.

The same questions about the same pictures of EBHI's held-out patients, once as they are and once altered, so that every
drop is paired; and, as they are, pictures of sources that train little (Camelyon, BCSS) or never (GlaS). With a second
model both are asked, e.g. trained with and without the `ssl` stage. `robustness.png` shows what the JSON holds.
"""

import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.record import Measurement
from benchmarks.rivals import AGAINST, MODEL, PairedBench, ask, data_hash, difference, names_of, rivals, without_chains
from benchmarks.rivals import spread_over_patients as spread
from benchmarks.robustness_plot import draw
from benchmarks.run import Unavailable
from model.data.artefacts import ARTEFACTS, STRENGTHS, add_artefact
from model.data.concepts import DIAGNOSES
from model.data.readers import data_folder, read_bcss, read_camelyon, read_ebhi, read_glas
from model.data.restaining import LABORATORIES, Laboratory, restain
from model.data.scene import Scene
from model.data.splits import split_of_scene
from model.evaluation import paired, question
from model.evaluation.manifest import ManifestRow, read_manifest, read_picture
from model.evaluation.manifests import first_of_each_patient, write_manifest
from model.segmenter import Segmenter

Results = dict[str, dict[str, Any]]
"""Role → results of one model on the same rows."""

PICTURES, GLAS_PER_PATIENT = 40, 2
"""Of EBHI, each asked twice under every condition; of each patient of GlaS, whose pictures take six tiles."""
SEEDS = (0,)
FIGURES = ("dice_with_misses", "dice_emitted", "dice_forced", "sensitivity", "specificity", "balanced_accuracy")


@dataclass(frozen=True)
class Condition:
    """One way to alter a picture.

    Attributes:
        name: `clean`, `stain aged`, `folds 3`, …
        family: `clean`, the stain or the artefact.
        strength: 1 to 5 of an artefact; 0 otherwise.
        alter: (H, W, 3) uint8 and a source of chance → (H, W, 3) uint8; None leaves the picture.
    """

    name: str
    family: str
    strength: int = 0
    alter: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None


def conditions() -> list[Condition]:
    """The clean pictures first, then every laboratory, then every artefact at every strength."""
    stains = [
        Condition(f"stain {laboratory.name}", f"stain {laboratory.name}", 0, partial(_restain, laboratory))
        for laboratory in LABORATORIES
    ]
    artefacts = [
        Condition(f"{name} {strength}", name, strength, partial(_spoil, name, strength))
        for name in ARTEFACTS
        for strength in STRENGTHS
    ]
    return [Condition("clean", "clean"), *stains, *artefacts]


def _restain(laboratory: Laboratory, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return restain(image, laboratory, rng)


def _spoil(name: str, strength: int, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return add_artefact(image, name, strength, rng)


def measure(bench: PairedBench) -> tuple[list[Measurement], str]:
    """Figures under every condition with their paired drops, figures of every source, and a plot of them."""
    try:
        sets, hashes = _rows(bench)
        with rivals(bench) as models:
            told = {
                condition: _answers(alter(sets["ebhi"], condition, bench), models, bench) for condition in conditions()
            }
            sources = {name: _answers(rows, models, bench) for name, rows in sets.items() if name != "ebhi"}
            described = names_of(models)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(str(error)) from error
    bench.folder.mkdir(parents=True, exist_ok=True)
    curves = [
        (condition.family, condition.strength, condition.name, {role: one["summary"] for role, one in results.items()})
        for condition, results in told.items()
    ]
    draw(curves, bench.folder / "robustness.png")
    clean = next(iter(told.values()))
    found = []
    for condition, results in told.items():
        found += _figures(condition.name, results, None if condition.alter is None else clean, bench)
    for name, results in sources.items():
        found += _figures(f"source {name}", results, None, bench)
    seeds = ", ".join(map(str, bench.seeds or SEEDS))
    return found, f"{bench.split} patients, seeds {seeds}; {', '.join(hashes)}; {described}"


def _rows(bench: PairedBench) -> tuple[dict[str, list[ManifestRow]], list[str]]:
    """The rows of `ebhi` and of every other source that is here, and the names of their data."""
    folder, limit, seeds = data_folder(), 2 if bench.quick else bench.limit, bench.seeds or SEEDS
    if not (folder / "ebhi-seg").is_dir():
        raise FileNotFoundError(f"no EBHI-SEG in {folder}; set SLIDEREASON_DATASETS to the folder of ebhi-seg, glas, …")
    scenes = [scene for scene in read_ebhi(folder / "ebhi-seg") if split_of_scene(scene) == bench.split]
    few = spread(scenes, PICTURES if limit is None else limit)
    plans = {"ebhi": [one for seed in seeds for one in ask_twice(few, DIAGNOSES, seed)]}
    for name, (scenes, concept) in _sources(folder).items():
        asked = question.ask_each(spread(scenes, limit), (concept,), seeds[0])
        plans[name] = [one for one in asked if one.kind.endswith("named")]
    sets, hashes = {}, []
    for name, questions in plans.items():
        if questions:
            path = bench.work / f"{name}.jsonl"
            write_manifest(path, questions)
            hashes.append(data_hash(path))
            sets[name] = without_chains(read_manifest(path))
    return sets, hashes


def _sources(folder: Path) -> dict[str, tuple[list[Scene], str]]:
    """Held-out pictures of other sources that are here, and what they are asked for."""
    readers = {
        "camelyon val": (folder / "camelyon", read_camelyon, "val", "tumour_nest"),
        "bcss 1008": (folder / "slides" / "bcss", read_bcss, "test", "tumour_nest"),
        "glas": (folder / "glas", read_glas, "test", "gland"),
    }
    found = {
        name: ([scene for scene in read(place) if split_of_scene(scene) == split], concept)
        for name, (place, read, split, concept) in readers.items()
        if place.is_dir()
    }
    if "glas" in found:
        found["glas"] = (first_of_each_patient(found["glas"][0], GLAS_PER_PATIENT), "gland")
    return found


def ask_twice(scenes: Sequence[Scene], concepts: Sequence[str], seed: int) -> list[question.Question]:
    """Of `ask_each`, one question about what is there and one about what is not, for every other scene implied."""
    by_scene: dict[str, list[question.Question]] = {}
    for one in question.ask_each(scenes, concepts, seed):
        by_scene.setdefault(one.scene.id, []).append(one)
    return [
        one
        for number, asked in enumerate(by_scene.values())
        for one in asked
        if one.kind.endswith("implied" if number % 2 else "named")
    ]


def alter(rows: Sequence[ManifestRow], condition: Condition, bench: PairedBench) -> list[ManifestRow]:
    """The rows with their pictures altered; of all conditions only the last one's pictures lie on disk.

    Chance depends on picture, family and seed alone, so that an artefact grows with its strength where it is.
    """
    if condition.alter is None:
        return list(rows)
    folder = bench.work / "altered"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = []
    for row in rows:
        path = folder / row.image.name
        if not path.exists():
            rng = np.random.default_rng([bench.seed, zlib.crc32(f"{condition.family}/{row.image.name}".encode())])
            Image.fromarray(condition.alter(read_picture(row.image), rng)).save(path, compress_level=1)
        found.append(replace(row, image=path))
    return found


def _answers(rows: Sequence[ManifestRow], models: dict[str, Segmenter], bench: PairedBench) -> Results:
    return {role: ask(rows, segmenter, bench) for role, segmenter in models.items()}


def _figures(name: str, results: Results, clean: Results | None, bench: PairedBench) -> list[Measurement]:
    """Each model's figures, its paired drops against clean, and, of two models, their paired difference."""
    found: list[Measurement | None] = []
    for role, one in results.items():
        summary = one["summary"]
        prefix = name if len(results) == 1 else f"{name}, {role}"
        for figure in (figure for figure in FIGURES if summary[figure] is not None):
            notes = {"interval_95": summary["intervals_95"][figure], "n": summary["n"], "n_groups": summary["n_groups"]}
            found.append(Measurement(f"{prefix}: {figure}", "", (summary[figure],), notes))
        if clean is not None:
            drop = paired.compare(one["samples"], clean[role]["samples"], bench.resamples, bench.seed)["difference"]
            found += [
                Measurement(f"{prefix}: {figure}, change", "", (drop[figure],), {"interval_95": interval})
                for figure, interval in drop["intervals_95"].items()
                if figure in FIGURES and drop[figure] is not None
            ]
    if AGAINST in results:
        both = paired.compare(*(results[role]["samples"] for role in (MODEL, AGAINST)), bench.resamples, bench.seed)
        found += [difference(name, both, figure) for figure in FIGURES]
    return [one for one in found if one is not None]
