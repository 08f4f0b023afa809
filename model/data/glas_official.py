"""GlaS as published: colon glands of the 2015 challenge, 165 pictures of 16 patients.

    Warwick_QU_Dataset/
      train_1.bmp   train_1_anno.bmp   testA_1.bmp   testA_1_anno.bmp   testB_1.bmp   testB_1_anno.bmp
      Grade.csv     name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)

Source: Sirinukunwattana et al. 2017, Medical Image Analysis 35. Licence: research only, no commercial use.
20×, 0.62 µm/px. The three published sides share patients, so they are not followed: patients are.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.data.layout import LayoutError, read_rgb, read_values, require_any
from model.data.readers import RESEARCH, with_facts
from model.data.scene import Scene

LAYOUT = "{train,testA,testB}_<n>.bmp with <name>_anno.bmp beside it, and Grade.csv (name, patient ID, grade (GlaS))"
MPP = 0.62
_COLUMNS = ("name", "patient ID", "grade (GlaS)")


def read_glas_official(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """The pictures of GlaS, from its own archive; `source` is `glas`, as of the copy that `read_glas` reads.

    Every object is a `gland`; of malignant pictures also `malignant_gland` and `tumour`, which benign ones hold
    neither of. `benign` holds adenomas too, so more is not said.

    Args:
        folder: holds the pictures and `Grade.csv`.
        facts: measure every scene (see `with_facts`).

    Raises:
        LayoutError: a file, a column or a row is missing, or is not what the layout says.
    """
    pictures = [path for path in folder.glob("*_*.bmp") if not path.stem.endswith("_anno")]
    paths = require_any(folder, pictures, LAYOUT)
    grades = read_grades(folder / "Grade.csv")
    for path in paths:
        if path.stem not in grades:
            raise LayoutError(folder / "Grade.csv", f"has no row of {path.stem}", LAYOUT)
        patient, grade = grades[path.stem]
        image = read_rgb(path, LAYOUT)
        mask = read_values(path.with_name(f"{path.stem}_anno.bmp"), image.shape[:2], LAYOUT) > 0
        masks, absent = _labels(mask, grade)
        scene = Scene(
            id=path.stem, source="glas", patient=patient, image=image, masks=masks, absent=absent, mpp=MPP,
            organ="colon", licence=RESEARCH,
        )  # fmt: skip
        yield with_facts(scene) if facts else scene


def _labels(mask: np.ndarray, grade: str) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Masks and absences by the grade; a picture without a gland has neither."""
    if grade == "malignant":
        return ({"gland": mask, "malignant_gland": mask, "tumour": mask} if mask.any() else {}), frozenset()
    return ({"gland": mask} if mask.any() else {}), frozenset({"malignant_gland", "tumour", "tumour_nest"})


def read_grades(path: Path) -> dict[str, tuple[str, str]]:
    """Name → (patient, `benign` or `malignant`) of `Grade.csv`, whose cells may carry spaces.

    Raises:
        LayoutError: a column is missing, or a grade is another word.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    except (OSError, UnicodeDecodeError) as error:
        raise LayoutError(path, f"is not readable ({error})", LAYOUT) from error
    header = rows[0] if rows else []
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise LayoutError(path, f"has no column {missing[0]!r}", LAYOUT)
    places = [header.index(name) for name in _COLUMNS]
    grades = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = [row[place] if place < len(row) else "" for place in places]
        if cells[2] not in ("benign", "malignant") or not cells[1]:
            raise LayoutError(path, f"line {number}: {','.join(row)!r} names no patient and grade", LAYOUT)
        grades[cells[0]] = (cells[1], cells[2])
    return grades
