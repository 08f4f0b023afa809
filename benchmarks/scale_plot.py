"""The pictures of `docs/scale.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Told = Mapping[str, Sequence[Mapping[str, Any]]]
"""Figures of each run, one mapping per seed."""

STATIONS = {
    "connections": "connections to PostgreSQL", "database_cpu": "PostgreSQL's processors", "redis": "Redis",
    "storage": "storage",
}  # fmt: skip
SIZES = (1, 10, 100, 300, 1000)
HARD = ("queuing for jobs", "as it is", "64 cores", "800 connections", "renew together", "4 ledgers")
LOSSES = ("nothing lost", "100 % of GPUs an hour", "Redis away 60 s", "Redis flushed")
WAITS = {
    "fair": "as it is", "fair, lifted at arrival": "lifted at\narrival",
    "fair, lifted as seen": "lifted as\nseen (before)", "oldest first": "oldest first",
}  # fmt: skip


def draw(told: Told, folder: Path) -> Path:
    """Write `scale.png`: growth, use of the stations, what lifts, waits, losses.

    Args:
        told: from `benchmarks.scale`.
        folder: where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    _growth(axes[0][0], told)
    _stations(axes[0][1], told)
    _lifts(axes[1][0], told)
    _light(axes[1][1], told)
    _waits(axes[2][0], told)
    _losses(axes[2][1], told)
    path = folder / "scale.png"
    figure.savefig(path, dpi=110)
    return path


def _of(told: Told, name: str, figure: str) -> tuple[float, float, float]:
    """Median, and how far least and most are from it."""
    values = [one[figure] for one in told[name]]
    middle = median(values)
    return middle, middle - min(values), max(values) - middle


def _growth(axis: Any, told: Told) -> None:
    lines = {
        "paper": ("paper, {} GPUs", SIZES),
        "paper, claims queuing for jobs": ("paper, {} GPUs, queuing for jobs", SIZES),
        "tiny, a night": ("tiny, {} GPUs", (1, 10, 100, 1000)),
    }  # fmt: skip
    for label, (name, sizes) in lines.items():
        found = [_of(told, name.format(n), "of_linear") for n in sizes]
        bars = [[low for _, low, _ in found], [high for *_, high in found]]
        axis.errorbar(sizes, [one[0] for one in found], yerr=bars, marker="o", capsize=3, label=label)
    axis.set(xscale="log", xlabel="GPUs of 100 tiles/s", ylabel="part of linear", ylim=(0, 1.05))
    axis.set_title("Throughput")
    axis.legend(loc="lower left")
    axis.grid(alpha=0.3)


def _stations(axis: Any, told: Told) -> None:
    for colour, (station, words) in enumerate(STATIONS.items()):
        for name, style in (("paper, {} GPUs", "-"), ("paper, {} GPUs, queuing for jobs", ":")):
            found = [_of(told, name.format(n), station)[0] for n in SIZES]
            axis.plot(SIZES, found, style, color=f"C{colour}", marker="o", label=words if style == "-" else None)
    axis.set(xscale="log", xlabel="GPUs of 100 tiles/s", ylabel="part in use", ylim=(0, 1.05))
    axis.set_title("Use of what all share, paper; dotted: claims queuing for jobs")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _bars(axis: Any, told: Told, names: Sequence[str], shown: Sequence[str], figure: str) -> None:
    found = [_of(told, name, figure) for name in names]
    axis.barh(
        range(len(names)), [one[0] for one in found], color="C0",
        xerr=[[low for _, low, _ in found], [high for *_, high in found]], capsize=3,
    )  # fmt: skip
    axis.set_yticks(range(len(names)), shown)
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")


def _lifts(axis: Any, told: Told) -> None:
    _bars(axis, told, [f"hard, {name}" for name in HARD], HARD, "of_linear")
    axis.set(xlabel="part of linear", xlim=(0, 1.05), title="1,000 GPUs of 400 tiles/s: what lifts")


def _light(axis: Any, told: Told) -> None:
    names = ("queuing for jobs", "as it is")
    _bars(axis, told, [f"light, {name}" for name in names], names, "claim_ms")
    axis.set(xlabel="ms of a claim, mean", xscale="log", title="1,000 GPUs with 60 % of their load")


def _waits(axis: Any, told: Told) -> None:
    kinds = {"small_p95_s": "of a tenant with nothing else", "own_p95_s": "of a tenant with 2,000-block jobs"}
    for number, (figure, words) in enumerate(kinds.items()):
        found = [_of(told, name, figure) for name in WAITS]
        places = [place + 0.38 * (number - 0.5) for place in range(len(WAITS))]
        bars = [[low for _, low, _ in found], [high for *_, high in found]]
        axis.bar(places, [one[0] for one in found], 0.36, yerr=bars, capsize=3, label=words)
        for place, one in zip(places, found, strict=True):
            axis.text(place, one[0] * 1.1, f"{one[0]:.0f}", ha="center", fontsize=8)
    axis.set_xticks(range(len(WAITS)), WAITS.values())
    axis.set(yscale="log", ylabel="s, 95th percentile", title="A 4-block job behind 2,000-block jobs, 100 GPUs")
    axis.legend(fontsize=8, loc="upper left")
    axis.grid(alpha=0.3, axis="y")


def _losses(axis: Any, told: Told) -> None:
    for name in LOSSES:
        series = [value / 1e5 for value in told[name][0]["series"]]
        axis.plot([10 * n for n in range(len(series))], series, label=name)
    axis.set(xlabel="s", ylabel="part of linear", ylim=(0, 1.1), title="Losses at 300 s, tiny, 1,000 GPUs")
    axis.legend(fontsize=8, loc="lower left")
    axis.grid(alpha=0.3)
