"""What a worker counts and times, for Prometheus. Torch-free.

A unit's stages are summed while it runs and observed once at its end, so that a tile costs two clock reads and no lock.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

Item = TypeVar("Item")

REGISTRY = CollectorRegistry()

STAGES = ("plan", "read", "wait_engine", "blend", "write", "save", "commit", "publish", "finish", "export")
OUTCOMES = ("done", "failed", "waits", "handed_back", "lost")
REASONS = {"slide": "unreadable", "tile": "quarantined"}
"""Why a tile failed, by the field its error names; any other is the segmenter's."""

SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LONG_S = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200)

TILES = Counter("slidereason_tiles", "Tiles looked at, by the unit that owns them.", ["model"], registry=REGISTRY)
TILES_FAILED = Counter(
    "slidereason_tiles_failed", "Tiles that could not be read or segmented.", ["reason"], registry=REGISTRY
)
UNITS = Counter("slidereason_units", "Units of work by how they went.", ["kind", "outcome"], registry=REGISTRY)
DELIVERIES = Counter(
    "slidereason_deliveries", "Tries to deliver, by how the delivery stood afterwards.", ["to", "state"],
    registry=REGISTRY,
)  # fmt: skip
UNIT_WAIT_S = Histogram(
    "slidereason_unit_wait_seconds", "From a job's acceptance to the claim of a unit of it.",
    buckets=LONG_S, registry=REGISTRY,
)  # fmt: skip
STAGE_S = Histogram(
    "slidereason_stage_seconds", "Seconds a unit spent in a stage.", ["stage"], buckets=SHORT_S, registry=REGISTRY
)
BATCH_FILL = Histogram(
    "slidereason_batch_fill_ratio", "Tiles in a call of the model, of those that fit.",
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1), registry=REGISTRY,
)  # fmt: skip
BATCH_S = Histogram("slidereason_batch_seconds", "Seconds of a call of the model.", buckets=SHORT_S, registry=REGISTRY)
MEMORY = Gauge("slidereason_worker_memory_bytes", "Resident memory of the worker.", registry=REGISTRY)


class Stages:
    """Where one unit's time went.

    Attributes:
        busy_s: seconds by stage, without those of stages inside it.
        spans: (first entered, last left) by stage, in seconds since 1970.
    """

    def __init__(self) -> None:
        self.busy_s: dict[str, float] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self._inner_s = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside as this stage."""
        outer_s, self._inner_s = self._inner_s, 0.0
        since, begun = time.time(), time.perf_counter()
        try:
            yield
        finally:
            took_s = time.perf_counter() - begun
            self.busy_s[name] = self.busy_s.get(name, 0.0) + took_s - self._inner_s
            self.spans[name] = (self.spans.get(name, (since,))[0], since + took_s)
            self._inner_s = outer_s + took_s


_stages: ContextVar[Stages | None] = ContextVar("stages", default=None)


@contextmanager
def unit_stages() -> Iterator[Stages]:
    """Sum up the stages of a unit that this thread runs inside, and observe them at the end."""
    stages = Stages()
    token = _stages.set(stages)
    try:
        yield stages
    finally:
        _stages.reset(token)
        for name, seconds in stages.busy_s.items():
            STAGE_S.labels(name).observe(seconds)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what happens inside as this stage of the unit; outside of any unit, nothing is counted."""
    stages = _stages.get()
    with nullcontext() if stages is None else stages.stage(name):
        yield


def timed(items: Iterable[Item], name: str) -> Iterator[Item]:
    """The same items; the wait for each is counted as this stage."""
    iterator = iter(items)
    try:
        while True:
            with stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def tile_failed(fault: str | None) -> None:
    """Count a tile that failed.

    Args:
        fault: the field that its `TileFailed` names: `slide`, `tile` (quarantined), else it was the segmenter.
    """
    TILES_FAILED.labels(REASONS.get(fault, "segmenter")).inc()


def resident_bytes(status: Path = Path("/proc/self/statm")) -> int:
    """Memory of this process that is in RAM, in bytes; 0 where the system does not say."""
    import resource

    try:
        return int(status.read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


class GpuMemory(Collector):
    """Memory of the GPU in use, where torch is in use at all; never the first to touch CUDA."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("slidereason_gpu_memory_bytes", "Memory of the worker's GPU.", labels=["kind"])
        for kind, size in gpu_memory().items():
            family.add_metric([kind], size)
        yield family


def gpu_memory() -> dict[str, int]:
    """Bytes `allocated`, `reserved` and `total` of the GPUs that this process has used; empty without one."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    used = [n for n in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(n)]
    return {
        "allocated": sum(torch.cuda.memory_allocated(n) for n in used),
        "reserved": sum(torch.cuda.memory_reserved(n) for n in used),
        "total": sum(torch.cuda.get_device_properties(n).total_memory for n in used),
    }


MEMORY.set_function(resident_bytes)
REGISTRY.register(GpuMemory())
for _name in STAGES:
    STAGE_S.labels(_name)
