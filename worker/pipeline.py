"""The whole walk: plan a slide, segment its blocks, finish the job. The only room that calls the stages.

    plan_job       slide, tissue, tiles -> blocks; the overlay's metadata, the RGB reference and the exemplar
    segment_block  read -> ask -> second looks -> blend -> probability shards and tile records; the hot loop
    finish_job     labels, pyramids, regions, reports
    export_job     one foreign form of a finished job's results

Each works in an attempt folder of its own that its caller publishes once the ledger has committed it, so each may run
twice, at once, or half.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model.data.stain_shift import TrainedStain
from model.segmenter import SegmenterCard
from worker import labels, metrics, regions, report
from worker.artifacts import JobStore
from worker.attempts import read_records, write_records, write_summary
from worker.batches import read_tiles
from worker.blend import BlockBlend, needs_second_look, tile_probability
from worker.components import component_shares, local_components
from worker.engine import Engine
from worker.errors import BadRequest, CoverageTooLow, TileFailed
from worker.exemplar import FOLDER as EXEMPLAR
from worker.exemplar import PICTURE, JobExemplar, read_exemplar, take_exemplar, write_exemplar, write_png
from worker.exports.catalogue import EXPORTS
from worker.exports.geojson import write_geojson
from worker.exports.job_results import WANTED, JobResults
from worker.job_slide import open_unchanged
from worker.ledger_units import BlockRow, Work
from worker.looks import Asker, Look, Looks, Picture, probabilities, silent_tiles, take_looks
from worker.overlay import create_overlay, write_block
from worker.plan import block_of, plan_tiles
from worker.provisional import MOST_REGIONS, provisional_regions, write_provisional
from worker.pyramid import level_metadata, levels_of
from worker.slides import Slide, open_slide
from worker.survey import survey_slide, write_slide_reference
from worker.tissue import find_tissue
from worker.types import Block, JobSpec, Region, SlideInfo, Tile, TilePlan, TileRecord

QUARANTINED = "quarantined: two workers were lost while it was in flight"


class Watch(Protocol):
    """What a unit of work tells its owner while it runs."""

    def check(self) -> None:
        """Raise JobDismissed or LeaseLost when the work is to stop."""

    def cancelled(self) -> bool:
        """The same as a question."""

    def begin_tile(self, key: str | None) -> None:
        """An isolated block is about to run this tile."""

    def tile_done(self, failed: bool) -> None:
        """A tile that the block owns is through."""


@dataclass(frozen=True)
class Planned:
    """A planned job: the plan, the slide, and the number of tiles each block owns, in running order."""

    plan: TilePlan
    info: SlideInfo
    tiles_of: dict[str, int]


@dataclass(frozen=True)
class BlockResult:
    """A segmented block: counts of the tiles it owns, and its summary."""

    tiles_done: int
    tiles_failed: int
    summary: dict[str, Any]


def plan_job(store: JobStore, work: Work, card: SegmenterCard, watch: Watch) -> Planned:
    """Inspect the slide, cut it into tiles and blocks, and lay out the overlay.

    Args:
        store: the job's files; written to `attempts/plan/{token}` only.
        work: the plan unit.
        card: the segmenter's tile size and mpp.
        watch: told nothing but asked whether to stop.

    Raises:
        SlideNotFound, SlideUnreadable, MppUnknown, BadRequest: the job cannot be done as asked.
    """
    spec = work.spec
    if spec.tile_size_px not in (None, card.tile_size_px):
        raise BadRequest(f"tile_size_px must be {card.tile_size_px}, the size {card.name} takes", field="tile_size_px")
    if spec.exemplar is not None and not card.exemplars:
        raise BadRequest(f"{card.name} takes no exemplar; ask by words alone, or another model", field="exemplar")
    info, thumbnail = survey_slide(spec)
    tissue = None if thumbnail is None else find_tissue(thumbnail)
    plan = plan_tiles(info, spec, tissue, card.tile_size_px, card.default_mpp)
    exemplar = None if spec.exemplar is None else take_exemplar(spec.exemplar, plan.mpp, plan.tile_px)
    watch.check()
    folder = store.attempt("plan", work.token)
    if exemplar is not None:
        write_exemplar(folder, exemplar)
    create_overlay(folder / "overlay.zarr", plan, info, spec.queries)
    write_slide_reference(folder / "overlay.zarr", plan, info, spec)
    return Planned(plan, info, {key: len(block_of(plan, key).owned) for key in plan.block_keys})


def segment_block(store: JobStore, work: Work, engine: Engine, watch: Watch) -> BlockResult:
    """Segment one block.

    Args:
        store: the job's files; written to `attempts/{block}/{token}` only.
        work: the block; isolated, its tiles run one by one, each recorded before it starts.
        engine: answers.
        watch: told of each owned tile, asked between tiles whether to stop.

    Raises:
        JobDismissed, LeaseLost: the work is to stop.
        SlideReasonError: the slide is gone or no longer opens.
    """
    spec, plan = work.spec, work.plan
    store.publish("plan", work.plan_token)
    store.fetch(*files_of_plan(plan, spec))
    block = block_of(plan, work.key)
    ask = asker(work, engine, watch, exemplar_of(store.root, spec))
    with open_slide(spec.slide_path, spec.mpp_override) as slide:
        looks = first_looks(slide, block, work, watch, ask)
        if spec.second_look:
            looks |= second_looks(slide, block, work, watch, replace(ask, forced=True), looks)
    watch.begin_tile(None)
    folder = store.attempt(work.key, work.token)
    records, found = [], []
    for index in range(len(spec.queries)):
        mine = [looks[index, tile.key] for tile in block.tiles + block.halo]
        with metrics.stage("blend"):
            blend = BlockBlend(block, plan.tile_px, spec.threshold)
            for look in mine:
                if look.error is None:
                    blend.add(look.tile, look.probability)
            probability = blend.result()
        with metrics.stage("write"):
            write_block(store.root, folder, plan, block, index, probability)
        with metrics.stage("blend"):
            components, _ = local_components(probability, spec.threshold)
        told = tile_records(mine[: len(block.tiles)], block, blend, components)
        with metrics.stage("write"):
            found += provisional_regions(
                work.job_id, plan, block, index, probability, components, told, spec.min_region_um2,
                max(1, MOST_REGIONS // len(spec.queries)),
            )  # fmt: skip
        records += told
    write_provisional(folder, block.key, found)
    return close_block(folder, block, records, len(found))


def files_of_plan(plan: TilePlan, spec: JobSpec) -> list[str]:
    """Keys of what a block needs of the published plan: the metadata of the arrays it writes, and the exemplar."""
    written = [
        level_metadata(Path(), f"probability/{index}", level).as_posix()
        for index in range(len(spec.queries))
        for level in levels_of(plan)
        if level.owned
    ]
    return written if spec.exemplar is None else [*written, f"{EXEMPLAR}/"]


def exemplar_of(job_root: Path, spec: JobSpec) -> JobExemplar | None:
    """The exemplar of a job that has been planned, None when it has none."""
    return None if spec.exemplar is None else read_exemplar(job_root)


def first_looks(slide: Slide, block: Block, work: Work, watch: Watch, ask: Asker) -> Looks:
    """Ask every query of every tile of the block and its halo."""
    looks: Looks = {}
    everything = range(len(work.spec.queries))
    last = everything[-1]
    pictures = read_pictures(slide, block.tiles + block.halo, work, watch)
    for look in take_looks(pictures, lambda _: everything, work.spec.queries, ask):
        looks[look.query_index, look.tile.key] = look
        if look.query_index == last and look.tile.key in block.owned:
            asked = [looks[index, look.tile.key] for index in everything]
            faults = [each.fault for each in asked if each.error is not None]
            if faults:
                metrics.tile_failed(faults[0])
            watch.tile_done(bool(faults))
    return looks


def second_looks(slide: Slide, block: Block, work: Work, watch: Watch, ask: Asker, first: Looks) -> Looks:
    """Ask silent tiles again, a mask forced, where a neighbour's mask crosses into them.

    Only first looks are evidence, so every block comes to the same answer about a tile.
    """
    asked: dict[str, list[int]] = {}
    for index in range(len(work.spec.queries)):
        known = probabilities(first, index)
        if any(probability is not None for probability in known.values()):
            for tile in silent_tiles(block.tiles, first, index):
                if needs_second_look(tile, known, work.plan.stride_px, work.spec.threshold):
                    asked.setdefault(tile.key, []).append(index)
    again = [tile for tile in block.tiles if tile.key in asked]
    pictures = read_pictures(slide, again, work, watch)
    looks = take_looks(pictures, lambda tile: asked[tile.key], work.spec.queries, ask)
    # A second look that failed leaves the first one's word.
    return {(look.query_index, look.tile.key): look for look in looks if look.error is None}


def asker(work: Work, engine: Engine, watch: Watch, exemplar: JobExemplar | None) -> Asker:
    """How this unit asks the engine."""
    return Asker(
        engine=engine, mpp=work.plan.mpp, to_probability=tile_probability, check=watch.check,
        cancelled=watch.cancelled, alone=work.isolated, exemplar=exemplar and exemplar.shown,
        tile_first=len(work.spec.queries) > 1,
    )  # fmt: skip


def read_pictures(slide: Slide, tiles: Iterable[Tile], work: Work, watch: Watch) -> Iterator[Picture]:
    """Pixels of each tile, ahead of the consumer; one by one and recorded first when the block is isolated."""
    if not work.isolated and not work.quarantined:
        yield from metrics.timed(read_tiles(slide, work.plan, tiles), "read")
        return
    for tile in tiles:
        if tile.key in work.quarantined:
            yield tile, TileFailed(f"tile {tile.key} is {QUARANTINED}", field="tile", subject=tile.key)
            continue
        if work.isolated:
            watch.begin_tile(tile.key)
        yield from metrics.timed(read_tiles(slide, work.plan, [tile], threads=1, ahead=1), "read")


def tile_records(looks: Iterable[Look], block: Block, blend: BlockBlend, components: np.ndarray) -> list[TileRecord]:
    """What is remembered of a block's tiles for one query: all it owns, and the others that made a component."""
    records = []
    for look in looks:
        tile, owned, shares = look.tile, look.tile.key in block.owned, {}
        if look.error is None:
            shares = component_shares(components, block, tile, look.probability, look.confidence)
        if owned or shares:
            records.append(
                TileRecord(
                    key=tile.key, query_index=look.query_index, x_px=tile.x_px, y_px=tile.y_px, size_px=tile.size_px,
                    text=look.text, emitted=look.emitted, p_seg=look.p_seg, confidence=look.confidence,
                    second_look=look.second, agreement=blend.agreement(tile) if look.error is None else None,
                    shares=shares, error=look.error, owned=owned, stain=look.stain, claims=look.claims,
                )
            )  # fmt: skip
    return records


def close_block(folder: Path, block: Block, records: list[TileRecord], provisional: int = 0) -> BlockResult:
    """Write a block's records and summary, and count its tiles; `provisional` regions of it were written before."""
    owned = [record for record in records if record.owned]
    failed = {record.key for record in owned if record.error is not None}
    summary = {
        "tiles": len(block.owned),
        "failed": len(failed),
        "emitted": dict(Counter(str(record.query_index) for record in owned if record.emitted)),
        "second_looks": sum(record.second_look for record in owned),
        "provisional": provisional,
    }
    write_records(folder, block.key, records)
    write_summary(folder, block.key, summary)
    return BlockResult(len(block.owned) - len(failed), len(failed), summary)


def finish_job(
    store: JobStore, work: Work, blocks: list[BlockRow], card: SegmenterCard, watch: Watch
) -> dict[str, Any]:
    """Unite the blocks into labels, regions and reports.

    Args:
        store: the job's files; written to `attempts/finish/{token}`, after publishing every committed block.
        work: the finish unit.
        blocks: the job's blocks as the ledger has them.
        card: the segmenter that did it.
        watch: asked between steps whether to stop.

    Returns:
        The job's result: `answer`, number of `regions`, `failed_tiles`, `coverage`.

    Raises:
        CoverageTooLow: fewer tiles were looked at than the job's `min_coverage`.
    """
    spec, plan, info = work.spec, work.plan, work.slide
    coverage = require_coverage(work)
    store.publish("plan", work.plan_token)
    store.publish_all({block.key: block.token for block in blocks if block.state == "done"})
    store.fetch("")
    job_root, folder = store.root, store.attempt("finish", work.token)
    labels.build_labels(job_root, folder, plan, spec)
    watch.check()

    def records() -> Iterable[TileRecord]:
        return chain(read_records(job_root, plan), lost_records(plan, spec, blocks))

    light: list[Region] = []
    trained = TrainedStain.from_json(card.stain)
    found = regions.iter_regions(job_root, folder, plan, info, work.job_id, spec, records(), trained)
    write_geojson(folder / "regions.geojson", keep_light(found, light, watch.check), spec, work.job_id, info)
    labels.write_properties(job_root, folder, plan, spec, light)
    exemplar = exemplar_of(job_root, spec)
    drawn = exemplar and exemplar.shown.drawn()
    if exemplar is not None:
        write_png(folder / PICTURE, drawn)
    about = exemplar and exemplar.about
    body = report.build_report(work.job_id, spec, plan, info, light, records(), asdict(card), exemplar=about)
    report.write_report_json(folder / "report.json", body)
    with open_slide(spec.slide_path, spec.mpp_override) as slide:
        report.write_report_html(folder / "report.html", body, folder / "overlay.zarr", slide, drawn)
    counts = Counter(region.query_index for region in light)
    return {
        "answer": body["answer"],
        "regions": len(light),
        "regions_by_query": [counts[index] for index in range(len(spec.queries))],
        "coverage": coverage,
        "failed_tiles": work.tiles_failed,
    }


def export_job(store: JobStore, work: Work, watch: Watch) -> None:
    """Write one export of a finished job.

    Args:
        store: the job's files; written to `attempts/export.{name}/{token}`.
        work: the export unit.
        watch: asked before it starts whether to stop.

    Raises:
        BadRequest: there is no such export (any more).
    """
    export = EXPORTS.get(work.key)
    if export is None:
        raise BadRequest(f"there is no export {work.key!r}; there are {', '.join(EXPORTS)}", field="name")
    store.fetch(*WANTED)
    watch.check()
    path = store.attempt(f"export.{work.key}", work.token) / export.key
    path.parent.mkdir(parents=True)
    finished = datetime.fromtimestamp(work.finished, UTC)
    opener = partial(open_unchanged, work.spec, work.slide)
    export.load()(JobResults(work.job_id, work.spec, work.plan, work.slide, finished, store.root, opener), path)


def require_coverage(work: Work) -> float:
    """The share of the wanted tiles that was looked at; 1 when none was wanted."""
    coverage = work.tiles_done / work.plan.n_tiles if work.plan.n_tiles else 1.0
    if coverage < work.spec.min_coverage:
        raise CoverageTooLow(
            f"{work.tiles_failed} of {work.plan.n_tiles} tiles failed: coverage {coverage:.0%} is below "
            f"min_coverage {work.spec.min_coverage:.0%}",
            field="min_coverage",
            subject=work.job_id,
        )
    return coverage


def keep_light(found: Iterable[Region], light: list[Region], check: Callable[[], None]) -> Iterator[Region]:
    """Pass regions on with their polygons, and keep them without: memory stays flat however many there are."""
    for region in found:
        check()
        light.append(regions.without_polygon(region))
        yield region


def lost_records(plan: TilePlan, spec: JobSpec, blocks: list[BlockRow]) -> Iterator[TileRecord]:
    """Records of the tiles of blocks that were given up, so that the report names them."""
    for row in blocks:
        if row.state != "failed":
            continue
        block = block_of(plan, row.key)
        for tile in block.tiles:
            for index in range(len(spec.queries)) if tile.key in block.owned else ():
                yield TileRecord(tile.key, index, tile.x_px, tile.y_px, tile.size_px, error=row.error or "block failed")
