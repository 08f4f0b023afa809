"""What more workers give: 1, 2 and 4 of them on one job.

The servers are this benchmark's own: a PostgreSQL with fsync, and a redis-server, both on unix sockets.
"""

from collections import defaultdict
from collections.abc import Iterator

import pytest

from benchmarks.record import Bench, Measurement
from benchmarks.run import Unavailable
from tests.faults.cluster import Cluster, cluster
from tests.faults.slides import write_islands
from worker import queue
from worker.types import JobSpec

SLEEPER = "tests.segmenters:slow_segmenter"
BATCH_S = 1.0
BATCH = 4
"""Tiles of a batch, and of a block."""

THREADS = 4
"""Blocks that a worker has in hand, so that its batches are full."""

BLOCK_PX = 512
WORKERS = (1, 2, 4)
CLOSED_WITHIN_S = 1800


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Scaling with a segmenter that sleeps."""
    columns, rows = (4, 3) if bench.quick else (20, 12)
    try:
        found = _scaling(bench, columns, rows)
    except pytest.skip.Exception as error:
        raise Unavailable(str(error)) from error
    return found, (
        f"a made slide of {columns * rows} blocks of {BATCH} tiles, seed {bench.seed}, for a segmenter that sleeps "
        f"{BATCH_S:g} s a batch of {BATCH}"
    )


def _scaling(bench: Bench, columns: int, rows: int) -> list[Measurement]:
    """Seconds from the first claim of a block to the last commit, paired: each repetition runs every number once."""
    slides = bench.work / "slides"
    slides.mkdir()
    path = write_islands(slides / "islands.tif", columns, rows, BLOCK_PX, bench.seed)
    spec = JobSpec(
        str(path), path.name, ("nuclei",), mpp=1.0, overlap=0.0, block_px=BLOCK_PX, second_look=False, tissue="off",
        model=SLEEPER,
    )  # fmt: skip
    seconds, whole = defaultdict(list), defaultdict(list)
    for repetition in range(bench.repeats):
        for workers in WORKERS:
            folder = bench.work / f"cluster-{repetition}-{workers}"
            options = {"workers": workers, "gateways": 0, "lease_s": 30.0, "sweep_s": 10.0, "THREADS": THREADS}
            with cluster(folder, slides, SLEEPER, TEST_DELAY_S=BATCH_S, MAX_BATCH=BATCH, **options) as made:
                blocks_s, job_s = _run(made, spec)
                # Nobody is faster than the segmenter sleeps: who is was answered from memory, and measured nothing.
                least_s = columns * rows * BATCH_S / workers
                assert blocks_s > 0.95 * least_s, f"{blocks_s:.1f} s for what takes {least_s:.1f} s at least"
                seconds[workers].append(blocks_s)
                whole[workers].append(job_s)
    return [measurement for workers in WORKERS for measurement in _scaled(workers, seconds, whole, columns * rows)]


def _run(made: Cluster, spec: JobSpec) -> tuple[float, float]:
    """(seconds of the blocks, seconds of the whole job)."""
    job_id, _ = made.ledger.create_job(spec)
    with queue.make_app(made.redis.url) as app:
        queue.submit(app, spec.model)
    (row,) = made.closed([job_id], CLOSED_WITHIN_S)
    assert (row.status, row.coverage) == ("successful", 1.0), row
    ((blocks_s,),) = made.counted("SELECT max(at) - min(at) FROM audit WHERE kind = 'segment'")
    return float(blocks_s), (row.finished - row.created).total_seconds()


def _scaled(workers: int, seconds: dict, whole: dict, blocks: int) -> Iterator[Measurement]:
    notes = {"blocks": blocks, "workers": workers, "whole job, s": whole[workers]}
    yield Measurement(f"blocks of one job, {workers} workers", "s", tuple(seconds[workers]), notes)
    if workers > 1:
        paired = zip(seconds[1], seconds[workers], strict=True)
        shares = tuple(one / (workers * several) for one, several in paired)
        yield Measurement(f"efficiency of {workers} workers", "of linear", shares, {"wanted": 0.95})
