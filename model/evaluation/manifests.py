"""Evaluation manifests from the folders of real data: patients and wordings that no training sees.

`ebhi` asks for a diagnosis, named or implied, that 45 % of the time is not there; `tumour` does the same for metastases
and carcinoma; `glas` asks for glands in a set that never trains; `unknown` asks 30 times for things that no model was
taught; `oneshot-*` asks by exemplar (see `model/evaluation/oneshot.py`). Pictures and masks are copied beside the
manifests (PNG, lossless), so a folder can be moved as a whole.
"""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from model.data.concepts import DIAGNOSES
from model.data.readers import data_folder, read_bcss, read_camelyon, read_ebhi, read_glas
from model.data.scene import Scene
from model.data.splits import SEED, split_of_scene
from model.evaluation.oneshot import ask_foreign, ask_like, ask_nuclei, nuclei_crops
from model.evaluation.question import Question, ask, ask_unknown, mask_of, reference_chain

NAMES = ("ebhi", "unknown", "tumour", "glas", "oneshot-taught", "oneshot-nuclei", "oneshot-foreign")
GLAS_PER_PATIENT = 2
"""One-shot questions about a patient of GlaS: its pictures take six tiles each."""
_CHAINS = 5
"""Seed of the reference chains' templates, apart from the questions' own."""


def write_manifest(path: Path, questions: Iterable[Question]) -> int:
    """Write a manifest, its pictures and masks (into a folder of the manifest's name); returns the number of lines."""
    folder = path.parent / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()

    def file_of(scene: Scene, concept: str | None = None) -> str:
        """A scene's picture, or its mask of a concept, written once; its path relative to the manifest."""
        name = f"{scene.source}_{scene.id.replace('/', '_')}" + (f"_{concept}" if concept else "")
        if name not in written:
            pixels = mask_of(scene, concept) if concept else scene.image
            Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=1)
            written.add(name)
        return f"{folder.name}/{name}.png"

    lines = []
    for number, question in enumerate(questions):
        scene, shown = question.scene, question.exemplar
        line = {
            "id": f"{path.stem}-{number:04d}", "image": file_of(scene),
            "mask": None if question.mask is None else file_of(scene, question.concept),
            "query": question.query, "mpp": scene.mpp, "group": f"{scene.source}/{scene.patient}",
            "kind": question.kind, "concept": question.concept,
            "chain": reference_chain(question, np.random.default_rng([_CHAINS, number])),
        }  # fmt: skip
        if shown is not None:
            exemplar = {"image": file_of(shown), "mask": file_of(shown, question.concept), "mpp": shown.mpp}
            line |= {"exemplar": exemplar, "zero_shot_query": question.zero_shot_query}
        lines.append(json.dumps(line, ensure_ascii=False))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def write_manifests(
    out: Path, data: Path | None = None, split: str = "test", seed: int = 0, split_seed: int = SEED,
    only: Collection[str] = NAMES,
) -> dict[Path, int]:  # fmt: skip
    """Write the manifests of the sets that are there.

    Args:
        out: folder to write to.
        data: folder of the data sets; None means `SLIDEREASON_DATASETS`.
        split: `val` or `test` patients; must not be `train`.
        seed: of the questions.
        split_seed: of the split by patient; must be training's.
        only: which of `NAMES` to write.

    Returns:
        Manifest → number of questions.

    Raises:
        ValueError: split is not accepted.
        FileNotFoundError: none of the sets is there.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split {split!r}: val or test is accepted; what trained may not measure")
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, questions in _plans(data or data_folder(), split, seed, split_seed, only).items():
        written[out / f"{name}.jsonl"] = write_manifest(out / f"{name}.jsonl", questions)
    return written


def _plans(
    data: Path, split: str, seed: int, split_seed: int, only: Collection[str]
) -> dict[str, list[Question]]:
    """The questions of every manifest that is wanted and whose sets are there."""

    def side(scenes: Iterable[Scene]) -> list[Scene]:
        return [scene for scene in scenes if split_of_scene(scene, split_seed) == split]

    ebhi, tumour = side(_read(data / "ebhi-seg", read_ebhi)), side(_tumours(data))
    glas = side(_read(data / "glas", read_glas))
    crops = nuclei_crops(data, seed) if split == "test" and "oneshot-nuclei" in only else []
    if not any((ebhi, tumour, glas, crops)):
        raise FileNotFoundError(f"no data set in {data}; set SLIDEREASON_DATASETS to the folder of ebhi-seg, glas, …")
    few = first_of_each_patient(glas, GLAS_PER_PATIENT)
    plans: dict[str, Callable[[], list[Question]]] = {
        "ebhi": lambda: ask(ebhi, DIAGNOSES, seed),
        "unknown": lambda: ask_unknown(ebhi, seed) if ebhi else [],
        "tumour": lambda: ask(tumour, ("tumour_nest",), seed),
        "glas": lambda: ask(glas, ("gland",), seed, absent_share=0.0, per_picture=1),
        "oneshot-taught": lambda: ask_like(ebhi, DIAGNOSES, seed) + ask_like(few, ("gland",), seed, absent_share=0.0),
        "oneshot-nuclei": lambda: ask_nuclei(crops, seed),
        "oneshot-foreign": lambda: ask_foreign(split, seed),
    }
    return {name: questions for name in NAMES if name in only and (questions := plans[name]())}


def _read(folder: Path, read: Callable[[Path], Iterable[Scene]]) -> Iterable[Scene]:
    """The scenes of a set, none where it is not there."""
    return read(folder) if folder.is_dir() else ()


def _tumours(data: Path) -> Iterable[Scene]:
    yield from _read(data / "camelyon", read_camelyon)
    yield from _read(data / "slides" / "bcss", read_bcss)


def first_of_each_patient(scenes: Iterable[Scene], count: int) -> list[Scene]:
    """At most `count` scenes a patient, in order."""
    seen: dict[str, int] = {}
    kept = []
    for scene in scenes:
        seen[scene.patient] = seen.get(scene.patient, 0) + 1
        if seen[scene.patient] <= count:
            kept.append(scene)
    return kept
