"""A worker's sender: it takes what is due from the outbox, sends it, and writes down what became of it.

Deliveries go out at once, each on a thread of its own; `delivery_turns` says whose are next, so that a receiver that
hangs holds up no other. Each is leased, and the lease renewed while it is sent: when its worker is lost, another sends
it again within a minute, and none does before. A worker that stops does not wait for a slow receiver.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker import metrics
from worker.artifacts import Artifacts, JobReader
from worker.deliveries import Outcome, pause_s
from worker.deliveries_fhir import post_bundle
from worker.deliveries_stow import store
from worker.deliveries_webhook import send_webhook
from worker.delivery_lease import DeliveryLease
from worker.delivery_turns import Lane, Turns
from worker.destinations import Destinations
from worker.errors import LeaseLost
from worker.exports.catalogue import EXPORTS
from worker.ledger import Ledger
from worker.ledger_deliveries import Delivery
from worker.ledger_outbox import DICOMWEB, WEBHOOK
from worker.logs import log_context
from worker.outbound import Stop

log = logging.getLogger(__name__)

LANES_TRIED = 32
"""So many lanes are tried, the best first, where other senders were quicker."""

RECORDS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses while the ledger is away before an outcome is given up, and its delivery sent again."""

POLL_S = 2.0
EXPORT_POLL_S = 3.0
STOP_S = 2.0


class Sender:
    """Sends deliveries, from as many workers as there are.

    Args:
        ledger, artifacts: where deliveries and what they carry are.
        worker_id: names this process in the ledger.
        destinations: where it may send to.
        stopping: once set, nothing more is taken.
        wake: called with a model whose workers are to make an export; None when nobody needs to be told.
        period_s: seconds between two looks at an empty outbox.
    """

    def __init__(
        self,
        ledger: Ledger,
        artifacts: Artifacts,
        worker_id: str,
        destinations: Destinations,
        stopping: threading.Event | None = None,
        wake: Callable[[str], None] | None = None,
        period_s: float = POLL_S,
    ):
        self._ledger = ledger
        self._artifacts = artifacts
        self._worker_id = worker_id
        self._destinations = destinations
        self._times_s = destinations.times_s
        self._stopping = stopping or threading.Event()
        self._wake = wake
        self._period_s = period_s
        self._over = threading.Event()
        self._look = threading.Event()
        self._turns = Turns()
        self._under_way: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._keep, name="sender", daemon=True)

    def start(self) -> None:
        """Go on in the background; without destinations there is nothing to do."""
        if self._times_s:
            self._thread.start()

    def stop(self) -> None:
        """Take nothing more; what is on its way gets a moment to arrive."""
        self._over.set()
        self._look.set()
        end = time.monotonic() + STOP_S
        for thread in (self._thread, *list(self._under_way)):
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    def send_one(self) -> bool:
        """Take a delivery that is due and send it; False when none is."""
        claimed = self._claim()
        if claimed is None:
            return False
        lane, lease = claimed
        try:
            self._send(lease)
        finally:
            self._turns.end(lane)
        return True

    def _claim(self) -> tuple[Lane, DeliveryLease] | None:
        """The next delivery; its lane counts as under way from now on."""
        if self._turns.full:
            return None
        for lane in self._turns.order(self._ledger.due_lanes(list(self._times_s)))[:LANES_TRIED]:
            begun = time.monotonic()
            delivery = self._ledger.claim_delivery(self._worker_id, lane, self._destinations.give_up_s)
            if delivery is not None:
                self._turns.take(lane)
                return lane, DeliveryLease(self._ledger, delivery, begun, self._times_s[lane.target])
        return None

    def _keep(self) -> None:
        while True:
            self._look.clear()
            if self._over.is_set() or self._stopping.is_set():
                return
            claimed = None
            try:
                claimed = self._claim()
            except SQLAlchemyError as error:
                log.warning("the ledger is away: %s", error)
            except Exception as error:  # whatever it was: the next look may go better
                log.error("no delivery could be taken", exc_info=error)
            if claimed is None:
                self._look.wait(self._period_s)
                continue
            thread = threading.Thread(target=self._send_and_go, args=claimed, name="delivery", daemon=True)
            self._under_way.add(thread)
            try:
                thread.start()
            except RuntimeError as error:  # the machine has no thread left; the delivery's lease runs out
                log.error("the delivery could not be sent: %s", error)
                self._gone(thread, claimed[0])
                self._over.wait(self._period_s)

    def _send_and_go(self, lane: Lane, lease: DeliveryLease) -> None:
        try:
            self._send(lease)
        finally:
            self._gone(threading.current_thread(), lane)

    def _gone(self, thread: threading.Thread, lane: Lane) -> None:
        self._under_way.discard(thread)
        self._turns.end(lane)
        self._look.set()

    def _send(self, lease: DeliveryLease) -> None:
        delivery = lease.delivery
        with log_context(job=delivery.job_id, delivery=delivery.delivery_id), lease:
            try:
                outcome = self._try(delivery, lease.over)
            except (OSError, SQLAlchemyError) as error:
                log.warning("the delivery waits: %s", error)
                outcome = Outcome("again", f"it could not be sent now ({type(error).__name__})")
            except Exception as error:  # a fault of ours; it is given up in the end, and the log says why
                log.error("the delivery could not be sent", exc_info=error)
                outcome = Outcome("again", f"it could not be sent ({type(error).__name__})")
            try:
                self._insist(delivery, outcome)
            except LeaseLost as error:
                log.warning("%s", error)
            except SQLAlchemyError as error:  # its lease runs out, and it is sent again
                log.warning("the ledger is away: %s", error)

    def _insist(self, delivery: Delivery, outcome: Outcome) -> None:
        """Record, and wait a while for a ledger that is away: else the delivery would be sent a second time."""
        for pause in RECORDS_S:
            try:
                return self._record(delivery, outcome)
            except DBAPIError as error:
                log.warning("the ledger is away, trying again in %.1f s: %s", pause, error)
            if self._over.wait(pause):
                break
        self._record(delivery, outcome)

    def _record(self, delivery: Delivery, outcome: Outcome) -> None:
        if outcome.state == "making":
            state = self._ledger.record(delivery, "again", outcome.said, None, EXPORT_POLL_S, counted=False)
        else:
            pause = pause_s(delivery.tries, outcome) if outcome.state == "again" else 0.0
            state = self._ledger.record(delivery, outcome.state, outcome.said, outcome.status, pause)
            metrics.DELIVERIES.labels(delivery.target, state).inc()
        level = logging.WARNING if state == "failed" else logging.INFO
        # What a receiver said is for the job's owner; it may name more than a log should.
        log.log(level, "%s is %s after %d tries, status %s", delivery.target, state, delivery.tries, outcome.status)

    def _try(self, delivery: Delivery, stop: Stop) -> Outcome:
        """Send it once; the outcome `making` says that what it carries is not made yet."""
        there = self._destinations
        if delivery.target == WEBHOOK:
            return send_webhook(
                there.callbacks, delivery.callback or "", there.key or b"", delivery.delivery_id, delivery.message,
                stop=stop,
            )  # fmt: skip
        names = delivery.message["exports"]
        reader = self._artifacts.read(delivery.job_id)
        missing = [name for name in names if reader.stat(EXPORTS[name].key) is None]
        if missing:
            return self._ask_for(delivery, missing)
        with tempfile.TemporaryDirectory(prefix="slidereason-delivery-") as folder:
            files = [_fetched(reader, EXPORTS[name].key, Path(folder)) for name in names]
            if delivery.target == DICOMWEB:
                place = there.dicomweb
                return store(place.outbound, place.url, files, place.token, stop=stop)
            place = there.fhir
            return post_bundle(place.outbound, place.url, files[0].read_bytes(), place.token, stop=stop)

    def _ask_for(self, delivery: Delivery, names: list[str]) -> Outcome:
        for name in names:
            row = self._ledger.ask_export(delivery.job_id, name)
            if row.state == "failed":
                return Outcome("failed", f"the export {name} could not be made; GET …/exports/{name} says why")
            if row.state == "waiting" and not delivery.said and self._wake is not None:
                with suppress(Exception):  # without a broker, workers find it by themselves
                    self._wake(delivery.model)
        return Outcome("making", f"waits for {' and '.join(names)} to be made")


def _fetched(reader: JobReader, key: str, folder: Path) -> Path:
    """A file of the artifacts as one of this machine."""
    known = reader.stat(key)
    if known is not None and known.path is not None:
        return known.path
    path = folder / key.rpartition("/")[2]
    with path.open("wb") as file:
        for piece in reader.chunks(key):
            file.write(piece)
    return path
