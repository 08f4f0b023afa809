"""Discrete events in the plainest form: a clock with a heap, servers with a queue, and locks with a queue.

Servers take work whose length is known when it arrives and serve it in that order, so the end is known at once and
costs one event. What it cannot know, such as who holds a row's lock until when, waits in a queue and is called back.
"""

import heapq
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any


class Events:
    """A clock, in seconds, and what is still to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self._due: list[tuple[float, int, Callable[..., None], tuple]] = []

    def at(self, time_s: float, call: Callable[..., None], *args: Any) -> None:
        """Have `call(*args)` made at a time, not before now; at one time in the order in which it was asked."""
        self.count += 1
        heapq.heappush(self._due, (max(time_s, self.now), self.count, call, args))

    def run(self, until_s: float, over: Callable[[], bool] = lambda: False) -> None:
        """Let things happen until a time, until nothing is left, or until `over()`, which is asked each second."""
        due, next_look = self._due, self.now + 1.0
        while due and due[0][0] <= until_s:
            self.now, _, call, args = heapq.heappop(due)
            call(*args)
            if self.now >= next_look:
                if over():
                    return
                next_look = self.now + 1.0
        if not due or due[0][0] > until_s:
            self.now = max(self.now, until_s if due else self.now)


class Servers:
    """Some equal servers and one queue, first come first served.

    Args:
        events: the clock.
        count: servers.
    """

    def __init__(self, events: Events, count: int):
        self.count = count
        self.busy_s = self.waited_s = 0.0
        self.served = 0
        self._events = events
        self._free_at = [0.0] * count

    def serve(self, seconds: float, from_s: float | None = None) -> float:
        """Queue work of a length now, or from a later time on; returns when it will be through."""
        wanted = self._events.now if from_s is None else from_s
        start = max(wanted, self._free_at[0])
        heapq.heapreplace(self._free_at, start + seconds)
        self.busy_s += seconds
        self.waited_s += start - wanted
        self.served += 1
        return start + seconds

    @property
    def behind_s(self) -> float:
        """How long work that arrives now waits."""
        return max(0.0, self._free_at[0] - self._events.now)


class Locks:
    """Locks by name, each with a queue, first come first served."""

    def __init__(self, events: Events) -> None:
        self.waited_s: dict[str, float] = {}
        self._events = events
        self._held: dict[Hashable, deque] = {}
        self._next: deque[Callable[[], None]] = deque()
        self._handing_over = False

    def take(self, kind: str, name: Hashable, call: Callable[[], None]) -> None:
        """Call back once the lock is held: now, or when those before have let go."""
        queue = self._held.get((kind, name))
        if queue is None:
            self._held[kind, name] = deque()
            call()
        else:
            queue.append((self._events.now, call))

    def held(self, kind: str, name: Hashable) -> bool:
        """Whether somebody has it."""
        return (kind, name) in self._held

    def release(self, kind: str, name: Hashable) -> None:
        """Let go; the next in the queue holds it at once.

        Who lets go again at once is no deeper in the stack: a thousand may, one after the other.
        """
        queue = self._held[kind, name]
        if not queue:
            del self._held[kind, name]
            return
        since, call = queue.popleft()
        self.waited_s[kind] = self.waited_s.get(kind, 0.0) + self._events.now - since
        self._next.append(call)
        if self._handing_over:
            return
        self._handing_over = True
        while self._next:
            self._next.popleft()()
        self._handing_over = False


class Places:
    """So many places, and a queue for them: connections of a pool.

    Args:
        events: the clock.
        count: places.
    """

    def __init__(self, events: Events, count: int):
        self.count = count
        self.taken = 0
        self.waited_s = self.held_s = 0.0
        self._events = events
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._changed_at = 0.0

    def count_held(self) -> None:
        """Bring `held_s` up to now."""
        self.held_s += self.taken * (self._events.now - self._changed_at)
        self._changed_at = self._events.now

    def take(self, call: Callable[[], None]) -> None:
        """Call back once there is a place."""
        if self.taken < self.count:
            self.count_held()
            self.taken += 1
            call()
        else:
            self._queue.append((self._events.now, call))

    def release(self) -> None:
        """Give a place back, to the next in the queue if there is one."""
        if self._queue:
            since, call = self._queue.popleft()
            self.waited_s += self._events.now - since
            call()
        else:
            self.count_held()
            self.taken -= 1
