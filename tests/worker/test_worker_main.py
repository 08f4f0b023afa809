"""A worker as a process: how it ends, and what it survives."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.jobs import HUE, hue_spec
from tests.worker.worker_process import SLOW, STUBBORN, Cluster, cluster, wait_until
from worker import cli, queue
from worker.errors import BadRequest
from worker.ledger_care import UnitRow
from worker.worker_main import WorkerSettings, require_device


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made


def submit(servers: Cluster, slide: Path, model: str, **changes) -> str:
    job_id, _ = servers.ledger.create_job(hue_spec(slide, model=model, **changes))
    queue.submit(servers.app, model)
    return job_id


def blocks(servers: Cluster, job_id: str) -> list[UnitRow]:
    return [unit for unit in servers.ledger.units_of(job_id) if unit.kind == "segment"]


def wait_for_block(servers: Cluster, job_id: str) -> None:
    """Until a block runs that has some of its tiles behind it."""
    wait_until(lambda: any(unit.state == "leased" for unit in blocks(servers, job_id)))


def finish(servers: Cluster, job_id: str) -> None:
    """Another worker runs the job to its end."""
    servers.start_worker(SLOW, sweep_s=0.5)
    wait_until(lambda: not servers.ledger.job(job_id).open, 60)
    assert servers.ledger.job(job_id).status == "successful"


def test_sigterm_lets_the_running_block_finish(pyramid_slide: Path, servers: Cluster, monkeypatch):
    monkeypatch.setenv("SLIDEREASON_TEST_DELAY_S", "0.4")
    worker = servers.start_worker(SLOW, drain_s=30.0)
    job_id = submit(servers, pyramid_slide, SLOW, tissue="off")
    wait_for_block(servers, job_id)
    done = sum(unit.state == "done" for unit in blocks(servers, job_id))
    worker.terminate()
    assert worker.wait(30) == 0
    after = blocks(servers, job_id)
    assert servers.ledger.leased() == 0
    assert sum(unit.state == "done" for unit in after) == done + 1, "what ran was committed, and nothing was begun"
    assert [(unit.lost, unit.faults) for unit in after] == [(0, 0)] * len(after)
    assert servers.ledger.workers() == []
    monkeypatch.setenv("SLIDEREASON_TEST_DELAY_S", "0")
    finish(servers, job_id)


@pytest.mark.parametrize("insist", [False, True], ids=["time is over", "second signal"])
def test_what_does_not_finish_in_time_is_handed_back(insist: bool, pyramid_slide: Path, servers: Cluster, monkeypatch):
    monkeypatch.setenv("SLIDEREASON_TEST_DELAY_S", "1.5")
    worker = servers.start_worker(SLOW, drain_s=60.0 if insist else 0.2)
    job_id = submit(servers, pyramid_slide, SLOW, tissue="off")
    wait_for_block(servers, job_id)
    before = servers.ledger.units_of(job_id)
    worker.terminate()
    if insist:
        time.sleep(0.5)
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    after = servers.ledger.units_of(job_id)
    assert servers.ledger.leased() == 0
    assert sum(unit.state == "done" for unit in after) == sum(unit.state == "done" for unit in before)
    assert not any(unit.lost or unit.faults or unit.isolated for unit in after), "handed back is not lost"
    assert queue.depth(servers.app, SLOW) > 0, "somebody else is told"
    monkeypatch.setenv("SLIDEREASON_TEST_DELAY_S", "0")
    finish(servers, job_id)


@pytest.mark.slow
def test_a_block_that_does_not_stop_is_given_back_for_it(pyramid_slide: Path, servers: Cluster):
    worker = servers.start_worker(STUBBORN, drain_s=0.2)
    job_id = submit(servers, pyramid_slide, STUBBORN)
    wait_for_block(servers, job_id)
    begun = time.monotonic()
    worker.terminate()
    assert worker.wait(30) == 0
    assert time.monotonic() - begun < 15, "before whoever waits for it loses patience"
    assert servers.ledger.leased() == 0
    assert not any(unit.lost or unit.faults for unit in servers.ledger.units_of(job_id))
    assert servers.ledger.workers() == []


def test_a_worker_without_work_ends_at_once(servers: Cluster):
    worker = servers.start_worker(HUE)
    wait_until(servers.ledger.workers)
    begun = time.monotonic()
    worker.terminate()
    assert worker.wait(15) == 0
    assert time.monotonic() - begun < 5
    assert servers.ledger.workers() == []


def test_too_much_memory_drains_and_says_start_me_again(pyramid_slide: Path, servers: Cluster, monkeypatch):
    monkeypatch.setenv("SLIDEREASON_TEST_DELAY_S", "0.4")
    job_id = submit(servers, pyramid_slide, SLOW, tissue="off")
    worker = servers.start_worker(SLOW, memory_limit_bytes=1 << 20)
    assert worker.wait(30) == 75
    assert servers.ledger.leased() == 0
    assert "MiB are used, the limit is 1 MiB" in servers.log().read_text()
    assert not any(unit.lost or unit.faults for unit in servers.ledger.units_of(job_id))


def test_queued_jobs_survive_a_flushed_redis(pyramid_slide: Path, servers: Cluster):
    job_ids = [submit(servers, pyramid_slide, HUE, mpp=4.0) for _ in range(8)]
    redis.Redis(unix_socket_path=str(servers.socket)).flushall()
    assert queue.depth(servers.app, HUE) == 0
    servers.start_worker(HUE, block_threads=2, sweep_s=2.0)
    wait_until(lambda: not any(servers.ledger.job(job_id).open for job_id in job_ids), 120)
    assert {servers.ledger.job(job_id).status for job_id in job_ids} == {"successful"}


@pytest.mark.slow
def test_work_goes_on_while_redis_is_down_and_after_it_came_back(pyramid_slide: Path, servers: Cluster):
    """Redis is away for half a minute and forgets everything; the worker neither stops nor waits for the sweeper."""
    worker = servers.start_worker(HUE, block_threads=2, sweep_s=600.0)
    wait_until(servers.ledger.workers)
    servers.kill_redis()
    down = time.monotonic()
    job_ids = [servers.ledger.create_job(hue_spec(pyramid_slide))[0] for _ in range(3)]
    wait_until(lambda: not any(servers.ledger.job(job_id).open for job_id in job_ids), 25)
    time.sleep(max(0.0, 30 - (time.monotonic() - down)))
    unseen, _ = servers.ledger.create_job(hue_spec(pyramid_slide))
    servers.start_redis()
    wait_until(lambda: not servers.ledger.job(unseen).open, 20)
    queue.submit(servers.app, HUE)
    wait_until(lambda: queue.depth(servers.app, HUE) == 0, 40, "the consumer is back as well")
    seen = submit(servers, pyramid_slide, HUE)  # without a ticket it would wait for the sweeper's ten minutes
    wait_until(lambda: not servers.ledger.job(seen).open, 20)
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(15) == 0


def test_a_setting_that_is_too_small_is_named():
    environment = WorkerSettings("b", "d", "a").to_environment()
    for name, value in (("BLOCK_THREADS", "0"), ("LEASE_S", "nan"), ("DRAIN_S", "-1"), ("RETENTION_DAYS", "inf")):
        with pytest.raises(BadRequest, match=f"SLIDEREASON_{name} must be at least") as caught:
            WorkerSettings.from_environment(environment | {f"SLIDEREASON_{name}": value})
        assert caught.value.field == f"SLIDEREASON_{name}"


def test_block_threads_are_also_called_threads():
    environment = WorkerSettings("b", "d", "a").to_environment()
    del environment["SLIDEREASON_BLOCK_THREADS"]
    assert WorkerSettings.from_environment(environment | {"SLIDEREASON_THREADS": "5"}).block_threads == 5


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(BadRequest, match="accepted here are auto, cpu") as caught:
        require_device("cuda:63")
    assert caught.value.field == "device"
    with pytest.raises(BadRequest, match="accepted are auto, cpu, cuda and cuda:N"):
        require_device("gpu0")


def test_a_worker_that_cannot_start_says_why_in_one_line(servers: Cluster):
    worker = servers.start_worker("no.such:factory", log_format="json")
    assert worker.wait(30) == 2
    lines = servers.log().read_text().splitlines()
    assert lines[-1].startswith("slidereason worker: model 'no.such:factory' cannot be loaded")


@pytest.mark.parametrize(("option", "value"), [("--device", "cuda:63"), ("--log-format", "xml")])
def test_an_option_that_only_the_worker_can_judge_is_one_line(option: str, value: str, servers: Cluster):
    command = [sys.executable, "-m", "service.cli", "worker", "--broker-url", servers.broker_url, "--database-url"]
    command += [f"sqlite:///{servers.folder / 'ledger.sqlite'}", "--artifacts", str(servers.folder), "--model", HUE]
    done = subprocess.run([*command, option, value], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and value in done.stderr


@pytest.mark.parametrize(
    "option",
    ["--block-threads", "--threads", "--health-port", "--retention-days", "--drain-s", "--memory-limit-bytes"],
)
def test_every_number_may_be_given_as_an_option(option: str, capsys):
    urls = ["--broker-url", "b", "--database-url", "d", "--artifacts", "a"]
    assert cli.run_worker([*urls, f"{option}=some"]) == cli.BAD_INPUT
    assert "not 'some'" in capsys.readouterr().err
