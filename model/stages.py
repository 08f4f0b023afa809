"""Where the time goes: seconds of each stage of an answer."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named stages; on a GPU it waits for the device at both ends of a stage.

    A stage inside a stage is not counted twice: its seconds are its own alone.

    Args:
        on: whether it measures at all; off, it costs nothing and never waits.
    """

    def __init__(self, on: bool = False):
        self.on = on
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        if not self.on:
            yield
            return
        outside, self._inner = self._inner, 0.0
        started = self._now()
        try:
            yield
        finally:
            took = self._now() - started
            self.seconds[name] += took - self._inner
            self._inner = outside + took

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
