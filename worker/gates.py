"""Who may run beside whom in one worker: so many units at once, and one that is under suspicion alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


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


class Slots:
    """How many units a worker has in hand at most, whoever brought them.

    Args:
        most: units at once; None is no limit.
    """

    def __init__(self, most: int | None):
        self.taken = 0
        self._most = most
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wait: bool, stopping: threading.Event) -> Iterator[bool]:
        """Hold a slot; yields whether one was to be had before `stopping` was set, at once unless `wait`."""
        with self._changed:
            while (full := self._full()) and wait and not stopping.is_set():
                self._changed.wait(0.2)
            self.taken += not full
        try:
            yield not full
        finally:
            if not full:
                with self._changed:
                    self.taken -= 1
                    self._changed.notify()

    def _full(self) -> bool:
        return self._most is not None and self.taken >= self._most
