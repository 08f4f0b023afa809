"""A gateway under 1,000 status pollers that obey Retry-After and 100 event streams, while jobs go on.

The gateway is one uvicorn process with its own redis and ledger (SQLite; PostgreSQL where
SLIDEREASON_TEST_POSTGRES_URL names a server). This process stands for the workers: it claims and commits units through
the ledger, without a model. The clients are a third process on the same machine.
"""

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from benchmarks.record import Bench, Measurement
from model.segmenter import SegmenterCard
from tests.databases import database_urls
from worker import embedded
from worker.ledger import Ledger
from worker.types import JobSpec, SlideInfo, TilePlan

MODEL = "pollers"
CARD = SegmenterCard(name=MODEL, revision="none", tile_size_px=256, default_mpp=1.0)
INFO = SlideInfo(1000, 800, ((1000, 800),), (1.0,), 0.5, 0.5, "override", None, "generic")
PLAN = TilePlan(500, 400, 1.0, 2.0, 2.0, 256, 192, (0, 0), 2, 3, 512, (), "/A==", 0, 2)
TILES_A_BLOCK = 16
MOST_BLOCKS = 40
SAMPLE_S = 1.0
WARM = 1 / 3
"""Share of the time before memory is expected to be flat."""


@dataclass(frozen=True)
class Size:
    """How much of everything, and for how long."""

    pollers: int
    streams: int
    seconds: float
    ramp_s: float
    open_jobs: int
    workers: int
    unit_s: float


FULL = Size(pollers=1000, streams=100, seconds=600, ramp_s=30, open_jobs=200, workers=8, unit_s=0.5)
QUICK = Size(pollers=100, streams=10, seconds=20, ramp_s=2, open_jobs=20, workers=4, unit_s=0.1)


class Progress:
    """Workers without a model: they claim, renew and commit, and a new job comes for every one that is done."""

    def __init__(self, url: str, size: Size, seed: int):
        self.ledger = Ledger(url)
        self.size = size
        self.finished = self.units = 0
        self.faults: list[str] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(f"w{n}",)) for n in range(size.workers)]

    def __enter__(self) -> "Progress":
        self.ledger.heartbeat("w0", CARD, (MODEL,))
        for _ in range(self.size.open_jobs):
            self._ask()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.ledger.close()

    def _ask(self) -> None:
        with self._lock:
            name = f"slide-{self._random.randrange(10**6)}"
        self.ledger.create_job(JobSpec(f"/slides/{name}", name, ("Where is the tumour?",), model=MODEL))

    def _work(self, name: str) -> None:
        while not self._over.is_set():
            try:
                self._run_one(name)
            except Exception as error:  # a benchmark whose jobs stand still has not shown anything
                self.faults.append(f"{type(error).__name__}: {error}")

    def _run_one(self, name: str) -> None:
        work = self.ledger.claim(name, [MODEL], CARD)
        if work is None:
            self._over.wait(0.1)
            return
        for part in range(1, 5):
            self._over.wait(self.size.unit_s / 4)
            self.ledger.renew(work, part * TILES_A_BLOCK // 4 if work.kind == "segment" else 0)
        self.units += 1
        if work.kind == "plan":
            with self._lock:
                n_blocks = self._random.randint(1, MOST_BLOCKS)
            keys = tuple(f"0_{n}" for n in range(n_blocks))
            plan = replace(PLAN, block_keys=keys, n_tiles=n_blocks * TILES_A_BLOCK)
            self.ledger.commit_plan(work, plan, INFO, dict.fromkeys(keys, TILES_A_BLOCK))
        elif work.kind == "segment":
            self.ledger.commit_block(work, TILES_A_BLOCK, 0, {})
        else:
            self.ledger.commit_finish(work, {"answer": "there"}, "1 region")
            self.ledger.close_job(work.job_id)
            self.finished += 1
            self._ask()


class Memory:
    """Resident memory of a process over time, in MB."""

    def __init__(self, pid: int):
        self.samples: list[tuple[float, float]] = []
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._over.wait(SAMPLE_S):
            resident_mb = int(self._status.read_text().split("VmRSS:")[1].split()[0]) / 1024
            self.samples.append((time.monotonic() - began, resident_mb))

    def slope_mb_per_min(self) -> float:
        """Growth by least squares, once the process is warm."""
        warm = self.samples[int(len(self.samples) * WARM) :]
        times_s, sizes_mb = zip(*warm, strict=True)
        return float(np.polyfit(np.array(times_s) / 60, sizes_mb, 1)[0])


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Run it once; latencies are the clients', from request to the whole answer."""
    size = QUICK if bench.quick else FULL
    seconds = os.environ.get("SLIDEREASON_BENCH_SECONDS")
    size = replace(size, seconds=float(seconds)) if seconds else size
    kind = "postgresql" if os.environ.get("SLIDEREASON_TEST_POSTGRES_URL") else "sqlite"
    with database_urls(kind, bench.work) as database_url, Progress(database_url, size, bench.seed) as progress:
        data = bench.work / "data"
        with embedded.start(data, model=MODEL, workers=0, database_url=database_url) as running:
            with gateway(bench.work, database_url, running) as (process, url):
                given = {"url": url, "pollers": size.pollers, "streams": size.streams, "seconds": size.seconds,
                         "ramp_s": size.ramp_s, "seed": bench.seed}  # fmt: skip
                cpu_before_s = cpu_s(process.pid)
                with Memory(process.pid) as memory:
                    seen = run_load(given)
                gateway_cpu_s = cpu_s(process.pid) - cpu_before_s
    notes = {"statuses": seen["statuses"], "jobs_finished": progress.finished, "units": progress.units,
             "worker_faults": progress.faults[:5], "gateway_cpu_share": gateway_cpu_s / seen["seconds"]}  # fmt: skip
    shown = f"{size.pollers} pollers, {size.streams} event streams, {size.seconds:g} s, {size.open_jobs} open jobs"
    return measurements(seen, memory, notes), f"{shown}, {size.workers} workers, {kind} ledger, seed {bench.seed}"


def measurements(seen: dict, memory: Memory, notes: dict) -> list[Measurement]:
    """What the clients saw and what the gateway took."""
    percentiles = np.percentile(seen["latencies_s"], [50, 95, 99, 100]) * 1000
    made = [
        Measurement(f"status latency, {name}", "ms", (float(value),))
        for name, value in zip(("p50", "p95", "p99", "max"), percentiles, strict=True)
    ]
    errors = sum(seen["errors"].values()) + len(notes["worker_faults"])
    made += [
        Measurement("errors", "errors", (float(errors),), {**seen["errors"], **notes}),
        Measurement("status requests", "requests/s", (len(seen["latencies_s"]) / seen["seconds"],)),
        Measurement("Retry-After, mean", "s", (statistics.fmean(seen["waits_s"]),), {"max_s": max(seen["waits_s"])}),
        Measurement("events", "events/s", (seen["events"] / seen["seconds"],), {"ended": seen["ended_streams"]}),
        Measurement("gateway memory, growth", "MB/min", (memory.slope_mb_per_min(),)),
        Measurement(
            "gateway memory", "MB", tuple(size for _, size in memory.samples[:: max(1, len(memory.samples) // 60)])
        ),
    ]
    if seen["event_delays_s"]:
        delay_ms = float(np.percentile(seen["event_delays_s"], 99)) * 1000
        made.append(Measurement("end of a job to its last event, p99", "ms", (delay_ms,)))
    return made


@contextmanager
def gateway(work: Path, database_url: str, running: embedded.Embedded) -> Iterator[tuple[subprocess.Popen, str]]:
    """A gateway process that answers; (process, its address)."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = {"BROKER_URL": running.broker_url, "DATABASE_URL": database_url, "ARTIFACTS": running.artifacts,
                "DATA": str(work / "data"), "MODEL": MODEL, "LOG_LEVEL": "WARNING"}  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLIDEREASON_")}
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--timeout-keep-alive", "75", "--no-access-log", "--timeout-graceful-shutdown", "5"],
        env=kept | {f"SLIDEREASON_{name}": value for name, value in settings.items()},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url)
        yield process, url
    finally:
        process.terminate()
        process.wait(30)


def wait_until_up(process: subprocess.Popen, url: str) -> None:
    """Until it answers.

    Raises:
        RuntimeError: it ended, or did not answer within a minute.
    """
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(f"{url}/healthz", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the gateway did not start (exit code {process.poll()})")


def run_load(given: dict) -> dict:
    """The clients' process; what they saw."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pollers_load", json.dumps(given)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def cpu_s(pid: int) -> float:
    """Processor seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
