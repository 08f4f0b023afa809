"""Servers that a test may kill: a redis-server and a PostgreSQL of its own, kept running by a keeper.

Nothing here ever touches a server of the machine: both listen on unix sockets in folders of their own.
"""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from worker.embedded import find_redis_server

PR_SET_CHILD_SUBREAPER = 36
RESTART_S = 0.2
START_S = 180.0
PORT = 5432
"""Of a socket's name only: a folder holds one server."""

_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


@contextmanager
def no_orphans() -> Iterator[None]:
    """Whatever a child leaves behind becomes ours to see; at the end there may be nothing new."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
        deadline = time.monotonic() + START_S
        while left := [process for process in _running_children() if process.pid not in before]:
            assert time.monotonic() < deadline, f"orphans: {[(p.pid, p.name()) for p in left]}"
            psutil.wait_procs(left, timeout=1)
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def _running_children() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


class Kept:
    """A process that a `Keeper` starts again whenever it ends, unless it is held down."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen], stop_signal: int):
        self.name = name
        self.start = start
        self.stop_signal = stop_signal
        self.process: subprocess.Popen | None = None
        self.held = False
        self.starts = 0
        self.not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Of the running process, None while there is none."""
        process = self.process
        return process.pid if process is not None and process.poll() is None else None

    def kill(self, sent: int = signal.SIGKILL) -> bool:
        """Send a signal; says whether there was a process."""
        process = self.process
        if process is None or process.poll() is not None:
            return False
        process.send_signal(sent)
        return True

    def wait_gone(self, process: subprocess.Popen | None) -> None:
        """Wait until this very process has ended."""
        if process is not None:
            process.wait(START_S)


class Keeper:
    """Starts processes, all on one thread that lives as long as they do: the kernel ends them with it."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._thread.start()

    def keep(self, name: str, start: Callable[[], subprocess.Popen], stop_signal: int = signal.SIGTERM) -> Kept:
        """Start a process and keep it running."""
        kept = Kept(name, start, stop_signal)
        with self._lock:
            self._kept.append(kept)
        return kept

    def stop(self, grace_s: float = 20.0) -> None:
        """Stop all, last started first; leaves none."""
        for name in dict.fromkeys(kept.name for kept in reversed(self._kept)):
            group = [kept for kept in self._kept if kept.name == name]
            for kept in group:
                kept.held = True
                kept.kill(signal.SIGCONT)
                kept.kill(kept.stop_signal)
            deadline = time.monotonic() + grace_s
            for kept in group:
                with self._lock:
                    process = kept.process
                try:
                    kept.wait_gone(process) if process is None else process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            with self._lock:
                for kept in self._kept:
                    self._tend(kept)

    def _tend(self, kept: Kept) -> None:
        now = time.monotonic()
        if kept.process is not None and kept.process.poll() is not None:
            kept.process = None
            kept.not_before = now + RESTART_S
        if kept.process is None and not kept.held and now >= kept.not_before:
            kept.process = kept.start()
            kept.starts += 1


def spawn(command: list[str], log: Path, environment: dict[str, str] | None = None, **more) -> subprocess.Popen:
    """Start a program that ends with the thread that started it, and appends what it says to `log`."""
    with log.open("ab") as file:
        program = [sys.executable, "-c", _DIE_WITH_PARENT, shutil.which(command[0]), *command[1:]]
        return subprocess.Popen(
            program, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, **more
        )


def until(condition: Callable[[], object], what: str, timeout_s: float = START_S, every_s: float = 0.05) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)


class OwnRedis:
    """A redis-server that keeps nothing on disk: a restart loses every ticket."""

    def __init__(self, keeper: Keeper, folder: Path, log: Path):
        self.socket = folder / "redis.sock"
        self.url = f"redis+socket://{self.socket}"
        options = {"port": "0", "unixsocket": str(self.socket), "dir": str(folder), "appendonly": "no", "save": ""}
        command = [find_redis_server(), *(part for key, value in options.items() for part in (f"--{key}", value))]
        self.kept = keeper.keep("redis", lambda: spawn(command, log))
        until(self.answers, "the redis-server answers")

    def client(self) -> redis.Redis:
        """A connection of one's own."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            with self.client() as client:
                return client.ping()
        except redis.exceptions.RedisError:
            return False

    def restart(self) -> None:
        """Kill (-9) it, and wait until it answers again, empty."""
        self.down()
        self.up()

    def down(self) -> None:
        """Kill (-9) it, and stay away."""
        self.kept.held, process = True, self.kept.process
        self.kept.kill()
        self.kept.wait_gone(process)

    def up(self) -> None:
        """Come back."""
        self.kept.held = False
        until(self.answers, "the redis-server answers again")


class OwnPostgres:
    """A PostgreSQL made by initdb, with fsync, and an audit of every change of a unit's state."""

    def __init__(self, keeper: Keeper, folder: Path, log: Path):
        self.folder = folder
        self._binaries = find_postgres()
        self._user = None if os.geteuid() else _unprivileged()
        data = folder / "data"
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        made = subprocess.run(
            [*self._as_user(), str(self._binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres",
             "--no-sync", "-E", "UTF8", "--locale", "C"],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        command = [
            *self._as_user("--pdeathsig", "INT"), str(self._binaries / "postgres"), "-D", str(data), "-k", str(folder),
            "-p", str(PORT), "-c", "listen_addresses=", "-c", "max_connections=300", "-c", "fsync=on",
            "-c", "shared_buffers=64MB",
        ]  # fmt: skip
        self.kept = keeper.keep("postgres", lambda: self._start(command, log), stop_signal=signal.SIGINT)
        self.url = f"postgresql+psycopg://postgres@/postgres?host={folder}&port={PORT}"
        until(self.answers, f"PostgreSQL answers, see {log}")

    def _start(self, command: list[str], log: Path) -> subprocess.Popen:
        with log.open("ab") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self.folder, start_new_session=True
            )

    def _as_user(self, *options: str) -> list[str]:
        """PostgreSQL refuses to be run by root."""
        setpriv = shutil.which("setpriv")
        if self._user is None:
            return [setpriv, *options, "--"] if setpriv and options else []
        ids = (f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups")
        return [setpriv, *ids, *options, "--"]

    def connect(self, **more) -> psycopg.Connection:
        """A connection of one's own."""
        return psycopg.connect(host=str(self.folder), port=PORT, user="postgres", dbname="postgres", **more)

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            with self.connect(connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def restart(self) -> None:
        """Stop as `pg_ctl -m immediate` does, as in a crash, and wait until it takes connections again."""
        self.down()
        self.up()

    def down(self) -> None:
        """Stop as in a crash, and stay away."""
        self.kept.held, process = True, self.kept.process
        self.kept.kill(signal.SIGQUIT)
        self.kept.wait_gone(process)

    def up(self) -> None:
        """Come back; recovers from its log."""
        self.kept.held = False
        until(self.answers, "PostgreSQL answers again")


def find_postgres() -> Path:
    """Folder of initdb and postgres; skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    places = [*(path.parent for path in reversed(found)), *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    for folder in places:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    pytest.skip("no initdb and postgres under /usr/lib/postgresql or on PATH: install PostgreSQL's server")


def _unprivileged() -> pwd.struct_passwd:
    if shutil.which("setpriv") is None:
        pytest.skip("root may not run PostgreSQL, and there is no setpriv to run it as another user")
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("root may not run PostgreSQL, and there is no user postgres or nobody")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a unix socket's name, for servers of any user."""
    folder = Path(tempfile.mkdtemp(prefix="slidereason-faults-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
