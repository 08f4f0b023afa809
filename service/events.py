"""Event streams: a job's status as it changes (`text/event-stream`), for browsers' EventSource and everyone.

What is sent is state, not difference: a client that was away is shown the state there is now, and an event's id names
the state it shows, the same on every gateway. So nothing has to be kept for those who are away.

Who asks for regions as well is sent those of each block when it is done. An id then also names how far that went:
`{state}~{blocks seen}.{regions seen of the next}`, or `{state}~f` after the final ones.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.board import WATCH_S, Board, Watch
from service.provisional import Position, RegionFeed, read_event_id
from service.status import RESULTS, Notice
from worker.ledger import JobRow

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_S = 15.0
RETRY_MS = 3000
IN_PROGRESS = ("progress", "tiles", "coverage", "eta_s", "queue_position", "updated")
"""Members of the status document that a `progress` event repeats; a change of any other is a `status` event."""

_COUNTS = ("progress", "tiles_done", "tiles_total", "tiles_failed", "tiles_skipped", "coverage", "eta_s")
_COUNTED = frozenset((*_COUNTS, "queue_position", "updated", "units_left"))

Relink = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes a status document's links those that its reader may follow."""


@dataclass(frozen=True)
class Wanted:
    """What one client's stream shows.

    Attributes:
        last_id: `Last-Event-ID`: the state the client has seen; None when it has seen none.
        regions: where the regions of blocks come from; None when they are not asked for.
        relink: of the status documents; None leaves them as they are.
        lasts_s: the stream ends after so long, and its client comes back; None: with the job.
        heartbeat_s: a comment is sent after so long a silence, so that nobody in between takes it for dead.
    """

    last_id: str | None = None
    regions: RegionFeed | None = None
    relink: Relink | None = None
    lasts_s: float | None = None
    heartbeat_s: float = HEARTBEAT_S


class EventStream(Response):
    """The stream of one client; ends with the job, with the process, or when the client leaves.

    Args:
        board: tells of changes.
        notice: the job as it stands.
        wanted: by the client.
    """

    def __init__(self, board: Board, notice: Notice, wanted: Wanted):
        super().__init__(media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.charset = "utf-8"
        self._board, self._notice, self._wanted = board, notice, wanted
        state, position = read_event_id(wanted.last_id)
        self._shown: Notice | None = notice if notice.event_id == state else None
        self._state = state or ""
        # who comes when all is over is not told what was provisional, unless it was amid that
        self._position = position or Position()
        self._catches_up = position is not None or notice.row.open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until it is over."""
        with self._board.watch(self._notice) as watch:
            leaving = asyncio.create_task(_leave(receive, watch))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _write(send, f"retry: {RETRY_MS}\n\n".encode())
                await self._tell(watch, leaving, send)
                if not leaving.done():
                    await send({"type": "http.response.body", "body": b""})
            finally:
                leaving.cancel()
                with suppress(asyncio.CancelledError):
                    await leaving

    async def _tell(self, watch: Watch, leaving: asyncio.Task, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        end_s = None if self._wanted.lasts_s is None else clock() + self._wanted.lasts_s
        while not leaving.done():
            watch.changed.clear()
            now = watch.notice
            if now is None:  # expired: the client that comes back is told so by a 410
                return
            whole = True
            if now.row.open:
                await self._show(now, send)
            if self._wanted.regions is not None:
                whole = await self._show_regions(now, leaving, send)
            if not now.row.open:
                await self._show(now, send)
            if not now.row.open or self._board.closing or (end_s is not None and clock() >= end_s):
                return
            pause_s = self._wanted.heartbeat_s if whole else min(WATCH_S, self._wanted.heartbeat_s)
            try:
                await asyncio.wait_for(watch.changed.wait(), pause_s)
            except TimeoutError:
                await _write(send, b": still here\n\n")

    async def _show(self, now: Notice, send: Send) -> None:
        """Bring the client to this state of the job."""
        self._state = now.event_id
        for told in events(self._shown, now, self._event_id(), self._wanted.relink):
            await _write(send, told)
        self._shown = now

    async def _show_regions(self, now: Notice, leaving: asyncio.Task, send: Send) -> bool:
        """Send what blocks have found that the client has not seen, and in the end that there are final regions.

        Returns:
            False when a block is done whose regions cannot be read yet.
        """
        row = now.row
        if self._position.final or row.status in ("failed", "dismissed"):
            return True
        whole = not self._catches_up or await self._catch_up(row, leaving, send)
        if row.status == "successful" and not leaving.done() and not self._board.closing:
            self._position = Position(final=True)
            await _write(send, event("regions.final", self._event_id(), _final(now, self._wanted.relink)))
        return whole

    async def _catch_up(self, row: JobRow, leaving: asyncio.Task, send: Send) -> bool:
        feed = self._wanted.regions
        while blocks := await feed.blocks_after(row.job_id, self._position.done):
            for block in blocks:
                found = await feed.regions(row.job_id, block)
                if found is None and row.open:
                    return False
                if leaving.done() or self._board.closing:
                    return True
                told = []
                for feature in (found or [])[self._position.sent :]:
                    self._position = replace(self._position, sent=self._position.sent + 1)
                    told.append(event("region.provisional", self._event_id(), feature.decode()))
                if told:
                    await _write(send, b"".join(told))
                self._position = Position(block.order)
        return True

    def _event_id(self) -> str:
        return self._state if self._wanted.regions is None else f"{self._state}~{self._position}"


def is_over(notice: Notice, last_id: str | None, regions: bool) -> bool:
    """Whether a client with this `Last-Event-ID` has seen the last of a job."""
    state, position = read_event_id(last_id)
    if notice.row.open or notice.event_id != state:
        return False
    return not regions or notice.row.status != "successful" or (position is not None and position.final)


def events(
    shown: Notice | None, now: Notice, event_id: str | None = None, relink: Relink | None = None
) -> Iterator[bytes]:
    """What brings a client from the state it was shown (None: nothing) to the present one; nothing when it is that."""
    if shown is not None and shown.etag == now.etag:
        return
    event_id = event_id or now.event_id
    if shown is None or _told(shown.row) != _told(now.row):
        body = now.body.decode() if relink is None else _dumps(relink(json.loads(now.body)))
        yield event("status", event_id, body)
        return
    document = json.loads(now.body)
    progress = {"jobID": document["jobID"], **{name: document[name] for name in IN_PROGRESS}}
    yield event("progress", event_id, _dumps(progress))


def event(name: str, event_id: str, data: str) -> bytes:
    """One event; `data` is JSON on one line."""
    return f"event: {name}\nid: {event_id}\ndata: {data}\n\n".encode()


def _final(now: Notice, relink: Relink | None) -> str:
    """How many regions each query found, and where they are."""
    document = json.loads(now.body)
    if relink is not None:
        document = relink(document)
    result = now.row.result or {}
    counts = result.get("regions_by_query") or [None] * len(document["queries"])
    return _dumps(
        {
            "jobID": document["jobID"],
            "regions": result.get("regions"),
            "queries": [
                {"query": index, "text": text, "regions": count}
                for index, (text, count) in enumerate(zip(document["queries"], counts, strict=True))
            ],
            "links": [link for link in document["links"] if link["rel"] == RESULTS],
        }
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _told(row: JobRow) -> dict:
    return {name: value for name, value in vars(row).items() if name not in _COUNTED}


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _leave(receive: Receive, watch: Watch) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    watch.changed.set()
