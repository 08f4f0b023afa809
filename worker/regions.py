"""Regions: the labels of the overlay as polygons with holes, each with the chain that found it.

Polygons follow the pixels' edges, block by block, and are joined along the blocks' common edges; coordinates are whole
overlay pixels until the end, so areas are exact.
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

from model.data.stain_shift import TrainedStain
from worker.components import CONNECTIVITY, first_pixels, local_components
from worker.evidence import weigh_evidence
from worker.pyramid import OVERLAY, block_places, block_slices, has_shard, open_level
from worker.types import JobSpec, Region, SlideInfo, TilePlan, TileRecord

STAIR_TOLERANCE_PX = 1.0
"""Perimeters are measured on outlines without the stairs of the pixels, which are up to 41 % too long. On discs
and turned rectangles this is within 3.5 %."""

NAMELESS = uuid.UUID("3f0f5c0e-6d0c-5b43-9a55-7f0d8f1b0c11")
"""Namespace for jobs whose id is not itself a UUID."""


@dataclass
class _Evidence:
    """What the tiles say of one region, while records are read: confidence-weighted pixels by tile key."""

    shares: dict[str, float] = field(default_factory=dict)


@dataclass
class _Walk:
    """What one walk over the blocks of a query collects.

    Attributes:
        pieces: polygons of each label, in overlay pixels.
        area_px: pixels of each label; probability: sum of their uint8 probabilities.
        label_of: `{block_key}` → final label of each block-local component (index 0 unused).
    """

    pieces: dict[int, list[BaseGeometry]] = field(default_factory=dict)
    area_px: dict[int, int] = field(default_factory=dict)
    probability: dict[int, int] = field(default_factory=dict)
    label_of: dict[str, np.ndarray] = field(default_factory=dict)


def region_uuid(job_id: str, query_index: int, label: int) -> str:
    """The one id of a region, the same in every export.

    Args:
        job_id: the job; its UUID is the namespace.
        query_index: which query.
        label: the region's value in the overlay of that query.

    Returns:
        uuid5 of the job and `"{query_index}/{label}"`.
    """
    try:
        namespace = uuid.UUID(job_id)
    except ValueError:
        namespace = uuid.uuid5(NAMELESS, job_id)
    return str(uuid.uuid5(namespace, f"{query_index}/{label}"))


def find_regions(*args: Any, **kwargs: Any) -> list[Region]:
    """All regions at once; `iter_regions` says how and takes the same arguments."""
    return list(iter_regions(*args, **kwargs))


def without_polygon(region: Region) -> Region:
    """A light copy, for what needs no outline."""
    return replace(region, polygon_px0={})


def iter_regions(
    job_root: Path,
    folder: Path,
    plan: TilePlan,
    info: SlideInfo,
    job_id: str,
    spec: JobSpec,
    records: Iterable[TileRecord],
    trained: TrainedStain | None = None,
) -> Iterator[Region]:
    """Make the regions one by one.

    Args:
        job_root: the job's folder with its published probability.
        folder: where the labels are: the attempt folder of `finish`, or the job's folder once published.
        plan: how the slide was cut.
        info: the slide's frame.
        job_id: namespace of the ids.
        spec: queries and threshold.
        records: what the tiles said, of all queries.
        trained: the stains the model was trained on; None when they are not known.

    Yields:
        Regions ordered by query and label.
    """
    walks = [_walk_blocks(job_root, folder, plan, spec, query) for query in range(len(spec.queries))]
    evidence, tiles = _gather_evidence(walks, records)
    for query_index, walk in enumerate(walks):
        for label in sorted(walk.pieces):
            pieces = walk.pieces.pop(label)
            polygon = pieces[0] if len(pieces) == 1 else shapely.union_all(pieces).simplify(0)
            shares = evidence.get((query_index, label), _Evidence()).shares
            area_px = walk.area_px[label]
            yield Region(
                region_id=region_uuid(job_id, query_index, label),
                query_index=query_index,
                label=label,
                area_um2=round(area_px * plan.mpp**2, 3),
                confidence=round(walk.probability[label] / area_px / 255, 4),
                **_measures(polygon, plan, info),
                **_argument(shares, tiles, query_index, plan, trained),
            )


def _walk_blocks(job_root: Path, folder: Path, plan: TilePlan, spec: JobSpec, query_index: int) -> _Walk:
    """Polygons, areas and probabilities of every label of a query, and what the blocks' components became."""
    name = f"labels/{query_index}"
    labels_array = open_level(folder / OVERLAY, name, 0)
    probability_array = open_level(job_root / OVERLAY, f"probability/{query_index}", 0)
    walk = _Walk()
    for row, col in block_places(plan):
        if not has_shard(folder / OVERLAY, name, 0, row, col):
            continue
        where = block_slices(plan, row, col)
        labels = labels_array[where].astype(np.int32)
        probability = probability_array[where]
        local, count = local_components(probability, spec.threshold)
        label_of = np.zeros(count + 1, np.int32)
        label_of[1:] = labels.ravel()[first_pixels(local, count)]
        walk.label_of[f"{row}_{col}"] = label_of
        _count(walk, label_of, local, probability)
        for label, polygon in _block_polygons(labels, where[1].start, where[0].start):
            walk.pieces.setdefault(label, []).append(polygon)
    return walk


def _count(walk: _Walk, label_of: np.ndarray, local: np.ndarray, probability: np.ndarray) -> None:
    """Add a block's pixels and probabilities to the totals of its labels, component by component."""
    inside = local > 0
    components = local[inside]
    areas = np.bincount(components, minlength=len(label_of))
    sums = np.bincount(components, weights=probability[inside], minlength=len(label_of))
    for component in np.flatnonzero(label_of).tolist():
        label = int(label_of[component])
        walk.area_px[label] = walk.area_px.get(label, 0) + int(areas[component])
        walk.probability[label] = walk.probability.get(label, 0) + int(sums[component])


def _block_polygons(labels: np.ndarray, left: int, top: int) -> Iterator[tuple[int, BaseGeometry]]:
    """(label, polygon) of each connected piece of a block, in overlay pixels."""
    shapes = rasterio.features.shapes(
        labels, mask=labels > 0, connectivity=CONNECTIVITY, transform=Affine.translation(left, top)
    )
    for geometry, label in shapes:
        shell, *holes = geometry["coordinates"]
        polygon = shapely.Polygon(shell, holes)
        # A hole that touches the outline in one corner comes as one self-touching ring.
        yield int(label), polygon if polygon.is_valid else shapely.make_valid(polygon)


def _gather_evidence(
    walks: list[_Walk], records: Iterable[TileRecord]
) -> tuple[dict[tuple[int, int], _Evidence], dict[tuple[int, str], TileRecord]]:
    """Which tiles made or saw each region, and the records of those tiles."""
    evidence: dict[tuple[int, int], _Evidence] = {}
    tiles: dict[tuple[int, str], TileRecord] = {}
    for record in records:
        for component, share in record.shares.items():
            block_key, local = component.split("/")
            table = walks[record.query_index].label_of.get(block_key)
            label = 0 if table is None else int(table[int(local)])
            if label == 0:
                continue
            shares = evidence.setdefault((record.query_index, label), _Evidence()).shares
            shares[record.key] = shares.get(record.key, 0.0) + share
            known = tiles.get((record.query_index, record.key))
            if known is None or (record.owned and not known.owned):
                tiles[record.query_index, record.key] = replace(record, shares={})
    return evidence, tiles


def _argument(
    shares: dict[str, float],
    tiles: dict[tuple[int, str], TileRecord],
    query_index: int,
    plan: TilePlan,
    trained: TrainedStain | None,
) -> dict[str, Any]:
    """The chain of a region, the tiles for and against it, and what is known of them."""
    if not shares:
        return {"agreement": None, "chain": "", "chain_tile": {}}
    said = {key: tiles[query_index, key] for key in shares}
    order = sorted(shares, key=lambda key: tuple(int(part) for part in key.split("_")))
    best = max(order, key=lambda key: (shares[key] > 0 and said[key].emitted, shares[key]))
    support = tuple(key for key in order if key != best and said[key].emitted and shares[key] > 0)
    dissent = tuple(key for key in order if key != best and key not in set(support))
    made = [key for key in (best, *support) if said[key].agreement is not None and shares[key] > 0 and len(said) > 1]
    weight = sum(shares[key] for key in made)
    agreement = round(sum(shares[key] * said[key].agreement for key in made) / weight, 4) if weight else None
    return {
        "agreement": agreement,
        "chain": said[best].text,
        "chain_tile": _chain_tile(said[best], shares[best] / (sum(shares.values()) or 1.0), plan),
        "support": support,
        "dissent": dissent,
        **weigh_evidence(shares, said, best, agreement, trained),
    }


def _chain_tile(record: TileRecord, share: float, plan: TilePlan) -> dict[str, Any]:
    """Which tile spoke, where it lies, and how much of the region it made."""
    x0, y0 = record.x_px, record.y_px
    x1, y1 = x0 + record.size_px, y0 + record.size_px
    return {
        "key": record.key,
        "x_px": x0,
        "y_px": y0,
        "size_px": record.size_px,
        "bbox_px0": _scaled_box(x0, y0, x1, y1, plan),
        "confidence": round(record.confidence, 4),
        "p_seg": round(record.p_seg, 4),
        "second_look": record.second_look,
        "share": round(share, 4),
    }


def _scaled_box(x0: float, y0: float, x1: float, y1: float, plan: TilePlan) -> tuple[float, float, float, float]:
    """A box of overlay pixels in level-0 pixels."""
    sx, sy = plan.scale_x, plan.scale_y
    return (round(x0 * sx, 2), round(y0 * sy, 2), round(x1 * sx, 2), round(y1 * sy, 2))


def _measures(polygon: BaseGeometry, plan: TilePlan, info: SlideInfo) -> dict[str, Any]:
    """Outline, perimeter, box and centroid of a polygon in overlay pixels."""
    factors = np.array([plan.scale_x, plan.scale_y])
    # The overlay's last row and column may reach a fraction of a pixel beyond the slide.
    corner = np.array([info.width_px0, info.height_px0], float)
    outline = shapely.transform(polygon, lambda points: np.round(np.minimum(points * factors, corner), 2))
    centroid = polygon.centroid
    return {
        "polygon_px0": shapely.geometry.mapping(shapely.orient_polygons(outline)),
        "perimeter_um": round(polygon.simplify(STAIR_TOLERANCE_PX, preserve_topology=False).length * plan.mpp, 3),
        "bbox_px0": tuple(round(float(value), 2) for value in outline.bounds),
        "centroid_px0": (round(centroid.x * plan.scale_x, 2), round(centroid.y * plan.scale_y, 2)),
    }
