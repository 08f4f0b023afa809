"""Event streams: a job's status as it changes (`text/event-stream`), for browsers' EventSource and everyone.

What is sent is state, not difference: a client that was away is shown the state there is now, and an event's id names
the state it shows, the same on every gateway. So nothing has to be kept for those who are away.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.board import Board, Watch
from service.status import Notice
from worker.ledger import JobRow

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_S = 15.0
RETRY_MS = 3000
IN_PROGRESS = ("progress", "tiles", "coverage", "eta_s", "queue_position", "updated")
"""Members of the status document that a `progress` event repeats; a change of any other is a `status` event."""

_COUNTS = ("progress", "tiles_done", "tiles_total", "tiles_failed", "tiles_skipped", "coverage", "eta_s")
_COUNTED = frozenset((*_COUNTS, "queue_position", "updated", "units_left"))


class EventStream(Response):
    """The stream of one client; ends with the job, with the process, or when the client leaves.

    Args:
        board: tells of changes.
        notice: the job as it stands.
        last_id: `Last-Event-ID`: the state the client has seen; None when it has seen none.
        heartbeat_s: a comment is sent after so long a silence, so that nobody in between takes it for dead.
    """

    def __init__(self, board: Board, notice: Notice, last_id: str | None, heartbeat_s: float = HEARTBEAT_S):
        super().__init__(media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.charset = "utf-8"
        self._board, self._notice, self._heartbeat_s = board, notice, heartbeat_s
        self._shown: Notice | None = notice if notice.event_id == last_id else None

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
        while not leaving.done():
            watch.changed.clear()
            if watch.notice is None:  # expired: the client that comes back is told so by a 410
                return
            for event in events(self._shown, watch.notice):
                await _write(send, event)
            self._shown = watch.notice
            if not self._shown.row.open or self._board.closing:
                return
            try:
                await asyncio.wait_for(watch.changed.wait(), self._heartbeat_s)
            except TimeoutError:
                await _write(send, b": still here\n\n")


def events(shown: Notice | None, now: Notice) -> Iterator[bytes]:
    """What brings a client from the state it was shown (None: nothing) to the present one; nothing when it is that."""
    if shown is not None and shown.etag == now.etag:
        return
    if shown is None or _told(shown.row) != _told(now.row):
        yield event("status", now.event_id, now.body.decode())
        return
    document = json.loads(now.body)
    progress = {"jobID": document["jobID"], **{name: document[name] for name in IN_PROGRESS}}
    yield event("progress", now.event_id, json.dumps(progress, separators=(",", ":")))


def event(name: str, event_id: str, data: str) -> bytes:
    """One event; `data` is JSON on one line."""
    return f"event: {name}\nid: {event_id}\ndata: {data}\n\n".encode()


def _told(row: JobRow) -> dict:
    return {name: value for name, value in vars(row).items() if name not in _COUNTED}


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _leave(receive: Receive, watch: Watch) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    watch.changed.set()
