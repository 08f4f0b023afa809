"""A finished job's folder from a picture of probabilities, for tests of everything behind the blend."""

import base64
from pathlib import Path

import numpy as np

from worker.attempts import attempt_folder, publish, read_records, write_records
from worker.components import component_shares, local_components
from worker.labels import build_labels, write_properties
from worker.overlay import create_overlay, write_block
from worker.pyramid import OVERLAY
from worker.regions import find_regions
from worker.types import Block, JobSpec, Region, SlideInfo, Tile, TilePlan, TileRecord

JOB_ID = "6f1c1b54-7d0a-4c8e-9a53-0d9c6a0c2b11"


def make_info(width_px0: int, height_px0: int, **changes) -> SlideInfo:
    facts = {
        "width_px0": width_px0,
        "height_px0": height_px0,
        "level_dimensions": ((width_px0, height_px0),),
        "level_downsamples": (1.0,),
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "mpp_source": "openslide.mpp",
        "objective_power": 20.0,
        "vendor": "synthetic",
        "content_hash": "0" * 16,
    }
    return SlideInfo(**{**facts, **changes})


def make_plan(
    width_px: int, height_px: int, block_px: int = 512, scale: tuple[float, float] = (2.0, 2.0), tile_px: int = 256
) -> TilePlan:
    rows, cols = -(-height_px // block_px), -(-width_px // block_px)
    stride_px = tile_px * 3 // 4
    tile_rows, tile_cols = -(-height_px // stride_px), -(-width_px // stride_px)
    return TilePlan(
        width_px=width_px,
        height_px=height_px,
        mpp=1.0,
        scale_x=scale[0],
        scale_y=scale[1],
        tile_px=tile_px,
        stride_px=stride_px,
        offset_px=(0, 0),
        rows=tile_rows,
        cols=tile_cols,
        block_px=block_px,
        block_keys=tuple(f"{row}_{col}" for row in range(rows) for col in range(cols)),
        wanted=base64.b64encode(np.packbits(np.ones(tile_rows * tile_cols, bool)).tobytes()).decode(),
        n_tiles=tile_rows * tile_cols,
        n_skipped=0,
    )


def make_block(plan: TilePlan, row: int, col: int) -> Block:
    left, top = col * plan.block_px, row * plan.block_px
    right, bottom = min(left + plan.block_px, plan.width_px), min(top + plan.block_px, plan.height_px)
    tiles, owned = [], set()
    for tile_row in range(plan.rows):
        for tile_col in range(plan.cols):
            tile = make_tile(plan, tile_row, tile_col)
            x, y = tile.x_px, tile.y_px
            if x < right and x + tile.size_px > left and y < bottom and y + tile.size_px > top:
                tiles.append(tile)
                x, y = min(tile.centre_px[0], plan.width_px - 1), min(tile.centre_px[1], plan.height_px - 1)
                if left <= x < right and top <= y < bottom:
                    owned.add(tile.key)
    return Block(row, col, left, top, right - left, bottom - top, tuple(tiles), (), frozenset(owned))


def make_tile(plan: TilePlan, row: int, col: int) -> Tile:
    return Tile(row, col, col * plan.stride_px, row * plan.stride_px, plan.tile_px)


def blocks_of(plan: TilePlan) -> list[Block]:
    return [make_block(plan, *map(int, key.split("_"))) for key in plan.block_keys]


def tile_view(picture: np.ndarray, tile: Tile) -> np.ndarray:
    """The tile's part of a picture (h, w) in [0, 1], 0 outside of it."""
    view = np.zeros((tile.size_px, tile.size_px), np.float32)
    part = picture[tile.y_px : tile.y_px + tile.size_px, tile.x_px : tile.x_px + tile.size_px]
    view[: part.shape[0], : part.shape[1]] = part
    return view


def segment_blocks(
    root: Path, plan: TilePlan, spec: JobSpec, pictures: list[np.ndarray], silent: tuple[str, ...] = (), order: int = 1
) -> None:
    """Create the overlay and publish every block; tiles that see nothing or are named in `silent` say nothing."""
    info = make_info(round(plan.width_px * plan.scale_x), round(plan.height_px * plan.scale_y))
    create_overlay(attempt_folder(root, "plan", 1) / OVERLAY, plan, info, spec.queries)
    publish(root, "plan", 1)
    for block in blocks_of(plan)[::order]:
        folder = attempt_folder(root, block.key, 1)
        records = []
        for query_index, picture in enumerate(pictures):
            rows, cols = slice(block.y_px, block.y_px + block.height_px), slice(block.x_px, block.x_px + block.width_px)
            probability = np.rint(picture[rows, cols] * 255).astype(np.uint8)
            write_block(root, folder, plan, block, query_index, probability)
            labels, _ = local_components(probability, spec.threshold)
            for tile in block.tiles:
                seen = tile_view(picture, tile)
                emitted = bool((seen >= spec.threshold).any()) and tile.key not in silent
                shares = component_shares(labels, block, tile, seen if emitted else None, 0.9)
                if tile.key in block.owned or shares:
                    records.append(
                        TileRecord(
                            key=tile.key,
                            query_index=query_index,
                            x_px=tile.x_px,
                            y_px=tile.y_px,
                            size_px=tile.size_px,
                            text=chain_of(tile.key) if emitted else "<think>Only stroma.</think> No tumour is present.",
                            emitted=emitted,
                            p_seg=0.9 if emitted else 0.1,
                            confidence=0.9 if emitted else 0.0,
                            agreement=0.8,
                            shares=shares,
                            owned=tile.key in block.owned,
                        )
                    )
        write_records(folder, block.key, records)
        publish(root, block.key, 1)


def chain_of(tile_key: str) -> str:
    return f"<think>Crowded glands in the upper left of tile {tile_key}.</think> Adenocarcinoma <SEG> is present."


def finish(root: Path, plan: TilePlan, spec: JobSpec) -> tuple[Path, list[Region]]:
    """Build labels and regions of a segmented job in the attempt folder of `finish`, not yet published."""
    folder = attempt_folder(root, "finish", 1)
    build_labels(root, folder, plan, spec)
    info = make_info(round(plan.width_px * plan.scale_x), round(plan.height_px * plan.scale_y))
    regions = find_regions(root, folder, plan, info, JOB_ID, spec, read_records(root, plan))
    write_properties(root, folder, plan, spec, regions)
    return folder, regions


def discs(width_px: int, height_px: int, *circles: tuple[int, int, int], value: float = 0.8) -> np.ndarray:
    """A picture (h, w) of probabilities with discs (x, y, radius)."""
    y, x = np.mgrid[:height_px, :width_px]
    picture = np.zeros((height_px, width_px), np.float32)
    for cx, cy, radius in circles:
        picture[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = value
    return picture
