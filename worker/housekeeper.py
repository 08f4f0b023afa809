"""What a worker does beside its work: it says that it lives, sweeps, and looks for work when no tickets come.

    beat    every 10 s: "I live, and serve this"
    sweep   every sweep_s, one worker of all: lost units, unpublished finishes, lost tickets, jobs past their time
    refill  every second after a sweep that found more units than it may send tickets, by the same worker
    poll    every 5 s: while the broker is away, or a unit waits to be tried again, free block threads claim unasked
"""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from worker import queue
from worker.tasks import AWAY, BACKOFF_S, MOST_TICKETS, Runner

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
POLL_S = 5.0
LEAST_POLL_S = 0.5
TROUBLED_S = 130.0
"""Twice the longest pause that the ledger gives a unit that could not be done."""

REFILL_S = 1.0
"""A broker that lost its tickets would else get `MOST_TICKETS` a sweep: 17 blocks a second, however many GPUs wait."""

EXPIRED_PER_SWEEP = 20


class Housekeeper:
    """A worker's second thread of life.

    Args:
        runner: whose ledger and artifacts it looks after.
        app: where tickets go.
        sweep_s: seconds between sweeps; one worker of all does each.
        retention_s: how long an ended job's results are kept; None is for ever.
    """

    def __init__(self, runner: Runner, app: Celery, sweep_s: float = 60.0, retention_s: float | None = None):
        self._runner = runner
        self._app = app
        self._sweep_s = sweep_s
        self._retention_s = retention_s
        self._over = threading.Event()
        self._turned = time.monotonic()
        self._short = False
        self._thread = threading.Thread(target=self._keep, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Say hello, sweep once, and go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and leave the ledger's list of workers."""
        self._over.set()
        self._thread.join()
        self.forget()

    def forget(self) -> None:
        """Leave the ledger's list of workers, if it can be reached."""
        with suppress(SQLAlchemyError):
            self._runner.ledger.forget_worker(self._runner.worker_id)

    @property
    def silent_s(self) -> float:
        """Seconds since its loop last came round; it waits for a database that is away, but not for ever."""
        return time.monotonic() - self._turned

    def _keep(self) -> None:
        next_sweep = next_beat = next_refill = 0.0
        while not self._over.is_set():
            now = self._turned = time.monotonic()
            try:
                if now >= next_beat:
                    self._runner.ledger.heartbeat(self._runner.worker_id, self._runner.engine.card, self._runner.models)
                    next_beat = now + HEARTBEAT_S
                if now >= next_sweep:
                    next_sweep = now + self._sweep_s
                    self._short, next_refill = self.sweep(), now + REFILL_S
                elif self._short and now >= next_refill:
                    self._short, next_refill = self._refill(), now + REFILL_S
            except Exception as error:  # whatever it was: a worker without a housekeeper is lost to the others
                self._log_waiting(error)
                next_beat = now + BACKOFF_S
                # Owners that could not renew while the database was away get the time to do so before they are swept.
                next_sweep = now + BACKOFF_S + min(5.0, self._runner.ledger.lease_s / 2)
            soonest = min(next_sweep, next_beat, next_refill if self._short else next_sweep)
            self._over.wait(max(0.05, soonest - time.monotonic()))

    def _log_waiting(self, error: Exception) -> None:
        known = isinstance(error, (*AWAY, SQLAlchemyError))
        log.warning("housekeeping waits: %s", error, exc_info=None if known else error)

    def sweep(self) -> bool:
        """Return lost units, publish what a lost worker committed, replace lost tickets, and retire old jobs.

        What one job needs and cannot get now waits for the next sweep; the others go on.

        Returns:
            Whether there are more units than tickets may be sent at a time.
        """
        ledger = self._runner.ledger
        if not ledger.take_lease("sweeper", self._runner.worker_id, 1.5 * self._sweep_s):
            return False
        found = ledger.sweep()
        for job_id, token in found.unpublished:
            try:
                self._runner.publish_finish(job_id, token)
            except Exception as error:
                log.warning("job %s cannot be published now: %s", job_id, error)
        short = self._replace_tickets(found.claimable)
        self._retire()
        ledger.prune_links()
        return short

    def _refill(self) -> bool:
        """Tickets again where the last ones were not enough, unless another worker sweeps by now."""
        ledger = self._runner.ledger
        if not ledger.take_lease("sweeper", self._runner.worker_id, 1.5 * self._sweep_s):
            return False
        return self._replace_tickets(ledger.claimable())

    def _replace_tickets(self, claimable: dict[str, int]) -> bool:
        try:
            for model, count in claimable.items():
                missing = min(count, MOST_TICKETS) - queue.depth(self._app, model)
                if missing > 0:
                    queue.submit(self._app, model, missing)
        except AWAY as error:
            log.warning("the broker is away; workers look for work without tickets: %s", error)
            return False
        return any(count > MOST_TICKETS for count in claimable.values())

    def _retire(self) -> None:
        """Remove the results of a few jobs whose time is over."""
        if self._retention_s is None:
            return
        ledger = self._runner.ledger
        for job_id in ledger.expire(self._retention_s, EXPIRED_PER_SWEEP):
            self._turned = time.monotonic()
            try:
                self._runner.artifacts.remove(job_id)
                ledger.purged(job_id)
            except Exception as error:
                log.warning("the results of job %s cannot be removed now: %s", job_id, error)
            else:
                log.info("the results of job %s were removed, their time was over", job_id)


class Poller:
    """Claims without tickets while there can be none.

    Every few seconds it asks the broker whether it is there. While it is not, and once more when it is back and may
    have lost its tickets, whatever block threads are free claim until nothing is left to claim. So they do while a unit
    waits out its pause after storage was away: its ticket is used up. Otherwise the ledger is left alone.

    Args:
        runner: claims and runs.
        app: whose broker is asked.
        threads: units at most that it runs at once; the runner's own limit holds as well.
        period_s: seconds between two questions.
    """

    def __init__(self, runner: Runner, app: Celery, threads: int, period_s: float = POLL_S):
        self._runner = runner
        self._app = app
        self._threads = threads
        self._period_s = max(LEAST_POLL_S, period_s)
        self._over = threading.Event()
        self._running: set[int] = set()
        self._thread = threading.Thread(target=self._keep, name="poller", daemon=True)

    def start(self) -> None:
        """Go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; what runs is the runner's to stop."""
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        was_away = False
        with ThreadPoolExecutor(self._threads, thread_name_prefix="poll") as pool:
            while not self._over.wait(self._period_s):
                away = not self._broker_answers()
                troubled = self._runner.troubled and time.monotonic() - self._runner.troubled < TROUBLED_S
                if away or was_away or troubled:
                    self._fill(pool)
                if away != was_away:
                    log.warning("the broker is %s", "away: looking for work without tickets" if away else "back")
                was_away = away

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        """Set every free block thread to work, unless the one before still is."""
        for place in set(range(self._threads)) - self._running:
            self._running.add(place)
            pool.submit(self._drain, place)

    def _drain(self, place: int) -> None:
        try:
            while not self._over.is_set() and self._runner.run_one(wait=False):
                pass
        except Exception as error:
            log.error("a unit claimed without a ticket failed", exc_info=error)
        finally:
            self._running.discard(place)

    def _broker_answers(self) -> bool:
        try:
            queue.ping(self._app)
        except Exception:  # whatever it says: no ticket comes from there
            return False
        return True
