"""Provisional regions for event streams: which blocks are done, and what they found, read once for all who watch.

The ledger names the blocks in the order they were done, so a stream asks for those after the last it has shown; no
storage is listed, and nobody holds more than one block's regions. What many streams ask at once is asked once.
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from service.errors import is_away
from worker.artifacts import Artifacts
from worker.errors import StorageAway
from worker.ledger import Ledger
from worker.ledger_done import DoneBlock
from worker.provisional_files import read_provisional

log = logging.getLogger("slidereason.service")

MOST_KEPT = 256
"""Blocks whose regions are kept for other streams of the same job; some kilobytes each."""

EVENT_ID = re.compile(r"(?P<state>[0-9a-f]{32})?(?:~(?:(?P<done>\d{1,9})\.(?P<sent>\d{1,9})|(?P<final>f)))?")


@dataclass(frozen=True)
class Position:
    """How far a client has been shown a job's regions.

    Attributes:
        done: the order of the last block that it has seen whole.
        sent: how many regions of the next one it has seen.
        final: it has been told the final ones.
    """

    done: int = 0
    sent: int = 0
    final: bool = False

    def __str__(self) -> str:
        return "f" if self.final else f"{self.done}.{self.sent}"


def read_event_id(event_id: str | None) -> tuple[str | None, Position | None]:
    """The state of the job and the position in its regions that an event's id names; None for what it does not."""
    found = EVENT_ID.fullmatch(event_id or "")
    if found is None:
        return None, None
    position = None
    if found["final"]:
        position = Position(final=True)
    elif found["done"]:
        position = Position(int(found["done"]), int(found["sent"]))
    return found["state"], position


class RegionFeed:
    """Used by one event loop; see the module.

    Args:
        ledger, artifacts: asked in threads of the feed's own.
    """

    def __init__(self, ledger: Ledger, artifacts: Artifacts):
        self._ledger, self._artifacts = ledger, artifacts
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="regions")
        self._asked: dict[Any, asyncio.Future] = {}
        self._kept: OrderedDict[tuple[str, str, int], list[bytes]] = OrderedDict()
        self.reads = 0

    async def blocks_after(self, job_id: str, order: int) -> list[DoneBlock]:
        """The next blocks that were done after this one; none while the database is away."""
        return await self._once((job_id, order), self._ledger.done_after, job_id, order) or []

    async def regions(self, job_id: str, block: DoneBlock) -> list[bytes] | None:
        """A block's provisional regions, each a feature in JSON; None when they cannot be read now."""
        key = (job_id, block.key, block.token)
        if key not in self._kept:
            found = await self._once(key, self._read, job_id, block)
            if found is None:
                return None
            self._kept[key] = found
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def close(self) -> None:
        """End the threads; what they do is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, job_id: str, block: DoneBlock) -> list[bytes] | None:
        return read_provisional(self._artifacts.read(job_id), block)

    async def _once(self, key: Any, function: Callable, *arguments: Any) -> Any:
        """What the function returns, called once for all who ask at the same time; None while what it asks is away."""
        asked = self._asked.get(key)
        if asked is None:
            self.reads += 1
            asked = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
            self._asked[key] = asked
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            return await asyncio.shield(asked)
        except (SQLAlchemyError, StorageAway) as error:
            if isinstance(error, SQLAlchemyError) and not is_away(error):
                raise
            log.warning("provisional regions cannot be read now: %s", str(error).partition("\n")[0])
            return None
