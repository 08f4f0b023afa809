"""Jobs under fire: what is asked, and the undisturbed answer that each overlay is compared with."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.segmenter import Segmenter
from tests.faults.client import Client
from tests.faults.cluster import Cluster
from tests.faults.slides import write_damaged, write_islands, write_sluggish
from tests.jobs import pixels_digest
from tests.segmenters import hue_segmenter
from worker.inline import run_job_inline
from worker.types import JobSpec

SIZES = {"one": (1, 1, 1024), "two": (2, 1, 1024), "four": (2, 2, 1024), "sixteen": (4, 4, 1024), "forty": (8, 5, 2048)}
"""(columns, rows, edge of a block) of each kind of slide."""

SLUGGISH, DAMAGED = "sluggish", "damaged"
ASKED_TWICE = 0.15
"""Share of the requests that a client sends again although it was answered."""


def write_slides(folder: Path, kinds: Sequence[str], seed: int = 0) -> Path:
    """Write a slide of each kind into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(kinds):
        path, own = folder / f"{kind}.tif", seed + number
        if kind == SLUGGISH:
            write_sluggish(path, seed=own)
        elif kind == DAMAGED:
            write_damaged(path, own)
        else:
            write_islands(path, *SIZES[kind], seed=own)
    return folder


def request(kind: str, **more: Any) -> dict[str, Any]:
    """A body of POST /v1/jobs."""
    return {"slide": f"file:{kind}.tif", "query": "Where are the nuclei?", "mpp": 1.0, "overlap": 0.25, **more}


@dataclass
class Asked:
    """Requests that several threads send, spread over some time, and the jobs that came of them.

    Attributes:
        jobs: {key: (kind of slide, job id)} of every accepted job.
    """

    client: Client
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    jobs: dict[str, tuple[str, str]] = field(default_factory=dict)
    trouble: list[BaseException] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, kind: str, key: str, twice: bool = False) -> str:
        """Ask once, or twice under the same key; returns the job id."""
        job_ids = {self.client.submit(request(kind), key)["jobID"] for _ in range(1 + twice)}
        assert len(job_ids) == 1, f"{key} gave two jobs: {job_ids}"
        (job_id,) = job_ids
        with self._lock:
            self.jobs[key] = (kind, job_id)
        return job_id

    def all(self, kinds: Sequence[str], within_s: float, threads: int = 4) -> None:
        """Ask for a job of each kind; returns when all are accepted."""
        plan = [(i, kind, self.rng.random() < ASKED_TWICE) for i, kind in enumerate(kinds)]
        started = time.monotonic()

        def work(mine: list[tuple[int, str, bool]]) -> None:
            try:
                for i, kind, twice in mine:
                    time.sleep(max(0.0, started + within_s * i / len(kinds) - time.monotonic()))
                    self.one(kind, f"key-{i}", twice)
            except BaseException as error:
                self.trouble.append(error)

        workers = [threading.Thread(target=work, args=(plan[i::threads],)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self.trouble:
            raise self.trouble[0]

    @property
    def job_ids(self) -> list[str]:
        """Of every accepted job."""
        with self._lock:
            return [job_id for _, job_id in self.jobs.values()]


class Undisturbed:
    """What jobs answer when nothing happens, in one process; each question is run once.

    Args:
        folder: for the runs.
        segmenter: that answers.
    """

    def __init__(self, folder: Path, segmenter: Segmenter | None = None):
        self._folder = folder
        self._segmenter = segmenter or hue_segmenter()
        self._known: dict[str, dict[str, str]] = {}

    def digest(self, spec: JobSpec) -> dict[str, str]:
        """`tests.jobs.pixels_digest` of the undisturbed overlay."""
        question = repr(spec)
        if question not in self._known:
            out = self._folder / str(len(self._known))
            run_job_inline(spec, out, self._segmenter)
            self._known[question] = pixels_digest(out / "overlay.zarr")
        return self._known[question]


def spec_of(cluster: Cluster, job_id: str) -> JobSpec:
    """What a job asks, as the gateway wrote it down."""
    from worker.ledger_schema import jobs

    with cluster.ledger.engine.connect() as connection:
        return JobSpec.from_json(connection.execute(jobs.select().where(jobs.c.job_id == job_id)).one().spec)


def require_same(cluster: Cluster, client: Client, job_ids: Sequence[str], undisturbed: Undisturbed, work: Path) -> int:
    """Assert that each job's overlay, downloaded, is that of an undisturbed run to the byte.

    Returns:
        Number of files compared.
    """
    files = 0
    for job_id in job_ids:
        found = pixels_digest(client.download_overlay(job_id, work / job_id))
        expected = undisturbed.digest(spec_of(cluster, job_id))
        assert found.keys() == expected.keys(), f"job {job_id}: {sorted(found.keys() ^ expected.keys())[:5]}"
        different = sorted(name for name, value in expected.items() if found[name] != value)
        assert different == [], f"job {job_id} differs in {different[:5]}"
        files += len(found)
    return files
