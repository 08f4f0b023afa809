"""Whether the tile grid shows: the same job on a grid shifted by a third of a tile, with and without second looks.

`IoU` is that of the two overlays' masks; the disagreement is 1 − IoU. A perfect segmenter would not care where its
tiles begin.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from benchmarks.record import Bench, Measurement
from benchmarks.run import Unavailable
from model.cli import segmenter_by_name
from model.data.readers import data_folder
from model.data.synthetic_slide import write_synthetic_slide
from model.segmenter import Segmenter
from worker.inline import run_job_inline
from worker.types import JobSpec

QUERY = "Where is the tumour?"


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """IoU between the two grids on the synthetic slide, and on a real one where it is present."""
    try:
        segmenter = segmenter_by_name(bench.model)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(f"no segmenter {bench.model!r}: {error}") from error
    size = (2048, 1536) if bench.quick else (8192, 6144)
    synthetic = bench.work / "synthetic.tif"
    write_synthetic_slide(synthetic, bench.seed, *size, mpp=0.5)
    slides = {f"synthetic, seed {bench.seed}": synthetic}
    real = data_folder() / "slides" / "bcss" / "1008.tif"
    if real.exists() and not bench.quick:
        slides["bcss/1008.tif"] = real
    measurements = []
    for name, path in slides.items():
        for second_look in (True, False):
            spec = JobSpec(str(path), path.name, (QUERY,), second_look=second_look, model=bench.model)
            iou, first, second = compare(spec, segmenter, bench.work)
            notes = {"pixels": [first, second], "disagreement": 1 - iou}
            kind = "with" if second_look else "without"
            measurements.append(Measurement(f"{name}: IoU {kind} second looks", "", (iou,), notes))
    card = segmenter.card
    asked = f"{QUERY!r} at {card.default_mpp} µm/px"
    return measurements, f"{', '.join(slides)}; {asked}; model {card.name}, revision {card.revision}"


def compare(spec: JobSpec, segmenter: Segmenter, work: Path) -> tuple[float, int, int]:
    """Run a job on both grids; returns the IoU of the masks and the size of each."""
    third = segmenter.card.tile_size_px // 3
    masks = []
    for offset in ((0, 0), (third, third)):
        out = work / "out"
        run_job_inline(replace(spec, grid_offset_px=offset), out, segmenter, overwrite=True)
        masks.append(zarr.open_array(str(out / "overlay.zarr" / "labels" / "0" / "0"), mode="r")[...] > 0)
    union = int(np.count_nonzero(masks[0] | masks[1]))
    both = int(np.count_nonzero(masks[0] & masks[1]))
    return (both / union if union else 1.0), int(masks[0].sum()), int(masks[1].sum())
