"""What an exemplar is worth: the same questions with it, without it, and with its outline inverted."""

import time

from benchmarks.record import Bench, Measurement
from benchmarks.run import Unavailable
from model.cli import segmenter_by_name
from model.evaluation.evaluate import collect, evaluate
from model.evaluation.manifest import read_manifest
from model.evaluation.manifests import write_manifests
from model.evaluation.summary import summarise

NAMES = ("oneshot-foreign", "oneshot-nuclei", "oneshot-taught")
SHOWN = ("dice_with_misses", "dice_emitted", "sensitivity", "specificity")


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """The figures of every manifest that is there; intervals and controls are in the notes."""
    try:
        segmenter = segmenter_by_name(bench.model)
        manifests = write_manifests(bench.work, seed=bench.seed, only=NAMES)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(str(error)) from error
    measurements = []
    for path in manifests:
        rows = read_manifest(path)[: 4 if bench.quick else None]
        started = time.perf_counter()
        summary = summarise(collect(evaluate(rows, segmenter, one_shot_control=True)), seed=bench.seed)
        seconds = time.perf_counter() - started
        measurements += _figures(path.stem, summary)
        measurements.append(Measurement(f"{path.stem}: duration", "s", (seconds,), {"n": len(rows)}))
    names = ", ".join(path.stem for path in manifests)
    return measurements, f"manifests {names}, seed {bench.seed}; model {segmenter.card.name}, {segmenter.card.revision}"


def _figures(name: str, summary: dict) -> list[Measurement]:
    """With the exemplar, each control, and the paired difference."""
    found = []
    for figure in SHOWN:
        if summary[figure] is not None:
            whole = summary["controls"]["all_ones"][figure]
            counts = {key: summary[key] for key in ("n", "n_targets", "n_absent", "n_groups")}
            notes = {"interval_95": summary["intervals_95"][figure], "all_ones": whole, **counts}
            found.append(Measurement(f"{name}: {figure} with the exemplar", "", (summary[figure],), notes))
        for control, compared in summary["one_shot"].items():
            for side, words in (("control", control), ("difference", f"difference to {control}")):
                value = compared[side][figure]
                if value is not None:
                    notes = {"interval_95": compared[side]["intervals_95"][figure], "n": compared["n"]}
                    found.append(Measurement(f"{name}: {figure}, {words}", "", (value,), notes))
    return found
