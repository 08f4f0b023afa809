"""`python -m benchmarks.run scale`: 1 to 1,000 GPUs and up to 100,000 slides, simulated on the scheduler's own code.

Service times are read from `benchmarks/results/scale_costs.json`; what could not be measured is assumed and listed in
`docs/scale.md`. The same seed gives the same figures. `SLIDEREASON_SCALE_RUNS="tiny, 10 GPUs;fair"` runs only those
whose names begin so, without the picture; the others stay as an earlier command found them.
"""

import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, Bench, Measurement
from benchmarks.scale_cluster import Cluster
from benchmarks.scale_ledger import Cost, Database
from benchmarks.scale_load import PAPER, TINY, Order, Profile, night, small_behind_large, split
from benchmarks.scale_machines import Machines

SEEDS = 3


@dataclass(frozen=True)
class Run:
    """One simulated stretch of time.

    Attributes:
        name: of the result.
        profile, gpus: which model, how many workers.
        load: `night` or `small behind large`.
        slides: of a night; within_s: in which they come.
        until_s: when it ends, if there is still work.
        window_s: in which throughput and use are measured; None is all of it.
        changes: of `Machines`; of `Database` where the name begins with `db_`.
        ledgers: tenants and workers are dealt to so many ledgers.
        seeds: under how many it is run, at most.
        keep_series: throughput of each ten seconds is kept.
    """

    name: str
    profile: Profile
    gpus: int
    load: str = "night"
    slides: int = 0
    within_s: float = 60.0
    until_s: float = 1e9
    window_s: tuple[float, float] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    ledgers: int = 1
    seeds: int = SEEDS
    keep_series: bool = False


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Simulate everything under each seed; the picture goes to `docs/images`, unless in a hurry."""
    database = read_costs(RESULTS / "scale_costs.json")
    seeds = range(bench.seed, bench.seed + (1 if bench.quick else SEEDS))
    wanted = tuple(filter(None, os.environ.get("SLIDEREASON_SCALE_RUNS", "").split(";")))
    runs = [run for run in all_runs() if run.name.startswith(wanted or "")]
    runs = [shorter(run) for run in runs] if bench.quick else runs
    asked = [(run, seed) for run in runs for seed in seeds[: run.seeds]]
    found = simulate_all(asked, database)
    told = {run.name: [found[run.name, seed] for seed in seeds[: run.seeds]] for run in runs}
    if not bench.quick and not wanted:
        from benchmarks.scale_plot import draw

        draw(told, RESULTS.parents[1] / "docs" / "images")
    measurements = [_measurement(name, figures) for name, figures in told.items()]
    if wanted and not bench.quick:
        measurements = _earlier(bench.folder / "scale.json", told) + measurements
    return measurements, f"simulated, seeds {seeds[0]} to {seeds[-1]}; service times from scale_costs.json"


def _earlier(path: Path, replaced: Iterable[str]) -> list[Measurement]:
    """What an earlier command found of other runs, which this one leaves as they are."""
    kept = json.loads(path.read_text(encoding="utf-8"))["measurements"] if path.is_file() else []
    kept = [one for one in kept if one["name"] not in replaced]
    return [Measurement(one["name"], one["unit"], tuple(one["values"]), one["notes"]) for one in kept]


def simulate_all(asked: Sequence[tuple[Run, int]], database: Database) -> dict[tuple[str, int], dict[str, Any]]:
    """Figures by name and seed, from two processes."""
    order = sorted(asked, key=lambda one: -one[0].gpus * min(one[0].until_s, 1e4))  # the longest first
    processes = min(2, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.map(partial(_simulate, database), order)
        return {(run.name, seed): one for (run, seed), one in zip(order, figures, strict=True)}


def _simulate(database: Database, asked: tuple[Run, int]) -> dict[str, Any]:
    return simulate(asked[0], asked[1], database)


def _measurement(name: str, figures: Sequence[Mapping[str, Any]]) -> Measurement:
    """Of each figure the median over seeds, and least and most; a series as it was under the first seed."""
    notes: dict[str, Any] = {}
    for key in figures[0]:
        values = [one[key] for one in figures]
        if key == "series":
            notes[key] = values[0]
        elif all(value is not None for value in values):
            low, middle, high = min(values), statistics.median(values), max(values)
            notes[key] = [float(f"{value:.4g}") for value in (middle, low, high)]
    return Measurement(name, "tiles/s", tuple(one["tiles_per_s"] for one in figures), notes)


# ---- what is run ---------------------------------------------------------------------------------------------------


def all_runs() -> list[Run]:
    """Every run of the page, in its order."""
    return [*_growth(), *_lifts(), *_backlog(), *_fairness(), *_losses()]


def _growth() -> list[Run]:
    """1 to 1,000 GPUs: slides that come steadily, and a night of 100 slides a GPU."""
    runs = [_steady(f"paper, {n} GPUs", n, 100, 80.0) for n in (1, 10, 100, 300, 1000)]
    runs += [_steady(f"paper, {n} GPUs, queuing for jobs", n, 100, 80.0, **QUEUE) for n in (1, 10, 100, 300, 1000)]
    hour = {"within_s": 1800.0, "until_s": 3600.0, "window_s": (1800.0, 3600.0)}
    sizes = {1: SEEDS, 10: SEEDS, 100: SEEDS, 1000: 1}
    nights = [Run(f"tiny, {n} GPUs", TINY, n, slides=100 * n, **hour, seeds=k) for n, k in sizes.items()]
    return [*runs, *nights, replace(nights[-1], name="tiny, the whole night", until_s=1e9, window_s=None, seeds=1)]


def _steady(name: str, gpus: int, tiles_per_s: float, until_s: float, load: float = 1.2, **changes: Any) -> Run:
    """Slides come evenly at a part of what the GPUs could do; the second half of the time counts.

    A GPU is kept busy by a thread for every ten tiles a second: a block's tiles take 0.64 s at 100 tiles/s, what its
    thread does after the GPU 4.7 s.
    """
    slides = round(load * until_s * gpus * tiles_per_s / PAPER_TILES)
    changes = {"tiles_per_s": tiles_per_s, "threads": max(2, round(tiles_per_s / 10)), **changes}
    window = (until_s / 2, until_s)
    return Run(name, PAPER, gpus, slides=slides, within_s=until_s, until_s=until_s, window_s=window, changes=changes)


PAPER_TILES = 5800
"""Tiles that are computed of a slide of the `paper` profile, on average."""

QUEUE = {"pass_locked": False}
"""As it was when this was first simulated: a claim waits for the row of the best job, whoever holds it."""
RENEW = {"renew_together": True}
WIDE = {"storage_bytes_s": 100e9}
"""Storage that is not the limit, so that the ledger is."""


def _lifts() -> list[Run]:
    """What helps where the ledger is the limit: each change alone, then together; and under a light load."""
    alone = {
        "as it is": {}, "queuing for jobs": QUEUE, "renew together": RENEW,
        "800 connections": {"db_connections": 800}, "64 cores": {"db_cores": 64},
    }  # fmt: skip
    hard = [_steady(f"hard, {name}", 1000, 400, 30.0, **change, **WIDE) for name, change in alone.items()]
    hard.append(replace(_steady("hard, 4 ledgers", 1000, 400, 30.0, **WIDE), ledgers=4))
    eased = {"as it is": {}, "queuing for jobs": QUEUE}
    return hard + [_steady(f"light, {name}", 1000, 100, 60.0, 0.6, **change) for name, change in eased.items()]


def _backlog() -> list[Run]:
    """All 100,000 slides within a minute: what a queue of that length costs."""
    load = {"slides": 100_000, "within_s": 60.0, "until_s": 300.0, "window_s": (60.0, 300.0)}
    return [Run("backlog", TINY, 1000, **load, seeds=1)]


def _fairness() -> list[Run]:
    base = Run("fair", PAPER, 100, load="small behind large", until_s=1200.0, window_s=(120.0, 1200.0))
    policies = {
        "fair, lifted as seen": {"lift": "seen"}, "fair, lifted at arrival": {"lift": "arrival"},
        "oldest first": {"policy": "oldest"},
    }  # fmt: skip
    others = [replace(base, name=name, changes=change) for name, change in policies.items()]
    return [base, *others]


def _losses() -> list[Run]:
    base = Run(
        "nothing lost", TINY, 1000, slides=30_000, within_s=60.0, until_s=900.0, window_s=(300.0, 900.0),
        keep_series=True, seeds=1,
    )  # fmt: skip
    changes = {
        "100 % of GPUs an hour": {"death_per_hour": 1.0},
        "Redis away 60 s": {"redis_lost_s": 300.0, "redis_away_s": 60.0},
        "Redis flushed": {"redis_lost_s": 300.0},
        "Redis flushed, tickets once a sweep": {"redis_lost_s": 300.0, "refill_s": 0.0},
    }
    return [base] + [replace(base, name=name, changes=change) for name, change in changes.items()]


def shorter(run: Run) -> Run:
    """The same in seconds: at most ten GPUs, a few slides, a few simulated minutes."""
    gpus = min(run.gpus, 10)
    return replace(
        run, gpus=gpus, slides=min(run.slides, 5 * gpus), within_s=20.0, until_s=min(run.until_s, 200.0),
        window_s=None, ledgers=min(run.ledgers, 2),
    )  # fmt: skip


# ---- one run -------------------------------------------------------------------------------------------------------


def read_costs(path: Path) -> Database:
    """Service times from what `benchmarks.scale_costs` measured."""
    kept = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    by_blocks = [one for one in kept if "blocks" in one["notes"]]
    by_queue = [one for one in kept if "waiting" in one["notes"]]

    def line(found: Iterable[Mapping[str, Any]], name: str, of: str, scale: float = 1.0) -> Cost:
        points = [one["notes"] for one in found if one["name"] == name]
        # Least relative error: a fit that is right at both ends of three decades.
        x, y = np.array([one[of] * scale for one in points]), np.array([max(one["cpu_ms"], 0.05) for one in points])
        (a, b), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(y)), rcond=None)
        statements = statistics.median(one["statements"] for one in points)
        return Cost(max(float(a), 0.05) / 1e3, max(float(b), 0.0) / 1e3, round(statements))

    usual = [one for one in by_blocks if one["notes"]["blocks"] > 4]  # 4 calls are too few for a clock of 10 ms
    costs = {name: line(usual, name, "blocks") for name in ("renew", "commit", "commit_plan")}
    costs["claim"] = line(by_queue, "claim", "waiting", 1 / 20)
    costs["status"] = line(by_queue, "status", "waiting")
    costs["beat"] = replace(costs["renew"], per_item_s=0.0)
    return Database(costs)


def simulate(run: Run, seed: int, database: Database) -> dict[str, Any]:
    """Let a run's time pass; figures of its window."""
    machines = Machines(
        run.gpus, threads=run.profile.threads, tile_bytes=run.profile.tile_px**2 * 0.1,
        tile_decode_s=run.profile.tile_px**2 / 1e8 / 4, tile_tail_s=run.profile.tile_px**2 * 70e-9,
    )  # fmt: skip
    machines = replace(machines, **{name: value for name, value in run.changes.items() if not name.startswith("db_")})
    database = _changed(database, run.changes)
    parts = split(_orders(run, seed), run.ledgers)
    clusters = []
    for part in parts:
        cluster = Cluster(part_of(machines, run.ledgers), database, part, seed)
        window = run.window_s or (0.0, run.until_s)
        marks = [_Mark(cluster, at_s) for at_s in window]
        cluster.run(run.until_s)
        clusters.append((cluster, *marks))
    figures = [_figures(run, machines, *one) for one in clusters]
    whole = {key: _joined(key, [one[key] for one in figures]) for key in figures[0]}
    return whole | _waits([cluster for cluster, *_ in clusters], run)


def part_of(machines: Machines, ledgers: int) -> Machines:
    """What each of several ledgers has of everything but itself: workers, and their share of the storage."""
    return replace(machines, gpus=machines.gpus // ledgers, storage_bytes_s=machines.storage_bytes_s / ledgers)


def _changed(database: Database, changes: Mapping[str, Any]) -> Database:
    others = {name: changes[f"db_{name}"] for name in ("connections", "cores") if f"db_{name}" in changes}
    return replace(database, **others)


def _orders(run: Run, seed: int) -> list[Order]:
    if run.load == "small behind large":
        return small_behind_large(64, 0.8 * run.until_s, 0.8, seed)
    return night(run.profile, run.slides, run.within_s, seed)


class _Mark:
    """What had been counted at one moment."""

    def __init__(self, cluster: Cluster, at_s: float):
        self.cluster, self.at_s = cluster, at_s
        self.taken: dict[str, Any] | None = None
        cluster.events.at(at_s, self.take) if at_s < 1e8 else None

    def take(self) -> dict[str, Any]:
        """Count now, unless it has been."""
        if self.taken is None:
            cluster, ledger = self.cluster, self.cluster.ledger
            waits = dict(ledger.locks.waited_s)
            ledger.places.count_held()
            self.taken = {
                "now": cluster.events.now, "tiles": cluster.seen.tiles, "blocks": cluster.seen.blocks,
                "cpu": ledger.cpu.busy_s, "held": ledger.places.held_s, "redis": cluster.redis.busy_s,
                "storage": cluster.storage.busy_s, "claims": ledger.claims, "claim_s": ledger.claim_s,
                "lock_s": sum(waits.values()), "place_s": ledger.places.waited_s,
                "busy": {number for number, tenant in enumerate(ledger.tenants) if tenant.by_age},
                "of_tenant": {who: sum(bins.values()) for who, bins in cluster.seen.of_tenant.items()},
            }  # fmt: skip
        return self.taken


def _figures(run: Run, machines: Machines, cluster: Cluster, first: _Mark, last: _Mark) -> dict[str, Any]:
    begun, ended = first.take(), last.take()
    gone = {key: ended[key] - begun[key] for key in ended if isinstance(ended[key], float | int)}
    seconds, claims = max(gone["now"], 1e-9), max(1, gone["claims"])
    possible = run.gpus / run.ledgers * machines.tiles_per_s
    ledger, seen = cluster.ledger, cluster.seen
    busy = begun["busy"] & ended["busy"]
    served = [ended["of_tenant"].get(who, 0.0) - begun["of_tenant"].get(who, 0.0) for who in busy]
    return {
        "tiles_per_s": gone["tiles"] / seconds,
        "of_linear": gone["tiles"] / seconds / possible,
        "blocks_per_s": gone["blocks"] / seconds,
        "database_cpu": gone["cpu"] / seconds / ledger.cpu.count,
        "connections": gone["held"] / seconds / ledger.places.count,
        "redis": gone["redis"] / seconds,
        "storage": gone["storage"] / seconds,
        "claim_ms": gone["claim_s"] / claims * 1e3,
        "lock_wait_ms_per_block": gone["lock_s"] / max(1, gone["blocks"]) * 1e3,
        "connection_wait_ms_per_block": gone["place_s"] / max(1, gone["blocks"]) * 1e3,
        "leases_lost": ledger.lost, "attempts_wasted": seen.wasted, "isolated": seen.isolated, "deaths": seen.deaths,
        "status_worst_s": max(seen.answer_s, default=0.0),
        "status_p50_s": statistics.median(seen.answer_s) if seen.answer_s else 0.0,
        "jain": jain(served) if len(served) > 1 else None,
        "others_tiles_per_s": sum(
            count - begun["of_tenant"].get(who, 0.0) for who, count in ended["of_tenant"].items() if who
        ) / seconds,
        "jobs_ended": sum(job.ended is not None for job in ledger.jobs),
        "took_s": cluster.events.now,
        "series": [round(seen.tiles_at.get(n, 0.0) / 10) for n in range(int(run.until_s // 10))]
        if run.keep_series else [],
    }  # fmt: skip


SUMS = (
    "tiles_per_s", "others_tiles_per_s", "blocks_per_s", "leases_lost", "attempts_wasted", "isolated", "deaths",
    "jobs_ended",
)  # fmt: skip


def _joined(key: str, values: Sequence[Any]) -> Any:
    """Of several ledgers: sums of what is counted, means of shares, the worst of waits."""
    if len(values) == 1:
        return values[0]
    if key in SUMS:
        return sum(values)
    if key == "series" or any(value is None for value in values):
        return [] if key == "series" else None
    return max(values) if key in ("took_s", "status_worst_s") else statistics.fmean(values)


def _waits(clusters: Sequence[Cluster], run: Run) -> dict[str, float | None]:
    """Seconds from coming to the end, of small and of large jobs; of others' and of large tenants' own small ones."""
    jobs = [job for cluster in clusters for job in cluster.ledger.jobs]
    kinds = {"small": [job for job in jobs if job.shape.blocks <= run.profile.small]}
    kinds["large"] = [job for job in jobs if job.shape.blocks >= run.profile.large]
    if run.load == "small behind large":
        kinds |= {"own": [job for job in kinds["small"] if job.tenant < 5]}
        kinds["small"] = [job for job in kinds["small"] if job.tenant >= 5]
    told: dict[str, float | None] = {}
    for name, found in kinds.items():
        # A job that has not ended waits at least until now.
        end = clusters[0].events.now
        took = [(end if job.ended is None else job.ended) - job.created for job in found]
        for part in (50, 95):
            told[f"{name}_p{part}_s"] = float(np.percentile(took, part)) if took else None
        told[f"{name}_not_ended"] = sum(job.ended is None for job in found)
    return told


def jain(served: Sequence[float]) -> float:
    """1 when all got the same, 1/n when one got all. Source: R. Jain et al., DEC-TR-301, 1984."""
    squares = sum(value * value for value in served)
    return sum(served) ** 2 / (len(served) * squares) if squares else 1.0
