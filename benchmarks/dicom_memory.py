"""Peak memory and time of the DICOM exports of an overlay of 40,000 × 40,000 pixels."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from benchmarks.record import Bench, Measurement, peak_memory_mb
from tests.segmenters import hue_segmenter
from tests.worker.overlay_job import JOB_ID, make_info, make_plan
from worker.attempts import attempt_folder, publish
from worker.exports.dicom_ann import write_dicom_ann
from worker.exports.dicom_seg import write_dicom_seg
from worker.exports.geojson import write_geojson
from worker.exports.job_results import JobResults
from worker.labels import build_labels
from worker.overlay import create_overlay, write_block
from worker.pyramid import OVERLAY
from worker.regions import iter_regions, without_polygon
from worker.report import build_report, write_report_json
from worker.types import Block, JobSpec

SIDE_PX, QUICK_PX = 40_000, 8_192
BLOCK_PX = 4096
SPARSE = 8
"""One block in so many holds anything, where the content is sparse."""

LIMIT_MB = 400.0


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Each export in a process of its own, of an overlay with regions here and there, and of one full of them."""
    side_px = QUICK_PX if bench.quick else SIDE_PX
    measurements = []
    for content, every in (("sparse", SPARSE), ("dense", 1)):
        results = make_results(bench.work / content, side_px, every)
        regions = len(results.report["regions"])
        for name, write in (("segmentation", write_dicom_seg), ("annotations", write_dicom_ann)):
            path = bench.work / f"{content}.dcm"
            before_mb, peak_mb, seconds = export_in_child(write, results, path)
            notes = {
                "before_mb": round(before_mb, 1), "seconds": round(seconds, 1), "regions": regions,
                "file_mb": round(path.stat().st_size / 2**20, 1), "limit_mb": LIMIT_MB, "kept": peak_mb < LIMIT_MB,
            }  # fmt: skip
            measurements.append(Measurement(f"peak memory, {name}, {content}", "MB", (round(peak_mb, 1),), notes))
    return measurements, f"overlay of {side_px} x {side_px} px, ragged regions in every block or one in {SPARSE}"


def export_in_child(
    write: Callable[[JobResults, Path], None], results: JobResults, path: Path
) -> tuple[float, float, float]:
    """Memory in MB before, and at its peak, and seconds of an export in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # a copy without the report that this process has read: the child reads its own
    child = context.Process(target=_export, args=(write, replace(results), path, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def _export(write: Callable[[JobResults, Path], None], results: JobResults, path: Path, answer) -> None:
    before_mb, started = peak_memory_mb(), time.perf_counter()
    write(results, path)
    answer.send((before_mb, peak_memory_mb(), time.perf_counter() - started))
    answer.close()


def make_results(root: Path, side_px: int, every: int) -> JobResults:
    """A finished job with thousands of ragged regions in every `every`th block; as the pipeline leaves it.

    Args:
        root: becomes the job's folder.
        side_px: edge of the overlay.
        every: 1 fills all blocks.
    """
    plan, info = make_plan(side_px, side_px, block_px=BLOCK_PX), make_info(2 * side_px, 2 * side_px)
    spec = JobSpec("slide", "slide", ("tumour",), min_region_um2=100.0)
    create_overlay(attempt_folder(root, "plan", 1) / OVERLAY, plan, info, spec.queries)
    publish(root, "plan", 1)
    probability = _ragged()
    for key in plan.block_keys[::every]:
        row, col = map(int, key.split("_"))
        x, y = col * BLOCK_PX, row * BLOCK_PX
        width, height = min(BLOCK_PX, side_px - x), min(BLOCK_PX, side_px - y)
        block = Block(row, col, x, y, width, height, (), (), frozenset())
        write_block(root, attempt_folder(root, key, 1), plan, block, 0, probability[:height, :width])
        publish(root, key, 1)
    folder = attempt_folder(root, "finish", 1)
    build_labels(root, folder, plan, spec)
    light = []
    write_geojson(
        folder / "regions.geojson",
        (light.append(without_polygon(region)) or region
         for region in iter_regions(root, folder, plan, info, JOB_ID, spec, ())),
        spec, JOB_ID, info,
    )  # fmt: skip
    report = build_report(JOB_ID, spec, plan, info, light, (), asdict(hue_segmenter().card))
    write_report_json(folder / "report.json", report)
    publish(root, "finish", 1)
    return JobResults(JOB_ID, spec, plan, info, datetime(2026, 11, 26, tzinfo=UTC), root)


def _ragged() -> np.ndarray:
    """One block of clouds with ragged edges, uint8."""
    noise = cv2.GaussianBlur(np.random.default_rng(8).random((1024, 1024)).astype(np.float32), (0, 0), 4)
    clouds = np.clip((cv2.resize(noise, (BLOCK_PX, BLOCK_PX)) - 0.52) * 8 + 0.5, 0, 1)
    return (clouds * 255).astype(np.uint8)
