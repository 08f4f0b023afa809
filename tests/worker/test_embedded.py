"""The embedded default: children that are started again, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.jobs import HUE, hue_spec
from worker import cli, embedded, queue
from worker.errors import BadRequest, JobConflict
from worker.ledger import JobRow, Ledger
from worker.worker_main import WorkerSettings, load_segmenter


def wait_until(true: Callable[[], object], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def finished(ledger: Ledger, job_id: str) -> JobRow:
    wait_until(lambda: not ledger.job(job_id).open)
    return ledger.job(job_id)


def test_a_job_runs_and_nothing_is_left(pyramid_slide: Path, tmp_path: Path):
    with embedded.start(tmp_path, HUE, lease_s=5, sweep_s=1) as service:
        ledger = Ledger(service.database_url)
        app = queue.make_app(service.broker_url)
        pids = [service.redis_pid, *service.worker_pids]
        job_id, _ = ledger.create_job(hue_spec(pyramid_slide))
        queue.submit(app, HUE)
        row = finished(ledger, job_id)
        assert (row.status, row.model["name"]) == ("successful", "hue")
        (worker,) = ledger.workers()
        assert worker.models == (HUE, "hue")
        app.close()
    assert ledger.workers() == [], "a worker that stops in good order says so"
    ledger.close()
    assert (service.artifacts_root / "jobs" / job_id / "report.html").exists()
    assert all(gone(pid) for pid in pids)
    service.stop()


def test_a_job_without_a_ticket_is_found_by_the_sweeper(pyramid_slide: Path, tmp_path: Path):
    """The broker may lose everything: the ledger alone is true."""
    with embedded.start(tmp_path, HUE, lease_s=5, sweep_s=0.5) as service:
        ledger = Ledger(service.database_url)
        job_id, _ = ledger.create_job(hue_spec(pyramid_slide, tissue="off"))
        assert finished(ledger, job_id).status == "successful"
        ledger.close()


def test_redis_is_started_again_with_its_tickets(tmp_path: Path):
    with embedded.start(tmp_path, workers=0) as service:
        app = queue.make_app(service.broker_url)
        queue.submit(app, "kept", count=2)
        first = service.redis_pid
        time.sleep(1.2)  # the append-only file is synced every second
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: service.redis_pid not in (None, first))
        again = queue.make_app(service.broker_url)
        wait_until(lambda: _answers(again))
        assert queue.depth(again, "kept") == 2
        app.close()
        again.close()


def _answers(app) -> bool:
    try:
        queue.ping(app)
    except Exception:
        return False
    return True


def test_a_data_folder_serves_one_service_at_a_time(tmp_path: Path):
    with embedded.start(tmp_path, workers=0):
        with pytest.raises(JobConflict):
            embedded.start(tmp_path, workers=0)
    embedded.start(tmp_path, workers=0).stop()


def test_a_long_data_path_is_no_obstacle(tmp_path: Path):
    deep = tmp_path / ("d" * 100) / "data"
    with embedded.start(deep, workers=0) as service:
        app = queue.make_app(service.broker_url)
        queue.ping(app)
        app.close()
        socket = Path(service.broker_url.removeprefix("redis+socket://"))
        assert socket.exists()
    assert not socket.parent.exists()


def test_given_urls_are_used_as_they_are(tmp_path: Path):
    with embedded.start(tmp_path, workers=0, broker_url="redis://b/1", database_url="sqlite:///x", artifacts="y") as it:
        assert (it.broker_url, it.database_url, it.artifacts_root) == ("redis://b/1", "sqlite:///x", Path("y"))
        assert it.redis_pid is None


def test_children_end_with_a_service_that_is_killed(tmp_path: Path):
    script = (
        "import sys, time; from worker import embedded\n"
        "service = embedded.start(sys.argv[1], sys.argv[2])\n"
        "while not service.worker_pids: time.sleep(0.05)\n"
        "print(service.redis_pid, *service.worker_pids, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), HUE], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    wait_until(lambda: all(gone(pid) for pid in pids), 60)


def test_a_worker_that_ends_for_want_of_memory_is_started_again(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLIDEREASON_MEMORY_LIMIT_BYTES", str(1 << 20))
    seen = set()
    with embedded.start(tmp_path, HUE) as service:
        wait_until(lambda: seen.update(service.worker_pids) or len(seen) >= 2)
    assert all(gone(pid) for pid in seen)


@pytest.mark.slow
def test_a_tile_that_kills_its_worker_is_quarantined(tmp_path: Path):
    """Three workers die of one tile; the job ends without it, and says so."""
    import numpy as np

    from tests.made_slides import tissue_picture, write_pyramid

    picture = tissue_picture(1600, 1200)
    picture[560:680, 760:880] = (0, 255, 0)  # inside every tile of the grid that covers the slide's middle
    slide = write_pyramid(tmp_path / "killer.tif", np.ascontiguousarray(picture), compression="deflate")
    spec = replace(hue_spec(slide, min_coverage=0.1, overlap=0.0), model="tests.segmenters:crashing_segmenter")
    with embedded.start(tmp_path / "data", spec.model, lease_s=1.0, sweep_s=0.3) as service:
        ledger = Ledger(service.database_url)
        job_id, _ = ledger.create_job(spec)
        wait_until(lambda: not ledger.job(job_id).open, 400)
        row = ledger.job(job_id)
        ledger.close()
    assert row.status == "successful"
    assert 0 < row.tiles_failed <= 4
    assert row.coverage == 1 - row.tiles_failed / row.tiles_total
    report = (service.artifacts_root / "jobs" / job_id / "report.json").read_text()
    assert "quarantined" in report


def test_settings_travel_by_environment():
    settings = WorkerSettings("redis://b", "sqlite:///d", "a", "m:f", block_threads=3, lease_s=1.5, parent_pid=7)
    assert WorkerSettings.from_environment(settings.to_environment()) == settings


@pytest.mark.parametrize("missing", ["BROKER_URL", "DATABASE_URL", "ARTIFACTS"])
def test_a_missing_setting_is_named(missing: str):
    environment = WorkerSettings("b", "d", "a").to_environment()
    del environment[f"SLIDEREASON_{missing}"]
    with pytest.raises(ValueError, match=missing):
        WorkerSettings.from_environment(environment)


def test_a_setting_that_is_no_number_is_named():
    environment = WorkerSettings("b", "d", "a").to_environment() | {"SLIDEREASON_BLOCK_THREADS": "many"}
    with pytest.raises(ValueError, match="SLIDEREASON_BLOCK_THREADS"):
        WorkerSettings.from_environment(environment)


def test_a_worker_without_settings_says_what_is_missing(monkeypatch, capsys):
    for name in ("BROKER_URL", "DATABASE_URL", "ARTIFACTS"):
        monkeypatch.delenv(f"SLIDEREASON_{name}", raising=False)
    assert cli.run_worker(["--broker-url", "redis://b"]) == cli.BAD_INPUT
    assert "SLIDEREASON_DATABASE_URL must be set" in capsys.readouterr().err


def test_a_worker_of_a_cluster_runs_jobs(pyramid_slide: Path, tmp_path: Path):
    """`slidereason worker` beside a broker that is somebody else's; SIGTERM ends it in good order."""
    with embedded.start(tmp_path, workers=0) as service:
        options = {"--broker-url": service.broker_url, "--database-url": service.database_url}
        options |= {"--artifacts": str(service.artifacts_root), "--model": HUE, "--threads": "1"}
        command = [sys.executable, "-m", "service.cli", "worker", *(text for pair in options.items() for text in pair)]
        worker = subprocess.Popen(command)
        ledger = Ledger(service.database_url)
        job_id, _ = ledger.create_job(hue_spec(pyramid_slide))
        app = queue.make_app(service.broker_url)
        queue.submit(app, HUE)
        assert finished(ledger, job_id).status == "successful"
        app.close()
        worker.terminate()
        assert worker.wait(60) == 0
        assert ledger.workers() == []
        ledger.close()


@pytest.mark.parametrize("name", ["no.such:factory", "tests.segmenters:nothing", "os:getcwd", "no-such-checkpoint"])
def test_a_model_that_is_none_is_refused(name: str):
    with pytest.raises(BadRequest):
        load_segmenter(name)
