"""Slides are fetched from elsewhere, each once, by a few threads of the gateway."""

import errno
import logging
import queue
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from service.fetch_folder import Fetch, FetchFolder
from worker.errors import QueueFull, SlideReasonError, SlideUnreadable
from worker.transfer import Transfer

log = logging.getLogger("slidereason.service")

Fetching = Callable[[Path, Transfer], Path]
"""Puts a slide into the empty folder it is given, and returns its path."""

Keeping = Callable[[Path], Callable[[Path], None]]
"""Refuses what is no slide; what it returns is called with the path under which the slide is then shown."""

BEAT_S = 2.0
FAILED_S = 30.0
"""For so long a job that names a slide whose fetch failed is told so; after that it starts another."""

MOST_WAITING = 200
CLOSING_S = 5.0


@dataclass
class Going:
    """A fetch of this process: waiting for a thread, or under way; its note is written under its lock."""

    slide_id: str
    transfer: Transfer
    fetch: Fetching
    keep: Keeping
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    began: float = field(default_factory=time.time)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False

    @property
    def progress(self) -> dict[str, float | None]:
        """What its note says."""
        return {"began": self.began, "done": self.transfer.done, "total": self.transfer.total}


class Fetches:
    """The threads that fetch slides into a folder, and one that watches them.

    Args:
        folder: where they go.
        most: threads.
        limit_bytes, stall_s: of each, see `Transfer`.
        keep_s: a slide that nobody asked for in so long may be removed before another is fetched.
        in_use: ids of slides that may not.
    """

    def __init__(
        self, folder: FetchFolder, most: int, limit_bytes: int, stall_s: float, keep_s: float,
        in_use: Callable[[], set[str]],
    ):  # fmt: skip
        self.folder, self._most, self._limit_bytes, self._stall_s = folder, most, limit_bytes, stall_s
        self._keep_s, self._in_use = keep_s, in_use
        self._lock = threading.Lock()
        self._going: dict[str, Going] = {}
        self._queue: queue.SimpleQueue[Going | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def ask(self, slide_id: str, fetch: Fetching, keep: Keeping, again: bool = False) -> Fetch:
        """Have a slide fetched, unless it is here, on its way, or has just failed.

        Args:
            slide_id: of the slide.
            fetch, keep: see the types.
            again: also when it has just failed.

        Returns:
            How it stands now.

        Raises:
            QueueFull: too many wait to be fetched, or the gateway is about to end.
        """
        self.folder.touch(slide_id)
        found = self.folder.look(slide_id)
        if found.state in ("here", "fetching") or (found.state == "failed" and not again and found.age_s < FAILED_S):
            return found
        with self._lock:
            if self._closing.is_set() or len(self._going) >= MOST_WAITING:
                raise QueueFull("too many slides wait to be fetched; try again later", field="slide")
            going = Going(slide_id, Transfer(self._limit_bytes, self._stall_s, self.folder.path), fetch, keep)
            if slide_id not in self._going and self.folder.take(slide_id, going.owner):
                self._going[slide_id] = going
                self._start()
                self._queue.put(going)
        return self.folder.look(slide_id)

    def close(self) -> None:
        """End what goes on and leave no trace of it: who asks again starts it anew."""
        with self._lock:
            self._closing.set()
            threads, self._threads = self._threads, []
            going = list(self._going.values())
        for _ in threads:
            self._queue.put(None)
        end = time.monotonic() + CLOSING_S
        for thread in threads:
            while thread.is_alive() and time.monotonic() < end:
                for one in going:
                    one.transfer.stop("the gateway was told to end")  # again: it may only be about to connect
                thread.join(0.1)

    def _start(self) -> None:
        if not self._threads:
            work = [threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True) for n in range(self._most)]
            self._threads = [*work, threading.Thread(target=self._watch, name="fetch-watch", daemon=True)]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        while (going := self._queue.get()) is not None:
            self._run(going)

    def _watch(self) -> None:
        """Say of each fetch that it goes on, and end those that do not."""
        while not self._closing.wait(min(BEAT_S, self._stall_s / 4)):
            with self._lock:
                going = list(self._going.values())
            for one in going:
                try:
                    self._beat(one)
                except OSError as error:
                    log.warning("cannot write down how a fetch stands: %s", error.strerror)

    def _beat(self, going: Going) -> None:
        if going.transfer.stalled():
            going.transfer.stop(f"too little came in {self._stall_s:g} s")
        with going.lock:
            ours = going.ended or self.folder.write(going.slide_id, going.owner, **going.progress)
        if not ours:
            going.transfer.stop("another gateway fetches it")

    def _run(self, going: Going) -> None:
        part = self.folder.part(going.slide_id, going.owner)
        why = None
        try:
            self._tidy()
            part.mkdir()
            going.transfer.check()
            with going.transfer.watched():
                path = going.fetch(part, going.transfer)
            kept = going.keep(path)
            kept(self.folder.show(going.slide_id, going.owner) / path.name)
            log.info("slide %s was fetched: %d bytes", going.slide_id, going.transfer.done)
        except SlideUnreadable as error:
            why = f"what came is no slide: {error.message}"
        except SlideReasonError as error:
            why = error.message
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the server has no room for this slide" if full else "the server cannot keep it"
            log.warning("slide %s cannot be kept: %s", going.slide_id, error.strerror or type(error).__name__)
        except Exception as error:  # whatever it is: the thread goes on, and whoever asked is told
            why = "the server failed; the error has been logged"
            where = "".join(traceback.format_tb(error.__traceback__))  # its words might repeat the reference
            log.error("slide %s cannot be fetched: %s\n%s", going.slide_id, type(error).__name__, where)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            self._end(going, why)

    def _tidy(self) -> None:
        try:
            self.folder.tidy(self._keep_s, self._in_use)
        except Exception as error:  # a database that is away is no reason not to fetch
            log.warning("old slides cannot be removed now: %s", type(error).__name__)

    def _end(self, going: Going, why: str | None) -> None:
        """Take the note away, or write into it why the fetch failed; who asks after that may start another."""
        with self._lock:
            self._going.pop(going.slide_id, None)
        with going.lock:
            going.ended = True
            try:
                if why is None or self._closing.is_set() or self.folder.slide(going.slide_id) is not None:
                    self.folder.let_go(going.slide_id, going.owner)
                elif self.folder.write(going.slide_id, going.owner, **going.progress, failed=why):
                    log.warning("slide %s was not fetched: %s", going.slide_id, why)
            except OSError as error:
                log.warning("cannot write down how a fetch ended: %s", error.strerror)
