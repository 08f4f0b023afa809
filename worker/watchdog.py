"""Looks after the process itself: ends it in good order before the kernel does, and when it cannot work any more."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from worker.drain import EX_SOFTWARE, EX_TEMPFAIL
from worker.health import Vitals
from worker.metrics import resident_bytes

log = logging.getLogger(__name__)

LOOK_S = 1.0
SHARE = 0.9
UNLIMITED = 1 << 60
"""What cgroups of the first version say where there is no limit lies above this."""


class Watchdog:
    """Every second looks at memory and vitals; asks the drain to end the worker once something is wrong.

    The process then ends with 75 (memory; start it again) or 70 (its engine died or hangs; start it again).

    Args:
        vitals: what is watched; its drain is asked.
        limit_bytes: resident memory from which on the worker ends; None is no limit.
        look_s: seconds between two looks.
    """

    def __init__(self, vitals: Vitals, limit_bytes: int | None, look_s: float = LOOK_S):
        self._vitals = vitals
        self._limit_bytes = limit_bytes
        self._look_s = look_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._over.wait(self._look_s):
            if self._vitals.drain.draining:
                return
            used_bytes = resident_bytes()
            if self._limit_bytes is not None and used_bytes > self._limit_bytes:
                reason = f"memory: {used_bytes >> 20} MiB are used, the limit is {self._limit_bytes >> 20} MiB"
                self._vitals.drain.ask(reason, EX_TEMPFAIL)
            elif ailing := self._vitals.ailing():
                log.critical("this worker cannot work any more: %s", ailing)
                self._vitals.drain.ask(ailing, EX_SOFTWARE)


def memory_limit(given_bytes: int = 0, root: Path = Path("/")) -> int | None:
    """From how much resident memory on a worker should end.

    Args:
        given_bytes: what the operator says; 0 is 90 % of what the control group allows.
        root: of the file system, for tests.

    Returns:
        Bytes; None where nobody sets a limit.
    """
    if given_bytes:
        return given_bytes
    limits = [limit for limit in _group_limits(root) if limit < UNLIMITED]
    return int(SHARE * min(limits)) if limits else None


def _group_limits(root: Path) -> Iterator[int]:
    """Limits of this process's control groups: its own and those around it, of either version."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = ("", "memory.max") if not controllers else ("memory", "memory.limit_in_bytes")
        folder = Path(path.lstrip("/"))
        for group in (folder, *folder.parents):
            try:
                yield int((root / "sys" / "fs" / "cgroup" / top / group / name).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue
