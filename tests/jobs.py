"""Jobs for tests: specs on made slides, and a finished job's files as bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from worker.types import JobSpec

HUE = "tests.segmenters:hue_segmenter"
COLOUR = "tests.segmenters:colour_segmenter"


def hue_spec(slide: Path, query: str = "nuclei", **changes: Any) -> JobSpec:
    """A job on a made slide for the segmenter of the tests; small blocks, so that there are several."""
    asked = {"mpp": 1.0, "block_px": 512, "min_region_um2": 50.0, "tissue": "auto", "overlap": 0.25, "model": HUE}
    return JobSpec(str(slide), slide.name, (query,), **(asked | changes))


def digest(folder: Path, names: tuple[str, ...] = ("overlay.zarr", "regions.geojson")) -> dict[str, str]:
    """SHA-256 of every file of a finished job, by path."""
    roots = [folder / name for name in names]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels_digest(overlay: Path) -> dict[str, str]:
    """The overlay's digest without the metadata that names the job's regions, which every job has its own of."""
    named = {path for path in digest(overlay, (".",)) if path.startswith("labels/") and path.count("/") == 2}
    found = {path: value for path, value in digest(overlay, (".",)).items() if path not in named}
    for path in named:
        attributes = json.loads((overlay / path).read_text())
        for entry in attributes["attributes"]["ome"]["image-label"].get("properties", []):
            entry.pop("region_id")
        found[path] = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()
    return found
