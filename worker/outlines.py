"""Outlines as people keep them in files: GeoJSON of any annotation tool, or a picture of the mask."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from worker.errors import BadRequest, SlideUnreadable, TooLarge
from worker.roi import parse_mask, parse_roi
from worker.slide_process import MEMORY_BYTES, TIMEOUT_S, call_in_child
from worker.types import Ring, SlideInfo

PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
BITS_PER_SAMPLE = 258
"""A tag of TIFF."""
MAX_MASK_PX = 8192
MAX_VERTICES = 10_000
SMOOTHING_PX = (1.0, 2.0, 4.0)
"""How far an outline with too many corners may be moved, one after the other."""

Polygons = tuple[tuple[Ring, ...], ...]
"""Each its exterior ring and its holes, in level-0 pixels."""


def read_roi(path: Path, field: str = "roi") -> tuple[Ring, ...]:
    """Exterior rings of a GeoJSON file, in level-0 pixels.

    Args:
        path: of the file.
        field: what errors call it.

    Raises:
        BadRequest: it cannot be read, or holds no polygons.
    """
    return parse_roi(_read_json(path, field), field=field)


def read_mask(path: Path, slide: SlideInfo, field: str = "exemplar.mask") -> Polygons:
    """An outline from a GeoJSON file or from a picture.

    Args:
        path: a GeoJSON file, or a picture as `read_mask_picture` takes it; its name's end tells which.
        slide: what the outline lies on.
        field: what errors call it.

    Raises:
        BadRequest: it cannot be read, holds no polygons, or is not as large as the slide.
    """
    if path.suffix.lower() not in PICTURES:
        return parse_mask(_read_json(path, field), field=field)
    try:
        return read_mask_picture(path, slide, field)
    except BadRequest as error:
        raise type(error)(f"{path}: {error.message}", field=field) from error


def read_mask_picture(
    path: Path,
    slide: SlideInfo,
    field: str = "exemplar.mask",
    max_vertices: int = MAX_VERTICES,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Polygons:
    """Outlines of what a picture marks, read in a child that a hostile picture may take down.

    Args:
        path: a PNG, TIFF or BMP of the size of the slide's level 0, at most `MAX_MASK_PX` a side, in which all that is
            neither black nor transparent is meant.
        slide: what the outline lies on.
        field: what errors call it.
        max_vertices: limit on the corners of all outlines together.
        timeout_s, memory_bytes: limits of the child.

    Raises:
        BadRequest: it cannot be read, is not as large as the slide, or marks nothing. No message tells the path.
        TooLarge: it has too many corners.
    """
    size = (slide.width_px0, slide.height_px0)
    if max(size) > MAX_MASK_PX:
        raise BadRequest(
            f"{field}: a slide of {size[0]} x {size[1]} px is outlined by GeoJSON; mask pictures are accepted up to "
            f"{MAX_MASK_PX} px a side",
            field=field,
        )
    limits = {"timeout_s": timeout_s, "memory_bytes": memory_bytes}
    try:
        return call_in_child(_outlines_of, str(path), size, field, max_vertices, **limits)
    except SlideUnreadable as error:
        reason = f"{field} cannot be read as a picture ({error.message}); accepted is a PNG, TIFF or BMP"
        raise BadRequest(reason, field=field) from error


def outline_mask(mask: np.ndarray, field: str = "exemplar.mask", max_vertices: int = MAX_VERTICES) -> Polygons:
    """Polygons along the edges of a mask's pixels; one with very many corners is smoothed by a few pixels.

    Args:
        mask: (H, W) bool.
        field: what errors call it.
        max_vertices: limit on the corners of all outlines together.

    Raises:
        BadRequest: nothing is marked.
        TooLarge: it has more than `max_vertices` corners even then.
    """
    polygons = _trace(mask)
    if not polygons:
        raise BadRequest(f"{field}: nothing is marked; paint what is meant in any colour but black", field=field)
    for tolerance_px in SMOOTHING_PX:
        if _vertices(polygons) > max_vertices:
            polygons = [smooth for polygon in polygons if (smooth := polygon.simplify(tolerance_px)).area > 0]
    if _vertices(polygons) > max_vertices:
        raise TooLarge(
            f"{field}: outlines with more than {max_vertices} corners; mark fewer, larger pieces", field=field
        )
    return tuple(
        tuple(tuple(map(tuple, ring.coords)) for ring in (polygon.exterior, *polygon.interiors)) for polygon in polygons
    )


def _trace(mask: np.ndarray) -> list[shapely.Polygon]:
    """The pieces of a mask, along the edges of its pixels; pieces that only touch at a corner are two."""
    faces = shapely.get_parts(shapely.polygonize(np.concatenate([_edges(mask, False), _edges(mask.T, True)])))
    inside = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(np.intp)
    return [face for face, (x, y) in zip(faces, inside, strict=True) if mask[y, x]]


def _edges(mask: np.ndarray, transposed: bool) -> np.ndarray:
    """Lines between marked and unmarked pixels along axis 1, from corner to corner."""
    padded = np.pad(mask, 1)
    line = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (H + 1, W): an edge above pixel (y, x)
    corner = np.diff(padded, axis=1)
    corner = corner[1:] | corner[:-1]  # (H + 1, W + 1): an edge across meets grid point (y, x)
    before, after = np.pad(line, ((0, 0), (1, 0))), np.pad(line, ((0, 0), (0, 1)))
    y, start = np.nonzero(after & (corner | ~before))
    _, end = np.nonzero(before & (corner | ~after))
    ends = np.stack([np.stack([start, y], -1), np.stack([end, y], -1)], 1).astype(float)
    return shapely.linestrings(ends[..., ::-1] if transposed else ends)


def _vertices(polygons: list[shapely.Polygon]) -> int:
    return int(shapely.get_num_coordinates(polygons).sum())


def _read_json(path: Path, field: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise BadRequest(f"{path} cannot be read: {reason}; give a GeoJSON file of polygons", field=field) from error


def _outlines_of(path: str, size: tuple[int, int], field: str, max_vertices: int) -> Polygons:
    """In the child: decode, check, outline."""
    accepted = "accepted is a PNG, TIFF or BMP"
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise BadRequest(f"{field} cannot be read: {error.strerror}; {accepted}", field=field) from error
    if encoded.startswith(JPEG):
        raise BadRequest(f"{field}: a JPEG blurs the edges of a mask; {accepted}", field=field)
    picture = _decode(encoded)
    if picture is None:
        raise BadRequest(f"{field} cannot be read: it is no picture; {accepted}", field=field)
    if picture.shape[1::-1] != size:
        raise BadRequest(
            f"{field} has {picture.shape[1]} x {picture.shape[0]} px; accepted is a mask as large as its slide, "
            f"{size[0]} x {size[1]} px",
            field=field,
        )
    return outline_mask(_marked(picture), field, max_vertices)


def _decode(encoded: bytes) -> np.ndarray | None:
    """A picture's samples, (H, W[, C]) of any depth; None where it is no picture. Gateways have no OpenCV."""
    import imagecodecs
    import tifffile
    from PIL import Image

    try:
        if encoded.startswith(PNG):
            return imagecodecs.png_decode(encoded)  # keeps 16 bits of a colour, which Pillow does not
        with Image.open(io.BytesIO(encoded), formats=("TIFF", "BMP")) as picture:
            if picture.mode in ("RGB", "RGBA") and 16 in getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, ()):
                return tifffile.imread(io.BytesIO(encoded), key=0)  # Pillow would drop the lower eight
            coloured = picture.mode not in ("1", "L", "I", "F", "RGB", "RGBA") and not picture.mode.startswith("I;16")
            return np.asarray(picture.convert("RGBA") if coloured else picture)
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        return None


def _marked(picture: np.ndarray) -> np.ndarray:
    """(H, W[, C]) of any depth → (H, W) bool, what is neither black nor transparent."""
    if picture.ndim == 2:
        return picture > 0
    if picture.shape[-1] in (1, 3):
        return picture.any(axis=-1)
    return picture[..., :-1].any(axis=-1) & (picture[..., -1] > 0)
