"""A gateway that listens on a port of its own, in a thread of the test; and event streams as a client reads them."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvicorn

from model.segmenter import SegmenterCard
from service.app import create_app
from service.rooms import Rooms
from service.settings import Settings
from worker.ledger import Ledger
from worker.types import JobSpec, SlideInfo, TilePlan

SPEC = JobSpec("/slides/a.tif", "a.tif", ("where?",), model="hue")
CARD = SegmenterCard(name="hue", revision="abc", tile_size_px=256, default_mpp=1.0)
INFO = SlideInfo(1000, 800, ((1000, 800),), (1.0,), 0.5, 0.5, "override", None, "generic")
PLAN = TilePlan(500, 400, 1.0, 2.0, 2.0, 256, 192, (0, 0), 2, 3, 512, ("0_0", "0_1"), "/A==", 8, 2)


@dataclass
class Live:
    """A gateway that answers at `url`."""

    url: str
    rooms: Rooms
    client: httpx.Client


@contextmanager
def listening(settings: Settings) -> Iterator[Live]:
    """The application behind uvicorn, until the context ends."""
    app = create_app(settings)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30) as client:
                yield Live(url, app.state.rooms, client)
        finally:
            server.should_exit = True
            app.state.rooms.board.end_streams()
            thread.join()


def settings_of(data: Path, **more) -> Settings:
    """Settings of a gateway whose broker is away."""
    return Settings(**{"data": data, "model": "hue", "broker_url": f"redis+socket://{data}/none.sock", **more})


@dataclass
class Event:
    """One server-sent event."""

    name: str = ""
    id: str = ""
    data: dict = field(default_factory=dict)


def read_events(answer: httpx.Response) -> Iterator[Event]:
    """The events of a stream as they come, until it ends; comments are passed over."""
    event = Event()
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if not line:
            if event.name:
                yield event
            event = Event()
        elif name == "data":
            event.data = json.loads(value)
        elif name == "id":
            event.id = value
        elif name == "event":
            event.name = value


def plan_next(ledger: Ledger) -> None:
    """Be the worker that plans the next job: two blocks of four tiles."""
    work = ledger.claim("w1", ["hue"], CARD)
    ledger.commit_plan(work, PLAN, INFO, {"0_0": 4, "0_1": 4})


def commit_next(ledger: Ledger) -> None:
    """Be the worker of one block."""
    work = ledger.claim("w1", ["hue"], CARD)
    assert work.kind == "segment"
    ledger.commit_block(work, 4, 0, {})


def finish_next(ledger: Ledger) -> None:
    """Be the worker that finishes."""
    work = ledger.claim("w1", ["hue"], CARD)
    assert work.kind == "finish"
    ledger.commit_finish(work, {"answer": "there"}, "1 region")
    ledger.close_job(work.job_id)
