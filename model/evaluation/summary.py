"""What the samples of an evaluation add up to: figures, intervals, controls, the worth of exemplar and confidence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from model.evaluation import bootstrap, calibration, metrics
from model.evaluation import figures as every
from model.evaluation.evaluate import INVERTED, OWN_QUERY, SAME_QUERY, Sample


def summarise(samples: Sequence[Sample], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Counts, figures with 95 % bootstrap intervals over groups, the same by kind, and the controls.

    The controls are about masks, so they have the figures of `metrics` alone. Figures that are undefined (no row with,
    or without, a target) are None. `calibration` is there when masks were emitted with a confidence, `one_shot` when
    rows with an exemplar were asked otherwise too.

    Raises:
        ValueError: no samples.
    """
    scores = [sample.score for sample in samples]
    groups = [sample.row.group for sample in samples]
    controls = {
        "all_ones": [score.as_all_ones() for score in scores],
        "always_emitting": [sample.forced_score for sample in samples],
    }
    kinds = sorted({sample.row.kind for sample in samples if sample.row.kind is not None})
    terms = every.table([sample.terms() for sample in samples])
    return {
        **metrics.counts(scores),
        "n_groups": len(set(groups)),
        **spread(terms, groups, every.figures, resamples, seed),
        "controls": {name: _figures(control, groups, resamples, seed) for name, control in controls.items()},
        "by_kind": {
            kind: metrics.counts([sample.score for sample in samples if sample.row.kind == kind])
            | known(every.figures(terms[[sample.row.kind == kind for sample in samples]].sum(axis=0)))
            for kind in kinds
        },
        **_calibration(samples, resamples, seed),
        **_one_shot(samples, resamples, seed),
    }


def _calibration(samples: Sequence[Sample], resamples: int, seed: int) -> dict[str, Any]:
    """How far the stated confidence is right."""
    records = [record for sample in samples for record in sample.masks]
    if not records:
        return {}
    confidence = np.array([record.confidence for record in records])
    return {"calibration": calibration.describe(confidence, records, resamples, seed)}


def _one_shot(samples: Sequence[Sample], resamples: int, seed: int) -> dict[str, Any]:
    """The rows with an exemplar against each of their controls."""
    compared = {}
    for name in (SAME_QUERY, OWN_QUERY, INVERTED):
        part = [sample for sample in samples if name in sample.one_shot_control]
        if part:
            compared[name] = compare(part, name, resamples, seed)
    return {"one_shot": compared} if compared else {}


def compare(samples: Sequence[Sample], name: str, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """One-shot against a control on the same rows, and the paired difference.

    Args:
        samples: each with this control.
        name: a key of their `one_shot_control`.
        resamples: of the bootstrap, which draws both answers of a row together.
        seed: of the bootstrap.
    """
    ours, theirs = [sample.score for sample in samples], [sample.one_shot_control[name] for sample in samples]
    groups = [sample.row.group for sample in samples]
    values, intervals = bootstrap.differences(
        metrics.terms(ours), metrics.terms(theirs), groups, metrics.figures, resamples, seed
    )
    return {
        "n": len(samples),
        "n_groups": len(set(groups)),
        "with_exemplar": _figures(ours, groups, resamples, seed),
        "control": _figures(theirs, groups, resamples, seed),
        "difference": {**known(values), "intervals_95": intervals},
    }


def known(values: Mapping[str, np.ndarray | float]) -> dict[str, float | None]:
    """Single values, NaN turned into None for JSON."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}


def _figures(scores: Sequence[metrics.Score], groups: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """The figures of scores alone."""
    return spread(metrics.terms(scores), groups, metrics.figures, resamples, seed)


def spread(
    terms: np.ndarray, groups: Sequence[str], figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    resamples: int = 2000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The figures of all rows together and, under `intervals_95`, their bootstrap intervals.

    Args:
        terms: (N, F) what each row adds.
        groups, figures, resamples, seed: as in `bootstrap.intervals`.
    """
    return {
        **known(figures(terms.sum(axis=0))),
        "intervals_95": bootstrap.intervals(terms, groups, figures, resamples=resamples, seed=seed),
    }
