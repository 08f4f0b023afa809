"""Provisional regions: what a block found, drawn in a few strokes, for who watches while the job runs.

They are no results. A region that crosses blocks comes in pieces, outlines are simplified, and only the largest pieces
of a block are told; when the job is done, its regions take their place. They lie beside the block's other records, are
published with the block, and have the same bytes whoever made them.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from scipy.ndimage import find_objects

from worker.attempts import BLOCKS
from worker.provisional_files import FILE_NAME
from worker.regions import region_uuid
from worker.types import Block, TilePlan, TileRecord

MOST_REGIONS = 40
"""Of one block, all queries together."""

LONGEST_PX = 256
"""Pieces longer than this are looked at in coarser pixels."""

COARSE = 4
"""Pieces so thin that a block's every fourth pixel misses them are not told."""

MOST_CORNERS, FEW_CORNERS, MOST_HOLES = 120, 30, 8
TOLERANCES = (0.75, 1.5, 3.0, 6.0, 12.0, 24.0)
"""In pixels of the piece as it is looked at: an outline is simplified until it has few corners."""

SENTENCE_LETTERS = 240
DIGITS_PX0 = 1


@dataclass(frozen=True)
class _Piece:
    """A component: its number in the block, its corner in the block's pixels, and what it covers from there on."""

    label: int
    x: int
    y: int
    mask: np.ndarray


def provisional_regions(
    job_id: str,
    plan: TilePlan,
    block: Block,
    query_index: int,
    probability: np.ndarray,
    components: np.ndarray,
    records: Sequence[TileRecord],
    min_region_um2: float,
    most: int = MOST_REGIONS,
) -> list[dict[str, Any]]:
    """The largest pieces that a block found for a query.

    Args:
        job_id, plan, block, query_index: where it was found.
        probability: (h, w) uint8, the block's, probability · 255.
        components: (h, w) int32, the block's, from `local_components`.
        records: what the tiles said of this query.
        min_region_um2: of the job; a smaller piece is left out, unless it may go on in the next block.
        most: so many pieces at most.

    Returns:
        GeoJSON features in level-0 pixels, the largest first.
    """
    if not components.any():
        return []
    said = _speakers(block.key, records)
    features = []
    for piece in _largest(components, plan, min_region_um2, most):
        height, width = piece.mask.shape
        step = max(1, -(-max(width, height) // LONGEST_PX))
        mask = piece.mask[::step, ::step]
        if not mask.any():  # so thin that the coarser pixels miss it
            continue
        outline = _outline(mask, step, (block.x_px + piece.x, block.y_px + piece.y), plan)
        sure = probability[piece.y : piece.y + height : step, piece.x : piece.x + width : step][mask].mean() / 255
        speaker = said.get(piece.label)
        features.append(
            {
                "type": "Feature",
                "id": _name(job_id, query_index, block.key, piece.label),
                "geometry": outline,
                "properties": {
                    "query": query_index,
                    "block": block.key,
                    "area_um2": round(int(np.count_nonzero(piece.mask)) * plan.mpp**2, 3),
                    "confidence": round(float(sure), 4),
                    "chain": "" if speaker is None else first_sentence(speaker.text),
                    "provisional": True,
                },
            }
        )
    return features


def write_provisional(folder: Path, block_key: str, features: Sequence[dict[str, Any]]) -> None:
    """Write a block's provisional regions below an attempt's folder, one JSON line each; nothing where there are none.

    Args:
        folder: the attempt's folder.
        block_key: the block.
        features: of all queries.
    """
    if features:
        target = folder / BLOCKS / block_key / FILE_NAME
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(feature, ensure_ascii=False, separators=(",", ":")) for feature in features)
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def first_sentence(text: str) -> str:
    """The first sentence of a chain, cut where it is long."""
    text = " ".join(text.split())
    for end, letter in enumerate(text):
        if letter in ".!?" and text[end + 1 : end + 2] in ("", " "):
            text = text[: end + 1]
            break
    return text if len(text) <= SENTENCE_LETTERS else text[: SENTENCE_LETTERS - 1].rstrip() + "…"


def _largest(components: np.ndarray, plan: TilePlan, min_region_um2: float, most: int) -> Iterator[_Piece]:
    """The pieces that may become a region, the largest first. They are chosen by every `COARSE`-th pixel of a block."""
    step = COARSE if min(components.shape) > LONGEST_PX else 1
    coarse = components[::step, ::step]
    areas = np.bincount(coarse.ravel()) * step**2
    wanted = areas >= min_region_um2 / plan.mpp**2
    for edge in (components[0], components[-1], components[:, 0], components[:, -1]):
        wanted[edge[edge < len(wanted)]] = True  # it may go on in the next block
    wanted[0] = False
    wanted &= areas > 0
    labels = np.flatnonzero(wanted)
    labels = labels[np.argsort(-areas[labels], kind="stable")][:most]
    numbered = np.zeros(len(areas), np.int32)
    numbered[labels] = np.arange(1, len(labels) + 1)
    height, width = components.shape
    for label, (rows, cols) in zip(labels.tolist(), find_objects(numbered[coarse]), strict=True):
        top, left = max(0, (rows.start - 1) * step + 1), max(0, (cols.start - 1) * step + 1)
        bottom, right = min(height, rows.stop * step), min(width, cols.stop * step)
        inside = components[top:bottom, left:right] == label
        lines, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        inside = inside[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]
        yield _Piece(label, left + int(columns[0]), top + int(lines[0]), inside)


def _outline(mask: np.ndarray, step: int, corner_px: tuple[int, int], plan: TilePlan) -> dict[str, Any]:
    """The outline of one piece as GeoJSON in level-0 pixels.

    Args:
        mask: (h, w) bool, every `step`-th pixel. corner_px: (x, y) of its first pixel in the overlay.
    """
    contours, families = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = families[0][:, 3]
    sizes = np.array([len(contour) for contour in contours])
    shell = max(np.flatnonzero(parents < 0), key=lambda index: cv2.contourArea(contours[index]))
    holes = np.flatnonzero((parents == shell) & (sizes > 2))
    holes = holes[np.argsort(-sizes[holes], kind="stable")][:MOST_HOLES]
    edge = _grown(_points(contours[shell]), [_points(contours[index]) for index in holes])
    for tolerance in TOLERANCES:
        simple = edge.simplify(tolerance)
        if shapely.get_num_coordinates(simple) <= MOST_CORNERS:
            break
    else:
        simple = shapely.Polygon(max(_parts(edge), key=lambda part: part.area).exterior).convex_hull
    simple = max(_parts(simple), key=lambda part: part.area)
    scale = np.array([plan.scale_x, plan.scale_y])
    # pixel (0, 0) of the mask covers 0 to 1 there, -0.5 to 0.5 around its centre
    corner, limit = np.array(corner_px), np.array([plan.width_px, plan.height_px])
    placed = shapely.transform(
        simple,
        lambda points: np.round(np.clip((points + 0.5) * step + corner, 0, limit) * scale, DIGITS_PX0),
    )
    return json.loads(shapely.to_geojson(shapely.orient_polygons(placed)))


def _points(contour: np.ndarray) -> np.ndarray:
    """A contour's corners, (n, 2), without those that a pixel more or less would do away with."""
    fewer = cv2.approxPolyDP(contour, 0.75, closed=True) if len(contour) > FEW_CORNERS else contour
    return fewer[:, 0].astype(float)


def _grown(shell: np.ndarray, holes: list[np.ndarray]) -> shapely.Polygon | shapely.MultiPolygon:
    """What lies in a contour, which runs through the centres of the outermost pixels, out to these pixels' edges."""
    if len(shell) > 2:
        drawn = shapely.make_valid(shapely.Polygon(shell, [hole for hole in holes if len(hole) > 2]))
    else:
        drawn = shapely.MultiPoint(shell).convex_hull
    return drawn.buffer(0.5, cap_style="square", join_style="mitre")


def _parts(drawn: shapely.Polygon | shapely.MultiPolygon) -> list[shapely.Polygon]:
    return list(getattr(drawn, "geoms", [drawn]))


def _speakers(block_key: str, records: Sequence[TileRecord]) -> dict[int, TileRecord]:
    """Of each component of the block the tile that made most of it."""
    best: dict[int, tuple[tuple[bool, float], TileRecord]] = {}
    for record in records:
        for component, share in record.shares.items():
            key, _, label = component.partition("/")
            rank = (share > 0 and record.emitted, share)
            if key == block_key and (int(label) not in best or rank > best[int(label)][0]):
                best[int(label)] = (rank, record)
    return {label: record for label, (_, record) in best.items()}


def _name(job_id: str, query_index: int, block_key: str, label: int) -> str:
    """The same for a piece of a block whenever it is found; no region's id."""
    return str(uuid.uuid5(uuid.UUID(region_uuid(job_id, query_index, 0)), f"provisional/{block_key}/{label}"))
