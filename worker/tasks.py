"""What a worker does with a ticket: claim the best unit, run it, write down how it went.

A ticket says only "there is something". The ledger decides what, the pipeline does it, and everything that can go
wrong is told apart here: a lost lease, a dismissed job, a fault of the data, and storage or database being away.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker import pipeline, queue
from worker.artifacts import LocalArtifacts
from worker.attempts import publish
from worker.engine import Engine
from worker.errors import CoverageTooLow, JobDismissed, LeaseLost, SlideReasonError
from worker.ledger_units import UnitLedger, Work

log = logging.getLogger(__name__)

AWAY = (DBAPIError, RedisError, KombuError, OSError, MemoryError)
"""Storage, database or broker are away, or the machine is full: nothing the data could help."""

BACKOFF_S = 2.0
HEARTBEAT_S = 10.0
MOST_TICKETS = 1000


class LeaseWatch:
    """Keeps a unit's lease alive on a thread of its own, reports progress, and hears when the work is to stop.

    Args:
        ledger: where the lease is.
        work: the claimed unit.
        progress: called after each owned tile with (done, failed); None when nobody listens.
    """

    def __init__(self, ledger: UnitLedger, work: Work, progress: Callable[[int, int], None] | None = None):
        self.work = work
        self.tiles_done = self.tiles_failed = 0
        self._ledger = ledger
        self._progress = progress
        self._stop_reason: SlideReasonError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{work.kind}-{work.key}", daemon=True)

    def __enter__(self) -> "LeaseWatch":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raise JobDismissed or LeaseLost when the work is to stop."""
        if self._stop_reason is not None:
            raise self._stop_reason

    def cancelled(self) -> bool:
        """Whether the work is to stop."""
        return self._stop_reason is not None

    def begin_tile(self, key: str | None) -> None:
        """Record the tile an isolated block is about to run, before it starts."""
        if self.work.isolated:
            self._ledger.begin_tile(self.work, key)

    def tile_done(self, failed: bool) -> None:
        """Count a tile that the unit owns."""
        self.tiles_failed += failed
        self.tiles_done += not failed
        if self._progress is not None:
            self._progress(self.tiles_done, self.tiles_failed)

    def stop(self, reason: SlideReasonError) -> None:
        """Make the work stop at its next check."""
        self._stop_reason = self._stop_reason or reason

    def _keep(self) -> None:
        period_s = min(2.0, self._ledger.lease_s / 4)
        while not self._over.wait(period_s):
            try:
                self._ledger.renew(self.work, self.tiles_done, self.tiles_failed)
            except (LeaseLost, JobDismissed) as error:
                self.stop(error)
                return
            except SQLAlchemyError as error:  # away for a moment; a commit after the lease is over is refused anyway
                log.warning("the lease could not be renewed: %s", error)


class IsolationGate:
    """Units share the worker, but an isolated one has it alone: whoever dies then, it was that tile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._alone = False
        self._wants_alone = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the gate shared; waits while an isolated unit runs or wants to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._wants_alone)
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """From within `open`: wait until the others are through, and hold the gate alone."""
        with self._changed:
            self._wants_alone += 1
            self._shared -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._alone and self._shared == 0)
            self._alone = True
            self._wants_alone -= 1
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._shared += 1
                self._changed.notify_all()


class Runner:
    """Runs units: one `run_one` per ticket, from as many threads as the worker has.

    Args:
        ledger, artifacts, engine: where the work is, where it goes, who answers.
        worker_id: names this process in the ledger.
        models: names under which jobs ask for this engine's segmenter.
        send_tickets: called with the number of units that became claimable; None when nobody needs tickets.
        progress: called with (work, tiles done, tiles failed) as blocks go on.
        on_error: called with (work, error) when a unit fails.
    """

    def __init__(
        self,
        ledger: UnitLedger,
        artifacts: LocalArtifacts,
        engine: Engine,
        worker_id: str,
        models: Sequence[str],
        send_tickets: Callable[[str, int], None] | None = None,
        progress: Callable[[Work, int, int], None] | None = None,
        on_error: Callable[[Work, Exception], None] | None = None,
    ):
        self.ledger = ledger
        self.artifacts = artifacts
        self.engine = engine
        self.worker_id = worker_id
        self.models = tuple(models)
        self.stopping = threading.Event()
        self._send_tickets = send_tickets
        self._progress = progress
        self._on_error = on_error or (lambda _work, _error: None)
        self._gate = IsolationGate()
        self._watches: set[LeaseWatch] = set()

    def run_one(self) -> bool:
        """Claim a unit and run it.

        Returns:
            False when there was nothing to claim.
        """
        if self.stopping.is_set():
            return False
        with self._gate.open():
            try:
                work = self.ledger.claim(self.worker_id, self.models, self.engine.card)
            except SQLAlchemyError as error:
                log.warning("the ledger is away: %s", error)
                self.stopping.wait(BACKOFF_S)
                return False
            if work is None:
                return False
            with LeaseWatch(self.ledger, work, self._progress_of(work)) as watch:
                self._watches.add(watch)
                try:
                    if self.stopping.is_set():
                        watch.stop(JobDismissed("the worker stops"))
                    self._run(work, watch)
                finally:
                    self._watches.discard(watch)
        return True

    def stop(self) -> None:
        """Claim nothing more, and give back what runs."""
        self.stopping.set()
        for watch in list(self._watches):
            watch.stop(JobDismissed("the worker stops"))

    def _progress_of(self, work: Work) -> Callable[[int, int], None] | None:
        progress = self._progress
        return None if progress is None else lambda done, failed: progress(work, done, failed)

    def _run(self, work: Work, watch: LeaseWatch) -> None:
        try:
            try:
                if work.isolated:
                    with self._gate.alone():
                        self._step(work, watch)
                else:
                    self._step(work, watch)
            except LeaseLost as error:
                log.warning("%s", error)
            except JobDismissed:
                self.ledger.release(work)
                self._tickets(work, 1)
            except Exception as error:
                self._failed(work, error)
        except LeaseLost as error:
            log.warning("%s", error)
        except SQLAlchemyError as error:  # nothing could be written down: the lease runs out and the sweeper sees to it
            log.warning("the ledger is away: %s", error)
            self.stopping.wait(BACKOFF_S)

    def _failed(self, work: Work, error: Exception) -> None:
        """Tell faults of the data from storage and database being away, and write it down."""
        self._on_error(work, error)
        unit = f"{work.kind} {work.key} of job {work.job_id}"
        if isinstance(error, SlideReasonError):
            log.info("%s: %s", unit, error)
            # A plan or a coverage that is refused today is refused tomorrow; a slide may come back.
            final = work.kind == "plan" or isinstance(error, CoverageTooLow)
            self.ledger.fail(work, error, data_fault=True, final=final)
        elif isinstance(error, AWAY):
            log.warning("%s waits: %s", unit, error)
            self.ledger.fail(work, error, data_fault=False)
        else:
            log.error("%s failed", unit, exc_info=error)
            self.ledger.fail(work, error, data_fault=True)

    def _step(self, work: Work, watch: LeaseWatch) -> None:
        """Run a unit, commit it, publish it, and say how much can be done next."""
        watch.check()
        root, ready = self.artifacts.job_folder(work.job_id), 0
        root.mkdir(parents=True, exist_ok=True)
        if work.kind == "plan":
            planned = pipeline.plan_job(root, work, self.engine.card, watch)
            ready = self.ledger.commit_plan(work, planned.plan, planned.info, planned.tiles_of)
            publish(root, "plan", work.token)
        elif work.kind == "segment":
            block = pipeline.segment_block(root, work, self.engine, watch)
            ready = self.ledger.commit_block(work, block.tiles_done, block.tiles_failed, block.summary)
            publish(root, work.key, work.token)
        else:
            rows = self.ledger.blocks(work.job_id)
            result = pipeline.finish_job(root, work, rows, self.engine.card, watch)
            self.ledger.commit_finish(work, result, message=f"{result['regions']} regions")
            self.publish_finish(work.job_id, work.token)
        self._tickets(work, ready)

    def publish_finish(self, job_id: str, token: int) -> None:
        """Publish a committed finish and close its job; may be repeated by anyone."""
        publish(self.artifacts.job_folder(job_id), "finish", token)
        self.ledger.close_job(job_id)
        self.artifacts.clear_attempts(job_id)

    def _tickets(self, work: Work, count: int) -> None:
        if self._send_tickets is not None and count:
            try:
                self._send_tickets(work.spec.model, min(count, MOST_TICKETS))
            except AWAY as error:
                log.warning("tickets could not be sent, the sweeper will: %s", error)


class Housekeeper:
    """A worker's second thread of life: says that it lives, and sweeps when it is its turn.

    Args:
        runner: whose ledger it is.
        app: where tickets go.
        sweep_s: seconds between sweeps; one worker of all does each.
    """

    def __init__(self, runner: Runner, app: Celery, sweep_s: float = 60.0):
        self._runner = runner
        self._app = app
        self._sweep_s = sweep_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Say hello, sweep once, and go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and leave the ledger's list of workers."""
        self._over.set()
        self._thread.join()
        with suppress(SQLAlchemyError):
            self._runner.ledger.forget_worker(self._runner.worker_id)

    def _keep(self) -> None:
        next_sweep = next_beat = 0.0
        while not self._over.is_set():
            now = time.monotonic()
            try:
                if now >= next_beat:
                    self._runner.ledger.heartbeat(self._runner.worker_id, self._runner.engine.card, self._runner.models)
                    next_beat = now + HEARTBEAT_S
                if now >= next_sweep:
                    self.sweep()
                    next_sweep = now + self._sweep_s
            except (*AWAY, SQLAlchemyError) as error:
                log.warning("housekeeping waits: %s", error)
                next_sweep = next_beat = now + BACKOFF_S
            self._over.wait(max(0.05, min(next_sweep, next_beat) - time.monotonic()))

    def sweep(self) -> None:
        """Return lost units, publish what a lost worker committed, and replace lost tickets."""
        ledger = self._runner.ledger
        if not ledger.take_lease("sweeper", self._runner.worker_id, 1.5 * self._sweep_s):
            return
        found = ledger.sweep()
        for job_id, token in found.unpublished:
            self._runner.publish_finish(job_id, token)
        for model, claimable in found.claimable.items():
            missing = min(claimable, MOST_TICKETS) - queue.depth(self._app, model)
            if missing > 0:
                queue.submit(self._app, model, missing)


def register_ticket(app: Celery, runner: Runner) -> None:
    """Make the worker's one Celery task: run one unit."""

    @app.task(name=queue.TASK, ignore_result=True, acks_late=True)
    def ticket() -> None:
        runner.run_one()
