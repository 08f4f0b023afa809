"""The plot of the robustness benchmark: figures against the strength of artefacts, and under unseen stains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = {"dice_with_misses": "Dice, a miss as 0", "balanced_accuracy": "balanced accuracy of pointing"}
STYLES = ("-", "--")
MARKS = ("o", "s")

Curve = tuple[str, int, str, Mapping[str, Mapping[str, Any]]]
"""Family, strength, name of a condition, and the summary of each model under it."""


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG: one row a figure, artefacts on the left, stains on the right; bars are 95 % intervals.

    Args:
        curves: every condition, `clean` among them.
        path: where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(SHOWN), 2, sharey="row", squeeze=False)
    for row, (name, words) in zip(axes, SHOWN.items(), strict=True):
        _artefacts(row[0], curves, name)
        _stains(row[1], curves, name)
        row[0].set_ylabel(words)
    axes[-1][0].set_xlabel("strength (0: as it is)")
    axes[0][0].legend(fontsize=8, ncols=2, loc="lower left")
    figure.savefig(path, dpi=110)


def _artefacts(axis: Any, curves: Sequence[Curve], name: str) -> None:
    """A line for each artefact and model, from the clean pictures on."""
    clean = next(summaries for family, _, _, summaries in curves if family == "clean")
    families = list(dict.fromkeys(family for family, strength, _, _ in curves if strength))
    for colour, family in enumerate(families):
        part = [(strength, summaries) for kind, strength, _, summaries in curves if kind == family]
        points = [(0, clean), *sorted(part, key=lambda one: one[0])]
        for style, role in zip(STYLES, clean, strict=False):
            known = [(x, summaries[role][name]) for x, summaries in points if summaries[role][name] is not None]
            label = family.replace("_", " ") + (f", {role}" if len(clean) > 1 else "")
            axis.plot(*zip(*known, strict=True), style, color=f"C{colour}", marker=".", label=label)
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)


def _stains(axis: Any, curves: Sequence[Curve], name: str) -> None:
    """A point with its interval for each laboratory and model; the clean pictures first."""
    shown = [(kind, summaries) for kind, strength, _, summaries in curves if strength == 0]
    roles = list(shown[0][1])
    for number, role in enumerate(roles):
        for x, (_, summaries) in enumerate(shown):
            value, interval = summaries[role][name], summaries[role]["intervals_95"][name]
            if value is None:
                continue
            reach = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]] if interval else None
            axis.errorbar(
                x + 0.18 * (number - (len(roles) - 1) / 2), value, yerr=reach, fmt=MARKS[number], color=f"C{number}",
                capsize=3, label=role if x == 0 and len(roles) > 1 else None,
            )  # fmt: skip
    axis.set_xticks(range(len(shown)), [kind.removeprefix("stain ") for kind, _ in shown], rotation=35, ha="right")
    if len(roles) > 1:
        axis.legend(fontsize=8, loc="lower left")
    axis.grid(alpha=0.3)
