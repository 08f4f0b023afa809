"""Bytes on their way from elsewhere into the data folder: counted, limited, watched, and ended from outside."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.errors import SlideFetchFailed

LEAST_BYTES = 64 << 10
"""What has to come within `stall_s`; a server that sends a byte now and then would hold its place for ever."""

SPARE_BYTES = 1 << 30
"""Of the disk is left free."""

ROOM_EVERY_BYTES = 64 << 20
"""How often the disk is looked at."""


class Transfer:
    """One fetch. The thread that fetches tells what came; another may watch and stop it.

    Args:
        limit_bytes: more than this is not taken.
        stall_s: the longest time without `LEAST_BYTES`.
        folder: on the disk that is written to.

    Attributes:
        done, total: bytes that came, and that will have come in the end, None where nobody said.
    """

    def __init__(self, limit_bytes: int, stall_s: float, folder: Path):
        self.limit_bytes, self.stall_s, self._folder = limit_bytes, stall_s, folder
        self.done = 0
        self.total: int | None = None
        self._lock = threading.Lock()
        self._cut: Callable[[], None] | None = None
        self._why: str | None = None
        self._room_at = 0
        self._since: float | None = None
        self._then = 0

    def expect(self, total: int) -> None:
        """Say how many bytes will come.

        Raises:
            SlideFetchFailed: they are more than the limit, or than the disk has room for.
        """
        self.total = total
        self._require_limit(total)
        self._require_room(total)

    def took(self, count: int) -> None:
        """Say that bytes came.

        Raises:
            SlideFetchFailed: they are too many, the disk is full, or the transfer was stopped.
        """
        with self._lock:
            self.done += count
            look = self.done >= self._room_at
            if look:
                self._room_at = self.done + ROOM_EVERY_BYTES
        self.check()
        self._require_limit(self.done)
        if look:
            self._require_room(0 if self.total is None else self.total - self.done)

    def keep(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Write a new file and see it to the disk."""
        with path.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    # ---- from outside --------------------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """End it, from another thread; the fetching one raises `SlideFetchFailed` with these words."""
        with self._lock:
            self._why = self._why or why
            cut = self._cut
        if cut is not None:
            cut()

    @contextmanager
    def ended_by(self, cut: Callable[[], None]) -> Iterator[None]:
        """While inside, `stop` calls `cut`, which must end what the fetching thread waits for."""
        with self._lock:
            self._cut = cut
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._cut = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, `stalled` may be true; what is done with the bytes afterwards takes the time it takes."""
        self._then, self._since = self.done, time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def stalled(self) -> bool:
        """Whether too little came for too long; to be asked now and then."""
        since, now = self._since, time.monotonic()
        if since is None:
            return False
        if self.done - self._then >= LEAST_BYTES:
            self._then, self._since = self.done, now
            return False
        return now - since > self.stall_s

    def check(self) -> None:
        """Raise `SlideFetchFailed` if it was stopped."""
        if self._why is not None:
            raise SlideFetchFailed(self._why, field="slide")

    def _require_limit(self, count: int) -> None:
        if count > self.limit_bytes:
            detail = f"the slide is larger than {self.limit_bytes} bytes, the most that is fetched"
            raise SlideFetchFailed(detail, field="slide")

    def _require_room(self, count: int) -> None:
        if shutil.disk_usage(self._folder).free < count + SPARE_BYTES:
            raise SlideFetchFailed("the server has no room for this slide", field="slide")
