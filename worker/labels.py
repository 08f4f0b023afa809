"""The labels of an overlay: block by block, numbered over the whole slide, with their pyramids.

Two walks over the published probability, one block in memory at a time: the first counts components and which of them
touch across block edges, the second writes their final numbers.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.components import first_pixels, local_components, touching_pairs, unite
from worker.overlay import label_attributes
from worker.pyramid import (
    OVERLAY,
    Level,
    block_places,
    block_slices,
    borrow_level,
    halve_mean,
    halve_mode,
    has_shard,
    levels_of,
    open_level,
    write_shard,
)
from worker.types import JobSpec, Region, TilePlan


@dataclass(frozen=True)
class Numbering:
    """The final number of every component of every block of one query.

    Attributes:
        first_id: {(block row, col): id of its first component}; ids run over all blocks, from 1.
        final: (n + 1,) uint32 final label of each id, 0 when dropped; entry 0 is the background.
        count: number of regions.
    """

    first_id: dict[tuple[int, int], int]
    final: np.ndarray
    count: int


def build_labels(job_root: Path, folder: Path, plan: TilePlan, spec: JobSpec) -> list[int]:
    """Number the regions of every query and write labels, their pyramid, and the coarse probabilities.

    Args:
        job_root: the job's folder with every block published.
        folder: the attempt folder of `finish`.
        plan: how the slide was cut.
        spec: threshold and the smallest region.

    Returns:
        The number of regions per query. Regions are 4-connected, at least `min_region_um2` large, and numbered
        densely by their first pixel in raster order.
    """
    counts = []
    for query_index in range(len(spec.queries)):
        numbering = number_components(job_root, plan, spec, query_index)
        counts.append(numbering.count)
        for level in levels_of(plan):
            borrow_level(job_root, folder, f"labels/{query_index}", level)
        _write_labels(job_root, folder, plan, spec, query_index, numbering)
        _write_coarse(job_root, folder, plan, f"labels/{query_index}", halve_mode, finest_in_attempt=True)
        _write_coarse(job_root, folder, plan, f"probability/{query_index}", halve_mean, finest_in_attempt=False)
    return counts


def _components(
    job_root: Path, plan: TilePlan, spec: JobSpec, query_index: int
) -> Iterator[tuple[tuple[int, int], np.ndarray, int]]:
    """The (place, labels, count) of each block that was written, in raster order."""
    name = f"probability/{query_index}"
    array = open_level(job_root / OVERLAY, name, 0)
    for row, col in block_places(plan):
        if has_shard(job_root / OVERLAY, name, 0, row, col):
            labels, count = local_components(array[block_slices(plan, row, col)], spec.threshold)
            yield (row, col), labels, count


def number_components(job_root: Path, plan: TilePlan, spec: JobSpec, query_index: int) -> Numbering:
    """The first walk: unite the blocks' components and number what is large enough.

    Args:
        job_root: the job's folder with every block published.
        plan: how the slide was cut.
        spec: threshold and the smallest region.
        query_index: which query.

    Returns:
        The numbering.
    """
    first_id: dict[tuple[int, int], int] = {}
    areas, firsts, pairs = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [np.zeros((0, 2), np.int64)]
    bottoms: dict[int, tuple[int, np.ndarray]] = {}
    right: tuple[tuple[int, int], np.ndarray] | None = None
    total = 0
    for (row, col), labels, count in _components(job_root, plan, spec, query_index):
        first_id[row, col] = total + 1
        areas.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
        firsts.append(_overlay_index(plan, row, col, first_pixels(labels, count), labels.shape[1]))
        above = bottoms.get(col)
        if above is not None and above[0] == row - 1:
            pairs.append(touching_pairs(above[1], _global_ids(labels[0], total)))
        if right is not None and right[0] == (row, col - 1):
            pairs.append(touching_pairs(right[1], _global_ids(labels[:, 0], total)))
        bottoms[col] = (row, _global_ids(labels[-1], total))
        right = ((row, col), _global_ids(labels[:, -1], total))
        total += count
    group_of, groups = unite(total, np.concatenate(pairs))
    final, count = _dense(
        group_of, groups, np.concatenate(areas)[1:], np.concatenate(firsts)[1:], spec.min_region_um2 / plan.mpp**2
    )
    return Numbering(first_id, final, count)


def _global_ids(edge: np.ndarray, before: int) -> np.ndarray:
    """The ids over all blocks along an edge of one of them."""
    ids = edge.astype(np.int64)
    ids[ids > 0] += before
    return ids


def _overlay_index(plan: TilePlan, row: int, col: int, pixels: np.ndarray, width: int) -> np.ndarray:
    """Raster index in the overlay of a block's flat pixel indices."""
    y = row * plan.block_px + pixels // width
    x = col * plan.block_px + pixels % width
    return y * plan.width_px + x


def _dense(
    group_of: np.ndarray, groups: int, areas: np.ndarray, firsts: np.ndarray, min_area_px: float
) -> tuple[np.ndarray, int]:
    """Final labels: groups of at least `min_area_px`, numbered from 1 by their first pixel."""
    area = np.zeros(groups, np.int64)
    np.add.at(area, group_of, areas)
    first = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(first, group_of, firsts)
    kept = np.flatnonzero(area >= min_area_px)
    kept = kept[np.argsort(first[kept], kind="stable")]
    label_of = np.zeros(groups, np.uint32)
    label_of[kept] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    return np.concatenate([np.zeros(1, np.uint32), label_of[group_of]]), len(kept)


def _write_labels(
    job_root: Path, folder: Path, plan: TilePlan, spec: JobSpec, query_index: int, numbering: Numbering
) -> None:
    """The second walk: write each block's labels at the levels whose shards it owns."""
    owned = [level for level in levels_of(plan) if level.owned]
    for (row, col), local, count in _components(job_root, plan, spec, query_index):
        first = numbering.first_id[row, col]
        table = np.concatenate([np.zeros(1, np.uint32), numbering.final[first : first + count]])
        if not table.any():
            continue
        labels = table[local]
        for level in owned:
            labels = halve_mode(labels) if level.index else labels
            write_shard(job_root, folder, f"labels/{query_index}", level, row, col, labels)


def _write_coarse(job_root: Path, folder: Path, plan: TilePlan, name: str, halve, finest_in_attempt: bool) -> None:
    """Write the levels whose shards no block owns, each from the next finer one.

    Args:
        job_root: where the array's metadata and published shards are.
        folder: the attempt's folder.
        plan: the levels.
        name: `labels/{i}` or `probability/{i}`.
        halve: how one level follows from the finer one.
        finest_in_attempt: whether the finest levels lie in the attempt (labels) or are published (probability).
    """
    levels = levels_of(plan)
    for finer, level in zip(levels, levels[1:], strict=False):
        if level.owned:
            continue
        root = (folder if finest_in_attempt or not finer.owned else job_root) / OVERLAY
        for row in range(-(-level.height_px // level.shard_px)):
            for col in range(-(-level.width_px // level.shard_px)):
                top, left = 2 * row * level.shard_px, 2 * col * level.shard_px
                values = _read_square(root, name, finer, top, left, 2 * level.shard_px)
                if values is not None:
                    write_shard(job_root, folder, name, level, row, col, halve(values))


def _read_square(root: Path, name: str, level: Level, top: int, left: int, size_px: int) -> np.ndarray | None:
    """A square of a level, clipped to it; None when none of its shards was written."""
    bottom, right = min(top + size_px, level.height_px), min(left + size_px, level.width_px)
    rows = range(top // level.shard_px, -(-bottom // level.shard_px))
    cols = range(left // level.shard_px, -(-right // level.shard_px))
    if not any(has_shard(root, name, level.index, row, col) for row in rows for col in cols):
        return None
    return open_level(root, name, level.index)[top:bottom, left:right]


def write_properties(job_root: Path, folder: Path, plan: TilePlan, spec: JobSpec, regions: Iterable[Region]) -> None:
    """Write what each label is into the label groups' metadata.

    Args:
        job_root: the job's folder with its overlay.
        folder: the attempt folder of `finish`.
        plan: size and resolution.
        spec: the queries.
        regions: all regions, in any order; polygons are not needed.
    """
    properties: list[list[dict]] = [[] for _ in spec.queries]
    for region in regions:
        properties[region.query_index].append(
            {
                "label-value": region.label,
                "region_id": region.region_id,
                "name": f"Region {region.label}",
                "area_um2": region.area_um2,
                "confidence": region.confidence,
            }
        )
    for query_index, query in enumerate(spec.queries):
        ordered = sorted(properties[query_index], key=lambda entry: entry["label-value"])
        path = Path(OVERLAY) / "labels" / str(query_index) / "zarr.json"
        metadata = json.loads((job_root / path).read_text(encoding="utf-8"))
        metadata["attributes"] = label_attributes(plan, query, ordered, query_index)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(metadata, indent=2, ensure_ascii=False), encoding="utf-8")
