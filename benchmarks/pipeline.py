"""The whole job on a synthetic slide with known truth: time, memory, and Dice, in one process without a broker."""

import shutil
import time
from dataclasses import replace

from benchmarks.record import Bench, Measurement, peak_memory_mb
from benchmarks.run import Unavailable
from model.cli import segmenter_by_name
from model.data.synthetic_slide import write_synthetic_slide
from worker.cli import dice_of
from worker.inline import run_job_inline
from worker.types import JobSpec

QUESTIONS = {
    "tumour": "Where is the tumour?",
    "gland": "Where are the glands?",
    "lymphocytes": "Show me the lymphocytes.",
}


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """One job with one query per repetition, then one job for each further concept, for its Dice."""
    try:
        segmenter = segmenter_by_name(bench.model)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(f"no segmenter {bench.model!r}: {error}") from error
    size = (2048, 1536) if bench.quick else (8192, 6144)
    path, out = bench.work / "slide.tif", bench.work / "out"
    truth = write_synthetic_slide(path, bench.seed, *size, mpp=0.5)
    concepts = list(QUESTIONS)[: 1 if bench.quick else None]
    spec = JobSpec(str(path), path.name, (QUESTIONS[concepts[0]],), model=bench.model)
    rates, seconds, measurements = [], [], []
    for _ in range(bench.repeats):
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        job = run_job_inline(spec, out, segmenter).job
        seconds.append(time.perf_counter() - started)
        rates.append(job.tiles_done / seconds[-1])
    measurements.append(Measurement("one job, one query", "s", tuple(seconds), {"tiles": job.tiles_done}))
    measurements.append(Measurement("one job, one query, rate", "tiles/s", tuple(rates)))
    for concept in concepts:
        question = QUESTIONS[concept]
        run_job_inline(replace(spec, queries=(question,)), out, segmenter, overwrite=True)
        value = dice_of(out, truth.mask(concept))
        measurements.append(Measurement(f"Dice of {concept}", "", (value,), {"query": question}))
    measurements.append(Measurement("peak memory", "MB", (peak_memory_mb(),)))
    return measurements, (
        f"synthetic slide, seed {bench.seed}, {size[0]} × {size[1]} px at 0.5 µm/px, looked at with "
        f"{segmenter.card.default_mpp} µm/px; model {segmenter.card.name}, revision {segmenter.card.revision}"
    )
