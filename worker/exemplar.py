"""The exemplar of a job: read when the job is planned, kept with the job, shown beside every tile.

Every block of every worker sees the same bytes, and a reference slide may be gone once the job runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio.features
import shapely
from affine import Affine

from model.exemplar import Exemplar
from worker.errors import BadRequest, fields_of
from worker.slide_process import inspect_slide, read_frame
from worker.types import ExemplarSpec, SlideInfo
from worker.window import Window, place_window

FOLDER = "exemplar"
PICTURE = "exemplar.png"
"""The exemplar with its outline, among the job's results."""


@dataclass(frozen=True)
class JobExemplar:
    """An exemplar with what a report says of it.

    Attributes:
        shown: what the segmenter sees.
        about: JSON-ready: slide, scale, frame, areas, key.
    """

    shown: Exemplar
    about: dict[str, Any]


def take_exemplar(spec: ExemplarSpec, mpp: float, tile_px: int) -> JobExemplar:
    """Read an exemplar at the scale of a job's tiles, in children that a hostile slide may take down.

    Args:
        spec: what was outlined where.
        mpp: µm/px of the job's tiles.
        tile_px: edge of the job's tiles.

    Raises:
        SlideNotFound, SlideUnreadable, MppUnknown, BadRequest: it cannot be shown; `field` begins with `exemplar.`.
    """
    with fields_of("exemplar"):
        info = inspect_slide(spec.slide_path, spec.mpp_override)
    window = place_window(spec, info, mpp, tile_px)
    with fields_of("exemplar"):
        picture = read_frame(spec.slide_path, window.frame_px0, tile_px, tile_px)
    if window.roi is not None:
        picture[~rasterise(window.roi, window, tile_px)] = 255
    try:
        shown = Exemplar(picture, rasterise(window.outline, window, tile_px))
    except ValueError as error:
        raise BadRequest(str(error), field="exemplar.mask") from error
    return JobExemplar(shown, _about(spec, info, window, mpp, shown))


def rasterise(polygons: shapely.MultiPolygon, window: Window, tile_px: int) -> np.ndarray:
    """(tile_px, tile_px) bool: the window's pixels whose centre lies inside."""
    x, y, width, height = window.frame_px0
    grid = Affine(width / tile_px, 0, x, 0, height / tile_px, y)
    shapes = [(polygon, 1) for polygon in polygons.geoms]
    return rasterio.features.rasterize(shapes, (tile_px, tile_px), transform=grid, dtype=np.uint8) > 0


def _about(spec: ExemplarSpec, info: SlideInfo, window: Window, mpp: float, shown: Exemplar) -> dict[str, Any]:
    x, y, width, height = window.frame_px0
    um2 = window.mpp_x * window.mpp_y
    return {
        "slide_id": spec.slide_id,
        "content_hash": info.content_hash,
        "slide_mpp": [window.mpp_x, window.mpp_y],
        "mpp": mpp,
        "window_px0": [round(value, 2) for value in (x, y, x + width, y + height)],
        "bbox_px0": [round(value, 2) for value in window.outline.bounds],
        "outlined_um2": round(window.whole_px0 * um2, 3),
        "area_um2": round(window.outline.area * um2, 3),
        "share_of_picture": round(float(shown.mask.mean()), 6),
        "key": shown.key,
    }


def write_exemplar(folder: Path, exemplar: JobExemplar) -> None:
    """Keep an exemplar with its job.

    Args:
        folder: of the attempt that planned the job.
        exemplar: from `take_exemplar`.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    write_png(target / "picture.png", exemplar.shown.image)
    write_png(target / "mask.png", exemplar.shown.mask.astype(np.uint8) * 255)
    (target / "about.json").write_text(json.dumps(exemplar.about, sort_keys=True) + "\n", encoding="utf-8")


def read_exemplar(job_root: Path) -> JobExemplar:
    """The exemplar of a planned job, as it was taken.

    Raises:
        FileNotFoundError: its plan has not been published, or storage is away.
    """
    folder = job_root / FOLDER
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    picture = _read_png(folder / "picture.png", cv2.IMREAD_COLOR)[..., ::-1]
    mask = _read_png(folder / "mask.png", cv2.IMREAD_GRAYSCALE)
    return JobExemplar(Exemplar(np.ascontiguousarray(picture), mask > 0), about)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB or (H, W) uint8 without loss."""
    done, encoded = cv2.imencode(".png", picture if picture.ndim == 2 else picture[..., ::-1])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} could not be encoded as PNG")
    path.write_bytes(encoded.tobytes())


def _read_png(path: Path, colour: int) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), colour)
    if picture is None:
        raise OSError(f"{path.name} of the job's exemplar is broken")
    return picture
