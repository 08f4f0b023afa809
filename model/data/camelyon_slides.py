"""CAMELYON16 and CAMELYON17 as published: whole lymph node slides with outlined metastases, cut into tiles.

    CAMELYON16/                                    CAMELYON17/
      training/normal/normal_001.tif                 training/center_0/patient_004_node_4.tif
      training/tumor/tumor_001.tif                   lesion_annotations/patient_004_node_4.xml
      training/lesion_annotations/tumor_001.xml      stage_labels.csv   patient,stage
      testing/images/test_001.tif
      testing/lesion_annotations/test_001.xml
      testing/reference.csv   test_001,Tumor,…

The later release (`images/`, `annotations/`, `masks/<slide>_mask.tif`, `stages.csv`) reads as well: files are found by
name at any depth. Source: Litjens et al. 2018, GigaScience 7; Bándi et al. 2019, IEEE TMI 38. Licence: CC0.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from model.data.asap import Lesions, read_lesions
from model.data.concepts import DIAGNOSES
from model.data.layout import LayoutError, require_any
from model.data.readers import with_facts
from model.data.scene import Scene
from model.data.slide_tiles import MPP_AT_40X, MaskSlide, Slide, Tiling, plan_tiles

LAYOUT16 = "{normal,tumor,test}_<n>.tif, <slide>.xml or <slide>_mask.tif of those with tumour, reference.csv of tests"
LAYOUT17 = "patient_<nnn>_node_<n>.tif, <slide>.xml or <slide>_mask.tif of those with tumour, stage_labels.csv"
_PARTLY_OUTLINED = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
SKIPPED16 = frozenset(
    {*(f"tumor_{number:03d}" for number in _PARTLY_OUTLINED), "test_114", "normal_086", "normal_144", "test_049"}
)
"""Slides that say less than the truth: outlined in part, filed as normal by mistake (Liu et al. 2017), a duplicate."""
_NOT_IN_LYMPH_NODE = frozenset(DIAGNOSES) - {"malignant_gland"}
_NAME16 = re.compile(r"(normal|tumou?r|test)_\d{3}", re.I)
_NAME17 = re.compile(r"(?P<patient>patient_\d{3})_node_\d", re.I)


def read_camelyon16(
    folder: Path, tiling: Tiling | None = None, facts: bool = False, skip: frozenset[str] = SKIPPED16
) -> Iterator[Scene]:
    """Tiles of CAMELYON16; the slide is the patient.

    Args:
        folder: holds the slides, annotations and `reference.csv` at any depth.
        tiling: how to cut.
        facts: measure every tile (see `with_facts`).
        skip: slides to leave out, in small letters.

    Raises:
        LayoutError: a slide is broken or has no scale, one with tumour has no annotation, a test slide no reference.
    """
    found = [path for path in _slides(folder) if _NAME16.fullmatch(path.stem)]
    slides = require_any(folder, found, LAYOUT16)
    positive = _references(folder)
    for path in slides:
        name = path.stem.lower()
        if name in skip:
            continue
        known = not name.startswith("normal") if not name.startswith("test") else positive.get(name)
        if known is None:
            known = _beside(folder, path, ".xml") is not None
            if not known:
                raise LayoutError(path, "has no annotation, and reference.csv has no row of it", LAYOUT16)
        yield from _scenes(folder, path, ("camelyon16", name, LAYOUT16), known, tiling or Tiling(), facts)


def read_camelyon17(
    folder: Path, tiling: Tiling | None = None, facts: bool = False, itc: bool = False
) -> Iterator[Scene]:
    """Tiles of CAMELYON17's training slides; the patient is the number before `_node_`.

    Negative slides are taken, and those with a metastasis where they are outlined (ten of each centre); other positive
    slides, and those of the unlabelled test set, say nothing of where, and are passed over.

    Args:
        folder: holds the slides, annotations and `stage_labels.csv` (or `stages.csv`) at any depth.
        tiling: how to cut.
        facts: measure every tile (see `with_facts`).
        itc: also take slides of isolated tumour cells, which the publisher says are not outlined exhaustively.

    Raises:
        LayoutError: a slide is broken or has no scale, or the labels are missing.
    """
    found = [(path, match) for path in _slides(folder) if (match := _NAME17.fullmatch(path.stem))]
    require_any(folder, [path for path, _ in found], LAYOUT17)
    stages = read_stages(folder)
    for path, match in sorted(found, key=lambda pair: pair[0]):
        stage = stages.get(path.stem.lower())
        outlined = any(_beside(folder, path, ending) for ending in (".xml", "_mask.tif"))
        if stage is None or (stage == "itc" and not itc) or (stage != "negative" and not outlined):
            continue
        about = ("camelyon17", match["patient"].lower(), LAYOUT17)
        yield from _scenes(folder, path, about, stage != "negative", tiling or Tiling(), facts)


def read_stages(folder: Path) -> dict[str, str]:
    """Slide → `negative`, `itc`, `micro` or `macro`, of `stage_labels.csv` or `stages.csv`; patients are left out.

    Raises:
        LayoutError: there is no such file, or it has other columns or labels.
    """
    files = sorted([*folder.rglob("stage_labels.csv"), *folder.rglob("stages.csv")])
    if not files:
        raise LayoutError(folder / "stage_labels.csv", "is missing", LAYOUT17)
    stages = {}
    for number, row in enumerate(_rows(files[0]), start=1):
        if number == 1 and row[:2] != ["patient", "stage"]:
            raise LayoutError(files[0], f"begins with {','.join(row)!r}", "the header patient,stage")
        if not row[0].lower().endswith(".tif"):
            continue
        if len(row) < 2 or row[1] not in ("negative", "itc", "micro", "macro"):
            raise LayoutError(files[0], f"line {number}: {','.join(row)!r}", "negative, itc, micro or macro")
        stages[row[0].lower().removesuffix(".tif")] = row[1]
    return stages


def _slides(folder: Path) -> Iterator[Path]:
    """TIFFs but those of the later release that carry a slide's name without being it."""
    others = {"background_tissue", "masks"}
    return (path for path in folder.rglob("*.tif") if not others & set(path.relative_to(folder).parts))


def _references(folder: Path) -> dict[str, bool]:
    """Test slide → whether it holds a metastasis, of `reference.csv`; empty without it."""
    words = {"tumor": True, "normal": False, "positive": True, "negative": False}
    references = {}
    for path in sorted(folder.rglob("reference.csv")):
        for number, row in enumerate(_rows(path), start=1):
            name = row[0].lower().removesuffix(".tif")
            if not name.startswith("test_"):
                continue  # a header, in the releases that have one
            if len(row) < 2 or row[1].lower() not in words:
                raise LayoutError(path, f"line {number}: {','.join(row)!r}", "<slide>,Tumor or <slide>,Normal")
            references[name] = words[row[1].lower()]
    return references


def _rows(path: Path) -> list[list[str]]:
    """The rows of a CSV that are not empty, cells stripped."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]


def _beside(folder: Path, slide: Path, ending: str) -> Path | None:
    """The file of a slide's name with another ending, anywhere in the set, whatever its letters' case."""
    wanted = f"{slide.stem}{ending}".lower()
    suffix = Path(wanted).suffix
    return next((path for path in sorted(folder.rglob(f"*{suffix}")) if path.name.lower() == wanted), None)


def _scenes(
    folder: Path, path: Path, about: tuple[str, str, str], positive: bool, tiling: Tiling, facts: bool
) -> Iterator[Scene]:
    """Tiles of one slide, `about` it: source, patient, layout."""
    source, patient, layout = about
    with ExitStack() as stack:
        slide = stack.enter_context(Slide(path))
        lesions = _lesions(folder, slide, layout, stack) if positive else Lesions(())
        overview = slide.overview()
        touched = lesions.window(0, 0, overview.tissue.shape, overview.downsample, all_touched=True)
        for magnification in tiling.magnifications:
            for tile in plan_tiles(slide, overview, touched, magnification, tiling):
                mask = lesions.window(tile.x0, tile.y0, (tiling.tile_px,) * 2, tile.downsample)
                masks, absent = _labels(mask)
                scene = Scene(
                    id=f"{path.stem}/{magnification:g}x_{tile.x0}_{tile.y0}", source=source, patient=patient,
                    image=slide.window(tile.x0, tile.y0, tiling.tile_px, tile.downsample), masks=masks, absent=absent,
                    mpp=MPP_AT_40X * 40 / magnification, organ="lymph node", licence="CC0-1.0",
                )  # fmt: skip
                yield with_facts(scene) if facts else scene


def _lesions(folder: Path, slide: Slide, layout: str, stack: ExitStack) -> Lesions | MaskSlide:
    """The outlines of a slide with tumour: its annotation, or else its mask.

    Raises:
        LayoutError: it has neither.
    """
    annotation = _beside(folder, slide.path, ".xml")
    if annotation is not None:
        return read_lesions(annotation)
    mask = _beside(folder, slide.path, "_mask.tif")
    if mask is None:
        raise LayoutError(slide.path, "holds tumour, but has neither annotation nor mask", layout)
    return stack.enter_context(MaskSlide(mask, slide.width))


def _labels(mask: np.ndarray) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Masks and absences of a tile whose metastases are outlined completely; one may form glands."""
    if mask.any():
        return {"tumour_nest": mask, "tumour": mask}, _NOT_IN_LYMPH_NODE
    return {}, _NOT_IN_LYMPH_NODE | {"tumour", "tumour_nest", "malignant_gland"}
