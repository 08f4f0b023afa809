"""A sender's hold on a delivery: renewed while it sends, let go of in time when it cannot be.

Another worker takes the delivery over as soon as its lease has run out. So a sender whose renewals are refused, or do
not get through, stops sending before that: then no two send it at once. Time is measured from before the ledger was
asked, and so ends here before it ends there.
"""

import logging
import threading
import time
from contextvars import copy_context

from sqlalchemy.exc import SQLAlchemyError

from worker.errors import LeaseLost
from worker.ledger_deliveries import Delivery, DeliveryLedger

log = logging.getLogger(__name__)

RENEWALS = 4
"""Renewals within the time of a lease: some may fail."""

SPARE = 0.2
"""The last part of a lease, in which nothing is sent any more."""


class DeliveryLease:
    """Renews a delivery's lease from a thread of its own, between `with` and its end.

    Args:
        ledger: where the lease is; `lease_s` is how long it lasts.
        delivery: as it was claimed.
        claimed: a moment before it was, on the monotonic clock.
        longest_s: seconds after which it is not renewed any more, whatever hangs.
    """

    def __init__(self, ledger: DeliveryLedger, delivery: Delivery, claimed: float, longest_s: float):
        self.delivery = delivery
        self._ledger = ledger
        self._ends = claimed + ledger.lease_s
        self._last = claimed + longest_s
        self._lost = False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "DeliveryLease":
        keep = copy_context().run  # its log lines name the delivery too
        self._thread = threading.Thread(target=keep, args=(self._keep,), name="delivery-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def over(self) -> bool:
        """Whether another may have the delivery now, or soon: nothing is to be sent any more."""
        return self._lost or time.monotonic() >= self._ends - SPARE * self._ledger.lease_s

    def _keep(self) -> None:
        while not self._done.wait(self._ledger.lease_s / RENEWALS):
            now = time.monotonic()
            if self.over() or now >= self._last:
                return
            try:
                self._ledger.renew_delivery(self.delivery)
                self._ends = now + self._ledger.lease_s
            except LeaseLost:  # whoever records says so
                self._lost = True
                return
            except SQLAlchemyError as error:
                log.warning("the delivery's lease could not be renewed: %s", error)
