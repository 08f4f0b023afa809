"""The report of a job: what was asked, what was found, why, and what was not looked at.

One dict carries everything, as `report_schema.json` describes it; JSON, HTML, Markdown and PDF are faces of it.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.report_parts import coverage_words
from worker.types import JobSpec, Region, SlideInfo, TilePlan, TileRecord
from worker.wording import (
    area_words,
    conclusion_of,
    count_words,
    exemplar_words,
    percent_words,
    place_phrase,
    place_words,
)

if TYPE_CHECKING:
    from worker.slides import Slide

USE = "Research use only. Not for use in diagnostic procedures."
SCHEMA = "slidereason.report/1"
FAILED_SHOWN = 200
SAID_KEPT = 2000
SAID_SHOWN = 3


@dataclass
class _Tally:
    """What the tiles of one query said, counted while records stream by."""

    emitted: int = 0
    silent: int = 0
    second_looks: int = 0
    said: Counter = field(default_factory=Counter)


@dataclass
class _Failures:
    """Tiles that failed, and why."""

    reasons: Counter = field(default_factory=Counter)
    tiles: dict[str, TileRecord] = field(default_factory=dict)


def build_report(
    job_id: str,
    spec: JobSpec,
    plan: TilePlan,
    info: SlideInfo,
    regions: Sequence[Region],
    records: Iterable[TileRecord],
    card: Mapping[str, Any],
    timings: Mapping[str, float] | None = None,
    exemplar: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Gather the report.

    Args:
        job_id: the job.
        spec: what was asked.
        plan: how the slide was cut.
        info: the slide.
        regions: all regions; polygons are not needed.
        records: what the tiles said; streamed once.
        card: the segmenter's card as a dict.
        timings: seconds by name, when they are wanted; they differ from run to run.
        exemplar: what is known of the exemplar that was shown, None when there was none.

    Returns:
        A JSON-ready dict; `answer` is the whole answer in words, `queries[i].answer` that of one question. No path and
        nothing that could name a patient is in it.
    """
    tallies, failures = _count_tiles(len(spec.queries), records)
    coverage = _coverage(plan, info, failures)
    queries = [
        _query_report(index, spec, info, [region for region in regions if region.query_index == index], tally, coverage)
        for index, tally in enumerate(tallies)
    ]
    report = {
        "schema": SCHEMA,
        "use": USE,
        "job_id": job_id,
        "answer": _whole_answer(queries, coverage, exemplar, spec.slide_id),
        "queries": queries,
        "exemplar": None if exemplar is None else dict(exemplar),
        "coverage": coverage,
        "regions": [_region_report(region, info) for region in regions],
        "slide": _slide_report(spec, info),
        "parameters": _parameters(spec, plan),
        "model": {name: value for name, value in card.items() if name != "figures"},
    }
    if timings is not None:
        report["timings_s"] = {name: round(seconds, 3) for name, seconds in timings.items()}
    return report


def _count_tiles(n_queries: int, records: Iterable[TileRecord]) -> tuple[list[_Tally], _Failures]:
    """One pass over the records of all queries; a tile is counted where it is owned."""
    tallies, failures = [_Tally() for _ in range(n_queries)], _Failures()
    for record in records:
        if not record.owned:
            continue
        if record.error is not None:
            if record.key not in failures.tiles:
                failures.reasons[record.error] += 1
                failures.tiles[record.key] = record
            continue
        tally = tallies[record.query_index]
        tally.emitted += record.emitted
        tally.silent += not record.emitted
        tally.second_looks += record.second_look
        words = conclusion_of(record.text)
        if not record.emitted and not record.second_look and (words in tally.said or len(tally.said) < SAID_KEPT):
            tally.said[words] += 1
    return tallies, failures


def _coverage(plan: TilePlan, info: SlideInfo, failures: _Failures) -> dict[str, Any]:
    """What was looked at, and what was not, with reasons."""
    failed = len(failures.tiles)
    shown = list(failures.tiles.values())[:FAILED_SHOWN]
    px0_um2 = plan.mpp**2 / (plan.scale_x * plan.scale_y)
    return {
        "tiles": plan.n_tiles,
        "looked_at": plan.n_tiles - failed,
        "failed": failed,
        "skipped": plan.n_skipped,
        "coverage": round((plan.n_tiles - failed) / plan.n_tiles, 6) if plan.n_tiles else 1.0,
        "looked_at_um2": round(looked_at_px(plan, failures.tiles) * plan.mpp**2, 3),
        "slide_um2": round(info.width_px0 * info.height_px0 * px0_um2, 3),
        "failed_reasons": [{"reason": reason, "tiles": count} for reason, count in failures.reasons.most_common()],
        "failed_tiles": [{"key": tile.key, "reason": tile.error, "bbox_px0": _tile_box(tile, plan)} for tile in shown],
    }


def _tile_box(tile: TileRecord, plan: TilePlan) -> list[float]:
    """The tile's frame in level-0 pixels."""
    x1, y1 = tile.x_px + tile.size_px, tile.y_px + tile.size_px
    corners = (tile.x_px * plan.scale_x, tile.y_px * plan.scale_y, x1 * plan.scale_x, y1 * plan.scale_y)
    return [round(value, 2) for value in corners]


def looked_at_px(plan: TilePlan, failed: Iterable[str] = ()) -> int:
    """Overlay pixels that at least one tile has seen.

    Args:
        plan: the grid and which of its tiles were wanted.
        failed: keys of the tiles that failed.

    Returns:
        The area of the union of the tiles, clipped to the overlay; exact.
    """
    seen, xs, ys = looked_at_cells(plan, failed)
    return int((seen * np.outer(np.diff(ys), np.diff(xs))).sum())


def looked_at_cells(plan: TilePlan, failed: Iterable[str] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where tiles have looked, as cells between the edges of the grid's tiles.

    Args:
        plan: the grid and which of its tiles were wanted.
        failed: keys of the tiles that failed.

    Returns:
        (m, n) bool cells, (n + 1,) x edges and (m + 1,) y edges in overlay pixels.
    """
    bits = np.frombuffer(base64.b64decode(plan.wanted), np.uint8)
    seen = np.unpackbits(bits, count=plan.rows * plan.cols).astype(np.float32).reshape(plan.rows, plan.cols)
    for key in failed:
        row, col = (int(part) for part in key.split("_"))
        seen[row, col] = 0
    xs, across = _cells(plan.cols, plan.offset_px[0], plan, plan.width_px)
    ys, down = _cells(plan.rows, plan.offset_px[1], plan, plan.height_px)
    return (down.T @ seen @ across) > 0, xs, ys


def _cells(count: int, offset_px: int, plan: TilePlan, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the cells along an axis, and (count, cells) which cells each tile covers."""
    starts = np.clip(offset_px + np.arange(count) * plan.stride_px, 0, size_px)
    ends = np.clip(offset_px + np.arange(count) * plan.stride_px + plan.tile_px, 0, size_px)
    edges = np.unique(np.concatenate([starts, ends]))
    covers = (edges[:-1][None] >= starts[:, None]) & (edges[:-1][None] < ends[:, None])
    return edges, covers.astype(np.float32)


def _query_report(
    index: int, spec: JobSpec, info: SlideInfo, regions: Sequence[Region], tally: _Tally, coverage: Mapping[str, Any]
) -> dict[str, Any]:
    """One question with its answer in numbers and words."""
    area_um2 = sum(region.area_um2 for region in regions)
    largest = max(regions, key=lambda region: (region.area_um2, -region.label), default=None)
    said = [{"text": text, "tiles": count} for text, count in tally.said.most_common(SAID_SHOWN) if text]
    looked_um2 = coverage["looked_at_um2"]
    share = min(1.0, area_um2 / looked_um2) if looked_um2 else 0.0
    if largest is None:
        sentences = _not_found(spec, tally, said, coverage)
    else:
        sentences = _found(info, regions, largest, area_um2, share, looked_um2)
    return {
        "query_index": index,
        "query": spec.queries[index],
        "found": largest is not None,
        "answer": " ".join(sentences),
        "details": sentences[1:],
        "regions": len(regions),
        "area_um2": round(area_um2, 3),
        "share_of_looked_at": round(share, 6),
        "largest_region": largest.region_id if largest else None,
        "tiles_emitted": tally.emitted,
        "tiles_silent": tally.silent,
        "second_looks": tally.second_looks,
        "silent_tiles_said": said,
    }


def _found(
    info: SlideInfo, regions: Sequence[Region], largest: Region, area_um2: float, share: float, looked_um2: float
) -> list[str]:
    """The answer's sentences when there are regions."""
    words = [
        f"Found: {count_words(len(regions), 'region')}, together {area_words(area_um2)}, "
        f"{percent_words(share)} of the {area_words(looked_um2)} looked at."
    ]
    place = place_phrase(largest.centroid_px0, info)
    name = "It lies" if len(regions) == 1 else f"The largest ({area_words(largest.area_um2)}) lies"
    words.append(f"{name} {place}.")
    conclusion = conclusion_of(largest.chain)
    if conclusion:
        words.append(f"Its reasoning chain concludes: “{conclusion}”")
    return words


def _not_found(
    spec: JobSpec, tally: _Tally, said: Sequence[Mapping[str, Any]], coverage: Mapping[str, Any]
) -> list[str]:
    """The answer's sentences when there is none: plainly, and what the model said instead."""
    if not coverage["looked_at"]:
        return ["Nothing was looked at, so nothing can be said."]
    tiles, looked_um2 = coverage["looked_at"], coverage["looked_at_um2"]
    words = [f"Not found in the {count_words(tiles, 'tile')} looked at ({area_words(looked_um2)})."]
    if tally.emitted:
        words.append(
            f"{count_words(tally.emitted, 'tile')} pointed at something, but no region of at least "
            f"{area_words(spec.min_region_um2)} reached the threshold of {spec.threshold:g}."
        )
    if said:
        share = f"{said[0]['tiles']:,} of {tally.emitted + tally.silent:,}"
        words.append(f"What most tiles said ({share}): “{said[0]['text']}”")
    return words


def _whole_answer(
    queries: Sequence[Mapping[str, Any]],
    coverage: Mapping[str, Any],
    exemplar: Mapping[str, Any] | None,
    slide_id: str,
) -> str:
    """The answer to everything asked, what it was compared with, and what was not looked at."""
    if len(queries) == 1:
        parts = [queries[0]["answer"]]
    else:
        parts = [f"“{query['query']}”: {query['answer']}" for query in queries]
    shown = [] if exemplar is None else [exemplar_words(exemplar, slide_id)]
    return "\n".join([*parts, *shown, coverage_words(coverage)])


def _region_report(region: Region, info: SlideInfo) -> dict[str, Any]:
    """A region without its outline, which stands in the GeoJSON under the same id."""
    entry = region.to_json()
    del entry["polygon_px0"]
    entry["conclusion"] = conclusion_of(region.chain)
    entry["place"] = place_words(region.centroid_px0, info)
    return entry


def _slide_report(spec: JobSpec, info: SlideInfo) -> dict[str, Any]:
    """What the slide says of itself."""
    names = ("width_px0", "height_px0", "mpp_x", "mpp_y", "mpp_source", "objective_power", "vendor", "content_hash")
    bounds = list(info.bounds_px0) if info.bounds_px0 else None
    return {"slide_id": spec.slide_id, **{name: getattr(info, name) for name in names}, "bounds_px0": bounds}


def _parameters(spec: JobSpec, plan: TilePlan) -> dict[str, Any]:
    """Everything that shaped the result."""
    return {
        "mpp": plan.mpp,
        "overlay_px": [plan.width_px, plan.height_px],
        "scale": [plan.scale_x, plan.scale_y],
        "tile_px": plan.tile_px,
        "stride_px": plan.stride_px,
        "grid_offset_px": list(spec.grid_offset_px),
        "threshold": spec.threshold,
        "min_region_um2": spec.min_region_um2,
        "min_coverage": spec.min_coverage,
        "second_look": spec.second_look,
        "tissue": spec.tissue,
        "roi_polygons": len(spec.roi),
        "mpp_override": spec.mpp_override,
        "connectivity": 4,
    }


def write_report_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_report_html(
    path: Path,
    report: Mapping[str, Any],
    overlay_root: Path,
    slide: "Slide",
    exemplar: np.ndarray | None = None,
) -> None:
    """Write the report as one self-contained page.

    Args:
        path: where to.
        report: from `build_report`.
        overlay_root: the overlay that holds the labels.
        slide: the open slide, for the pictures.
        exemplar: (T, T, 3) uint8 RGB, the exemplar with its outline; None when there was none.
    """
    # Loaded here so that whoever only builds a report needs neither jinja2 nor pictures.
    from worker.report_page import render_page

    path.write_text(render_page(report, overlay_root, slide, exemplar), encoding="utf-8")
