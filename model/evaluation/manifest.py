"""The evaluation manifest: one JSON object a line, checked as a whole before anything runs.

    {"id": "a1", "image": "a1.png", "mask": "a1_mask.png", "query": "Where is the tumour?", "mpp": 0.5}

`id`, `image`, `mask` (null: the target is absent) and `query` are required; `mpp` (µm/px) may be null or left out;
`group` (the patient, for the bootstrap) and `kind` (figures are also given by kind) may be added. Other fields are
ignored. Relative paths are relative to the manifest.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MIN_PX = 64
MAX_PROBLEMS = 20
_KNOWN_TYPES = {"id": str, "image": str, "query": str, "mask": (str, type(None)), "mpp": (int, float, type(None))}


class ManifestError(ValueError):
    """A manifest that cannot be evaluated; the message names every line and field at fault."""


@dataclass(frozen=True)
class ManifestRow:
    """One question about one image.

    Attributes:
        id: unique in the manifest.
        image, mask: existing files of the same size; mask None means that the target is absent.
        query: the question.
        mpp: µm/px of the image, None when unknown.
        group: rows of one group are drawn together by the bootstrap; the id when the manifest names none.
        kind: free word; figures are also given for each kind.
    """

    id: str
    image: Path
    mask: Path | None
    query: str
    mpp: float | None
    group: str
    kind: str | None


def read_manifest(path: str | Path) -> list[ManifestRow]:
    """Read and check a whole manifest; image headers are opened, pixels are not.

    Raises:
        ManifestError: no such file, no rows, or rows that are not accepted, each by line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"no manifest at {path}; a file with one JSON object a line is accepted")
    rows: list[ManifestRow] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = _row(json.loads(line), path.parent)
            if row.id in seen:
                raise ManifestError(f"field id: {row.id!r} is already on line {seen[row.id]}; ids are unique")
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg}); one object a line is accepted")
        except ManifestError as error:
            problems.append(f"line {number}: {error}")
        else:
            seen[row.id] = number
            rows.append(row)
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise ManifestError("\n".join([f"{path.name}:", *problems[:MAX_PROBLEMS], *more]))
    if not rows:
        raise ManifestError(f"{path.name}: no rows; one JSON object a line is accepted")
    return rows


def _row(data: Any, folder: Path) -> ManifestRow:
    """One checked row; raises `ManifestError` naming the field."""
    if not isinstance(data, dict):
        raise ManifestError("an object is accepted, e.g. {\"id\": …, \"image\": …, \"mask\": …, \"query\": …}")
    for name, types in _KNOWN_TYPES.items():
        if name not in data and name != "mpp":
            raise ManifestError(f"field {name} is missing" + ("; null says the target is absent" * (name == "mask")))
        if not isinstance(data.get(name), types) or isinstance(data.get(name), bool):
            wanted = {"mask": "a path or null", "mpp": "a number or null"}.get(name, "a text")
            raise ManifestError(f"field {name}: {wanted} is accepted, not {data[name]!r}")
    for name in ("id", "query"):
        if not data[name].strip():
            raise ManifestError(f"field {name} is empty")
    mpp = data.get("mpp")
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ManifestError(f"field mpp: a positive number of µm/px or null is accepted, not {mpp}")
    image = folder / data["image"]
    size = _picture_size(image, "image")
    if min(size) < MIN_PX:
        raise ManifestError(f"field image: {size[0]} × {size[1]} px; at least {MIN_PX} px a side is accepted")
    mask = None if data["mask"] is None else folder / data["mask"]
    if mask is not None and (mask_size := _picture_size(mask, "mask")) != size:
        raise ManifestError(f"field mask: {mask_size[0]} × {mask_size[1]} px, the image has {size[0]} × {size[1]} px")
    group, kind = data.get("group"), data.get("kind")
    return ManifestRow(
        id=data["id"], image=image, mask=mask, query=data["query"], mpp=None if mpp is None else float(mpp),
        group=data["id"] if group is None else str(group), kind=None if kind is None else str(kind),
    )  # fmt: skip


def _picture_size(path: Path, field: str) -> tuple[int, int]:
    """(width, height) from the header."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except FileNotFoundError:
        raise ManifestError(f"field {field}: no file {path}") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ManifestError(f"field {field}: {path} is no picture that can be read ({error})") from None


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; transparent pixels on white.

    Raises:
        ManifestError: the pixels cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                layer = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ManifestError(f"{path}: the pixels cannot be read ({error})") from None


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool: every pixel that is not zero (palette index 0, black) is target.

    Raises:
        ManifestError: the pixels cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode in ("RGBA", "LA"):
                picture = picture.convert("RGB" if picture.mode == "RGBA" else "L")
            pixels = np.asarray(picture)
    except (OSError, SyntaxError) as error:
        raise ManifestError(f"{path}: the pixels cannot be read ({error})") from None
    return pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0
