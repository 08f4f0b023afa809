"""Peak memory of every process while a slide of 100,000 × 100,000 pixels is looked at everywhere."""

import re
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import psutil
import tifffile

from benchmarks.record import Bench, Measurement
from worker import embedded, queue
from worker.ledger import Ledger
from worker.types import JobSpec

SEGMENTER = "tests.segmenters:hue_segmenter"
"""Deterministic and small, so that what is measured is the pipeline's memory, not a network's."""

LIMIT_MB = 4000.0
SIZE_PX0 = 100_000
TILE_PX = 512
LEVELS = 4
MPP = 0.25
ISLANDS_PX0 = ((40_000, 40_000, 44_000, 44_000), (10_000, 60_000, 40_000, 90_000))
"""Where the slide holds tissue; the rest of its tiles are not stored."""

UM_PER_CM = 10_000
SAMPLE_S = 0.1


class PeakWatch:
    """The most resident memory each kind of child process ever had, in MB, by the kernel's own high-water mark."""

    def __init__(self) -> None:
        self.peaks_mb: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakWatch":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for child in psutil.Process().children(recursive=True):
                try:
                    kind, peak_mb = _kind(child.cmdline()), _high_water_mb(child.pid)
                except (psutil.Error, OSError):  # gone meanwhile
                    continue
                self.peaks_mb[kind] = max(peak_mb, self.peaks_mb.get(kind, 0.0))


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """One job over the whole slide, glass included, at its own resolution (quick: at 4 µm/px)."""
    mpp = 4.0 if bench.quick else MPP
    slide = write_sparse_slide(bench.work / "sparse.tif")
    spec = JobSpec(str(slide), slide.name, ("nuclei",), mpp=mpp, tissue="off", min_region_um2=50.0, model=SEGMENTER)
    with PeakWatch() as watch, embedded.start(bench.work / "data", SEGMENTER, threads=2, sweep_s=5.0) as service:
        ledger, app = Ledger(service.database_url), queue.make_app(service.broker_url)
        started = time.perf_counter()
        job_id, _ = ledger.create_job(spec)
        queue.submit(app, SEGMENTER)
        while (job := ledger.job(job_id)).open:
            time.sleep(0.5)
        seconds = time.perf_counter() - started
        ledger.close()
        app.close()
    if job.status != "successful":
        raise RuntimeError(f"the job ended {job.status}: {job.message}")
    measurements = [
        Measurement(f"peak memory of {kind}", "MB", (round(peak, 1),), {"limit_mb": LIMIT_MB, "kept": peak < LIMIT_MB})
        for kind, peak in sorted(watch.peaks_mb.items())
    ]
    notes = {"tiles": job.tiles_total, "regions": job.result["regions"], "blocks_at_once": 2}
    measurements.append(Measurement("one job", "s", (round(seconds, 1),), notes))
    return measurements, (
        f"sparse TIFF of {SIZE_PX0} × {SIZE_PX0} px at {MPP} µm/px, looked at everywhere with {mpp} µm/px; "
        f"segmenter {SEGMENTER}"
    )


def write_sparse_slide(path: Path) -> Path:
    """A pyramidal TIFF whose tissue is one stored tile repeated, dark discs on pink."""
    picture = np.full((TILE_PX, TILE_PX, 3), (225, 160, 200), np.uint8)
    for x, y, radius in ((120, 130, 60), (360, 200, 40), (250, 400, 70)):
        cv2.circle(picture, (x, y), radius, (80, 50, 120), -1)
    packed = zlib.compress(picture.tobytes(), 1)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(LEVELS):
            size = -(-SIZE_PX0 // 4**level)
            writer.write(
                _stored_tiles(size, 4**level, packed), shape=(size, size, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
                photometric="rgb", compression="zlib", subfiletype=int(level > 0), metadata=None,
                resolution=(UM_PER_CM / MPP, UM_PER_CM / MPP), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def _stored_tiles(size: int, factor: int, packed: bytes):
    islands = [tuple(value / factor for value in box) for box in ISLANDS_PX0]
    for y in range(0, size, TILE_PX):
        for x in range(0, size, TILE_PX):
            inside = any(x < x1 and x + TILE_PX > x0 and y < y1 and y + TILE_PX > y0 for x0, y0, x1, y1 in islands)
            yield packed if inside else b""


def _kind(command: list[str]) -> str:
    line = " ".join(command)
    if "worker.worker_main" in line:
        return "the worker"
    return "the slide's reader" if "slide_process" in line else "redis"


def _high_water_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0
