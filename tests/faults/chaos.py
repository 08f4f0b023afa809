"""Somebody who breaks a part of the cluster every few seconds, and remembers what was broken."""

import logging
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import psycopg

from tests.faults.cluster import Cluster

log = logging.getLogger(__name__)

STORAGE_AWAY_S = 3.0
KINDS = ("segment", "segment", "finish", "plan")
"""Of units amid which a worker is killed; planning takes longest, and would be hit nearly always."""


class Chaos(threading.Thread):
    """Breaks one thing after the other until stopped: every kind once in each round, in random order.

    Args:
        cluster: what is broken.
        rng: decides what and who.
        period_s: seconds from one event to the next.
        more: further kinds of events, by name.

    Attributes:
        kinds: of events.
        done: how often each kind happened.
        trouble: what the events themselves stumbled over, if anything.
    """

    def __init__(self, cluster: Cluster, rng: random.Random, period_s: float, more: Mapping[str, Callable[[], None]]):
        super().__init__(name="chaos")
        self.done: Counter[str] = Counter()
        self.trouble: list[Exception] = []
        self._cluster = cluster
        self._rng = rng
        self._period_s = period_s
        self._events = {
            "worker killed": self._kill_worker,
            "gateway killed": self._kill_gateway,
            "redis restarted": cluster.redis.restart,
            "postgres restarted": cluster.postgres.restart,
            "storage away": self._storage_away,
            **more,
        }
        self.kinds = tuple(self._events)
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        deck: list[str] = []
        while not self._over.is_set():
            deck = deck or self._rng.sample(list(self._events), len(self._events))
            name, started = deck.pop(), time.monotonic()
            log.info("chaos: %s", name)
            try:
                if self._events[name]() is not False:
                    self.done[name] += 1
            except Exception as error:  # whatever it is, the test must hear of it, not this thread alone
                self.trouble.append(error)
                return
            self._over.wait(max(0.0, self._period_s - (time.monotonic() - started)))

    def stop(self) -> None:
        """Break nothing more; whatever was away is back when this returns."""
        self._over.set()
        self.join()
        self._cluster.storage.fail(False)
        for server in (self._cluster.redis, self._cluster.postgres):
            server.up()
        if self.trouble:
            raise self.trouble[0]

    def _kill_worker(self) -> bool:
        """Kill (-9) a worker at work where there is one.

        Whoever runs an isolated block with a suspect is spared: two kills that hit the same tile by chance would
        rightly quarantine it.
        """
        wanted, started = self._rng.choice(KINDS), time.monotonic()
        while (waited := time.monotonic() - started) < self._period_s and not self._over.is_set():
            try:
                owners = self._cluster.owners()
            except psycopg.OperationalError:
                owners = []
            spared = {pid for _, pid, suspected in owners if suspected}
            alive = {kept.pid: kept for kept in self._cluster.workers if kept.pid}
            at_work = [(kind, pid) for kind, pid, _ in owners if pid in alive and pid not in spared]
            at_it = [pid for kind, pid in at_work if kind == wanted or waited > self._period_s / 2]
            if at_it:
                return alive[self._rng.choice(at_it)].kill(signal.SIGKILL)
            time.sleep(0.05)
        return False

    def _kill_gateway(self) -> bool:
        return self._rng.choice(self._cluster.gateways).kill(signal.SIGKILL)

    def _storage_away(self) -> None:
        self._cluster.storage.fail(True)
        self._over.wait(STORAGE_AWAY_S)
        self._cluster.storage.fail(False)
