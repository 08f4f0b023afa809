"""Finished jobs as an export gets them: one run by the real pipeline, and one of ten thousand regions."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.segmenter import Segmenter
from tests.jobs import hue_spec
from tests.made_slides import tissue_picture, write_pyramid
from tests.segmenters import hue_segmenter
from tests.worker.overlay_job import JOB_ID, finish, make_info, make_plan, segment_blocks
from worker.artifacts import LocalArtifacts
from worker.attempts import publish, read_records
from worker.engine import Engine
from worker.exports.geojson import write_geojson
from worker.exports.job_results import JobResults
from worker.job_slide import open_unchanged
from worker.ledger import Ledger
from worker.overlay import write_reference
from worker.regions import without_polygon
from worker.report import build_report, write_report_json
from worker.slides import open_slide
from worker.tasks import Runner
from worker.types import JobSpec

FINISHED = datetime(2026, 11, 26, 12, 0, 30, tzinfo=UTC)
EVIL = "Where are the nuclei? <b>bold</b> [link](http://evil.example/a) www.evil.example {nb} **x** | 核"
CARD = {"name": "hue", "revision": "abc123", "parameters": 12, "licence": "Apache-2.0", "targets": ("nuclei",)}
GRID = (102, 99)
"""Regions across and down of the job that has too many."""


def stained_slide(path: Path) -> Path:
    """A made slide with three purple spots, one with a hole."""
    picture = tissue_picture(1200, 900)
    for centre, radius in (((450, 400), 70), ((700, 500), 90), ((620, 260), 40)):
        cv2.circle(picture, centre, radius, (95, 50, 140), -1)
    cv2.circle(picture, (700, 500), 35, (205, 120, 170), -1)
    return write_pyramid(path, picture)


def run_job(root: Path, spec: JobSpec, segmenter: Segmenter) -> JobResults:
    """Run a job by the pipeline to its end, as a worker does."""
    artifacts, ledger = LocalArtifacts(root / "jobs", durable=False), Ledger(f"sqlite:///{root / 'ledger.sqlite'}")
    try:
        job_id, _ = ledger.create_job(spec, job_id=JOB_ID.replace("-", ""))
        with Engine(segmenter) as engine:
            runner = Runner(ledger, artifacts, engine, "tests", (spec.model,))
            while runner.run_one():
                pass
        job = ledger.job(job_id)
        assert job.status == "successful", job.message
        ledger.ask_export(job_id, "csv")
        work = ledger.claim_export("tests")
    finally:
        ledger.close()
    opener = partial(open_unchanged, spec, work.slide)
    return JobResults(job_id, spec, work.plan, work.slide, FINISHED, artifacts.job_folder(job_id), opener)


def real_job(root: Path) -> JobResults:
    """Two questions to a made slide, of which one carries all sorts of markup."""
    slide = stained_slide(root / "slide.tif")
    return run_job(root, replace(hue_spec(slide), queries=(EVIL, "Is there a gland?")), hue_segmenter())


def huge_job(root: Path) -> JobResults:
    """More than ten thousand tiny regions, of several sizes, on a made slide."""
    slide = write_pyramid(root / "slide.tif", tissue_picture(2080, 2000))
    plan, info = make_plan(1040, 1000), make_info(2080, 2000)
    spec = JobSpec(str(slide), "slide-7", ("Where are the nuclei?",), min_region_um2=4.0)
    segment_blocks(root, plan, spec, [many_squares(1040, 1000)])
    folder, regions = finish(root, plan, spec)
    with open_slide(slide) as opened:
        write_reference(root / "overlay.zarr", plan, info, opened)
        info = replace(info, content_hash=opened.info.content_hash)
    write_geojson(folder / "regions.geojson", regions, spec, JOB_ID, info)
    light = [without_polygon(region) for region in regions]
    report = build_report(JOB_ID, spec, plan, info, light, read_records(root, plan), CARD)
    write_report_json(folder / "report.json", report)
    publish(root, "finish", 1)
    return JobResults(JOB_ID, spec, plan, info, FINISHED, root, partial(open_unchanged, spec, info))


def many_squares(width_px: int, height_px: int) -> np.ndarray:
    """A picture (h, w) of probabilities with a grid of squares of 2 to 6 px."""
    picture = np.zeros((height_px, width_px), np.float32)
    columns, rows = GRID
    for row in range(rows):
        for column in range(columns):
            side = 2 + (row * 7 + column * 3) % 5
            picture[row * 10 + 2 : row * 10 + 2 + side, column * 10 + 2 : column * 10 + 2 + side] = 0.8
    return picture


def changed(results: JobResults, folder: Path, change: Any) -> JobResults:
    """The same job with a report changed in place by `change(report)`; its overlay stays where it is."""
    report = json.loads((results.folder / "report.json").read_text(encoding="utf-8"))
    change(report)
    folder.mkdir(parents=True, exist_ok=True)
    write_report_json(folder / "report.json", report)
    for name in ("overlay.zarr", "regions.geojson"):
        (folder / name).symlink_to(results.folder / name)
    return replace(results, folder=folder)
