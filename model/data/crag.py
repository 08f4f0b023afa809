"""CRAG as published: colorectal adenocarcinoma glands, 213 pictures of 38 slides.

    CRAG/
      train/  Images/train_1.png   Annotation/train_1.png   Overlay/train_1.png
      valid/  Images/valid_1.png   Annotation/valid_1.png   Overlay/valid_1.png

Source: Graham et al. 2019, MILD-Net, Medical Image Analysis 52; University of Warwick. Licence: not stated, research
only. 20×, 0.55 µm/px. Where an annotation is given as `.mat` alone, that is read; `Overlay` is never.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from model.data.layout import LayoutError, fitting, read_rgb, read_values, require_any
from model.data.readers import RESEARCH, with_facts
from model.data.scene import Scene

LAYOUT = "CRAG/{train,valid}/Images/*.png with Annotation/<same name>.png (instance map) or .mat"
MPP = 0.55


def read_crag(folder: Path, facts: bool = False) -> Iterator[Scene]:
    """The pictures of CRAG; every outlined object is a `gland`, and nothing is known to be absent.

    Which slide a picture was cut from is not published, so a patient cannot be told from another: the side that the
    publisher put it on (`train` or `valid`) stands for the patient, and is never parted.

    Args:
        folder: holds `train` and `valid`, or one of them.
        facts: measure every scene (see `with_facts`).

    Raises:
        LayoutError: a file is missing or is not what the layout says.
    """
    for path in require_any(folder, list(folder.glob("*/Images/*.png")), LAYOUT):
        side = path.parents[1].name
        if side not in ("train", "valid"):
            raise LayoutError(path.parents[1], "is neither train nor valid", LAYOUT)
        image = read_rgb(path, LAYOUT)
        mask = _instances(path.parents[1] / "Annotation" / path.name, image.shape[:2]) > 0
        scene = Scene(
            id=path.stem, source="crag", patient=side, image=image, masks={"gland": mask} if mask.any() else {},
            absent=frozenset(), mpp=MPP, organ="colon", licence=RESEARCH,
        )  # fmt: skip
        yield with_facts(scene) if facts else scene


def _instances(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The instance map, from `.png` or else from the one two-dimensional array of the `.mat`."""
    other = path.with_suffix(".mat")
    if path.exists() or not other.exists():
        return read_values(path, shape, LAYOUT)
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        arrays = [value for key, value in loadmat(other).items() if not key.startswith("__") and value.ndim == 2]
    except (ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise LayoutError(other, f"is not a readable MATLAB file ({error})", LAYOUT) from error
    if len(arrays) != 1:
        raise LayoutError(other, f"holds {len(arrays)} arrays where one is due", LAYOUT)
    return fitting(arrays[0], other, shape, LAYOUT)
