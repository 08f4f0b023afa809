"""What a built data set is made of, as numbers and as a figure.

Source: Liu et al. 2026, PathChat-SegR1, Fig. 2 (anatomical distribution, magnification levels, data set composition).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model.data.chains import SEG
from model.data.concepts import CONCEPTS
from model.data.sample import Sample

PRESENT, ABSENT, UNKNOWN, BAR, GRID = "#2f6f9f", "#c98b3c", "#8d8d93", "#4b7f7a", "#e4e4e8"
SIDE_COLOURS = {"train": "#2f6f9f", "val": "#c98b3c", "test": "#7a4f8f"}


def compose(sides: Mapping[str, list[Sample]]) -> dict:
    """Counts over all samples; `pictures` and `patients` are counted once.

    Args:
        sides: samples by side.

    Returns:
        `samples`, `pictures`, `patients` by side; `organs`, `magnifications`, `sources`, `licences`, `stains`, `kinds`,
        `reviews`, `generators`: value → samples; `targets`: concept → present and absent; `unknown_targets`;
        `chain_words` and `query_words`: `n`, `mean`, quartiles, and `counts` by length.
    """
    samples = [sample for part in sides.values() for sample in part]
    targets: dict[str, Counter] = {}
    for sample in samples:
        if sample.concept is not None:
            targets.setdefault(sample.concept, Counter())["present" if sample.targets else "absent"] += 1
    ranked = sorted(targets.items(), key=lambda pair: -pair[1].total())
    return {
        "samples": {side: len(part) for side, part in sides.items()},
        "pictures": {side: len({one.image for one in part}) for side, part in sides.items()},
        "patients": {side: len({(one.source, one.patient) for one in part}) for side, part in sides.items()},
        "organs": _counted(sample.organ for sample in samples),
        "magnifications": _magnifications(samples),
        "sources": _counted(sample.source for sample in samples),
        "licences": _counted(sample.licence for sample in samples),
        "stains": _counted(sample.stain for sample in samples),
        "kinds": _counted(sample.kind for sample in samples),
        "reviews": _counted(sample.provenance.review.state for sample in samples),
        "generators": _counted(sample.provenance.generator for sample in samples),
        "targets": {key: {"present": count["present"], "absent": count["absent"]} for key, count in ranked},
        "unknown_targets": sum(sample.concept is None for sample in samples),
        "chain_words": _lengths(chain_words(sample.chain) for sample in samples),
        "query_words": _lengths(len(sample.query.split()) for sample in samples),
    }


def chain_words(chain: str) -> int:
    """Words of a chain, without `<think>`, `</think>` and `<SEG>`."""
    for token in ("<think>", "</think>", SEG):
        chain = chain.replace(token, " ")
    return sum(any(letter.isalnum() for letter in word) for word in chain.split())


def _counted(values) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _magnifications(samples: list[Sample]) -> dict[str, int]:
    """From low to high, what is unknown last."""
    count = Counter(sample.magnification for sample in samples)
    known = sorted(value for value in count if value is not None)
    named = {f"{value:g}×": count[value] for value in known}
    return named | ({"unknown": count[None]} if count[None] else {})


def _lengths(values) -> dict:
    lengths = np.array(sorted(values), int)
    if not len(lengths):
        return {"n": 0, "counts": {}}
    quarter, middle, three = (float(value) for value in np.percentile(lengths, (25, 50, 75)))
    counts = {str(length): int(n) for length, n in zip(*np.unique(lengths, return_counts=True), strict=True)}
    mean = round(float(lengths.mean()), 2)
    return {"n": len(lengths), "mean": mean, "quartiles": [quarter, middle, three], "counts": counts}


def draw(found: dict, path: Path, name: str) -> None:
    """The figure of `compose`'s numbers, as PNG, PDF or SVG by the file's ending.

    Args:
        found: of `compose`.
        path: to write to.
        name: the set's, for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.6, 9.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.94), w_pad=0.12, h_pad=0.16)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    total, pictures, patients = (sum(found[what].values()) for what in ("samples", "pictures", "patients"))
    figure.suptitle(
        f"{name}: {total:,} questions about {pictures:,} pictures of {patients:,} patients",
        fontsize=15, fontweight="bold", x=0.015, y=0.985, ha="left",
    )  # fmt: skip
    _bars(axes[0, 0], "Organ", found["organs"])
    _columns(axes[0, 1], "Magnification", found["magnifications"])
    _bars(axes[0, 2], "Source", found["sources"])
    _bars(axes[0, 3], "Licence", found["licences"])
    _targets(axes[1, 0], found)
    _columns(axes[1, 1], "Kind of question", found["kinds"])
    _histogram(axes[1, 2], found["chain_words"])
    _sides(axes[1, 3], found)
    partial = path.with_name(f".{path.stem}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def _plain(axis, title: str) -> None:
    """A calm frame: a title, no box."""
    axis.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=10)
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)
    axis.spines["bottom"].set_color("#b8b8bd")
    axis.tick_params(length=0, labelsize=9)


def _share(value: int, total: int) -> str:
    """A share in whole per cent; a small one is not called none."""
    share = 100 * value / total
    return "<1 %" if 0 < share < 1 else f"{share:.0f} %"


def _bars(axis, title: str, counts: Mapping[str, int]) -> None:
    """Lying bars, the largest on top, each with its count and share."""
    _plain(axis, title)
    names, values, total = list(counts)[::-1], list(counts.values())[::-1], sum(counts.values())
    axis.barh(names, values, color=BAR, height=0.62)
    for place, value in enumerate(values):
        axis.text(value, place, f" {value:,} ({_share(value, total)})", va="center", fontsize=9)
    axis.set_xlim(0, max(values, default=1) * 1.55)
    axis.set_ylim(-0.6, max(len(names), 4) - 0.4)
    axis.xaxis.set_visible(False)
    axis.spines["bottom"].set_visible(False)


def _columns(axis, title: str, counts: Mapping[str, int]) -> None:
    """Standing bars in the order given."""
    _plain(axis, title)
    total = sum(counts.values())
    axis.bar(list(counts), list(counts.values()), color=BAR, width=0.62)
    for place, value in enumerate(counts.values()):
        axis.text(place, value, f"{value:,}\n{_share(value, total)}", ha="center", va="bottom", fontsize=9)
    axis.set_ylim(0, max(counts.values(), default=1) * 1.22)
    axis.set_xlim(-0.7, max(len(counts), 3) - 0.3)
    axis.yaxis.set_visible(False)


def _targets(axis, found: dict) -> None:
    """What is asked for, and how often it is there."""
    _plain(axis, "Target asked for")
    keys = list(found["targets"])[::-1]
    here, gone = ([found["targets"][key][side] for key in keys] for side in ("present", "absent"))
    names = [CONCEPTS[key].name if key in CONCEPTS else key for key in keys]
    if found["unknown_targets"]:
        names, here, gone = ["never taught", *names], [0, *here], [0, *gone]
    axis.barh(names, here, color=PRESENT, height=0.66, label="present")
    axis.barh(names, gone, left=here, color=ABSENT, height=0.66, label="absent")
    if found["unknown_targets"]:
        axis.barh(names[:1], [found["unknown_targets"]], color=UNKNOWN, height=0.66)
    longest = max(*(a + b for a, b in zip(here, gone, strict=True)), found["unknown_targets"], 1)
    for place, (a, b) in enumerate(zip(here, gone, strict=True)):
        value = a + b or found["unknown_targets"]
        axis.text(value, place, f" {value:,}", va="center", fontsize=9)
    axis.set_xlim(0, longest * 1.18)
    axis.xaxis.set_visible(False)
    axis.spines["bottom"].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1, 0.28))


def _histogram(axis, lengths: dict) -> None:
    """Chain lengths in words."""
    _plain(axis, "Chain length, words")
    if not lengths["n"]:
        return
    words = [int(word) for word in lengths["counts"]]
    width = max(1, (max(words) - min(words)) // 24 + 1)
    edges = np.arange(min(words), max(words) + width + 1, width)
    axis.hist(words, bins=edges, weights=list(lengths["counts"].values()), color=BAR, rwidth=0.9)
    middle = lengths["quartiles"][1]
    axis.axvline(middle, color=ABSENT, linewidth=1.6)
    axis.text(middle, axis.get_ylim()[1], f" median {middle:g}", color=ABSENT, fontsize=9.5, va="top")
    axis.grid(axis="y", color=GRID)
    axis.set_axisbelow(True)


def _sides(axis, found: dict) -> None:
    """Shares of the sides, of patients, pictures and questions."""
    _plain(axis, "Split, by patient")
    rows = ("patients", "pictures", "samples")
    names = ("patients", "pictures", "questions")
    left = np.zeros(3)
    totals = np.array([max(sum(found[row].values()), 1) for row in rows])
    for side, colour in SIDE_COLOURS.items():
        counts = np.array([found[row].get(side, 0) for row in rows])
        shares = counts / totals * 100
        axis.barh(names, shares, left=left, color=colour, height=0.55, label=side)
        for place, (share, count) in enumerate(zip(shares, counts, strict=True)):
            if share > 9:
                axis.text(left[place] + share / 2, place, f"{count:,}", ha="center", va="center", color="w", fontsize=9)
        left += shares
    axis.set_xlim(0, 100)
    axis.set_ylim(-0.5, 2.95)
    axis.xaxis.set_major_formatter("{x:g} %")
    axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
