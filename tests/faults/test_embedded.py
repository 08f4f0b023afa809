"""The embedded service: its workers are killed at random, and nothing of it can be seen in what the jobs leave."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from model.data.synthetic_slide import write_synthetic_slide
from tests.faults.servers import no_orphans
from tests.jobs import digest, hue_spec, pixels_digest
from tests.segmenters import hue_segmenter
from worker import embedded, queue
from worker.artifacts import LocalArtifacts
from worker.inline import run_job_inline
from worker.ledger import JobRow, Ledger
from worker.ledger_schema import units
from worker.types import JobSpec

SECONDS = float(os.environ.get("SLIDEREASON_FAULT_SECONDS", "20"))
SEED = int(os.environ.get("SLIDEREASON_FAULT_SEED", "7"))
WORKERS = 3
CHANCE = {"plan": 0.2, "segment": 1.0, "finish": 0.6}
"""That a worker is killed when the killer finds it at such a unit."""


class Killer(threading.Thread):
    """Every few seconds kills a worker at work, at a random moment of a plan, a block or a finish, until stopped."""

    def __init__(self, service: embedded.Embedded, ledger: Ledger, rng: random.Random):
        super().__init__(name="killer")
        self.kills = 0
        self._service = service
        self._ledger = ledger
        self._rng = rng
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._rng.uniform(0.5, 3.0)):
            # Planning takes longest and would take most kills: it is let through more often than not.
            if (at_work := self._at_work()) and self._rng.random() < CHANCE[(chosen := self._rng.choice(at_work))[0]]:
                os.kill(chosen[1], signal.SIGKILL)
                self.kills += 1

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _at_work(self) -> list[tuple[str, int]]:
        """(kind of unit, pid of the living worker that owns it).

        A worker whose isolated block has a suspect is spared: two kills that hit the same tile by chance would rightly
        quarantine it.
        """
        leased = select(units.c.kind, units.c.owner, units.c.deaths).where(units.c.state == "leased")
        with self._ledger.engine.connect().execution_options(reading=True) as connection:
            owned = [(kind, int(owner.split("-")[-2]), deaths) for kind, owner, deaths in connection.execute(leased)]
        spared = {pid for _, pid, deaths in owned if deaths}
        return [(kind, pid) for kind, pid, _ in owned if pid in self._service.worker_pids and pid not in spared]


def lost_units(ledger: Ledger) -> Counter[str]:
    """How many owners were lost, by kind of unit; 0 of a kind that has no units yet."""
    with ledger.engine.connect().execution_options(reading=True) as connection:
        rows = connection.execute(select(units.c.kind, func.sum(units.c.lost)).group_by(units.c.kind))
        return Counter({kind: lost for kind, lost in rows})


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "synthetic.tif"
    write_synthetic_slide(path, seed=3, width_px=4096, height_px=3072)
    return path


def wait_closed(ledger: Ledger, job_ids: list[str], timeout_s: float) -> list[JobRow]:
    """The jobs' rows once all are closed."""
    deadline = time.monotonic() + timeout_s
    while True:
        rows = [ledger.job(job_id) for job_id in job_ids]
        if not any(row.open for row in rows):
            return rows
        assert time.monotonic() < deadline, [(row.status, row.progress, row.message) for row in rows]
        time.sleep(0.2)


def submit(service: embedded.Embedded, ledger: Ledger, spec: JobSpec, job_id: str | None = None) -> str:
    job_id, _ = ledger.create_job(spec, job_id=job_id)
    app = queue.make_app(service.broker_url)
    queue.submit(app, spec.model)
    app.close()
    return job_id


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_workers_leave_no_trace(slide: Path, tmp_path: Path):
    rng = random.Random(SEED)
    spec = hue_spec(slide)
    undisturbed = run_job_inline(spec, tmp_path / "undisturbed", hue_segmenter())
    expected = pixels_digest(undisturbed.folder / "overlay.zarr")
    data = tmp_path / "data"
    with no_orphans():
        with embedded.start(data, spec.model, workers=WORKERS, lease_s=2.0, sweep_s=1.0) as service:
            ledger = Ledger(service.database_url)
            killer = Killer(service, ledger, rng)
            # The first job has the undisturbed one's id, so that even its region ids must be the same.
            job_ids = [submit(service, ledger, spec, job_id=undisturbed.job.job_id)]
            killer.start()
            end = time.monotonic() + SECONDS
            # On a busy machine planning takes most of the time: go on until blocks were hit as well.
            latest = end + 240
            while (now := time.monotonic()) < end or (now < latest and lost_units(ledger)["segment"] < SECONDS / 30):
                if ledger.counts()["accepted"] + ledger.counts()["running"] < 2:
                    job_ids.append(submit(service, ledger, spec))
                time.sleep(0.2)
            killer.stop()
            rows = wait_closed(ledger, job_ids, timeout_s=300)
            lost = lost_units(ledger)
            assert killer.kills >= SECONDS / 20
            assert lost["segment"] >= SECONDS / 30, "the kills must have hit blocks at work"
            assert [row.status for row in rows] == ["successful"] * len(rows)
            assert all(row.coverage == 1.0 and row.tiles_failed == 0 for row in rows)
            assert ledger.leased() == 0
            ledger.close()
    artifacts = LocalArtifacts(service.artifacts_root)
    assert digest(artifacts.job_folder(job_ids[0])) == digest(undisturbed.folder)
    for job_id in job_ids:
        assert pixels_digest(artifacts.job_folder(job_id) / "overlay.zarr") == expected
        assert not (artifacts.job_folder(job_id) / "attempts").exists()
    print(f"{killer.kills} workers killed, owners lost: {lost}, {len(job_ids)} jobs")
