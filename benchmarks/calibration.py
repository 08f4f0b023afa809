"""How far a mask's confidence can be believed, before and after calibration on other patients."""

from pathlib import Path

from benchmarks.record import Bench, Measurement
from benchmarks.run import Unavailable
from model.cli import segmenter_by_name
from model.evaluation.calibration import MIN_MASKS, MaskRecord, calibrate
from model.evaluation.evaluate import masks_of
from model.evaluation.manifest import read_manifest
from model.evaluation.manifests import write_manifests
from model.segmenter import Segmenter

NAMES = ("ebhi", "tumour", "oneshot-foreign", "oneshot-taught")
"""Manifests with patients on both sides."""


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Slope and offset from `val`; ECE and Brier score before and after on `test`, by way of asking and by manifest."""
    try:
        segmenter = segmenter_by_name(bench.model)
        sides = {
            side: write_manifests(bench.work / side, split=side, seed=bench.seed, only=NAMES)
            for side in ("val", "test")
        }
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(str(error)) from error
    masks = {
        side: {path.stem: _masks(path, segmenter, bench.quick) for path in paths} for side, paths in sides.items()
    }
    measurements = []
    for way, by_exemplar in (("by words", False), ("by exemplar", True)):
        asked = {side: _asked(masks[side], by_exemplar) for side in masks}
        val, test = (sum(asked[side].values(), []) for side in ("val", "test"))
        if min(len(val), len(test)) < MIN_MASKS:
            raise Unavailable(f"{way}: {len(val)} masks of val, {len(test)} of test; {MIN_MASKS} of each are due")
        found = calibrate(val, test, seed=bench.seed)
        measurements += [
            Measurement(f"{way}: slope", "", (found["slope"],), {"val": found["val"]}),
            Measurement(f"{way}: offset", "", (found["offset"],)),
            *_figures(way, found["test"]),
        ]
        for name, part in asked["test"].items():
            if len(part) >= MIN_MASKS:
                measurements += _figures(name, calibrate(val, part, seed=bench.seed)["test"])
    names = ", ".join(masks["test"])
    return measurements, f"manifests {names}, seed {bench.seed}; model {segmenter.card.name}, {segmenter.card.revision}"


def _asked(masks: dict[str, list[MaskRecord]], by_exemplar: bool) -> dict[str, list[MaskRecord]]:
    """The manifests that ask by an exemplar, or those that do not: a checkpoint has a calibration for each."""
    return {name: part for name, part in masks.items() if name.startswith("oneshot") == by_exemplar}


def _masks(path: Path, segmenter: Segmenter, quick: bool) -> list[MaskRecord]:
    rows = read_manifest(path)[: 60 if quick else None]
    return [mask for masks in masks_of(rows, segmenter) for mask in masks]


def _figures(name: str, side: dict) -> list[Measurement]:
    """Before, after and the difference; the reliability tables are in the notes."""
    found = []
    for when in ("before", "after", "difference"):
        for figure in ("ece", "brier"):
            notes = {"interval_95": side[when]["intervals_95"][figure]}
            if figure == "ece" and when != "difference":
                notes |= {key: value for key, value in side[when].items() if key not in ("ece", "intervals_95")}
            found.append(Measurement(f"{name}: {figure} {when}", "", (side[when][figure],), notes))
    return found
