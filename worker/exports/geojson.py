"""Regions as GeoJSON, as QuPath and everyone else reads it; written one feature at a time."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worker.colors import query_color
from worker.types import JobSpec, Region, SlideInfo

USE = "Research use only"


def write_geojson(
    path: Path, regions: Iterable[Region], spec: JobSpec, job_id: str, info: SlideInfo, frame: str = "level0"
) -> int:
    """Write a FeatureCollection, never holding more than one feature.

    Args:
        path: where to; replaced by rename when complete.
        regions: with polygons, in level-0 pixels.
        spec: the queries and the resolution.
        job_id: goes into each feature's metadata.
        info: the slide; its bounds shift the frame.
        frame: `level0`, or `bounds` for QuPath's frame, whose origin is the scanned area's corner.

    Returns:
        The number of features.

    Raises:
        ValueError: `frame` is neither.
    """
    if frame not in ("level0", "bounds"):
        raise ValueError(f"frame {frame!r}: level0 or bounds would be accepted")
    shift = info.bounds_px0[:2] if frame == "bounds" and info.bounds_px0 else (0, 0)
    head = {
        "frame": frame,
        "unit": "level-0 pixels",
        "job": job_id,
        "queries": list(spec.queries),
        "simplification_tolerance_um": 0,
        "use": USE,
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    count = 0
    with temporary.open("w", encoding="utf-8") as out:
        out.write('{"type": "FeatureCollection", "slidereason": ' + _dumps(head) + ', "features": [')
        for region in regions:
            out.write(",\n" if count else "\n")
            out.write(_dumps(region_feature(region, spec, job_id, shift)))
            count += 1
        out.write("\n]}\n")
    temporary.replace(path)
    return count


def region_feature(
    region: Region, spec: JobSpec, job_id: str, shift_px0: tuple[float, float] = (0, 0)
) -> dict[str, Any]:
    """One region as a GeoJSON feature.

    Args:
        region: with its polygon in level-0 pixels.
        spec: the queries.
        job_id: the job.
        shift_px0: (x, y) subtracted from every point.

    Returns:
        A JSON-ready feature; `id` is the region's UUID, everything else stands in `properties`.
    """
    query = spec.queries[region.query_index]
    color = list(query_color(region.query_index))
    measurements = {
        "Area µm^2": region.area_um2,
        "Perimeter µm": region.perimeter_um,
        "Centroid X px": round(region.centroid_px0[0] - shift_px0[0], 2),
        "Centroid Y px": round(region.centroid_px0[1] - shift_px0[1], 2),
        "Confidence": region.confidence,
        "Supporting tiles": len(region.support) + bool(region.chain_tile),
        "Dissenting tiles": len(region.dissent),
    }
    if region.agreement is not None:
        measurements["Agreement"] = region.agreement
    if region.stain is not None:
        measurements["Stain shift SD"] = region.stain["shift_sd"]
    if region.contradictions is not None:
        measurements["Contradicting tiles"] = region.contradictions["contradicted"]
    return {
        "type": "Feature",
        "id": region.region_id,
        "geometry": _shifted(region.polygon_px0, shift_px0),
        "properties": {
            "objectType": "annotation",
            "name": f"Region {region.label}",
            "color": color,
            "classification": {"name": query, "color": color},
            "isLocked": False,
            "measurements": measurements,
            "metadata": {
                "job": job_id,
                "query": query,
                "query_index": region.query_index,
                "label": region.label,
                "chain": region.chain,
                "chain_tile": region.chain_tile.get("key", ""),
                "weak": " ".join(region.weak),
                "use": USE,
            },
        },
    }


def _shifted(geometry: dict[str, Any], shift_px0: tuple[float, float]) -> dict[str, Any]:
    """A geometry moved by -shift; the same object when there is nothing to move."""
    dx, dy = shift_px0
    if not dx and not dy:
        return geometry

    def moved(part):
        if part and isinstance(part[0], int | float):
            return (round(part[0] - dx, 2), round(part[1] - dy, 2))
        return [moved(child) for child in part]

    return {"type": geometry["type"], "coordinates": moved(geometry["coordinates"])}


def _dumps(value: Any) -> str:
    """Compact JSON in readable Unicode; no NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
