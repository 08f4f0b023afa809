"""What a worker does with a ticket: claim the best unit, run it, write down how it went.

A ticket says only "there is something". The ledger decides what, the pipeline does it, and everything that can go
wrong is told apart here: a lost lease, a dismissed job, a fault of the data, and storage or database being away.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any, TypeVar

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker import metrics, pipeline, queue, tracing
from worker.artifacts import Artifacts, JobStore
from worker.engine import Engine
from worker.errors import CoverageTooLow, JobDismissed, LeaseLost, NewerArtifacts, SlideReasonError, StorageAway
from worker.gates import IsolationGate, Slots
from worker.ledger_units import UnitLedger, Work
from worker.logs import log_context

log = logging.getLogger(__name__)

Result = TypeVar("Result")

AWAY = (DBAPIError, RedisError, KombuError, OSError, MemoryError, NewerArtifacts)
"""Storage, database or broker are away, the machine is full, this version is too old: nothing the data could help."""

BACKOFF_S = 2.0
MOST_TICKETS = 1000

TOLD_AS = {"wait_engine": "predict"}
"""Stages that a trace names otherwise."""

TRIES_S = (0.1, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 5.0)
"""Pauses while the database is away before what a unit came to is given up, which another worker does again then."""


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
        keep = copy_context().run  # its log lines name the unit too
        self._thread = threading.Thread(
            target=keep, args=(self._keep,), name=f"lease-{work.kind}-{work.key}", daemon=True
        )

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
        metrics.TILES.labels(self.work.spec.model).inc()
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


class Runner:
    """Runs units: one `run_one` per ticket, from as many threads as the worker has.

    Args:
        ledger, artifacts, engine: where the work is, where it goes, who answers.
        worker_id: names this process in the ledger.
        models: names under which jobs ask for this engine's segmenter.
        send_tickets: called with the number of units that became claimable; None when nobody needs tickets.
        progress: called with (work, tiles done, tiles failed) as blocks go on.
        on_error: called with (work, error) when a unit fails.
        most: units at once; None is as many as there are threads that ask.

    Attributes:
        troubled: when a unit was last given back to be tried again later, on the monotonic clock; 0 is never.
    """

    def __init__(
        self,
        ledger: UnitLedger,
        artifacts: Artifacts,
        engine: Engine,
        worker_id: str,
        models: Sequence[str],
        send_tickets: Callable[[str, int], None] | None = None,
        progress: Callable[[Work, int, int], None] | None = None,
        on_error: Callable[[Work, Exception], None] | None = None,
        most: int | None = None,
    ):
        self.ledger = ledger
        self.artifacts = artifacts
        self.engine = engine
        self.worker_id = worker_id
        self.models = tuple(models)
        self.stopping = threading.Event()
        self.troubled = 0.0
        self._send_tickets = send_tickets
        self._progress = progress
        self._on_error = on_error or (lambda _work, _error: None)
        self._slots = Slots(most)
        self._gate = IsolationGate()
        self._watches: set[LeaseWatch] = set()

    def run_one(self, wait: bool = True) -> bool:
        """Claim a unit and run it.

        Args:
            wait: for a free slot, where all are taken; else that counts as nothing to claim.

        Returns:
            False when there was nothing to claim.
        """
        with self._slots.take(wait, self.stopping) as free:
            if not free or self.stopping.is_set():
                return False
            with self._gate.open():
                try:
                    work = self.ledger.claim_export(self.worker_id)
                    work = work or self.ledger.claim(self.worker_id, self.models, self.engine.card)
                except SQLAlchemyError as error:
                    log.warning("the ledger is away: %s", error)
                    self.stopping.wait(BACKOFF_S)
                    return False
                if work is None:
                    return False
                self._run_claimed(work)
        return True

    def _run_claimed(self, work: Work) -> None:
        unit = f"{work.kind} {work.key}".strip()
        metrics.UNIT_WAIT_S.observe(work.waited_s)
        with ExitStack() as around:
            around.enter_context(log_context(job=work.job_id, unit=unit))
            around.enter_context(tracing.span(unit, work.trace, job=work.job_id, token=work.token))
            stages = around.enter_context(metrics.unit_stages())
            watch = around.enter_context(LeaseWatch(self.ledger, work, self._progress_of(work)))
            self._watches.add(watch)
            try:
                if self.stopping.is_set():
                    watch.stop(JobDismissed("the worker stops"))
                outcome = self._run(work, watch)
            finally:
                self._watches.discard(watch)
            metrics.UNITS.labels(work.kind, outcome).inc()
            for name, (begun_s, ended_s) in stages.spans.items():
                tracing.past_span(TOLD_AS.get(name, name), begun_s, ended_s, busy_s=round(stages.busy_s[name], 6))

    @property
    def busy(self) -> int:
        """How many units are in hand."""
        return self._slots.taken

    def drain(self) -> None:
        """Claim nothing more; what runs goes on."""
        self.stopping.set()

    def stop(self) -> None:
        """Claim nothing more, and give back what runs."""
        self.stopping.set()
        for watch in list(self._watches):
            watch.stop(JobDismissed("the worker stops"))

    def abandon(self) -> int:
        """Give back what runs, whether it has stopped or not; its late commit will be refused.

        Returns:
            How many units there were.
        """
        left = [watch.work for watch in list(self._watches)]
        for work in left:
            self._release(work)
        return len(left)

    def _progress_of(self, work: Work) -> Callable[[int, int], None] | None:
        progress = self._progress
        return None if progress is None else lambda done, failed: progress(work, done, failed)

    def _run(self, work: Work, watch: LeaseWatch) -> str:
        """Run a unit and write down how it went; returns one of `metrics.OUTCOMES`."""
        try:
            try:
                if work.isolated:
                    with self._gate.alone():
                        self._step(work, watch)
                else:
                    self._step(work, watch)
                return "done"
            except LeaseLost as error:
                log.warning("%s", error)
                return "lost"
            except JobDismissed as error:
                log.info("handed back: %s", error)
                _insist(lambda: self._release(work))
                return "handed_back"
            except Exception as error:
                return self._failed(work, error)
        except LeaseLost as error:
            log.warning("%s", error)
        except SQLAlchemyError as error:  # nothing could be written down: the lease runs out and the sweeper sees to it
            log.warning("the ledger is away: %s", error)
            self.stopping.wait(BACKOFF_S)
        return "lost"

    def _release(self, work: Work) -> None:
        self.ledger.release(work)
        self._tickets(work, 1)

    def _failed(self, work: Work, error: Exception) -> str:
        """Tell faults of the data from storage and database being away, and write it down; returns the outcome."""
        self._on_error(work, error)
        unit = f"{work.kind} {work.key} of job {work.job_id}"
        # What is away is no fault of the data, also where it is named as one of our errors.
        foreseen = isinstance(error, SlideReasonError) and not isinstance(error, (StorageAway, NewerArtifacts))
        away = isinstance(error, AWAY) and not foreseen
        # A plan or a coverage that is refused today is refused tomorrow; a slide may come back.
        final = foreseen and (work.kind in ("plan", "export") or isinstance(error, CoverageTooLow))
        if away:
            log.warning("%s waits: %s", unit, error)
        elif foreseen:
            log.info("%s: %s", unit, error)
        else:
            log.error("%s failed", unit, exc_info=error)
        _insist(lambda: self.ledger.fail(work, error, data_fault=not away, final=final))
        self.troubled = time.monotonic()
        return "waits" if away else "failed"

    def _step(self, work: Work, watch: LeaseWatch) -> None:
        """Run a unit, commit it, publish it, and say how much can be done next."""
        watch.check()
        with self.artifacts.job(work.job_id) as store:
            ready = self._run_and_commit(store, work, watch)
            try:
                with metrics.stage("publish"):
                    if work.kind == "finish":
                        self.publish_finish(work.job_id, work.token)
                    else:
                        store.publish(_unit(work), work.token)
            except OSError as error:  # it is committed; whoever needs it publishes it, and the sweeper a finish
                log.warning("%s of job %s is to be published later: %s", _unit(work), work.job_id, error)
        self._tickets(work, ready)

    def _run_and_commit(self, store: JobStore, work: Work, watch: LeaseWatch) -> int:
        """Run a unit and commit it; returns how many units that makes claimable."""
        if work.kind == "plan":
            with metrics.stage("plan"):
                planned = pipeline.plan_job(store, work, self.engine.card, watch)
            self._save(store, work)
            return self._commit(watch, self.ledger.commit_plan, planned.plan, planned.info, planned.tiles_of)
        if work.kind == "segment":
            block = pipeline.segment_block(store, work, self.engine, watch)
            self._save(store, work)
            return self._commit(watch, self.ledger.commit_block, block.tiles_done, block.tiles_failed, block.summary)
        if work.kind == "export":
            with metrics.stage("export"):
                pipeline.export_job(store, work, watch)
            self._save(store, work)
            self._commit(watch, self.ledger.commit_export)
            return 0
        rows = self.ledger.blocks(work.job_id)
        with metrics.stage("finish"):
            result = pipeline.finish_job(store, work, rows, self.engine.card, watch)
        self._save(store, work)
        self._commit(watch, self.ledger.commit_finish, result, f"{result['regions']} regions")
        return 0

    def _save(self, store: JobStore, work: Work) -> None:
        """Make a unit's files safe, so that its commit promises nothing that a power cut could take back."""
        with metrics.stage("save"):
            store.save(_unit(work), work.token)

    def _commit(self, watch: LeaseWatch, commit: Callable[..., Result], *results: Any) -> Result:
        """Commit; done work waits a while for a database that is away, instead of being done again."""
        with metrics.stage("commit"):
            return _insist(lambda: commit(watch.work, *results), watch.cancelled)

    def publish_finish(self, job_id: str, token: int) -> None:
        """Publish a committed finish and close its job; may be repeated by anyone."""
        self.artifacts.job(job_id).publish("finish", token)
        _insist(lambda: self.ledger.close_job(job_id))
        self.artifacts.clear_attempts(job_id)

    def _tickets(self, work: Work, count: int) -> None:
        if self._send_tickets is not None and count:
            try:
                self._send_tickets(work.spec.model, min(count, MOST_TICKETS))
            except AWAY as error:
                log.warning("tickets could not be sent, the sweeper will: %s", error)


def _unit(work: Work) -> str:
    """A unit's name among the job's attempts: a block's key, `plan`, `finish`, or `export.` and its name."""
    if work.kind == "export":
        return f"export.{work.key}"
    return work.key if work.kind == "segment" else work.kind


def _insist(write: Callable[[], Result], given_up: Callable[[], bool] = lambda: False) -> Result:
    """Write to the ledger; while the database is away, try again for half a minute."""
    for pause_s in TRIES_S:
        try:
            return write()
        except DBAPIError as error:
            if given_up():
                raise
            log.warning("the ledger is away, trying again in %.1f s: %s", pause_s, error)
            time.sleep(pause_s)
    return write()


def register_ticket(app: Celery, runner: Runner) -> None:
    """Make the worker's one Celery task: run one unit."""

    @app.task(name=queue.TASK, ignore_result=True, acks_late=True)
    def ticket() -> None:
        runner.run_one()
