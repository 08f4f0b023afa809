"""Readers of the real data sets: each yields `Scene`s and knows what its labels do, and do not, say.

Only what is certain is marked absent. `trainable` admits to training what may train weights that are shipped.
"""

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import tifffile

from model.data.concepts import CONCEPTS, DIAGNOSES
from model.data.morphology import measure
from model.data.scene import Scene

TRAINABLE_LICENCES = frozenset({"CC0-1.0", "CC-BY-4.0", "synthetic"})
RESEARCH = "research-only"

EBHI_FOLDERS = {
    "Normal": "normal_gland",
    "Polyp": "polyp",
    "Low-grade_IN": "low_grade",
    "High-grade_IN": "high_grade",
    "Adenocarcinoma": "malignant_gland",
    "Serrated_adenoma": "serrated",
}
# An intestinal gland lesion cannot be in these; a metastasis may form glands, so `malignant_gland` is not listed.
_NOT_IN_LYMPH_NODE = ("normal_gland", "polyp", "low_grade", "high_grade", "serrated")
_NOT_IN_BREAST = ("polyp", "serrated")


GLAS_MISPAIRED = frozenset(
    {"testA_1", "testA_3", "testB_1", *(f"train_{number}" for number in range(1, 8))}
)
"""Pictures of the copy at hand whose mask is another's (`train_2` has that of `train_21`; three differ in size)."""


def data_folder() -> Path:
    """Where the real data lies: `SLIDEREASON_DATASETS`, or `../shared/data` beside the repository."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("SLIDEREASON_DATASETS", default))


def trainable(scene: Scene) -> bool:
    """Whether weights trained on this scene may be shipped: CC0, CC BY 4.0 or synthetic, and not kept for testing."""
    return scene.licence in TRAINABLE_LICENCES and (scene.source, scene.patient) != ("bcss", "1008")


def with_facts(scene: Scene) -> Scene:
    """The scene with `measure` of every mask, by concept key (about 8 ms per distinct mask at 224 px)."""
    measured: dict[int, dict[str, float]] = {}
    facts = {}
    for key, mask in scene.masks.items():
        if not mask.any():
            continue
        if id(mask) not in measured:
            measured[id(mask)] = measure(scene.image, mask, scene.mpp)
        facts[key] = measured[id(mask)]
    return replace(scene, facts=facts)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        ValueError: the file is not an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path.name} is not a readable image (PNG, JPEG or TIFF accepted)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_index(path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16 indices of a grey or 1-bit mask.

    Raises:
        ValueError: the file is not a single-channel image.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        raise ValueError(f"{path.name} is not a single-channel mask (grey or 1-bit PNG accepted)")
    return mask


def ebhi_patient(name: str) -> str:
    """The patient of an EBHI-SEG file name: the first number, whatever letters stand before it.

    Raises:
        ValueError: the name does not begin with letters and a number.
    """
    match = re.match(r"[A-Za-z]*(\d+)", name)
    if match is None:
        raise ValueError(f"no patient number in {name!r}; accepted: letters, digits, then anything")
    return match.group(1)


def read_ebhi(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """EBHI-SEG (Shi et al. 2023, CC BY 4.0): colon biopsies, one of six diagnoses each, gland or lesion foreground.

    Present: the diagnosis, `gland`, and `tumour` for adenocarcinoma. Absent: the other five, and `tumour` with
    `tumour_nest` where the diagnosis is not cancer. Stroma, vessels and the like are unknown.

    Args:
        folder: holds `images/<diagnosis>/*.jpg` and `masks/<diagnosis>/*.png`.
        facts: measure every scene (see `with_facts`).
    """
    for name, key in EBHI_FOLDERS.items():
        for path in sorted((folder / "images" / name).glob("*.jpg")):
            mask = read_index(folder / "masks" / name / f"{path.stem}.png") > 0
            masks = {key: mask, "gland": mask}
            absent = set(DIAGNOSES) - {key}
            if key == "malignant_gland":
                masks["tumour"] = mask
            else:
                absent |= {"tumour", "tumour_nest"}
            scene = Scene(
                id=f"{name}/{path.stem}", source="ebhi-seg", patient=ebhi_patient(path.stem), image=read_image(path),
                masks=masks, absent=frozenset(absent), mpp=None, organ="colon", licence="CC-BY-4.0",
            )
            yield with_facts(scene) if facts else scene


def read_camelyon(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """CAMELYON patches (Litjens et al. 2018, CC0): lymph node, metastasis with blocky 16-px edges, about 1 µm/px.

    Neighbouring numbers may be one slide, so a block of ten is one patient. Glands of the colon are absent.
    """
    for path in sorted((folder / "images").glob("*.jpg")):
        mask = read_index(folder / "masks" / f"{path.stem}.png") > 0
        masks, absent = _tumour_masks(mask, _NOT_IN_LYMPH_NODE)
        scene = Scene(
            id=path.stem, source="camelyon", patient=str(int(path.stem) // 10), image=read_image(path), masks=masks,
            absent=absent, mpp=1.0, organ="lymph node", licence="CC0-1.0",
        )
        yield with_facts(scene) if facts else scene


def _tumour_masks(mask: np.ndarray, not_here: tuple[str, ...]) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Masks and absences of a picture whose tumour is labelled completely."""
    if mask.any():
        return {"tumour_nest": mask, "tumour": mask}, frozenset(not_here)
    return {}, frozenset(not_here) | {"tumour", "tumour_nest", "malignant_gland"}


def read_bcss(
    folder: Path, mpp: float = 1.0, tile_px: int = 512, stride_px: int | None = None, facts: bool = False
) -> Iterator[Scene]:
    """BCSS regions (Amgad et al. 2019, CC0): tiles of every `*.tif` with its `*_mask.png` at level 0 (0.25 µm/px).

    The slide is the patient. 1008 is for testing only (see `trainable` and `splits`), 1015 may train.

    Args:
        folder: holds the slides.
        mpp: µm/px of the tiles, no finer than the slide.
        tile_px, stride_px: edge and step of the tiles; the last row and column are shifted inwards to fit.
        facts: measure every tile.

    Raises:
        ValueError: the slide states no resolution, or is smaller than one tile at this mpp.
    """
    for path in sorted(folder.glob("*.tif")):
        image, mask = read_slide_at(path, mpp)
        height, width = mask.shape
        if min(height, width) < tile_px:
            raise ValueError(f"{path.name} is {width} × {height} px at {mpp} µm/px: tile_px may be at most that")
        for y in _starts(height, tile_px, stride_px or tile_px):
            for x in _starts(width, tile_px, stride_px or tile_px):
                window = np.s_[y : y + tile_px, x : x + tile_px]
                masks, absent = _tumour_masks(mask[window], _NOT_IN_BREAST)
                scene = Scene(
                    id=f"{path.stem}/{x}_{y}", source="bcss", patient=path.stem, image=image[window].copy(),
                    masks={key: m.copy() for key, m in masks.items()}, absent=absent, mpp=mpp, organ="breast",
                    licence="CC0-1.0",
                )
                yield with_facts(scene) if facts else scene


def _starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along one axis, the last one flush with the end."""
    return sorted({*range(0, length - tile + 1, stride), length - tile})


def read_slide_at(path: Path, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """A whole small slide and its `_mask.png` at one resolution, by area resampling from the nearest finer level.

    Returns:
        (H, W, 3) uint8 RGB and (H, W) bool.

    Raises:
        ValueError: the TIFF states no resolution in µm.
    """
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        tags = tiff.pages[0].tags
        if "XResolution" not in tags or tags["ResolutionUnit"].value not in (2, 3):
            raise ValueError(f"{path.name} states no resolution; accepted: XResolution per inch or centimetre")
        numerator, denominator = tags["XResolution"].value
        unit_um = 10_000.0 if tags["ResolutionUnit"].value == 3 else 25_400.0
        mpp0 = unit_um * denominator / numerator
        full_height, full_width = levels[0].shape[:2]
        finer = [level for level in levels if full_width / level.shape[1] <= mpp / mpp0 + 1e-6]
        image = finer[-1].asarray() if finer else levels[0].asarray()
    size = (round(full_width * mpp0 / mpp), round(full_height * mpp0 / mpp))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    mask = (read_index(path.with_name(f"{path.stem}_mask.png")) > 0).astype(np.float32)
    return image, cv2.resize(mask, size, interpolation=cv2.INTER_AREA) >= 0.5


def read_glas(folder: Path, facts: bool = False, skip: frozenset[str] = GLAS_MISPAIRED) -> Iterator[Scene]:
    """GlaS (Sirinukunwattana et al. 2017, research only, evaluation only): colon glands at 0.62 µm/px.

    The mask is an instance index or a foreground; for benign pictures only `gland` is sure, as `benign` holds adenomas
    too; malignant ones are `malignant_gland` and `tumour`, benign ones hold neither.

    Args:
        folder: holds `images/`, `masks/` and `Grade.csv`.
        facts: measure every scene.
        skip: names to leave out, by default the pictures whose mask belongs to another picture.
    """
    with open(folder / "Grade.csv", newline="") as file:
        rows = {row[0].strip(): [cell.strip() for cell in row] for row in csv.reader(file) if row}
    for path in sorted((folder / "images").glob("*.jpg")):
        if path.stem in skip:
            continue
        _, patient, grade, _ = rows[path.stem]
        mask = read_index(folder / "masks" / f"{path.stem}.png") > 0
        masks: dict[str, np.ndarray] = {"gland": mask}
        absent: frozenset[str] = frozenset({"malignant_gland", "tumour", "tumour_nest"})
        if grade == "malignant":
            masks |= {"malignant_gland": mask, "tumour": mask}
            absent = frozenset()
        scene = Scene(
            id=path.stem, source="glas", patient=patient, image=read_image(path), masks=masks, absent=absent,
            mpp=0.62, organ="colon", licence=RESEARCH,
        )
        yield with_facts(scene) if facts else scene


def read_wsss4luad(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """WSSS4LUAD (Han et al. 2022, licence not stated, evaluation only): lung, about 1 µm/px; 0 tumour, 1 stroma."""
    for path in sorted((folder / "images").glob("*.png")):
        index = _read_palette(folder / "masks" / path.name)
        parts = {"tumour": index == 0, "stroma": index == 1}
        masks = {key: mask for key, mask in parts.items() if mask.any()}
        scene = Scene(
            id=path.stem, source="wsss4luad", patient=path.stem, image=read_image(path), masks=masks,
            absent=frozenset(parts.keys() - masks.keys()), mpp=1.0, organ="lung", licence=RESEARCH,
        )
        yield with_facts(scene) if facts else scene


def _read_palette(path: Path) -> np.ndarray:
    """(H, W) indices of a palette PNG, which OpenCV would turn into colours."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image)


def _read_nuclei(folder: Path, source: str, licence: str, patient_of: str) -> Iterator[Scene]:
    """Sets of nuclei at 0.25 µm/px; `nuclei` is no taught concept, so it serves exemplars and unknown questions."""
    for path in sorted((folder / "images").glob("*.jpg")):
        mask = read_index(folder / "masks" / f"{path.stem}.png") > 0
        match = re.match(patient_of, path.stem)
        yield Scene(
            id=path.stem, source=source, patient=match.group(0) if match else path.stem, image=read_image(path),
            masks={"nuclei": mask} if mask.any() else {}, absent=frozenset(), mpp=0.25, organ="various",
            licence=licence,
        )


def read_monuseg(folder: Path) -> Iterator[Scene]:
    """MoNuSeg (Kumar et al. 2017, CC BY-NC-SA 4.0, evaluation only): nuclei."""
    yield from _read_nuclei(folder, "monuseg", "CC-BY-NC-SA-4.0", r"TCGA-\w\w-\w{4}")


def read_tnbc(folder: Path) -> Iterator[Scene]:
    """TNBC nuclei (Naylor et al. 2018, unverified licence, evaluation only); the prefix is the patient."""
    yield from _read_nuclei(folder, "tnbc", RESEARCH, r"\d+")


def read_monusac(folder: Path) -> Iterator[Scene]:
    """MoNuSAC (Verma et al. 2021, CC BY-NC-SA 4.0, evaluation only): nuclei by cell; index 3 is lymphocytes."""
    for path in sorted((folder / "images").glob("*.jpg")):
        index = read_index(folder / "masks" / f"{path.stem}.png")
        cells = {"nuclei": index > 0, "lymphocytes": index == 3}
        masks = {key: mask for key, mask in cells.items() if mask.any()}
        yield Scene(
            id=path.stem, source="monusac", patient=path.stem[:12], image=read_image(path), masks=masks,
            absent=frozenset(cells.keys() - masks.keys()) & CONCEPTS.keys(), mpp=0.25, organ="various",
            licence="CC-BY-NC-SA-4.0",
        )
