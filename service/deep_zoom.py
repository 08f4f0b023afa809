"""Deep Zoom tiles of slides and overlays: kept in memory once made, and made in child processes that stay.

Here nothing is decoded and no pixel computed: bytes come from children or from the artifacts, and go out.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from service.catalogue import SlideEntry
from service.errors import Problem
from service.files import etag_of
from service.overlay_layers import JobLayers, KnownJobs, find_layers, is_empty
from service.rooms import Rooms
from service.settings import Settings
from worker.deep_zoom import Zoom, ZoomFrame
from worker.errors import BadRequest, SlideNotFound
from worker.slide_child import SlideChildren
from worker.types import SlideInfo

Result = TypeVar("Result")

KEPT_BYTES = 96 * 2**20
"""Encoded tiles and shards that one process keeps; some 2,000 tiles."""

KNOWN_SLIDES = 1000
THREADS = 8
WARM_AFTER_S = 2.0
RECIPE = "1"
"""Part of every entity tag: change it with anything that changes the pictures."""

SLIDE_TILES = "worker.slide_tiles:SlideTiles"
OVERLAY_TILES = "worker.overlay_tiles:OverlayTiles"


class KeptBytes:
    """Bytes by key; beyond `limit_bytes` the longest unused ones go. Thread-safe."""

    def __init__(self, limit_bytes: int = KEPT_BYTES):
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, bytes] = OrderedDict()
        self.total = 0

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        """What is kept under a key, else what `make` returns, which is kept then."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            self.total += len(value) - len(self._kept.pop(key, b""))
            self._kept[key] = value
            while self.total > self._limit:
                self.total -= len(self._kept.popitem(last=False)[1])
        return value


@dataclass(frozen=True)
class Picture:
    """What a picture is before anybody makes it: its entity tag, and how it is made."""

    etag: str
    make: Callable[[], bytes]


class DeepZoom:
    """Tiles of the slides and jobs of one application.

    Args:
        settings: limits of the children that open slides.
    """

    def __init__(self, settings: Settings):
        self.children = SlideChildren(settings.slide_timeout_s, settings.slide_memory_bytes)
        self.kept = KeptBytes()
        self.jobs = KnownJobs()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tiles")
        self._warming = threading.Timer(WARM_AFTER_S, self.children.warm)
        self._warming.daemon = True
        self._lock = threading.Lock()
        self._known: OrderedDict[str, SlideInfo] = OrderedDict()

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function on a thread of the few that wait for tiles, so that other requests find theirs free."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args))

    def warm_soon(self) -> None:
        """Have a child ready for the first slide, started a moment after the application."""
        self._warming.start()

    def close(self) -> None:
        """End the children."""
        self._warming.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.children.close()

    # ---- slides --------------------------------------------------------------------------------------------------

    def slide_zoom(self, entry: SlideEntry) -> Zoom:
        """How a slide is cut; opens it in a child, which then has it open for the tiles.

        Raises:
            SlideNotFound, SlideUnreadable, QueueFull: see `SlideChildren.call`.
        """
        mark = mark_of(entry.path)
        with self._lock:
            info = self._known.get(mark)
        if info is None:
            info = self._ask(entry.path, mark, "info")
            with self._lock:
                self._known[mark] = info
                while len(self._known) > KNOWN_SLIDES:
                    self._known.popitem(last=False)
        return Zoom(info.width_px0, info.height_px0)

    def slide_tile(self, entry: SlideEntry, level: int, col: int, row: int) -> Picture:
        """One tile of a slide.

        Raises:
            Problem: 404, there is no such tile.
            SlideNotFound, SlideUnreadable, QueueFull: as `slide_zoom`.
        """
        require_tile(self.slide_zoom(entry), level, col, row)
        return self._slide_picture(entry, "tile", level, col, row)

    def thumbnail(self, entry: SlideEntry, size_px: int) -> Picture:
        """The whole slide, its long side at most `size_px`."""
        return self._slide_picture(entry, "thumbnail", size_px)

    def _slide_picture(self, entry: SlideEntry, name: str, *args: int) -> Picture:
        mark = mark_of(entry.path)
        etag = etag_of(f"{RECIPE} {mark} {name} {args}")
        return Picture(etag, lambda: self.kept.get(etag, lambda: self._ask(entry.path, mark, name, *args)))

    def _ask(self, path: Path, mark: str, name: str, *args: int) -> Any:
        return self.children.call(mark, SLIDE_TILES, (str(path),), name, *args)

    # ---- overlays ------------------------------------------------------------------------------------------------

    def overlay_tile(
        self,
        rooms: Rooms,
        layers: JobLayers,
        queries: tuple[int, ...],
        alpha: int,
        place: tuple[int, int, int],
        threshold: float | None = None,
    ) -> Picture:
        """One tile of a job's overlay.

        Args:
            rooms: where its files are.
            layers: the job's.
            queries: whose regions are shown, the last on top.
            alpha: 0 to 255.
            place: level, column and row of the tile.
            threshold: show every pixel from this probability on, instead of the regions.

        Raises:
            Problem: 404, there is no such tile.
            StorageAway: the artifacts cannot be read now.
        """
        frame = require_tile(layers.zoom, *place)
        reader = rooms.artifacts.read(layers.job_id)
        found = find_layers(reader, layers, queries, frame, time.monotonic(), threshold)
        marks = [layer.mark for layer in found]
        etag = etag_of(f"{RECIPE} {layers.job_id} {layers.live} {alpha} {frame} {marks}")

        def paint() -> bytes:
            shown = [layer.described(self.kept, alpha) for layer in found if not is_empty(layer)]
            return self.children.call("overlays", OVERLAY_TILES, (), "paint", astuple(frame), shown)

        empty = all(is_empty(layer) for layer in found)
        key = ("empty", frame.width, frame.height) if empty else etag
        return Picture(etag, lambda: self.kept.get(key, paint))


def require_tile(zoom: Zoom, level: int, col: int, row: int) -> ZoomFrame:
    """What a tile shows.

    Raises:
        Problem: 404, there is no such tile; names the part of the address at fault and what there is.
    """
    try:
        return zoom.frame(level, col, row)
    except BadRequest as error:
        raise Problem(404, "tile-not-found", error.message, field=error.field) from None


def mark_of(path: Path) -> str:
    """Names a slide's file as it is now: path, time and size.

    Raises:
        SlideNotFound: it has gone.
    """
    try:
        known = path.stat()
    except OSError:
        raise SlideNotFound("this slide is not there any more; GET /v1/slides lists what is", field="slide") from None
    return f"{path} {known.st_mtime_ns} {known.st_size}"
