"""The evaluation manifest: one JSON object a line, checked as a whole before anything runs.

    {"id": "a1", "image": "a1.png", "mask": "a1_mask.png", "query": "Where is the tumour?", "mpp": 0.5}

`id`, `image`, `mask` (null: the target is absent) and `query` are required; `mpp` (µm/px) may be null or left out;
`group` (the patient, for the bootstrap) and `kind` (figures are also given by kind) may be added, and
`"exemplar": {"image": …, "mask": …, "mpp": …}`, a reference to look for the like of, with `zero_shot_query`, the
question to ask instead where the reference is taken away, and `chain`, the answer that is due, to compare words with.
Other fields are ignored. Relative paths are relative to the manifest.
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
_REQUIRED = {"id": str, "image": str, "query": str, "mask": (str, type(None))}
_OPTIONAL = {"zero_shot_query": (str, type(None)), "chain": (str, type(None))}


class ManifestError(ValueError):
    """A manifest that cannot be evaluated; the message names every line and field at fault."""


@dataclass(frozen=True)
class ManifestExemplar:
    """A reference picture with the outline of what to look for.

    Attributes:
        image, mask: existing files of the same size; the mask is not empty.
        mpp: µm/px of the image, None when unknown.
    """

    image: Path
    mask: Path
    mpp: float | None


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
        exemplar: what to look for the like of, None when the question speaks for itself.
        zero_shot_query: what to ask where the exemplar is taken away, None when nothing else than `query`.
        chain: the reference answer, None when there is none to compare words with.
    """

    id: str
    image: Path
    mask: Path | None
    query: str
    mpp: float | None
    group: str
    kind: str | None
    exemplar: ManifestExemplar | None = None
    zero_shot_query: str | None = None
    chain: str | None = None


def read_manifest(path: str | Path) -> list[ManifestRow]:
    """Read and check a whole manifest; image headers are opened, pixels are not, but for the masks of exemplars.

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
    for name, types in (_REQUIRED | _OPTIONAL).items():
        if name in _REQUIRED and name not in data:
            raise ManifestError(f"field {name} is missing" + ("; null says the target is absent" * (name == "mask")))
        if not isinstance(data.get(name), types):
            wanted = {"mask": "a path or null"}.get(name, "a text or null" if name in _OPTIONAL else "a text")
            raise ManifestError(f"field {name}: {wanted} is accepted, not {data[name]!r}")
    for name in ("id", "query", *_OPTIONAL):
        if data.get(name) is not None and not data[name].strip():
            raise ManifestError(f"field {name} is empty")
    mpp = _mpp(data.get("mpp"), "mpp")
    image, mask = _pair(data, folder, "")
    group, kind = data.get("group"), data.get("kind")
    return ManifestRow(
        id=data["id"], image=image, mask=mask, query=data["query"], mpp=mpp,
        group=data["id"] if group is None else str(group), kind=None if kind is None else str(kind),
        exemplar=_exemplar(data.get("exemplar"), folder, mpp), zero_shot_query=data.get("zero_shot_query"),
        chain=data.get("chain"),
    )  # fmt: skip


def _exemplar(data: Any, folder: Path, row_mpp: float | None) -> ManifestExemplar | None:
    """The checked reference of a row; its µm/px is the row's unless it says otherwise."""
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ManifestError(f"field exemplar: an object with image and mask, or null, is accepted, not {data!r}")
    for name in ("image", "mask"):
        if name not in data:
            raise ManifestError(f"field exemplar.{name} is missing")
        if not isinstance(data[name], str):
            raise ManifestError(f"field exemplar.{name}: a path is accepted, not {data[name]!r}")
    image, mask = _pair(data, folder, "exemplar.")
    try:
        empty = not read_mask(mask).any()
    except ManifestError as error:
        raise ManifestError(f"field exemplar.mask: {error}") from None
    if empty:
        raise ManifestError(f"field exemplar.mask: {mask} outlines nothing; a mask with a pixel above 0 is accepted")
    return ManifestExemplar(image, mask, _mpp(data["mpp"], "exemplar.mpp") if "mpp" in data else row_mpp)


def _mpp(mpp: Any, field: str) -> float | None:
    """A resolution in µm/px, or None."""
    if not isinstance(mpp, (int, float, type(None))) or isinstance(mpp, bool):
        raise ManifestError(f"field {field}: a number or null is accepted, not {mpp!r}")
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ManifestError(f"field {field}: a positive number of µm/px or null is accepted, not {mpp}")
    return None if mpp is None else float(mpp)


def _pair(data: dict[str, Any], folder: Path, prefix: str) -> tuple[Path, Path | None]:
    """An image and its mask, which may be null, checked to be there and to fit each other."""
    image = folder / data["image"]
    size = _picture_size(image, f"{prefix}image")
    if min(size) < MIN_PX:
        raise ManifestError(
            f"field {prefix}image: {size[0]} × {size[1]} px; at least {MIN_PX} px a side is accepted"
        )
    if data["mask"] is None:
        return image, None
    mask = folder / data["mask"]
    if (mask_size := _picture_size(mask, f"{prefix}mask")) != size:
        raise ManifestError(
            f"field {prefix}mask: {mask_size[0]} × {mask_size[1]} px, the image has {size[0]} × {size[1]} px"
        )
    return image, mask


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
