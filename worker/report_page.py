"""The report as one self-contained HTML page: pictures embedded, nothing fetched, everything escaped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worker.answers import far_words
from worker.colors import query_color
from worker.pictures import LabelFrame, data_uri
from worker.report_parts import (
    FLAGS_MEAN,
    by_size,
    coverage_words,
    evidence_words,
    facts,
    featured_regions,
    flags,
    support_words,
)
from worker.report_pictures import RINGS, draw_overview, draw_region, draw_tile, label_frame
from worker.wording import SEG, area_words, count_words, exemplar_words, percent_words, read_chain

if TYPE_CHECKING:
    from worker.slides import Slide

TEMPLATES = Path(__file__).parent / "templates"
ROWS = 200
"""The largest regions, whose table is open to the eye."""

LEAF = 500
"""Regions in each of the folded tables that follow: a browser lays out only those that are opened."""

MOST_ROWS = 10_000
"""Regions in the page; all of them are in the GeoJSON."""


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
    frame = label_frame(report, overlay_root)
    sized = by_size(report["regions"])
    named = featured_regions(sized, report["queries"])
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            colors=["#{:02x}{:02x}{:02x}".format(*query_color(query["query_index"])) for query in report["queries"]],
            example=None if exemplar is None else data_uri(exemplar),
            example_words="" if exemplar is None else exemplar_words(report["exemplar"], report["slide"]["slide_id"]),
            overview=data_uri(draw_overview(report, frame, slide, sized, named).image),
            rings=RINGS,
            featured=[_feature(region, report, frame, slide) for region in named],
            featured_ids={region["region_id"] for region in named},
            rows=sized[:ROWS],
            leaves=_leaves(sized[:MOST_ROWS]),
            shown=min(len(sized), MOST_ROWS),
            facts=facts(report),
            not_looked_at=coverage_words(report["coverage"]),
            far=far_words(report.get("stain")),
            flags_mean=FLAGS_MEAN,
        )
    )


def _leaves(sized: Sequence[Mapping]) -> list[tuple[int, int, Sequence[Mapping]]]:
    """The regions after the first `ROWS` in lots of `LEAF`: (first, last, regions), counted from 1."""
    starts = range(ROWS, len(sized), LEAF)
    return [(start + 1, min(start + LEAF, len(sized)), sized[start : start + LEAF]) for start in starts]


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
    environment.globals.update(count=count_words, support=support_words, evidence=evidence_words, flags=flags)
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


def _feature(region: Mapping, report: Mapping, frame: LabelFrame, slide: "Slide") -> dict[str, Any]:
    """A region with its picture, its chain, and the picture of the tile that the chain speaks of."""
    tile = draw_tile(region, frame, slide)
    return {
        "region": region,
        "query": report["queries"][region["query_index"]]["query"],
        "crop": data_uri(draw_region(region, frame, slide).image),
        "tile": tile and data_uri(tile.image),
        "chain": read_chain(region["chain"]),
    }
