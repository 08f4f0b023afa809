"""What a folder says of itself that may be a Zarr, without opening it as one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKS = ("zarr.json", ".zattrs", ".zgroup")
MAX_JSON_BYTES = 2**24


def zarr_mark(folder: Path) -> Path | None:
    """The file that makes a folder a Zarr, OME's or another; None where there is none."""
    return next((folder / name for name in MARKS if (folder / name).is_file()), None)


def is_picture(folder: Path) -> bool:
    """Whether a folder says that it is an OME-Zarr with a picture, not labels."""
    mark = zarr_mark(folder)
    try:
        if mark is None or mark.stat().st_size > MAX_JSON_BYTES:
            return False
        found = json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return False
    ome = ome_of(found.get("attributes", {}) if mark.name == "zarr.json" else found)
    return "image-label" not in ome and ("multiscales" in ome or "bioformats2raw.layout" in ome)


def ome_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """OME's part of a group's attributes: version 0.5 keeps it apart, 0.4 does not."""
    found = attributes.get("ome", attributes)
    return found if isinstance(found, Mapping) else {}
