"""A worker's own state: probes, memory, sweeping, and looking for work when no tickets come."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError

from tests.jobs import HUE, hue_spec
from tests.segmenters import HueSegmenter, hue_segmenter
from tests.worker.worker_process import LATE, SLOW, cluster, wait_until
from worker import health, housekeeper, queue, watchdog
from worker.artifacts import open_artifacts
from worker.drain import EX_SOFTWARE, EX_TEMPFAIL, Drain
from worker.engine import Engine
from worker.errors import BadRequest, JobExpired
from worker.health import HealthServer, Vitals
from worker.housekeeper import Housekeeper, Poller
from worker.ledger import Ledger
from worker.tasks import Runner
from worker.watchdog import Watchdog, memory_limit


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, dict | str]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
            status, body = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read().decode()
    return status, body if path == "/metrics" else json.loads(body)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def drain() -> Drain:
    return Drain(1.0, lambda code: None)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield made
    made.close()


@pytest.fixture
def runner(ledger: Ledger, tmp_path: Path) -> Iterator[Runner]:
    with Engine(hue_segmenter()) as engine:
        yield Runner(ledger, open_artifacts(tmp_path / "artifacts"), engine, "w", (HUE,))


class Quiet:
    """A housekeeper that was last heard some time ago."""

    def __init__(self, silent_s: float = 0.0):
        self.silent_s = silent_s


def vitals_of(drain: Drain, engine: Engine, housekeeper: object = None) -> Vitals:
    vitals = Vitals("w1", drain)
    vitals.engine, vitals.housekeeper = engine, housekeeper
    return vitals


# Probes


def test_a_worker_is_ready_once_its_parts_are_and_until_it_drains(drain: Drain):
    vitals = Vitals("w1", drain)
    with HealthServer(vitals) as server, Engine(hue_segmenter()) as engine:
        assert get(server.port, "/readyz")[0] == 503
        assert get(server.port, "/healthz") == (200, {"status": "ok", "reason": None})
        vitals.engine, vitals.housekeeper = engine, Quiet()
        status, told = get(server.port, "/readyz")
        assert (status, told["status"], told["draining"]) == (200, "ready", False)
        assert told["model"] == {"name": "hue", "revision": engine.card.revision}
        drain.ask("tests")
        status, told = get(server.port, "/readyz")
        assert (status, told["status"], told["draining"]) == (503, "draining", True)
        assert get(server.port, "/healthz")[0] == 200, "a worker that drains is not to be killed for it"


def test_a_dead_engine_is_no_life(drain: Drain, monkeypatch):
    class Fatal(HueSegmenter):
        def predict(self, batch, cancelled=None):
            raise SystemExit("the driver is gone")

    with Engine(Fatal()) as engine:
        vitals = vitals_of(drain, engine, Quiet())
        assert vitals.ailing() is None
        with pytest.raises(InterruptedError, match="the driver is gone"):
            engine.warm_up()
        wait_until(lambda: not engine.alive)
        with HealthServer(vitals) as server:
            status, told = get(server.port, "/healthz")
            assert (status, told["reason"]) == (503, "the engine's thread is dead")
            assert get(server.port, "/readyz")[1]["status"] == "ailing"


def test_a_model_that_does_not_come_back_is_no_life(drain: Drain, monkeypatch):
    entered, go = threading.Event(), threading.Event()

    class Hangs(HueSegmenter):
        def predict(self, batch, cancelled=None):
            entered.set()
            assert go.wait(30)
            return super().predict(batch)

    monkeypatch.setattr(health, "HUNG_S", 0.2)
    with Engine(Hangs()) as engine:
        vitals = vitals_of(drain, engine, Quiet())
        asking = threading.Thread(target=engine.warm_up)
        asking.start()
        assert entered.wait(10)
        assert vitals.ailing() is None
        wait_until(lambda: engine.busy_s > 0.2)
        assert "a call of the model has taken" in vitals.ailing()
        go.set()
        asking.join()
        assert vitals.ailing() is None


def test_a_housekeeper_that_fell_silent_is_no_life(drain: Drain):
    with Engine(hue_segmenter()) as engine:
        assert vitals_of(drain, engine, Quiet(299)).ailing() is None
        assert "silent for 301 s" in vitals_of(drain, engine, Quiet(301)).ailing()


def test_what_is_not_served_is_404_and_names_what_is(drain: Drain):
    with HealthServer(Vitals("w", drain)) as server:
        assert get(server.port, "/secrets") == (404, {"status": "not found", "reason": health.SERVED})


def test_a_taken_port_is_refused_by_name(drain: Drain):
    with HealthServer(Vitals("w", drain)) as server:
        with pytest.raises(BadRequest, match=str(server.port)) as caught:
            HealthServer(Vitals("w", drain), port=server.port)
    assert caught.value.field == "health_port"
    with pytest.raises(BadRequest):
        HealthServer(Vitals("w", drain), port=70_000)


def test_a_real_worker_tells_its_revision_and_what_it_did(pyramid_slide: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLIDEREASON_TEST_DELAY_S", "0.3")
    port = free_port()
    with cluster(tmp_path) as servers:
        worker = servers.start_worker(SLOW, health_port=port, log_format="json", drain_s=20.0, block_threads=2)
        wait_until(lambda: _ready(port))
        status, told = get(port, "/readyz")
        assert (status, told["model"]["name"], told["serves"]) == (200, "hue", [SLOW, "hue"])
        job_id, _ = servers.ledger.create_job(hue_spec(pyramid_slide, model=SLOW, tissue="off"))
        queue.submit(servers.app, SLOW)
        wait_until(lambda: 'slidereason_units_total{kind="segment",outcome="done"}' in get(port, "/metrics")[1])
        worker.terminate()
        wait_until(lambda: get(port, "/readyz")[1]["status"] == "draining", 5)
        assert worker.wait(30) == 0
        lines = [json.loads(line) for line in servers.log().read_text().splitlines()]
        assert {line["worker"] for line in lines} == {told["worker"]}
        assert any("is warm after" in line["message"] for line in lines)


def test_a_worker_that_loads_lives_but_is_not_ready(tmp_path: Path):
    port = free_port()
    with cluster(tmp_path) as servers:
        worker = servers.start_worker(LATE, health_port=port)
        wait_until(lambda: _answers(port))
        assert get(port, "/healthz")[0] == 200
        status, told = get(port, "/readyz")
        assert (status, told["status"], told["model"]) == (503, "loading", None)
        worker.terminate()
        assert worker.wait(10) == 0, "there is nothing to drain yet"


def _answers(port: int) -> bool:
    try:
        return bool(get(port, "/healthz"))
    except OSError:
        return False


def _ready(port: int) -> bool:
    return _answers(port) and get(port, "/readyz")[0] == 200


# Memory, and what else ends a worker


def asked_of(vitals: Vitals, limit_bytes: int | None) -> int | None:
    """Exit code that the watchdog asks for; None when it asks for nothing."""
    with Watchdog(vitals, limit_bytes, look_s=0.02):
        time.sleep(0.3)
    return vitals.drain.exit_code if vitals.drain.draining else None


def test_memory_above_the_limit_ends_the_worker_to_be_started_again(drain: Drain):
    with Engine(hue_segmenter()) as engine:
        assert asked_of(vitals_of(drain, engine, Quiet()), 1 << 50) is None
        assert asked_of(vitals_of(drain, engine, Quiet()), None) is None
        assert asked_of(vitals_of(drain, engine, Quiet()), 1 << 20) == EX_TEMPFAIL


def test_a_worker_that_cannot_work_ends_by_itself(drain: Drain):
    with Engine(hue_segmenter()) as engine:
        assert asked_of(vitals_of(drain, engine, Quiet(9999)), None) == EX_SOFTWARE


def control_group(root: Path, line: str, **limits: str) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(line + "\n")
    for path, text in limits.items():
        file = root / "sys" / "fs" / "cgroup" / path.replace("__", "/").replace("_max", ".max")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def test_the_limit_is_nine_tenths_of_the_tightest_group_around(tmp_path: Path):
    root = control_group(tmp_path, "0::/pods/one", pods__one__memory_max="2000", pods__memory_max="1000")
    assert memory_limit(root=root) == 900
    assert memory_limit(123, root) == 123


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path):
    assert memory_limit(root=control_group(tmp_path, "0::/", memory_max="500")) == 450


def test_no_limit_is_none(tmp_path: Path):
    assert memory_limit(root=control_group(tmp_path / "max", "0::/", memory_max="max")) is None
    assert memory_limit(root=tmp_path / "no such system") is None


def test_control_groups_of_the_first_version_are_read_too(tmp_path: Path):
    root = control_group(tmp_path, "4:memory:/docker\n3:cpu:/docker")
    file = root / "sys" / "fs" / "cgroup" / "memory" / "docker" / "memory.limit_in_bytes"
    file.parent.mkdir(parents=True)
    file.write_text("1000")
    assert memory_limit(root=root) == 900
    file.write_text(str(watchdog.UNLIMITED * 4))
    assert memory_limit(root=root) is None


# Housekeeping


def test_old_jobs_are_retired_with_their_results(pyramid_slide: Path, ledger: Ledger, runner: Runner, tmp_path: Path):
    job_id, _ = ledger.create_job(hue_spec(pyramid_slide))
    while runner.run_one():
        pass
    folder = tmp_path / "artifacts" / "jobs" / job_id
    keeper = Housekeeper(runner, queue.make_app("memory://"), sweep_s=0.0, retention_s=3600.0)
    keeper.sweep()
    assert ledger.job(job_id).status == "successful" and folder.exists()
    keeper._retention_s = 0.0
    keeper.sweep()
    with pytest.raises(JobExpired):
        ledger.job(job_id)
    assert not folder.exists()
    assert ledger.expire(0.0) == []


def test_results_that_cannot_be_removed_are_no_obstacle_to_others(runner: Runner, monkeypatch, caplog):
    removed, purged = [], []

    def remove(job_id: str) -> None:
        if job_id == "a":
            raise PermissionError("read-only")
        removed.append(job_id)

    monkeypatch.setattr(runner.ledger, "expire", lambda older_than_s, limit: ["a", "b"])
    monkeypatch.setattr(runner.ledger, "purged", purged.append)
    monkeypatch.setattr(runner, "artifacts", SimpleNamespace(remove=remove))
    Housekeeper(runner, queue.make_app("memory://"), sweep_s=0.0, retention_s=1.0).sweep()
    assert removed == purged == ["b"]
    assert "results of job a cannot be removed now: read-only" in caplog.text


def test_a_broker_that_lost_its_tickets_is_refilled_before_the_next_sweep(runner: Runner, monkeypatch):
    waiting, sent, taken = [7], [], []
    monkeypatch.setattr(housekeeper, "MOST_TICKETS", 3)
    monkeypatch.setattr(housekeeper, "REFILL_S", 0.01)
    monkeypatch.setattr(housekeeper.queue, "submit", lambda app, model, count: sent.append(count))
    monkeypatch.setattr(housekeeper.queue, "depth", lambda app, model: sum(sent) - sum(taken))

    def claimable() -> dict[str, int]:
        """Workers use up what was sent, and as much less waits."""
        used = sum(sent) - sum(taken)
        taken.append(used)
        waiting[0] -= used
        return {HUE: waiting[0]}

    monkeypatch.setattr(runner.ledger, "claimable", claimable)
    keeper = Housekeeper(runner, queue.make_app("memory://"), sweep_s=60.0)
    keeper.start()
    wait_until(lambda: sum(sent) >= 7, 20)
    keeper.stop()
    assert max(sent) == 3 and sum(sent) == 7, sent


def test_a_housekeeper_outlives_whatever_happens(runner: Runner, monkeypatch):
    calls = []

    def beat(*_) -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(runner.ledger, "heartbeat", beat)
    monkeypatch.setattr(housekeeper, "BACKOFF_S", 0.1)
    keeper = Housekeeper(runner, queue.make_app("memory://"), sweep_s=60.0)
    keeper.start()
    wait_until(lambda: len(calls) >= 2, 10)
    assert keeper.silent_s < 5
    keeper.stop()


def test_without_a_broker_free_threads_claim_and_no_more_than_they_are(
    pyramid_slide: Path, ledger: Ledger, tmp_path: Path
):
    busiest = [0]

    class Counting(HueSegmenter):
        def predict(self, batch, cancelled=None):
            busiest[0] = max(busiest[0], runner.busy)
            time.sleep(0.05)
            return super().predict(batch)

    with Engine(Counting(), max_batch=4) as engine:
        runner = Runner(ledger, open_artifacts(tmp_path / "artifacts"), engine, "w", (HUE,), most=2)
        job_ids = [ledger.create_job(hue_spec(pyramid_slide))[0] for _ in range(3)]
        poller = Poller(runner, queue.make_app(f"redis+socket://{tmp_path / 'none.sock'}"), threads=4, period_s=0.5)
        poller.start()
        wait_until(lambda: not any(ledger.job(job_id).open for job_id in job_ids), 60)
        poller.stop()
    assert {ledger.job(job_id).status for job_id in job_ids} == {"successful"}
    assert busiest[0] == 2


def test_with_a_broker_the_ledger_is_left_alone_unless_a_unit_waits(runner: Runner, monkeypatch):
    asked = []
    monkeypatch.setattr(housekeeper.queue, "ping", lambda app: None)
    monkeypatch.setattr(runner, "run_one", lambda wait: bool(asked.append(wait)))
    poller = Poller(runner, queue.make_app("memory://"), threads=1, period_s=0.5)
    poller.start()
    time.sleep(1.2)
    assert asked == []
    runner.troubled = time.monotonic()
    wait_until(lambda: asked, 5)
    poller.stop()
    assert set(asked) == {False}


# A database that is away


def away() -> OperationalError:
    return OperationalError("UPDATE", {}, ConnectionError("the server closed the connection"))


def test_done_work_waits_for_the_database(pyramid_slide: Path, ledger: Ledger, runner: Runner, monkeypatch):
    failing = iter([True, True, False])
    commit = ledger.commit_plan

    def unsteady(*arguments):
        if next(failing, False):
            raise away()
        return commit(*arguments)

    monkeypatch.setattr(ledger, "commit_plan", unsteady)
    job_id, _ = ledger.create_job(hue_spec(pyramid_slide))
    assert runner.run_one()
    (plan, *_) = ledger.units_of(job_id)
    assert (plan.state, plan.token, plan.faults, plan.lost) == ("done", 1, 0, 0), "committed, and done only once"
