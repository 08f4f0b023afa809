"""Metrics of the gateway for Prometheus: what waits and what failed, as the ledger says, and the requests answered."""

import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.ledger import Ledger

ASK_EVERY_S = 5.0
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One application's metrics.

    Args:
        ledger: asked at most every five seconds, however often and by how many it is scraped.
        model: of jobs that name none; its queue is shown also when it is empty.
        heard_s: a worker silent for longer counts as gone.
        streams: how many event streams are open.
    """

    def __init__(self, ledger: Ledger, model: str, heard_s: float, streams: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "slidereason_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "slidereason_http_seconds", "Seconds until the answer began.", ["route"],
            buckets=BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        open_streams = Gauge("slidereason_event_streams", "Event streams open here.", registry=self.registry)
        open_streams.set_function(streams)
        ProcessCollector(registry=self.registry)
        self.registry.register(LedgerCollector(ledger, model, heard_s))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class LedgerCollector(Collector):
    """What every gateway of a cluster sees alike: sum over none of them, take any one."""

    def __init__(self, ledger: Ledger, model: str, heard_s: float, clock: Callable[[], float] = time.monotonic):
        self._ledger, self._heard_s, self._clock = ledger, heard_s, clock
        self._models, self._codes = {model}, set()
        self._lock = threading.Lock()
        self._known: list[Metric] = []
        self._asked = float("-inf")

    def describe(self) -> Iterator[Metric]:
        """Nothing: the ledger is not asked before somebody wants to know."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """The ledger's metrics, at most five seconds old; only `slidereason_ledger_up` 0 when it is away."""
        with self._lock:
            if self._clock() - self._asked >= ASK_EVERY_S:
                self._known = self._ask()
                self._asked = self._clock()
            yield from self._known

    def _ask(self) -> list[Metric]:
        up = GaugeMetricFamily("slidereason_ledger_up", "Whether the ledger answered when it was asked last.")
        try:
            found = [*self._queue(), *self._jobs(), self._workers()]
        except SQLAlchemyError:
            found = []
        up.add_metric([], 1.0 if found else 0.0)
        return [up, *found]

    def _queue(self) -> list[Metric]:
        units = GaugeMetricFamily("slidereason_queue_units", "Units of work that wait.", labels=["model"])
        oldest = GaugeMetricFamily(
            "slidereason_queue_oldest_wait_seconds", "How long the oldest job that nobody began has waited.",
            labels=["model"],
        )  # fmt: skip
        waiting = {stat.model: stat for stat in self._ledger.queue_stats()}
        self._models |= set(waiting)  # an emptied queue is 0, and does not vanish
        for model in sorted(self._models):
            units.add_metric([model], waiting[model].waiting_units if model in waiting else 0)
            oldest.add_metric([model], waiting[model].oldest_wait_s if model in waiting else 0.0)
        leased = GaugeMetricFamily("slidereason_units_leased", "Units of work that a worker has in hand.")
        leased.add_metric([], self._ledger.leased())
        return [units, oldest, leased]

    def _jobs(self) -> list[Metric]:
        jobs = GaugeMetricFamily("slidereason_jobs", "Jobs kept, by status.", labels=["status"])
        for status, count in self._ledger.counts().items():
            jobs.add_metric([status], count)
        failed = GaugeMetricFamily("slidereason_jobs_failed", "Failed jobs kept, by error code.", labels=["code"])
        codes = self._ledger.failures()
        self._codes |= set(codes)
        for code in sorted(self._codes):
            failed.add_metric([code], codes.get(code, 0))
        return [jobs, failed]

    def _workers(self) -> Metric:
        workers = GaugeMetricFamily("slidereason_workers", "Workers heard from.", labels=["model", "revision"])
        counts: dict[tuple[str, str], int] = {}
        for worker in self._ledger.workers(self._heard_s):
            named = (worker.card["name"], worker.card["revision"])
            counts[named] = counts.get(named, 0) + 1
        for named, count in sorted(counts.items()):
            workers.add_metric(named, count)
        return workers


class Measured:
    """ASGI middleware: counts requests by route template, and times them until the answer begins."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, and counts what was answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = took_s = None

        async def sending(message: Message) -> None:
            nonlocal status, took_s
            if message["type"] == "http.response.start":
                status, took_s = message["status"], time.perf_counter() - began
                self._count(scope, status, took_s)
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            if status is None:  # the 500 is made further out
                self._count(scope, 500, time.perf_counter() - began)
            raise

    def _count(self, scope: Scope, status: int, took_s: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = route_of(scope)
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(took_s)


def route_of(scope: Scope) -> str:
    """The template of the route that answers; never the path, which clients choose."""
    return getattr(scope.get("route"), "path", "none")
