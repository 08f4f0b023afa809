"""Miniature copies of published data sets, written as their publishers lay them out."""

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from tests.made_slides import write_pyramid

STAINED, CLEAN = (190, 110, 160), 244


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 of stained noise."""
    return np.random.default_rng(seed).integers(90, 220, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> Path:
    """Write a picture in the format of its name; `palette` makes label values indices of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(pixels)
    if palette:
        made = made.convert("P")
        made.putdata(pixels.ravel().tolist())
        made.putpalette([0, 64, 128, 64, 128, 0, 243, 152, 0, 255, 255, 255])
    made.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def boxes(height: int, width: int, *parts: tuple[int, int, int, int, int]) -> np.ndarray:
    """(height, width) uint8: each part (x0, y0, x1, y1, value), later ones over earlier ones."""
    values = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1, value in parts:
        values[y0:y1, x0:x1] = value
    return values


def write_crag(folder: Path) -> Path:
    """Two pictures with two glands each (instances 1 and 2); the second annotation is MATLAB's."""
    glands = boxes(20, 30, (2, 3, 10, 12, 1), (15, 5, 25, 18, 2))
    for seed, side in enumerate(("train", "valid"), start=1):
        save(folder / side / "Images" / f"{side}_1.png", picture(seed=seed))
        save(folder / side / "Overlay" / f"{side}_1.png", picture(seed=9))
    save(folder / "train" / "Annotation" / "train_1.png", glands)
    (folder / "valid" / "Annotation").mkdir()
    scipy.io.savemat(folder / "valid" / "Annotation" / "valid_1.mat", {"new_labeled": glands[::-1].astype(np.uint16)})
    return folder


def write_digestpath(folder: Path) -> Path:
    """Two blocks of one case with lesions, and one negative picture of another case."""
    positive, negative = folder / "tissue-train-pos-v1", folder / "tissue-train-neg"
    for block in "AB":
        name = f"2018-00530{block}_2019-05-07 23_56_22-lv1-11393-10893-30-20"
        save(positive / f"{name}.jpg", picture())
        save(positive / f"{name}_mask.jpg", boxes(24, 32, (8, 8, 24, 16, 255))[:20, :30])
    save(negative / "2018-00641A_2019-05-07 21_10_02-lv1-21009-8010-30-20.jpg", picture(seed=1))
    return folder


def write_glas(folder: Path) -> Path:
    """One benign and one malignant picture, BMP with instance maps, and `Grade.csv` with the spaces it has."""
    for name, value in (("train_1", 1), ("testA_1", 7)):
        save(folder / f"{name}.bmp", picture(seed=value + 10))
        save(folder / f"{name}_anno.bmp", boxes(20, 30, (2, 3, 10, 12, value), (11, 0, 30, 4, value + 1)))
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)", "testA_1,5, benign, adenomatous"]
    (folder / "Grade.csv").write_text("\n".join([*rows, "train_1,11, malignant, moderately differentiated"]) + "\n")
    return folder


def write_wsss4luad(folder: Path) -> Path:
    """A training picture of tumour and normal tissue, and one to test with masks and glass."""
    save(folder / "1.training" / "1031280-2300-27920-[1 0 1].png", picture(seed=1))
    stage = folder / "3.testing"
    save(stage / "img" / "07.png", picture(seed=2))
    index = boxes(20, 30, (0, 0, 30, 20, 2), (0, 0, 10, 20, 0), (10, 0, 20, 20, 1))
    save(stage / "mask" / "07.png", index, palette=True)
    save(stage / "background-mask" / "07.png", boxes(20, 30, (5, 0, 15, 4, 255)))
    return folder


def slide_picture(size: int = 512) -> np.ndarray:
    """A slide whose left half is tissue, each 64-px square of its own tone, and whose right half is glass."""
    image = np.full((size, size, 3), CLEAN, np.uint8)
    for y in range(0, size, 64):
        for x in range(0, size // 2, 64):
            image[y : y + 64, x : x + 64] = np.add(STAINED, ((x + y) // 32 % 8 * 4, 0, 0))
    return image


def write_slide(path: Path, mpp: float | None = 0.25, size: int = 512) -> Path:
    """A tiled pyramid of three levels without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_pyramid(path, slide_picture(size), mpp, levels=3, tile=64, compression="zlib")


def polygon(group: str, *corners: tuple[float, float], kind: str = "Polygon") -> str:
    """An ASAP annotation."""
    inside = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(corners))
    return (
        f'<Annotation Name="Annotation" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{inside}</Coordinates></Annotation>"
    )


def square(x0: float, y0: float, x1: float, y1: float) -> tuple[tuple[float, float], ...]:
    """The corners of a rectangle."""
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


def write_asap(path: Path, *annotations: str) -> Path:
    """An ASAP file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = "".join(annotations)
    groups = '<Group Name="_0" PartOfGroup="None" Color="#00ff00"><Attributes/></Group>'
    path.write_text(
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{inside}</Annotations>'
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )
    return path
