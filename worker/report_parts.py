"""What all faces of a report share: which regions come first, what was not looked at, and the facts in words."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from worker.wording import area_words, count_words, percent_words

FEATURED = 6
"""The largest regions of each query that are shown with their pictures and chain."""

LEAST_UM2 = 0.5
"""Less than this rounds to nothing in words."""

WEAK_WORDS = {
    "agreement": "overlapping tiles disagree",
    "stain": "stain far from what the model was trained on",
    "contradiction": "the chain contradicts its own mask",
}
FLAGS = {"agreement": "disagree", "stain": "stain", "contradiction": "chain"}
FLAGS_MEAN = (
    "Flags: disagree, overlapping tiles disagree; stain, the stain is far from what the model was trained on; chain, "
    "the chain contradicts its own mask."
)

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
    """What was not looked at, in words: areas with their reasons, then tiles.

    Args:
        coverage: the report's; that of older reports has no areas by reason.
    """
    words = [_area_left(coverage)] if coverage.get("not_looked_at_um2", 0) >= LEAST_UM2 else []
    if coverage["skipped"]:
        everything = coverage["tiles"] + coverage["skipped"]
        why = "" if "glass_um2" in coverage else " (glass, or outside the region of interest)"
        words.append(f"Skipped: {coverage['skipped']:,} of {count_words(everything, 'tile')}{why}.")
    if coverage["failed"]:
        reasons = "; ".join(f"{entry['reason']} ({entry['tiles']:,})" for entry in coverage["failed_reasons"][:3])
        words.append(
            f"{count_words(coverage['failed'], 'tile')} failed and {'was' if coverage['failed'] == 1 else 'were'} "
            f"not judged: {reasons}. Coverage is {percent_words(coverage['coverage'])}."
        )
    return " ".join(words) or "Every tile of the slide was looked at."


def _area_left(coverage: Mapping[str, Any]) -> str:
    """The area that no tile saw, in µm² or mm² and percent of the slide, and why."""
    left_um2 = coverage["not_looked_at_um2"]
    reasons = [
        ("glass", coverage["glass_um2"]),
        ("outside the region of interest", coverage["outside_roi_um2"]),
        ("in tiles that failed", coverage["failed_um2"]),
    ]
    said = ", ".join(f"{area_words(area)} {reason}" for reason, area in reasons if area >= LEAST_UM2)
    share = percent_words(min(1.0, left_um2 / coverage["slide_um2"]))
    return f"Not looked at: {area_words(left_um2)}, {share} of the slide ({said})."


def evidence_words(region: Mapping[str, Any]) -> str:
    """How far a region can be believed, in sentences; what is not known is said to be so.

    Args:
        region: of a report; those of older reports know less, and less is said.
    """
    if "weak" not in region:
        return ""
    agreement = "Only one tile saw it"
    if region["agreement"] is not None:
        agreement = f"Agreement of overlapping tiles {region['agreement']:.2f}"
    words = [f"{agreement}. Stain {stain_words(region['stain'])}.", _contradiction_words(region["contradictions"])]
    if region["weak"]:
        words.insert(0, f"Weak evidence: {', '.join(WEAK_WORDS[name] for name in region['weak'])}.")
    return " ".join(words)


def stain_words(stain: Mapping[str, Any] | None) -> str:
    """The distance of a stain from the stains a model was trained on, as the end of a sentence."""
    if stain is None:
        return "not known to be like or unlike what the model was trained on"
    beyond = "far, beyond" if stain["far"] else "within"
    shift, limit = f"{stain['shift_sd']:.1f}", f"{stain['limit_sd']:.1f}"
    return f"{shift} standard deviations from what the model was trained on ({beyond} {limit})"


def _contradiction_words(against: Mapping[str, Any] | None) -> str:
    """What chains say of masks that the masks contradict, in a sentence."""
    if against is None:
        return "Whether its chain contradicts its mask is not known."
    chain = "Its chain does not contradict its own mask"
    if against["chain"]:
        chain = f"Its chain contradicts its own mask ({', '.join(against['chain'])})"
    tiles = f"{against['contradicted']:,} of {count_words(against['checked'], 'tile')} that made it"
    return f"{chain}; {tiles} {'does' if against['contradicted'] == 1 else 'do'}."


def flags(region: Mapping[str, Any]) -> str:
    """What speaks against a region, in few words for a table; a dash where nothing does."""
    return ", ".join(FLAGS[name] for name in region.get("weak", ())) or "–"


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
        "Slide": _slide_facts(report["slide"], report.get("stain")),
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


def _slide_facts(slide: Mapping[str, Any], stain: Mapping[str, Any] | None) -> list[tuple[str, str]]:
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
        ("Stain", stain_words(stain)),
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
    taught, stain = ", ".join(model.get("targets", ())), model.get("stain")
    stains = f"{stain['images']:,} pictures of {', '.join(stain['sources'])}" if stain else "not known"
    return [
        ("Name", str(model.get("name", "unknown"))),
        ("Revision", str(model.get("revision", "unknown"))),
        ("Parameters", f"{model.get('parameters', 0):,}"),
        ("Licence", str(model.get("licence") or "unknown")),
        *([("Was taught", taught)] if taught else []),
        ("Stains trained on", stains),
    ]


def _exemplar_facts(exemplar: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Slide", exemplar["slide_id"]),
        ("Content", exemplar["content_hash"] or "unknown"),
        ("Frame", ", ".join(f"{value:,.0f}" for value in exemplar["bbox_px0"]) + " px"),
        ("Shown at", f"{exemplar['mpp']:.4g} µm/px"),
        ("Key", exemplar["key"]),
    ]
