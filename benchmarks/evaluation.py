"""How good a segmenter is on the manifests of real data (see docs/evaluation.md), with intervals and controls.

Questions by exemplar are `oneshot`'s.
"""

import time

from benchmarks import oneshot
from benchmarks.record import Bench, Measurement
from benchmarks.run import Unavailable
from model.cli import segmenter_by_name
from model.evaluation.evaluate import collect, evaluate
from model.evaluation.manifest import read_manifest
from model.evaluation.manifests import NAMES, write_manifests
from model.evaluation.summary import summarise

SHOWN = ("dice_emitted", "dice_with_misses", "sensitivity", "specificity", "balanced_accuracy", "giou", "ciou")


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """The figures of every manifest; intervals and controls are in the notes."""
    try:
        segmenter = segmenter_by_name(bench.model)
        manifests = write_manifests(bench.work, seed=bench.seed, only=set(NAMES) - set(oneshot.NAMES))
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(str(error)) from error
    measurements = []
    for path in manifests:
        rows = read_manifest(path)[: 4 if bench.quick else None]
        started = time.perf_counter()
        summary = summarise(collect(evaluate(rows, segmenter)), seed=bench.seed)
        seconds = time.perf_counter() - started
        for name in SHOWN:
            if summary[name] is not None:
                controls = {control: values[name] for control, values in summary["controls"].items()}
                notes = {"interval_95": summary["intervals_95"][name], "n": summary["n"], "controls": controls}
                measurements.append(Measurement(f"{path.stem}: {name}", "", (summary[name],), notes))
        measurements.append(Measurement(f"{path.stem}: speed", "questions/s", (len(rows) / seconds,), {"n": len(rows)}))
    names = ", ".join(path.stem for path in manifests)
    return measurements, f"manifests {names}, seed {bench.seed}; model {segmenter.card.name}, {segmenter.card.revision}"
