"""What the readers of published layouts share: errors that name the file and the layout, and pictures of any kind."""

from pathlib import Path

import numpy as np
from PIL import Image


class LayoutError(ValueError):
    """A data set does not lie as its publisher laid it out: says which file, and what would be accepted."""

    def __init__(self, path: Path, problem: str, accepted: str):
        super().__init__(f"{path}: {problem}; accepted: {accepted}")


def require_any(folder: Path, paths: list[Path], accepted: str) -> list[Path]:
    """The paths, sorted.

    Raises:
        LayoutError: the folder is not there, or there is not one.
    """
    if not folder.is_dir():
        raise LayoutError(folder, "is not a folder", accepted)
    if not paths:
        raise LayoutError(folder, "holds no picture of this set", accepted)
    return sorted(paths)


def read_rgb(path: Path, accepted: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PNG, JPEG, BMP or TIFF.

    Raises:
        LayoutError: the file is missing or is not a picture.
    """
    with _open(path, accepted) as picture:
        return np.array(picture.convert("RGB"))


def read_values(path: Path, shape: tuple[int, int], accepted: str) -> np.ndarray:
    """(H, W) whole numbers of a grey, 1-bit or palette picture; a palette gives its indices, not its colours.

    Args:
        path: of the label picture.
        shape: (H, W) of the picture that it labels.
        accepted: the layout, for the error.

    Raises:
        LayoutError: the file is missing, is no picture, has several channels, or another size.
    """
    with _open(path, accepted) as picture:
        values = np.array(picture)
    return fitting(values, path, shape, accepted)


def fitting(values: np.ndarray, path: Path, shape: tuple[int, int], accepted: str) -> np.ndarray:
    """The values, which must be one channel of this shape.

    Raises:
        LayoutError: they are not.
    """
    if values.ndim == 3 and values.shape[2] in (3, 4) and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise LayoutError(path, f"has {values.shape[2]} channels where one is due", accepted)
    if values.shape != shape:
        raise LayoutError(path, f"is {_size(values.shape)} px, its picture {_size(shape)} px", accepted)
    return values


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[0]}"


def _open(path: Path, accepted: str) -> Image.Image:
    """An opened picture whose pixels are known to be readable."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError as error:
        raise LayoutError(path, "is missing", accepted) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LayoutError(path, f"is not a readable picture ({error})", accepted) from error
    return picture
