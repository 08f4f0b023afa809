"""The layers of an overlay's tile: which arrays of a job's Zarr store are shown, and which of their shards it needs.

A finished job shows its labels. One that runs shows the probabilities of the blocks published so far, from the job's
threshold on; what only `finish` does, leaving out small regions, is not done there yet.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import select

from service.files import missing
from service.rooms import Rooms
from worker.artifacts import OVERLAY, JobReader
from worker.colors import query_color
from worker.deep_zoom import Zoom, ZoomFrame
from worker.ledger_claim import slide_info
from worker.ledger_schema import jobs
from worker.types import SlideInfo, TilePlan

EVEN = 1.001
FRESH_S = 1.0
"""So long the list of a running job's shards is believed: tiles are asked for by the dozen."""

MOST_JOBS = 64
CHUNK_PX = 512

Place = tuple[int, int]


class Kept(Protocol):
    """Keeps bytes by key; see `service.deep_zoom.KeptBytes`."""

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        """What is kept, else what `make` returns."""


@dataclass(frozen=True)
class Level:
    """One level of one array: where it lies, its metadata, its shape, the edge of its shards."""

    prefix: str
    metadata: bytes
    height: int
    width: int
    shard_px: int


@dataclass
class JobLayers:
    """What the overlay tiles of a job are made of.

    Attributes:
        job_id: the job.
        live: it still runs.
        threshold: probability from which a pixel is shown while it runs.
        plan, slide: how the slide was cut, and the slide.
        queries: how many there are.
    """

    job_id: str
    live: bool
    threshold: float
    plan: TilePlan
    slide: SlideInfo
    queries: int
    _levels: dict[tuple[str, int], list[Level]] = field(default_factory=dict)
    _shards: dict[str, tuple[float, dict[Place, tuple[str, str]]]] = field(default_factory=dict)

    @property
    def zoom(self) -> Zoom:
        """The slide's own levels and tiles, so that the overlay lies upon it."""
        return Zoom(self.slide.width_px0, self.slide.height_px0)

    def level_for(self, reader: JobReader, kind: str, query: int, step_px0: int) -> tuple[int, Level]:
        """Index and description of the coarsest level that is at least as fine as a step, and is written by now."""
        if (kind, query) not in self._levels:
            self._levels[kind, query] = _read_levels(reader, kind, query)
        levels = self._levels[kind, query]
        index, scale = 0, max(self.plan.scale_x, self.plan.scale_y)
        while index + 1 < len(levels) and scale * 2 ** (index + 1) <= step_px0 * EVEN:
            if self.live and self.plan.block_px % (CHUNK_PX << (index + 1)):
                break  # the levels that no block owns are written at the end
            index += 1
        return index, levels[index]

    def shards(self, reader: JobReader, level: Level, now_s: float) -> dict[Place, tuple[str, str]]:
        """{(row, col): (key, tag)} of a level's published shards; asked for afresh while the job runs."""
        at, known = self._shards.get(level.prefix, (0.0, None))
        if known is None or (self.live and now_s - at > FRESH_S):
            known = {}
            for key, _, tag in reader.list(f"{level.prefix}/c"):
                row, _, col = key.removeprefix(f"{level.prefix}/c/").partition("/")
                if row.isdigit() and col.isdigit():
                    known[int(row), int(col)] = (key, tag)
            self._shards[level.prefix] = (now_s, known)
        return known


@dataclass(frozen=True)
class Layer:
    """One query's part of one tile.

    Attributes:
        reader: of the job's files.
        job_id, query: whose it is.
        metadata: of the array.
        shards: {(row, col): (key, tag)} of those that the tile touches and that are there.
        factor: (x, y) level-0 pixels per pixel of the array.
        least: smallest value that is shown.
    """

    reader: JobReader
    job_id: str
    query: int
    metadata: bytes
    shards: Mapping[Place, tuple[str, str]]
    factor: tuple[float, float]
    least: float

    @property
    def mark(self) -> tuple[Any, ...]:
        """Changes when what the layer shows does."""
        return self.query, self.factor, self.least, sorted(self.shards.items())

    def described(self, kept: Kept, alpha: int) -> dict[str, Any]:
        """The layer with its shards' bytes, as `worker.overlay_tiles` takes it."""
        content = {}
        for place, (key, tag) in self.shards.items():
            content[place] = kept.get((self.job_id, key, tag), lambda key=key: _whole(self.reader, key))
        return {
            "metadata": self.metadata,
            "shards": content,
            "factor": self.factor,
            "least": self.least,
            "color": query_color(self.query),
            "alpha": alpha,
        }


def is_empty(layer: Layer) -> bool:
    """Whether nothing can be there to show."""
    return not layer.shards


def find_layers(
    reader: JobReader,
    layers: JobLayers,
    queries: tuple[int, ...],
    frame: ZoomFrame,
    now_s: float,
    threshold: float | None = None,
) -> list[Layer]:
    """What a tile shows of each query.

    Args:
        reader: of the job's files.
        layers: the job's.
        queries: their indices.
        frame: of the tile.
        now_s: a monotonic clock's time.
        threshold: show every pixel from this probability on; None: the regions, or what may become one.

    Raises:
        StorageAway: the artifacts cannot be read now.
    """
    labels = threshold is None and not layers.live
    kind = "labels" if labels else "probability"
    least = 1.0 if labels else max(1.0, (layers.threshold if threshold is None else threshold) * 255 - 1e-6)
    found = []
    for query in queries:
        index, level = layers.level_for(reader, kind, query, frame.step_px0)
        factor = (layers.plan.scale_x * 2**index, layers.plan.scale_y * 2**index)
        rows = _touched(frame.y_px0, frame.height * frame.step_px0, factor[1], level.height, level.shard_px)
        cols = _touched(frame.x_px0, frame.width * frame.step_px0, factor[0], level.width, level.shard_px)
        shards = layers.shards(reader, level, now_s)
        wanted = {place: known for place, known in shards.items() if place[0] in rows and place[1] in cols}
        found.append(Layer(reader, layers.job_id, query, level.metadata, wanted, factor, least))
    return found


def _touched(start_px0: int, length_px0: int, factor: float, limit: int, shard_px: int) -> range:
    """The shards along one axis that a span touches."""
    first = min(limit - 1, int(start_px0 / factor))
    last = min(limit - 1, int((start_px0 + length_px0) / factor))
    return range(first // shard_px, last // shard_px + 1)


def _read_levels(reader: JobReader, kind: str, query: int) -> list[Level]:
    """The levels of `labels/{query}` or `probability/{query}`, finest first.

    Raises:
        Problem: 404, the results are gone, or the plan was not published yet.
    """
    # the group of the probabilities has as many levels, and does not describe every region
    group = json.loads(_whole(reader, f"{OVERLAY}/probability/{query}/zarr.json"))
    levels = []
    for dataset in group["attributes"]["ome"]["multiscales"][0]["datasets"]:
        prefix = f"{OVERLAY}/{kind}/{query}/{dataset['path']}"
        metadata = _whole(reader, f"{prefix}/zarr.json")
        known = json.loads(metadata)
        height, width = known["shape"]
        levels.append(Level(prefix, metadata, height, width, known["chunk_grid"]["configuration"]["chunk_shape"][0]))
    return levels


def _whole(reader: JobReader, key: str) -> bytes:
    try:
        return b"".join(reader.chunks(key))
    except FileNotFoundError:
        raise missing() from None


class KnownJobs:
    """The layers of the jobs that were looked at lately. Thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, bool], JobLayers] = OrderedDict()

    def layers(self, rooms: Rooms, job_id: str) -> JobLayers:
        """What the overlay tiles of a job are made of now.

        Raises:
            JobNotFound, JobExpired: as `Rooms.finished`.
            Problem: 409, it is not planned yet, or it has ended without results.
        """
        job = rooms.ledger.job(job_id, rooms.tenant)
        if job.status != "successful" and not job.open:
            rooms.finished(job_id)
        with self._lock:
            known = self._known.get((job_id, job.open))
        if known is not None:
            return known
        with rooms.ledger.engine.connect() as connection:
            row = connection.execute(select(jobs.c.plan, jobs.c.slide).where(jobs.c.job_id == job_id)).first()
        if row is None or row.plan is None or row.slide is None:
            rooms.finished(job_id)
        plan, slide = TilePlan.from_json(row.plan), slide_info(row.slide)
        known = JobLayers(job_id, job.open, job.spec.threshold, plan, slide, len(job.spec.queries))
        with self._lock:
            self._known[job_id, job.open] = known
            while len(self._known) > MOST_JOBS:
                self._known.popitem(last=False)
        return known
