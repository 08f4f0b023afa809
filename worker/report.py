"""The report of a job: what was asked, what was found, why, and what was not looked at.

One dict carries everything, as `report_schema.json` describes it; JSON, HTML, Markdown and PDF are faces of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data.stain_shift import TrainedStain
from worker.answers import Tally, answer_query, whole_answer
from worker.evidence import pool_stain
from worker.looked_at import Failures, measure_coverage
from worker.types import JobSpec, Region, SlideInfo, TilePlan, TileRecord
from worker.wording import conclusion_of, place_words

if TYPE_CHECKING:
    from worker.slides import Slide

USE = "Research use only. Not for use in diagnostic procedures."
SCHEMA = "slidereason.report/1"


@dataclass
class _Stains:
    """The stains of tiles, each counted once, however many questions were asked of it.

    Attributes:
        trained: what the model was trained on; None when it is not known, and then nothing is counted.
        tiles, far: tiles with tissue, and those of them whose stain is far.
        total: (6,) sum of their templates.
    """

    trained: TrainedStain | None
    tiles: int = 0
    far: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(6))

    def add(self, record: TileRecord) -> None:
        """Count a record of a tile that was looked at."""
        if self.trained is None or record.stain is None or record.query_index:
            return
        self.tiles += 1
        self.far += self.trained.distance_sd(record.stain) > self.trained.limit_sd
        self.total += record.stain

    def pooled(self) -> dict[str, Any] | None:
        """The report's `stain`."""
        pooled = pool_stain([(self.total / self.tiles, 1.0)] if self.tiles else [], self.trained)
        return pooled and pooled | {"tiles": self.tiles, "far_tiles": self.far}


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
    stains = _Stains(TrainedStain.from_json(card.get("stain") or {}))
    tallies, failures = _count_tiles(len(spec.queries), records, stains)
    coverage, stain = measure_coverage(plan, info, spec, failures), stains.pooled()
    queries = [
        answer_query(index, spec, info, [region for region in regions if region.query_index == index], tally, coverage)
        for index, tally in enumerate(tallies)
    ]
    report = {
        "schema": SCHEMA,
        "use": USE,
        "job_id": job_id,
        "answer": whole_answer(queries, coverage, stain, exemplar, spec.slide_id),
        "queries": queries,
        "exemplar": None if exemplar is None else dict(exemplar),
        "coverage": coverage,
        "stain": stain,
        "regions": [_region_report(region, info) for region in regions],
        "slide": _slide_report(spec, info),
        "parameters": _parameters(spec, plan),
        "model": _model_report(card),
    }
    if timings is not None:
        report["timings_s"] = {name: round(seconds, 3) for name, seconds in timings.items()}
    return report


def _count_tiles(n_queries: int, records: Iterable[TileRecord], stains: _Stains) -> tuple[list[Tally], Failures]:
    """One pass over the records of all queries; a tile is counted where it is owned."""
    tallies, failures = [Tally() for _ in range(n_queries)], Failures()
    for record in records:
        if not record.owned:
            continue
        if record.error is not None:
            failures.add(record)
            continue
        stains.add(record)
        tallies[record.query_index].add(record)
    return tallies, failures


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


def _model_report(card: Mapping[str, Any]) -> dict[str, Any]:
    """The model's card without its figures; `stain` is None where the stains it was trained on are not known."""
    return {name: value for name, value in card.items() if name != "figures"} | {"stain": card.get("stain") or None}


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
