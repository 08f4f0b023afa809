"""A whole cluster of one's own: redis-server, PostgreSQL, storage, workers, gateway; each of them may be killed."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.servers import Keeper, Kept, OwnPostgres, OwnRedis, short_folder, spawn, until
from tests.faults.storage import LocalStorage, S3Storage
from tests.jobs import HUE
from worker.ledger import JobRow, Ledger

ROOT = Path(__file__).resolve().parents[2]

AUDIT = """
CREATE TABLE audit (
    n bigserial, job_id text, kind text, key text, before text, after text, token int,
    at double precision DEFAULT extract(epoch FROM clock_timestamp())
);
CREATE FUNCTION note() RETURNS trigger AS $$ BEGIN
    INSERT INTO audit (job_id, kind, key, before, after, token)
    VALUES (NEW.job_id, NEW.kind, NEW.key, OLD.state, NEW.state, NEW.token);
    RETURN NULL;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER audit AFTER UPDATE ON units FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.state = 'done') EXECUTE FUNCTION note();
"""
"""The database itself writes down each change of a unit's state, and whatever is done to one that is done."""


@dataclass
class Cluster:
    """What runs; made by `cluster`."""

    folder: Path
    keeper: Keeper
    redis: OwnRedis
    postgres: OwnPostgres
    storage: LocalStorage | S3Storage
    ledger: Ledger
    model: str
    slides: Path
    workers: list[Kept] = field(default_factory=list)
    gateways: list[Kept] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    worker_module: str = "worker.worker_main"
    gateway_factory: str = "service.app:create_app"

    def environment(self, **more: object) -> dict[str, str]:
        """What a process of the cluster is told."""
        told = {
            "BROKER_URL": self.redis.url, "DATABASE_URL": self.postgres.url, "ARTIFACTS": self.storage.url,
            "MODEL": self.model, "HEALTH_PORT": 0, **self.settings, **more,
        }  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLIDEREASON_", "AWS_"))}
        own = {f"SLIDEREASON_{name}": str(value) for name, value in told.items()}
        return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **self.storage.environment, **own}

    def add_worker(self, wrap: tuple[str, ...] = (), **more: object) -> Kept:
        """Start one more worker process, and keep it running; `wrap` is a command that becomes it."""
        environment = self.environment(**{"SCRATCH": self.folder / f"scratch-{len(self.workers)}", **more})
        environment["SLIDEREASON_PARENT_PID"] = str(os.getpid())
        log = self.folder / "logs" / f"worker-{len(self.workers)}.log"
        command = [*wrap, sys.executable, "-m", self.worker_module]
        self.workers.append(self.keeper.keep("worker", lambda: spawn(command, log, environment, cwd=ROOT)))
        return self.workers[-1]

    def add_gateway(self) -> str:
        """Start one more gateway on a port of its own, and keep it running; returns its address."""
        port, data = free_port(), self.folder / "gateway"
        environment = self.environment(SLIDES=self.slides, DATA=data, MAX_OPEN_JOBS=10_000)
        log = self.folder / "logs" / f"gateway-{len(self.gateways)}.log"
        command = [sys.executable, "-m", "uvicorn", "--factory", self.gateway_factory, "--port", str(port)]
        self.gateways.append(
            self.keeper.keep("gateway", lambda: spawn([*command, "--no-access-log"], log, environment, cwd=ROOT))
        )
        self.urls.append(f"http://127.0.0.1:{port}")
        return self.urls[-1]

    def ready(self, workers: int | None = None) -> None:
        """Wait until so many workers (default: all) have been heard from."""
        wanted = len(self.workers) if workers is None else workers
        until(lambda: len(self.ledger.workers(60)) >= wanted, f"{wanted} workers are heard from, see {self.folder}")

    def owners(self) -> list[tuple[str, int, bool]]:
        """(kind, process id of the owner, whether a tile is suspected) of every leased unit."""
        with self.postgres.connect() as connection:
            rows = connection.execute("SELECT kind, owner, deaths::text FROM units WHERE state = 'leased'").fetchall()
        return [(kind, int(owner.split("-")[-2]), deaths not in ("{}", "null")) for kind, owner, deaths in rows]

    def closed(self, job_ids: list[str], timeout_s: float) -> list[JobRow]:
        """The jobs' rows once all are closed."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = [self.ledger.job(job_id) for job_id in job_ids]
            still = [(row.job_id, row.status, row.progress, row.message) for row in rows if row.open]
            if not still:
                return rows
            assert time.monotonic() < deadline, f"{len(still)} jobs are stuck: {still[:5]}"
            time.sleep(0.3)

    def counted(self, query: str) -> list[tuple]:
        """Rows of a query in the database."""
        with self.postgres.connect() as connection:
            return connection.execute(query).fetchall()

    def require_one_commit_each(self, job_ids: list[str]) -> int:
        """Assert by the database's audit that each unit was committed once and never touched again.

        Returns:
            Number of units.
        """
        mine = set(job_ids)
        commits = self.counted(
            "SELECT job_id, kind, key, count(*) FROM audit WHERE after = 'done' AND before <> 'done' GROUP BY 1, 2, 3"
        )
        done = {(row[0], row[1], row[2]): row[3] for row in commits if row[0] in mine}
        assert [unit for unit, times in done.items() if times != 1] == []
        units = self.counted("SELECT job_id, kind, key, state FROM units")
        assert {row[:3] for row in units if row[0] in mine and row[3] == "done"} == set(done)
        touched = self.counted("SELECT job_id, kind, key, after FROM audit WHERE before = 'done'")
        assert [row for row in touched if row[0] in mine] == []
        return len(done)

    def require_nothing_left(self) -> None:
        """Assert that no unit is leased and none waits."""
        assert self.ledger.leased() == 0
        assert self.counted("SELECT job_id, kind, key FROM units WHERE state = 'leased'") == []
        assert self.ledger.claimable() == {}
        counts = self.ledger.counts()
        assert counts["accepted"] == counts["running"] == 0


@contextmanager
def cluster(
    folder: Path, slides: Path, model: str = HUE, workers: int = 2, gateways: int = 1, storage: str = "local",
    lease_s: float = 6.0, sweep_s: float = 1.0, twice: bool = False, **settings: object,
) -> Iterator[Cluster]:  # fmt: skip
    """Start a cluster, and leave no process of it.

    Args:
        folder: for storage, logs and scratch.
        slides: folder of the slides that jobs may name.
        model: of all workers.
        workers, gateways: processes.
        storage: `local` or `s3`.
        lease_s, sweep_s: of the workers.
        twice: every ticket is delivered twice.
        settings: further SLIDEREASON_… of all processes.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    keeper = Keeper()
    with ExitStack() as stack:
        own = stack.enter_context(short_folder())
        store = stack.enter_context(S3Storage() if storage == "s3" else LocalStorage(folder / "artifacts"))
        stack.callback(keeper.stop)
        postgres = OwnPostgres(keeper, _sub(own, "pg"), folder / "logs" / "postgres.log")
        redis = OwnRedis(keeper, _sub(own, "redis"), folder / "logs" / "redis.log")
        ledger = Ledger(postgres.url, lease_s=lease_s)
        stack.callback(ledger.close)
        with postgres.connect(autocommit=True) as connection:
            connection.execute(AUDIT)
        timing = {"LEASE_S": lease_s, "SWEEP_S": sweep_s, "THREADS": 2, **settings}
        made = Cluster(folder, keeper, redis, postgres, store, ledger, model, slides, settings=timing)
        if twice:
            made.worker_module, made.gateway_factory = "tests.faults.doubled", "tests.faults.doubled:create_app"
        for _ in range(workers):
            made.add_worker()
        for _ in range(gateways):
            made.add_gateway()
        if workers:
            made.ready()
        yield made


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir(mode=0o755)
    return folder / name
