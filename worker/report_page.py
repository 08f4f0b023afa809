"""The report as one self-contained HTML page: pictures embedded, nothing fetched, everything escaped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worker.colors import query_color
from worker.pictures import (
    LabelFrame,
    data_uri,
    draw_frame,
    draw_labels,
    draw_markers,
    padded_box,
    take_picture,
    write_names,
)
from worker.report import coverage_words
from worker.wording import SEG, area_words, count_words, exemplar_words, percent_words, read_chain

if TYPE_CHECKING:
    from worker.slides import Slide

TEMPLATES = Path(__file__).parent / "templates"
OVERVIEW_PX = 1400
CROP_PX = 520
FEATURED = 6
"""The largest regions of each query that are shown with their pictures and chain."""

ROWS = 200
"""The largest regions that stand in the table; all of them are in the GeoJSON."""


def render_page(
    report: Mapping[str, Any], overlay_root: Path, slide: "Slide", exemplar: np.ndarray | None = None
) -> str:
    """Render the page.

    Args:
        report: from `build_report`.
        overlay_root: the overlay that holds the labels.
        slide: the open slide.
        exemplar: (T, T, 3) uint8 RGB, the exemplar with its outline; None when there was none.

    Returns:
        HTML. User text and model text are escaped; no script, no link to anything outside the page.
    """
    levels = sum((overlay_root / "labels" / "0" / str(level)).is_dir() for level in range(32))
    frame = LabelFrame(overlay_root, tuple(report["parameters"]["scale"]), levels)
    by_size = sorted(
        report["regions"], key=lambda region: (-region["area_um2"], region["query_index"], region["label"])
    )
    featured = [_feature(region, report, frame, slide) for region in _featured(by_size, report["queries"])]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            colors=["#{:02x}{:02x}{:02x}".format(*query_color(query["query_index"])) for query in report["queries"]],
            example=None if exemplar is None else data_uri(exemplar),
            example_words="" if exemplar is None else exemplar_words(report["exemplar"], report["slide"]["slide_id"]),
            overview=_overview(report, frame, slide, featured),
            featured=featured,
            featured_ids={entry["region"]["region_id"] for entry in featured},
            rows=by_size[:ROWS],
            not_looked_at=coverage_words(report["coverage"]),
        )
    )


def _environment() -> Environment:
    """The templates' environment; everything is escaped, a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(area=area_words, percent=percent_words, chain_parts=chain_parts)
    environment.globals.update(count=count_words)
    return environment


def chain_parts(text: str) -> list[tuple[str, str]]:
    """A chain's words and its `<SEG>` marks, in order.

    Args:
        text: observations or conclusion.

    Returns:
        `("words", …)` and `("seg", "<SEG>")` pairs.
    """
    parts: list[tuple[str, str]] = []
    for index, words in enumerate(text.split(SEG)):
        if index:
            parts.append(("seg", SEG))
        if words.strip():
            parts.append(("words", words))
    return parts


def _featured(by_size: Sequence[Mapping], queries: Sequence[Mapping]) -> list[Mapping]:
    """The largest regions of each query, query by query."""
    return [
        region
        for query in queries
        for region in [entry for entry in by_size if entry["query_index"] == query["query_index"]][:FEATURED]
    ]


def _overview(report: Mapping, frame: LabelFrame, slide: "Slide", featured: Sequence[Mapping]) -> str:
    """The whole slide with every region outlined and the featured ones numbered."""
    bounds = report["slide"]["bounds_px0"]
    x, y, width, height = bounds or (0, 0, report["slide"]["width_px0"], report["slide"]["height_px0"])
    canvas = take_picture(slide, (x, y, x + width, y + height), OVERVIEW_PX)
    for query in report["queries"]:
        draw_labels(canvas, frame, query["query_index"])
    names = {entry["region"]["region_id"]: str(entry["region"]["label"]) for entry in featured}
    draw_markers(canvas, report["regions"])
    write_names(canvas, frame, [entry["region"] for entry in featured], names)
    return data_uri(canvas.image)


def _feature(region: Mapping, report: Mapping, frame: LabelFrame, slide: "Slide") -> dict[str, Any]:
    """A region with its picture, its chain, and the picture of the tile that the chain speaks of."""
    scale = frame.scale
    min_side = 128 * max(scale)
    canvas = take_picture(slide, padded_box(tuple(region["bbox_px0"]), 0.15, min_side), CROP_PX)
    draw_labels(canvas, frame, region["query_index"], only=region["label"])
    tile = None
    if region["chain_tile"]:
        box = tuple(region["chain_tile"]["bbox_px0"])
        draw_frame(canvas, box)
        tile_canvas = take_picture(slide, box, CROP_PX)
        draw_labels(tile_canvas, frame, region["query_index"], only=region["label"], fill=0.0)
        tile = data_uri(tile_canvas.image)
    return {
        "region": region,
        "query": report["queries"][region["query_index"]]["query"],
        "crop": data_uri(canvas.image),
        "tile": tile,
        "chain": read_chain(region["chain"]),
    }
