"""WSSS4LUAD as published: lung adenocarcinoma, image-level labels to train on, masks to validate and test with.

    WSSS4LUAD/
      1.training/    1031280-2300-27920-[1 0 1].png     tumour, stroma, normal: 1 is there, 0 is not
      2.validation/  img/00.png   mask/00.png   background-mask/00.png
      3.testing/     img/00.png   mask/00.png   background-mask/00.png

Masks are palette pictures: 0 tumour, 1 stroma, 2 normal; `background-mask` is not zero where there is glass, which no
class holds whatever the mask says. Source: Han et al. 2022, arXiv:2204.06455. Licence: not stated, research only.
10×, about 1 µm/px.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.data.layout import LayoutError, read_rgb, read_values, require_any
from model.data.readers import RESEARCH, with_facts
from model.data.scene import Scene

LAYOUT = "1.training/<slide>-<x>-<y>-[t s n].png, {2.validation,3.testing}/{img,mask,background-mask}/<n>.png"
MPP = 1.0
CLASSES = ("tumour", "stroma")
"""Of index 0 and 1; index 2, normal tissue, is no concept that is taught."""
_NAME = re.compile(r"(?P<slide>[^-]+)-.*\[(?P<labels>[01][ ,]+[01][ ,]+[01])\]")


def read_wsss4luad_official(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """The pictures of WSSS4LUAD; `source` is `wsss4luad`, as of the copy that `read_wsss4luad` reads.

    A training picture says what is not there; what is there has no mask, so it is unknown. The slide stands for its
    patient; of validation and testing the slide is not published, and each picture stands for itself.

    Args:
        folder: holds `1.training`, `2.validation` and `3.testing`, or some of them.
        facts: measure every scene (see `with_facts`).

    Raises:
        LayoutError: a file is missing or is not what the layout says.
    """
    places = ("1.training/*.png", "2.validation/img/*.png", "3.testing/img/*.png")
    paths = [path for place in places for path in folder.glob(place)]
    for path in require_any(folder, paths, LAYOUT):
        image = read_rgb(path, LAYOUT)
        if path.parent.name == "img":
            stage = path.parents[1].name.partition(".")[2]
            name = patient = f"{stage}/{path.stem}"
            masks, absent = _masks(path, image.shape[:2])
        else:
            patient, masks, absent = _from_name(path)
            name = f"training/{path.stem}"
        scene = Scene(
            id=name, source="wsss4luad", patient=patient, image=image, masks=masks, absent=absent, mpp=MPP,
            organ="lung", licence=RESEARCH,
        )  # fmt: skip
        yield with_facts(scene) if facts else scene


def _from_name(path: Path) -> tuple[str, dict[str, np.ndarray], frozenset[str]]:
    """Slide, no masks, and absences of a training picture."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise LayoutError(path, "names no slide and labels", LAYOUT)
    labels = re.split(r"[ ,]+", match["labels"])
    return match["slide"], {}, frozenset(key for key, label in zip(CLASSES, labels, strict=False) if label == "0")


def _masks(path: Path, shape: tuple[int, int]) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """Masks and absences of a picture of validation or testing."""
    stage = path.parents[1]
    index = read_values(stage / "mask" / path.name, shape, LAYOUT)
    glass = read_values(stage / "background-mask" / path.name, shape, LAYOUT) > 0
    if index.max() > 3:
        raise LayoutError(stage / "mask" / path.name, f"holds the value {index.max()}", f"0 to 3; {LAYOUT}")
    masks = {key: (index == value) & ~glass for value, key in enumerate(CLASSES)}
    return {key: mask for key, mask in masks.items() if mask.any()}, frozenset(
        key for key, mask in masks.items() if not mask.any()
    )
