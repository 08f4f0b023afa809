"""How a worker stops: it claims nothing more, lets what runs finish for a while, and hands back what is left.

    SIGTERM ──▶ draining ──drain_s, or a second signal──▶ handing back ──HAND_BACK_S──▶ given back for it ──▶ end

No unit stays leased, whatever it was doing, and the process ends in time for whoever would kill it.
"""

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from worker.housekeeper import Housekeeper
    from worker.tasks import Runner

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HAND_BACK_S = 5.0
CLOSE_S = 6.0

EX_OK = 0
EX_SOFTWARE = 70
EX_TEMPFAIL = 75


class Drain:
    """Ends a worker in good order.

    Args:
        drain_s: how long running units get to finish.
        stop_consuming: called with the exit code, possibly from within a signal handler: take no more tickets.

    Attributes:
        draining: whether the end has begun.
        exit_code: of the process; 0 unless something was wrong with the worker itself.
    """

    def __init__(self, drain_s: float, stop_consuming: Callable[[int], None]):
        self.draining = False
        self.exit_code = EX_OK
        self._drain_s = drain_s
        self._stop_consuming = stop_consuming
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()  # its put may interrupt itself, as in a handler
        self._ended = threading.Event()
        self._runner: Runner | None = None
        self._housekeeper: Housekeeper | None = None

    def install_signals(self) -> None:
        """Take the signals that ask a process to end; before there is anything to drain they end it at once."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def watch_over(self, runner: "Runner", housekeeper: "Housekeeper") -> None:
        """From now on there is something to drain."""
        self._runner, self._housekeeper = runner, housekeeper
        threading.Thread(target=self._keep, name="drain", daemon=True).start()

    def ask(self, reason: str, exit_code: int = EX_OK) -> None:
        """Begin the end; asked again, running units are handed back at once. Safe in a signal handler."""
        if not self.draining:
            self.draining, self.exit_code = True, exit_code
        self._asked.put(reason)
        self._stop_consuming(self.exit_code)

    def ended(self) -> None:
        """All is closed: the process ends by itself."""
        self._ended.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._runner is None:
            raise SystemExit(EX_OK)
        self.ask(signal.Signals(number).name)

    def _keep(self) -> None:
        reason = self._asked.get()
        self._runner.drain()
        log.warning("%s: claiming nothing more; %d units get %g s", reason, self._runner.busy, self._drain_s)
        if not self._idle_within(self._drain_s, or_asked_again=True):
            log.warning("handing back %d units", self._runner.busy)
            self._runner.stop()
            if not self._idle_within(HAND_BACK_S):
                self._abandon()
        if not self._ended.wait(CLOSE_S):
            log.warning("something does not close; ending without it")
            self._housekeeper.forget()
            os._exit(self.exit_code)

    def _abandon(self) -> None:
        try:
            log.warning("%d units do not stop; given back for them", self._runner.abandon())
        except SQLAlchemyError as error:
            log.warning("the ledger is away; leases run out and the sweeper sees to it: %s", error)

    def _idle_within(self, seconds: float, or_asked_again: bool = False) -> bool:
        """Whether no unit is in hand before the time is over, or before somebody insists."""
        deadline = time.monotonic() + seconds
        while self._runner.busy:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            try:
                again = self._asked.get(timeout=min(0.1, left_s))
            except queue.Empty:
                continue
            if or_asked_again:
                log.warning("%s: not waiting any longer", again)
                return False
        return True
