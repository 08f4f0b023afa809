"""Workers as processes beside a broker and a ledger of the test's, and segmenters that are hard on them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.segmenters import HueSegmenter
from worker import embedded, queue
from worker.ledger import Ledger
from worker.worker_main import WorkerSettings

SLOW = "tests.segmenters:slow_segmenter"
STUBBORN = "tests.worker.worker_process:stubborn_segmenter"
LATE = "tests.worker.worker_process:late_segmenter"


class StubbornSegmenter(HueSegmenter):
    """Once it has a real tile it does not come back for a minute, whoever asks it to stop."""

    def predict(self, batch, cancelled=None):
        if (batch.images != 255).any():
            time.sleep(60)
        return super().predict(batch)


def stubborn_segmenter() -> StubbornSegmenter:
    return StubbornSegmenter()


def late_segmenter() -> HueSegmenter:
    """Takes as long to load as a large one."""
    time.sleep(3)
    return HueSegmenter()


def wait_until(true: Callable[[], object], timeout_s: float = 60.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what or "waited too long"
        time.sleep(0.05)


class Cluster:
    """A redis-server, a ledger in SQLite and a folder of artifacts; workers are started as wanted."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.socket = folder / "r.sock"
        self.broker_url = f"redis+socket://{self.socket}"
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", lease_s=20)
        self.app = queue.make_app(self.broker_url)
        self.workers: list[subprocess.Popen] = []
        self._redis: subprocess.Popen | None = None

    def start_redis(self) -> redis.Redis:
        """Start it empty; a client of it once it answers."""
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        command = [embedded.find_redis_server(), *options]
        self._redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis(unix_socket_path=str(self.socket))
        wait_until(lambda: _answers(client))
        return client

    def kill_redis(self) -> None:
        """As a power cut does."""
        self._redis.kill()
        self._redis.wait()

    def start_worker(self, model: str, **settings: object) -> subprocess.Popen:
        """A worker; stderr goes to `worker-N.log`."""
        asked = {"lease_s": 20.0, "sweep_s": 60.0, "max_batch": 4, "block_threads": 1, **settings}
        environment = WorkerSettings(
            self.broker_url, f"sqlite:///{self.folder / 'ledger.sqlite'}", str(self.folder / "artifacts"),
            model=model, parent_pid=os.getpid(), **asked,
        ).to_environment()  # fmt: skip
        with self.log(len(self.workers)).open("w") as out:
            command = [sys.executable, "-m", "worker.worker_main"]
            worker = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=out)
        self.workers.append(worker)
        return worker

    def log(self, number: int = 0) -> Path:
        return self.folder / f"worker-{number}.log"

    def close(self) -> None:
        for process in (*self.workers, self._redis):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self.app.close()
        self.ledger.close()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with an empty Redis; leaves no process."""
    made = Cluster(folder)
    try:
        made.start_redis()
        yield made
    finally:
        made.close()


def _answers(client: redis.Redis) -> bool:
    try:
        return client.ping()
    except redis.exceptions.RedisError:
        return False
