"""What all faces of a report share: which regions come first, what was not looked at, and the facts in words."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from worker.wording import area_words, count_words, percent_words

FEATURED = 6
"""The largest regions of each query that are shown with their pictures and chain."""

_ORDER = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Marks that make a reader see text in another order than it is written."""


def plain_line(text: str) -> str:
    """A text of people or models as one line: without control characters, reordering marks and halves of characters."""
    kept = []
    for letter in _ORDER.sub("", text):
        kind = unicodedata.category(letter)
        if letter.isspace() or kind != "Cc":
            kept.append("\ufffd" if kind == "Cs" else letter)
    return " ".join("".join(kept).split())


def by_size(regions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A report's regions, largest first; equal ones by query and label."""
    return sorted(regions, key=lambda region: (-region["area_um2"], region["query_index"], region["label"]))


def featured_regions(
    sized: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]], count: int = FEATURED
) -> list[Mapping[str, Any]]:
    """The largest regions of each query, query by query.

    Args:
        sized: from `by_size`.
        queries: the report's.
        count: of each query.
    """
    return [
        region
        for query in queries
        for region in [entry for entry in sized if entry["query_index"] == query["query_index"]][:count]
    ]


def coverage_words(coverage: Mapping[str, Any]) -> str:
    """What was not looked at, in words."""
    words = []
    if coverage["skipped"]:
        everything = coverage["tiles"] + coverage["skipped"]
        words.append(
            f"Not looked at: {coverage['skipped']:,} of {count_words(everything, 'tile')} "
            "(glass, or outside the region of interest)."
        )
    if coverage["failed"]:
        reasons = "; ".join(f"{entry['reason']} ({entry['tiles']:,})" for entry in coverage["failed_reasons"][:3])
        words.append(
            f"{count_words(coverage['failed'], 'tile')} failed and {'was' if coverage['failed'] == 1 else 'were'} "
            f"not judged: {reasons}. Coverage is {percent_words(coverage['coverage'])}."
        )
    return " ".join(words) or "Every tile of the slide was looked at."


def support_words(region: Mapping[str, Any]) -> str:
    """Which tiles made a region, and which saw it and stayed silent, in sentences; empty when no tile is on record."""
    if not region["chain_tile"]:
        return ""
    words = []
    if region["chain_tile"].get("second_look"):
        words.append("This tile stayed silent until it was asked again, because a neighbour's outline crosses into it.")
    support = count_words(len(region["support"]), "further tile").capitalize()
    silent = count_words(len(region["dissent"]), "tile")
    words.append(f"{support} made part of this region; {silent} saw it and stayed silent.")
    return " ".join(words)


def facts(report: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Everything that shaped a result, as names and words.

    Args:
        report: from `build_report`.

    Returns:
        (name, words) pairs under `Coverage`, `Slide`, `Parameters`, `Model`, and `Example` where there was one.
    """
    exemplar = report.get("exemplar")
    return {
        "Coverage": _coverage_facts(report["coverage"]),
        "Slide": _slide_facts(report["slide"]),
        "Parameters": _parameter_facts(report["parameters"]),
        "Model": _model_facts(report["model"]),
        **({"Example": _exemplar_facts(exemplar)} if exemplar else {}),
    }


def _coverage_facts(coverage: Mapping[str, Any]) -> list[tuple[str, str]]:
    looked = f"{coverage['looked_at']:,} of {coverage['tiles']:,} ({percent_words(coverage['coverage'])})"
    return [
        ("Tiles looked at", looked),
        ("Area looked at", f"{area_words(coverage['looked_at_um2'])} of {area_words(coverage['slide_um2'])}"),
        ("Skipped", f"{coverage['skipped']:,}"),
        ("Failed", f"{coverage['failed']:,}"),
        *(("", f"{entry['reason']} ({entry['tiles']:,})") for entry in coverage["failed_reasons"][:5]),
    ]


def _slide_facts(slide: Mapping[str, Any]) -> list[tuple[str, str]]:
    resolution = "unknown"
    if slide["mpp_x"] is not None:
        resolution = f"{slide['mpp_x']:.4g} × {slide['mpp_y']:.4g} µm/px ({slide['mpp_source']})"
    power = [("Objective", f"{slide['objective_power']:g}×")] if slide["objective_power"] else []
    return [
        ("Slide", slide["slide_id"]),
        ("Size", f"{slide['width_px0']:,} × {slide['height_px0']:,} px"),
        ("Resolution", resolution),
        *power,
        ("Format", slide["vendor"]),
        ("Content", slide["content_hash"] or "unknown"),
    ]


def _parameter_facts(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    tissue = parameters["tissue"]
    if parameters["roi_polygons"]:
        tissue += f", within {count_words(parameters['roi_polygons'], 'polygon')}"
    override = parameters["mpp_override"]
    offset = parameters["grid_offset_px"]
    return [
        ("Resolution", f"{parameters['mpp']:.4g} µm/px"),
        ("Overlay", "{:,} × {:,} px".format(*parameters["overlay_px"])),
        ("Level-0 pixels per pixel", "{:.6g} × {:.6g}".format(*parameters["scale"])),
        ("Tiles", f"{parameters['tile_px']:,} px, every {parameters['stride_px']:,} px"),
        *([("Grid shifted by", "{}, {} px".format(*offset))] if any(offset) else []),
        ("Threshold", f"{parameters['threshold']:g}"),
        ("Smallest region", area_words(parameters["min_region_um2"])),
        ("Least coverage", percent_words(parameters["min_coverage"])),
        ("Second look", "yes" if parameters["second_look"] else "no"),
        ("Tissue", tissue),
        *([("Resolution given", f"{override:g} µm/px")] if override is not None else []),
        ("Connectivity", str(parameters["connectivity"])),
    ]


def _model_facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    taught = ", ".join(model.get("targets", ()))
    return [
        ("Name", str(model.get("name", "unknown"))),
        ("Revision", str(model.get("revision", "unknown"))),
        ("Parameters", f"{model.get('parameters', 0):,}"),
        ("Licence", str(model.get("licence") or "unknown")),
        *([("Was taught", taught)] if taught else []),
    ]


def _exemplar_facts(exemplar: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Slide", exemplar["slide_id"]),
        ("Content", exemplar["content_hash"] or "unknown"),
        ("Frame", ", ".join(f"{value:,.0f}" for value in exemplar["bbox_px0"]) + " px"),
        ("Shown at", f"{exemplar['mpp']:.4g} µm/px"),
        ("Key", exemplar["key"]),
    ]
