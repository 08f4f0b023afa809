"""The notice board: what the ledger says of jobs, read once for all who ask at the same time.

Whoever asks is shown what stood in the ledger at a moment after they asked, never an older state: questions that arrive
while one query runs are answered together by the next. So a process has at most one such query under way, whatever
the number of pollers and event streams, and no request of its own needs a thread.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from statistics import median

from sqlalchemy.exc import SQLAlchemyError

from service.errors import Problem, away, is_away
from service.status import Notice, make_notice, shown_eta_s
from worker.errors import JobNotFound, SlideReasonError
from worker.ledger import JobRow, Ledger

log = logging.getLogger("slidereason.service")

GATHER_S = 0.02
"""Two queries begin at least so far apart: under load, who comes meanwhile goes with the next. Alone, nobody waits."""

READING_SHARE = 0.25
"""Where the ledger is slow, queries are further apart, so that no more than this of the time goes into them. Slow is
what the median of the last few says: one query that waited for a disk makes nobody else wait four times as long."""

FEW = 9

WATCH_S = 0.75
READ_TIMEOUT_S = 10.0
SAY_AWAY_EVERY_S = 5.0
KEPT_S = 60.0
MOST_NOTICES = 1024
"""Notices nobody asked for so long, or beyond so many, are written anew when somebody does."""

MOST_AT_ONCE = 500


class _Batch:
    """Questions that one query answers."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()
        self.over = asyncio.Event()
        self.rows: dict[str, JobRow] = {}
        self.error: Exception | None = None


class Watch:
    """One event stream's view of a job.

    Attributes:
        notice: the job as it stands; None when it is gone (`error` says why).
        changed: set when `notice`, `error` or the board's `closing` changed; the stream clears it.
    """

    def __init__(self, notice: Notice):
        self.notice: Notice | None = notice
        self.error: SlideReasonError | None = None
        self.changed = asyncio.Event()

    def differs(self, notice: Notice) -> bool:
        """Whether a notice says something else than this view."""
        return self.notice is None or self.notice.etag != notice.etag

    def tell(self, notice: Notice | None, error: SlideReasonError | None = None) -> None:
        """Show another state."""
        self.notice, self.error = notice, error
        self.changed.set()


class Board:
    """Used by one event loop; see the module.

    Args:
        ledger: asked in threads of the board's own.
    """

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="board")  # one for batches, one for what they lack
        self._collecting: _Batch | None = None
        self._reader: asyncio.Task | None = None
        self._ticker: asyncio.Task | None = None
        self._next_read = self._said_away = float("-inf")
        self._took_s: deque[float] = deque(maxlen=FEW)
        self._notices: OrderedDict[str, tuple[float, Notice]] = OrderedDict()  # when last shown; the longest ago first
        self._watches: dict[str, set[Watch]] = {}
        self.closing = False
        self.reads = 0

    @property
    def streams(self) -> int:
        """How many event streams are open."""
        return sum(len(watches) for watches in self._watches.values())

    async def notice(self, job_id: str, tenant: str) -> Notice:
        """A job as it stands now.

        Raises:
            JobNotFound: no job of this tenant has this id.
            JobExpired: its results were removed.
            Problem: 503, the database is away.
        """
        rows = await self._rows({job_id})
        if job_id not in rows:
            rows = {job_id: await self._in_thread(self._ledger.job, job_id, tenant)}  # says what is wrong with it
        if rows[job_id].tenant != tenant:
            raise JobNotFound("no job has this id", subject=job_id)
        return self._shown(rows[job_id])

    @contextmanager
    def watch(self, notice: Notice) -> Iterator[Watch]:
        """Hear of changes of a job until the context ends."""
        job_id, watch = notice.row.job_id, Watch(notice)
        self._watches.setdefault(job_id, set()).add(watch)
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        try:
            yield watch
        finally:
            self._watches[job_id].discard(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]

    def end_streams(self) -> None:
        """The process stops: streams end now, and their clients go on elsewhere."""
        self.closing = True
        for watch in self._all_watches():
            watch.changed.set()

    async def close(self) -> None:
        """End the board's tasks and its threads; a query under way is not waited for."""
        self.end_streams()
        for task in filter(None, (self._reader, self._ticker)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- reading -------------------------------------------------------------------------------------------------

    async def _rows(self, job_ids: Collection[str]) -> dict[str, JobRow]:
        """Rows of the ledger, no older than this call; unknown and expired jobs are left out."""
        batch = self._collecting
        if batch is None:
            batch = self._collecting = _Batch()
        batch.wanted.update(job_ids)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        await batch.over.wait()
        if batch.error is not None:
            raise batch.error
        return batch.rows

    async def _read(self) -> None:
        """Answer batches until none is left."""
        try:
            while self._collecting is not None:
                await asyncio.sleep(max(0.0, self._next_read - time.monotonic()))
                batch, self._collecting = self._collecting, None
                began = time.monotonic()
                try:
                    wanted = sorted(batch.wanted)
                    for start in range(0, len(wanted), MOST_AT_ONCE):
                        self.reads += 1
                        part = wanted[start : start + MOST_AT_ONCE]
                        batch.rows |= await self._in_thread(self._ledger.jobs, part)
                except Exception as error:  # whoever asked is told; the next batch tries again
                    batch.error = error
                finally:
                    self._took_s.append(min(time.monotonic() - began, 1.0))
                    self._next_read = began + max(GATHER_S, median(self._took_s) / READING_SHARE)
                    batch.over.set()
        finally:
            self._reader = None

    async def _in_thread(self, function, *arguments):
        """Ask the ledger; a database that does not answer counts as away.

        Raises:
            Problem: 503, it is away.
        """
        try:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
            return await asyncio.wait_for(asked, READ_TIMEOUT_S)
        except (SQLAlchemyError, TimeoutError) as error:
            if not is_away(error):
                raise
            if time.monotonic() - self._said_away > SAY_AWAY_EVERY_S:
                self._said_away = time.monotonic()
                log.warning("the database is away: %s", str(error).partition("\n")[0] or type(error).__name__)
            raise away("database") from error

    def _shown(self, row: JobRow) -> Notice:
        """The row's notice, written anew only when it says something new."""
        now = time.monotonic()
        known = self._notices.get(row.job_id, (now, None))[1]
        row = replace(row, eta_s=shown_eta_s(row.eta_s), spec=row.spec if known is None else known.row.spec)
        if known is None or known.row != row:
            known = make_notice(row)
        self._notices[row.job_id] = now, known
        self._notices.move_to_end(row.job_id)
        while len(self._notices) > MOST_NOTICES or next(iter(self._notices.values()))[0] < now - KEPT_S:
            self._notices.popitem(last=False)
        return known

    # ---- watching ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Look after all watched jobs at once, once a period, while there are any."""
        try:
            while self._watches and not self.closing:
                await asyncio.sleep(WATCH_S)
                with suppress(Problem):  # the database is away: streams stay, and hear when it is back
                    await self._look()
        finally:
            self._ticker = None

    async def _look(self) -> None:
        watched = list(self._watches)
        if not watched:
            return
        rows = await self._rows(watched)
        for job_id in watched:
            row = rows.get(job_id)
            notice = error = None
            if row is None:
                error = await self._why_gone(job_id)
            else:
                notice = self._shown(row)
            for watch in self._watches.get(job_id, ()):
                if error is not None or (notice is not None and watch.differs(notice)):
                    watch.tell(notice, error)

    async def _why_gone(self, job_id: str) -> SlideReasonError | None:
        try:
            await self._in_thread(self._ledger.job, job_id)
        except SlideReasonError as error:
            return error
        return None

    def _all_watches(self) -> list[Watch]:
        return [watch for watches in self._watches.values() for watch in watches]
