"""The overlay on disk: OME-Zarr 0.5, one RGB reference, one label group and one probability per query.

Source: NGFF 0.5, https://ngff.openmicroscopy.org/0.5/.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from worker.attempts import (  # noqa: F401 - re-exported: the disk side of a block has one address
    attempt_folder,
    publish,
    read_records,
    read_summaries,
    write_records,
    write_summary,
)
from worker.colors import query_color
from worker.pyramid import CHUNK_PX, Level, halve_mean, level_metadata, levels_of, open_level, write_shard
from worker.types import Block, SlideInfo, TilePlan

if TYPE_CHECKING:
    from worker.slides import Slide

NGFF_VERSION = "0.5"
REFERENCE_MAX_PX = 4096
REFERENCE_SOURCE_PX = 2**30
"""Source pixels that the reference may cost; beyond it is sampled."""

CODEC = ZstdCodec(level=1, checksum=False)


def create_overlay(root: Path, plan: TilePlan, info: SlideInfo, queries: Sequence[str]) -> None:
    """Write the metadata of every group and array; no pixel yet.

    Args:
        root: the overlay's folder; made anew.
        plan: size, resolution and blocks.
        info: the slide; its name is not known here and never written.
        queries: the questions, in order; query i lives at `labels/{i}` and `probability/{i}`.
    """
    shutil.rmtree(root, ignore_errors=True)
    levels = levels_of(plan)
    image = zarr.create_group(store=str(root), zarr_format=3, attributes=_image_attributes(plan, levels, info))
    for level in levels:
        _create_array(image, str(level.index), level, "uint8", channels=3)

    names = [str(index) for index in range(len(queries))]
    # vizarr reads `labels` of 0.5 only at the top level of the attributes.
    labels = image.create_group(
        "labels", attributes={"ome": {"version": NGFF_VERSION, "labels": names}, "labels": names}
    )
    probability = image.create_group("probability", attributes={"queries": list(queries)})
    for name, query in zip(names, queries, strict=True):
        group = labels.create_group(name, attributes=label_attributes(plan, query, (), int(name)))
        for level in levels:
            _create_array(group, str(level.index), level, "uint32")
        group = probability.create_group(name, attributes={"ome": _multiscales(plan, levels, query, "mean", False)})
        for level in levels:
            _create_array(group, str(level.index), level, "uint8")


def label_attributes(
    plan: TilePlan, query: str, properties: Sequence[Mapping[str, Any]], query_index: int
) -> dict[str, Any]:
    """The attributes of a label group.

    Args:
        plan: size and resolution.
        query: its question.
        properties: one mapping per region with `label-value` first; empty before finish.
        query_index: chooses the colour.

    Returns:
        A JSON-ready dict under `ome`, as NGFF 0.5 `image-label` says.
    """
    rgba = [*query_color(query_index), 255]
    image_label: dict[str, Any] = {"version": NGFF_VERSION, "source": {"image": "../../"}}
    # The schema wants at least one colour, and colours and properties of the same labels.
    labels = [entry["label-value"] for entry in properties] or [1]
    image_label["colors"] = [{"label-value": label, "rgba": rgba} for label in labels]
    if properties:
        image_label["properties"] = [dict(entry) for entry in properties]
    ome = _multiscales(plan, levels_of(plan), query, "mode", False)
    return {"ome": {**ome, "image-label": image_label}}


def _image_attributes(plan: TilePlan, levels: Sequence[Level], info: SlideInfo) -> dict[str, Any]:
    """Attributes of the image group: multiscales, omero, and which levels hold pixels."""
    channels = [
        {
            "label": label,
            "color": color,
            "active": True,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": {"min": 0, "max": 255, "start": 0, "end": 255},
        }
        for label, color in (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))
    ]
    ome = _multiscales(plan, levels, "slide", "mean", True)
    ome["omero"] = {"channels": channels, "rdefs": {"model": "color", "defaultT": 0, "defaultZ": 0}}
    written = [level.index for level in levels if is_reference_level(level)]
    frame = {"scale_x": plan.scale_x, "scale_y": plan.scale_y, "bounds_px0": info.bounds_px0}
    return {"ome": ome, "slidereason": {"reference_levels": written, **frame, "use": "Research use only"}}


def _multiscales(plan: TilePlan, levels: Sequence[Level], name: str, kind: str, channels: bool) -> dict[str, Any]:
    """The `multiscales` of a group; level l is scaled by 2^l and shifted by (2^l - 1)/2 pixels, centre on centre."""
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    datasets = []
    for level in levels:
        scale = [plan.mpp * 2**level.index] * 2
        translation = [plan.mpp * (2**level.index - 1) / 2] * 2
        if channels:
            scale, translation = [1.0, *scale], [0.0, *translation]
        transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
        datasets.append({"path": str(level.index), "coordinateTransformations": transformations})
    if channels:
        axes.insert(0, {"name": "c", "type": "channel"})
    method = {"description": f"each level is the {kind} of 2x2 pixels of the finer one"}
    return {
        "version": NGFF_VERSION,
        "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": kind, "metadata": method}],
    }


def _create_array(group: zarr.Group, name: str, level: Level, dtype: str, channels: int = 0) -> None:
    """Create the metadata of one level: sharded, zstd, nothing written where nothing is."""
    leading = (channels,) if channels else ()
    group.create_array(
        name,
        shape=(*leading, level.height_px, level.width_px),
        dtype=dtype,
        chunks=(*(1 for _ in leading), CHUNK_PX, CHUNK_PX),
        shards=(*leading, level.shard_px, level.shard_px),
        filters=None,
        compressors=CODEC,
        fill_value=255 if channels else 0,
        dimension_names=["c", "y", "x"] if channels else ["y", "x"],
    )


def is_reference_level(level: Level) -> bool:
    """Whether the RGB reference is written at this level: where it costs little."""
    return max(level.height_px, level.width_px) <= REFERENCE_MAX_PX


def write_reference(root: Path, plan: TilePlan, info: SlideInfo, slide: "Slide") -> None:
    """Write the RGB reference pyramid at the levels that cost little.

    Args:
        root: an overlay made by `create_overlay`.
        plan: size and resolution.
        info: the slide's levels.
        slide: the open slide; read at the finest level written, the others follow by means.
    """
    image = None
    for level in levels_of(plan):
        if not is_reference_level(level):
            continue
        image = _read_reference(slide, plan, info, level) if image is None else halve_mean(image)
        open_level(root, "", level.index, "r+")[...] = np.moveaxis(image, 2, 0)


def _read_reference(slide: "Slide", plan: TilePlan, info: SlideInfo, level: Level) -> np.ndarray:
    """The whole slide at one level, (h, w, 3) uint8.

    A huge slide without a pyramid would have to be decoded as a whole: there the reference is its sampled thumbnail.
    """
    factor_x, factor_y = plan.scale_x * 2**level.index, plan.scale_y * 2**level.index
    factors = zip(info.level_downsamples, info.level_dimensions, strict=True)
    sizes = [size for factor, size in factors if factor <= max(1.0, min(factor_x, factor_y))]
    source_px = min((width * height for width, height in sizes), default=info.width_px0 * info.height_px0)
    if source_px > REFERENCE_SOURCE_PX:
        image = slide.thumbnail(max(level.height_px, level.width_px))
        return cv2.resize(image, (level.width_px, level.height_px), interpolation=cv2.INTER_AREA)
    width_px0, height_px0 = level.width_px * factor_x, level.height_px * factor_y
    return slide.read_px0(0, 0, width_px0, height_px0, level.width_px, level.height_px)


def write_block(
    job_root: Path, folder: Path, plan: TilePlan, block: Block, query_index: int, probability: np.ndarray
) -> None:
    """Write a block's probability at every level where it owns whole shards.

    Args:
        job_root: the job's folder, its overlay already created.
        folder: the attempt's folder; mirrors the root.
        plan: the levels.
        block: the block.
        query_index: which query.
        probability: (height_px, width_px) uint8, probability · 255.

    Raises:
        ValueError: the probability's shape or dtype is not the block's.
    """
    if probability.shape != (block.height_px, block.width_px) or probability.dtype != np.uint8:
        raise ValueError(f"block {block.key}: expected uint8 of {(block.height_px, block.width_px)} pixels")
    for level in levels_of(plan):
        if not level.owned:
            return
        if level.index:
            probability = halve_mean(probability)
        write_shard(job_root, folder, f"probability/{query_index}", level, block.row, block.col, probability)
        # The metadata was only borrowed to write with: a block publishes shards and nothing else of the store.
        level_metadata(folder, f"probability/{query_index}", level).unlink(missing_ok=True)
