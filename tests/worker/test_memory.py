"""A sparse overlay of 100,000 x 100,000 pixels is finished within a bounded memory."""

import multiprocessing
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.record import peak_memory_mb
from tests.worker.overlay_job import JOB_ID, make_info, make_plan
from worker.attempts import attempt_folder, publish
from worker.exports.geojson import write_geojson
from worker.labels import build_labels
from worker.overlay import create_overlay, write_block
from worker.pyramid import OVERLAY, levels_of, open_level
from worker.regions import iter_regions
from worker.types import Block, JobSpec

SIDE_PX = 100_000
BUSY = ((8, 8), (8, 9), (9, 8), (23, 23))
LIMIT_GB = 2.0


def finish_sparse_overlay(root: str, answer) -> None:
    """Fill a few blocks with thousands of ragged regions, finish, and send what it took."""
    root = Path(root)
    plan, info = make_plan(SIDE_PX, SIDE_PX, block_px=4096), make_info(SIDE_PX, SIDE_PX)
    spec = JobSpec("slide", "slide", ("tumour",), min_region_um2=100.0)
    create_overlay(attempt_folder(root, "plan", 1) / OVERLAY, plan, info, spec.queries)
    publish(root, "plan", 1)
    for row, col in BUSY:
        block = Block(row, col, col * 4096, row * 4096, 4096, 4096, (), (), frozenset())
        noise = cv2.GaussianBlur(np.random.default_rng(row).random((1024, 1024)).astype(np.float32), (0, 0), 4)
        picture = np.clip((cv2.resize(noise, (4096, 4096)) - 0.52) * 8 + 0.5, 0, 1)
        folder = attempt_folder(root, block.key, 1)
        write_block(root, folder, plan, block, 0, (picture * 255).astype(np.uint8))
        publish(root, block.key, 1)
    folder = attempt_folder(root, "finish", 1)
    (count,) = build_labels(root, folder, plan, spec)
    regions = iter_regions(root, folder, plan, info, JOB_ID, spec, ())
    written = write_geojson(folder / "regions.geojson", regions, spec, JOB_ID, info)
    coarsest = open_level(folder / OVERLAY, "labels/0", levels_of(plan)[-1].index)[:]
    peak_gb = peak_memory_mb() * 1024 / 1e6
    answer.send((count, written, peak_gb, int(np.count_nonzero(coarsest))))
    answer.close()


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=finish_sparse_overlay, args=(str(tmp_path), sender))
    child.start()
    sender.close()
    try:
        count, written, peak_gb, coarse_pixels = receiver.recv()
    finally:
        child.join()
        shutil.rmtree(tmp_path / OVERLAY, ignore_errors=True)
    assert child.exitcode == 0
    assert written == count > 1000
    assert coarse_pixels > 0
    assert peak_gb < LIMIT_GB, f"{peak_gb:.2f} GB"
