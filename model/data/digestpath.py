"""DigestPath 2019 as published: colonoscopy tissue with malignant lesions, and tissue without.

    Colonoscopy_tissue_segment_dataset/
      tissue-train-pos-v1/  2018-00530B_2019-05-07 23_56_22-lv1-11393-10893-5156-5223.jpg   <same>_mask.jpg
      tissue-train-neg/     2018-00641A_2019-05-07 21_10_02-lv1-21009-8010-3039-4402.jpg

Source: Li et al. 2019; Da et al. 2022, Medical Image Analysis 80. Licence: on registration, research only.
20×, 0.475 µm/px (KFBIO FK-Pro-120).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from model.data.layout import LayoutError, read_rgb, read_values, require_any
from model.data.readers import RESEARCH, with_facts
from model.data.scene import Scene

LAYOUT = "tissue-train-pos*/<name>.jpg with <name>_mask.jpg beside it, and tissue-train-neg*/<name>.jpg"
MPP = 0.475
_NOT_MALIGNANT = frozenset({"tumour", "tumour_nest", "malignant_gland", "high_grade"})
"""Of a negative picture: the publisher counts high-grade dysplasia among the malignant lesions."""


def read_digestpath(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """The pictures of DigestPath's segmentation task.

    The lesion is `tumour`: it holds carcinomas of several kinds and high-grade dysplasia, so which of them is unknown.
    Masks are JPEG: a pixel is lesion from half the range up. A positive picture with an empty mask is refused.

    Args:
        folder: holds the folders of positive and negative pictures (`tissue-train-pos-v1`, `pos`, …), at any depth.
        facts: measure every scene (see `with_facts`).

    Raises:
        LayoutError: a file is missing or is not what the layout says.
    """
    pictures = [path for path in folder.rglob("*.jpg") if not path.stem.endswith("_mask")]
    for path in require_any(folder, pictures, LAYOUT):
        positive = _is_positive(path)
        image = read_rgb(path, LAYOUT)
        masks = {}
        if positive:
            beside = path.with_name(f"{path.stem}_mask.jpg")
            masks["tumour"] = read_values(beside, image.shape[:2], LAYOUT) >= 128
            if not masks["tumour"].any():
                raise LayoutError(beside, "is empty, yet its picture positive", LAYOUT)
        scene = Scene(
            id=f"{'pos' if positive else 'neg'}/{path.stem}", source="digestpath",
            patient=digestpath_patient(path.stem), image=image, masks=masks,
            absent=frozenset() if positive else _NOT_MALIGNANT, mpp=MPP, organ="colon", licence=RESEARCH,
        )  # fmt: skip
        yield with_facts(scene) if facts else scene


def digestpath_patient(stem: str) -> str:
    """The case of a file name: what stands before the first `_`, without the letter of the block.

    `2018-00530B_2019-05-07 23_56_22-lv1-…` and `2018-00530A_…` are two slides of the case `2018-00530`.
    """
    slide = stem.partition("_")[0]
    return re.sub(r"(?<=\d)[A-Za-z]+\d*$", "", slide) or slide


def _is_positive(path: Path) -> bool:
    """Whether the folder is one of positive pictures.

    Raises:
        LayoutError: it is neither of positive nor of negative ones.
    """
    words = set(re.split(r"[-_ ]", path.parent.name.lower()))
    if len(words & {"pos", "neg"}) != 1:
        raise LayoutError(path, f"lies in {path.parent.name!r}, which is neither pos nor neg", LAYOUT)
    return "pos" in words
