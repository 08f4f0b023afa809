"""Measurements of all regions as CSV, a row each, for spreadsheets and statistics."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.exports.geojson import USE
from worker.exports.job_results import JobResults

COLUMNS = (
    "job_id", "region_id", "query_index", "query", "label", "area_um2", "perimeter_um", "centroid_x_px0",
    "centroid_y_px0", "x0_px0", "y0_px0", "x1_px0", "y1_px0", "confidence", "agreement", "chain_tile",
    "supporting_tiles", "dissenting_tiles", "stain_shift_sd", "stain_limit_sd", "tiles_checked", "tiles_contradicting",
    "weak", "conclusion", "use",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet would compute."""


def write_csv(results: JobResults, path: Path) -> None:
    """Write a table of the regions, ordered by query and label.

    Args:
        results: of a finished job.
        path: the file; UTF-8 with a byte order mark, without which Excel takes it for something else. Fields are as
            RFC 4180 has them; areas in µm², lengths in µm, points and boxes in level-0 pixels.
    """
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\r\n")
        table.writeheader()
        table.writerows(_rows(results))


def _rows(results: JobResults) -> Iterator[dict[str, Any]]:
    report = results.report
    for region in report["regions"]:
        x0, y0, x1, y1 = region["bbox_px0"]
        yield {
            "job_id": results.job_id,
            "region_id": region["region_id"],
            "query_index": region["query_index"],
            "query": _text(report["queries"][region["query_index"]]["query"]),
            "label": region["label"],
            "area_um2": region["area_um2"],
            "perimeter_um": region["perimeter_um"],
            "centroid_x_px0": region["centroid_px0"][0],
            "centroid_y_px0": region["centroid_px0"][1],
            **{"x0_px0": x0, "y0_px0": y0, "x1_px0": x1, "y1_px0": y1},
            "confidence": region["confidence"],
            "agreement": region["agreement"],
            "chain_tile": region["chain_tile"].get("key", ""),
            "supporting_tiles": len(region["support"]) + bool(region["chain_tile"]),
            "dissenting_tiles": len(region["dissent"]),
            **_evidence(region),
            "conclusion": _text(region["conclusion"]),
            "use": USE,
        }


def _evidence(region: dict[str, Any]) -> dict[str, Any]:
    """Stain and contradictions; empty where they are not known."""
    stain, against = region.get("stain") or {}, region.get("contradictions") or {}
    return {
        "stain_shift_sd": stain.get("shift_sd", ""),
        "stain_limit_sd": stain.get("limit_sd", ""),
        "tiles_checked": against.get("checked", ""),
        "tiles_contradicting": against.get("contradicted", ""),
        "weak": " ".join(region.get("weak", ())),
    }


def _text(text: str) -> str:
    """A text that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(FORMULA) else text
