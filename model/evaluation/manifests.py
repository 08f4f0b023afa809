"""Evaluation manifests from the folders of real data: patients and wordings that no training sees.

`ebhi` asks for a diagnosis, named or implied, that 45 % of the time is not there; `tumour` does the same for metastases
and carcinoma; `glas` asks for glands in a set that never trains; `unknown` asks 30 times for things that no model was
taught. Pictures and masks are copied beside the manifests (PNG, lossless), so a folder can be moved as a whole.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.data.concepts import DIAGNOSES, askable
from model.data.queries import sample_query, sample_unknown_query
from model.data.readers import data_folder, read_bcss, read_camelyon, read_ebhi, read_glas
from model.data.scene import Scene
from model.data.splits import SEED, split_of_scene

ABSENT_SHARE = 0.45
IMPLIED_SHARE = 0.5
UNKNOWN_QUESTIONS = 30
PER_PICTURE = 2


@dataclass(frozen=True)
class Question:
    """One line of a manifest, before its pictures are written.

    Attributes:
        scene: the picture.
        concept: the key of what is asked for; None for something never taught.
        query: the wording.
        kind: `present-named`, `present-implied`, `absent-named`, `absent-implied` or `unknown`.
    """

    scene: Scene
    concept: str | None
    query: str
    kind: str

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool of the target, or None where it is absent or unknown."""
        return None if self.concept is None else askable(self.scene)[0].get(self.concept)


def ask(
    scenes: Sequence[Scene], concepts: Sequence[str], seed: int, absent_share: float = ABSENT_SHARE,
    per_picture: int = PER_PICTURE,
) -> list[Question]:  # fmt: skip
    """Questions about scenes, in held-out wordings, with a fixed share of absent targets.

    A scene that cannot be asked the way its lot says (nothing known to be absent, or present) is asked the other way.

    Args:
        scenes: what to ask about.
        concepts: keys that may be asked for.
        seed: of lots and wordings.
        absent_share: share of the questions about something that is known not to be there.
        per_picture: questions about each scene.
    """
    rng = np.random.default_rng(seed)
    total = len(scenes) * per_picture
    lots = rng.permutation(np.arange(total) < round(absent_share * total))
    questions: list[Question] = []
    for index, wants_absent in enumerate(lots):
        scene = scenes[index % len(scenes)]
        present, absent = askable(scene)
        here = [key for key in concepts if key in present]
        gone = [key for key in concepts if key in absent]
        choices = gone if (wants_absent and gone) or not here else here
        if not choices:
            continue
        concept = choices[rng.integers(len(choices))]
        implied = bool(rng.random() < IMPLIED_SHARE)
        query, _ = sample_query(concept, rng, split="heldout", implied=implied)
        presence = "present" if concept in present else "absent"
        questions.append(Question(scene, concept, query, f"{presence}-{'implied' if implied else 'named'}"))
    return questions


def ask_unknown(scenes: Sequence[Scene], seed: int, count: int = UNKNOWN_QUESTIONS) -> list[Question]:
    """Questions about things never taught, each worded differently as far as there are wordings, spread over scenes."""
    rng = np.random.default_rng(seed)
    queries: list[str] = []
    for _ in range(50 * count):
        query = sample_unknown_query(rng, split="heldout")
        if query not in queries:
            queries.append(query)
        if len(queries) == count:
            break
    picks = rng.permutation(len(scenes))
    return [
        Question(scenes[picks[index % len(picks)]], None, query, "unknown") for index, query in enumerate(queries)
    ]


def write_manifest(path: Path, questions: Iterable[Question]) -> int:
    """Write a manifest, its pictures and masks (into a folder of the manifest's name); returns the number of lines."""
    folder = path.parent / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    written: set[str] = set()
    for number, question in enumerate(questions):
        scene, mask = question.scene, question.mask
        name = f"{scene.source}_{scene.id.replace('/', '_')}"
        if name not in written:
            Image.fromarray(scene.image).save(folder / f"{name}.png", compress_level=1)
            written.add(name)
        mask_name = None
        if mask is not None:
            mask_name = f"{folder.name}/{name}_{question.concept}.png"
            Image.fromarray(mask).save(path.parent / mask_name)
        line = {
            "id": f"{path.stem}-{number:04d}", "image": f"{folder.name}/{name}.png", "mask": mask_name,
            "query": question.query, "mpp": scene.mpp, "group": f"{scene.source}/{scene.patient}",
            "kind": question.kind, "concept": question.concept,
        }  # fmt: skip
        lines.append(json.dumps(line, ensure_ascii=False))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def write_manifests(
    out: Path, data: Path | None = None, split: str = "test", seed: int = 0, split_seed: int = SEED
) -> dict[Path, int]:
    """Write `ebhi.jsonl`, `tumour.jsonl`, `glas.jsonl` and `unknown.jsonl` from the sets that are there.

    Args:
        out: folder to write to.
        data: folder of the data sets; None means `SLIDEREASON_DATASETS`.
        split: `val` or `test` patients; must not be `train`.
        seed: of the questions.
        split_seed: of the split by patient; must be training's.

    Returns:
        Manifest → number of questions.

    Raises:
        ValueError: split is not accepted.
        FileNotFoundError: none of the sets is there.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split {split!r}: val or test is accepted; what trained may not measure")
    data = data or data_folder()

    def side(scenes: Iterable[Scene]) -> list[Scene]:
        return [scene for scene in scenes if split_of_scene(scene, split_seed) == split]

    out.mkdir(parents=True, exist_ok=True)
    plans: dict[str, list[Question]] = {}
    if (data / "ebhi-seg").is_dir():
        ebhi = side(read_ebhi(data / "ebhi-seg"))
        plans["ebhi"] = ask(ebhi, DIAGNOSES, seed)
        plans["unknown"] = ask_unknown(ebhi, seed)
    tumour: list[Scene] = []
    if (data / "camelyon").is_dir():
        tumour += side(read_camelyon(data / "camelyon"))
    if (data / "slides" / "bcss").is_dir():
        tumour += side(read_bcss(data / "slides" / "bcss"))
    if tumour:
        plans["tumour"] = ask(tumour, ("tumour_nest",), seed)
    if (data / "glas").is_dir() and split == "test":
        glas = list(read_glas(data / "glas"))
        plans["glas"] = ask(glas, ("gland",), seed, absent_share=0.0, per_picture=1)
    if not plans:
        raise FileNotFoundError(f"no data set in {data}; set SLIDEREASON_DATASETS to the folder of ebhi-seg, glas, …")
    return {out / f"{name}.jsonl": write_manifest(out / f"{name}.jsonl", plan) for name, plan in plans.items()}
