"""Whose delivery a sender takes next, so that nobody's slow or dead server holds up what goes to others.

Deliveries of one tenant to one server are a lane. Tenants take turns, and within a tenant its lanes do. A server is
called twice at once and no more, and a tenant has at most as many deliveries on their way as there are places free:
where all that a first tenant sends hangs it has 8 of 16 places, a second then 4, and there is one left for a fifth.

A tenant that may have one more is taken after each other was taken once at most: whoever is taken goes behind it, and
stays there.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

ROOM = 16
"""Deliveries on their way at once from one sender; they wait for others most of the time."""

OF_A_PLACE = 2
"""Calls of one server at once from one sender; large results are not sent by more."""

REMEMBERED = 10_000
"""Turns that are remembered; who is forgotten had waited longest anyway."""

Who = TypeVar("Who")


@dataclass(frozen=True)
class Lane:
    """Deliveries that take turns with others as one.

    Attributes:
        tenant: whose.
        target: `webhook`, `dicomweb` or `fhir`.
        place: the server: `host:port` of a webhook, the target of a push.
    """

    tenant: str
    target: str
    place: str


class Turns:
    """What a sender has on its way, and who had a turn when; safe to share between threads.

    Args:
        room: deliveries at once.
        of_a_place: of them, to one server.
    """

    def __init__(self, room: int = ROOM, of_a_place: int = OF_A_PLACE):
        self._room = room
        self._of_a_place = of_a_place
        self._lock = threading.Lock()
        self._under_way: Counter[Lane] = Counter()
        self._turn = 0
        self._tenants: dict[str, int] = {}
        self._lanes: dict[Lane, int] = {}

    @property
    def full(self) -> bool:
        """Whether nothing more may be taken, whosever it is."""
        with self._lock:
            return self._under_way.total() >= self._room

    def order(self, due: Mapping[Lane, float]) -> list[Lane]:
        """The lanes of which one more may be taken, the best first.

        Args:
            due: lanes in which something is due → since when, seconds by any one clock.
        """
        with self._lock:
            of_tenants, of_places = Counter(), Counter()
            for lane, count in self._under_way.items():
                of_tenants[lane.tenant] += count
                of_places[lane.place] += count
            free = self._room - self._under_way.total()
            open_lanes = [
                lane for lane in due if of_places[lane.place] < self._of_a_place and of_tenants[lane.tenant] < free
            ]
            return sorted(
                open_lanes,
                key=lambda lane: (
                    self._tenants.get(lane.tenant, 0), of_places[lane.place], self._lanes.get(lane, 0), due[lane],
                ),
            )  # fmt: skip

    def take(self, lane: Lane) -> None:
        """One of the lane's is on its way."""
        with self._lock:
            self._turn += 1
            self._under_way[lane] += 1
            _remember(self._tenants, lane.tenant, self._turn)
            _remember(self._lanes, lane, self._turn)

    def end(self, lane: Lane) -> None:
        """One of the lane's is not on its way any more."""
        with self._lock:
            self._under_way[lane] -= 1
            self._under_way += Counter()  # what is at 0 is dropped


def _remember(turns: dict[Who, int], who: Who, turn: int) -> None:
    turns.pop(who, None)
    turns[who] = turn
    if len(turns) > REMEMBERED:
        del turns[next(iter(turns))]
