"""What the samples of an evaluation add up to: figures, intervals, controls, the worth of exemplar and confidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.evaluation import bootstrap, calibration, metrics
from model.evaluation.evaluate import INVERTED, OWN_QUERY, SAME_QUERY, Sample


def summarise(samples: Sequence[Sample], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Counts, figures with 95 % bootstrap intervals over groups, the same by kind, and the controls.

    Figures that are undefined (no row with, or without, a target) are None. `calibration` is there when masks were
    emitted with a confidence, `one_shot` when rows with an exemplar were asked otherwise too.

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
    return {
        **metrics.counts(scores),
        "n_groups": len(set(groups)),
        **_figures(scores, groups, resamples, seed),
        "controls": {name: _figures(control, groups, resamples, seed) for name, control in controls.items()},
        "by_kind": {
            kind: metrics.counts(part := [sample.score for sample in samples if sample.row.kind == kind])
            | _values(metrics.terms(part))
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
    terms = np.hstack([metrics.terms(ours), metrics.terms(theirs)])

    def differences(sums: np.ndarray) -> Mapping[str, np.ndarray]:
        one, zero = (metrics.figures(half) for half in np.split(sums, 2, axis=-1))
        return {figure: one[figure] - zero[figure] for figure in one}

    return {
        "n": len(samples),
        "n_groups": len(set(groups)),
        "with_exemplar": _figures(ours, groups, resamples, seed),
        "control": _figures(theirs, groups, resamples, seed),
        "difference": {
            **_known(differences(terms.sum(axis=0))),
            "intervals_95": bootstrap.intervals(terms, groups, differences, resamples=resamples, seed=seed),
        },
    }


def _values(terms: np.ndarray) -> dict[str, float | None]:
    """The figures of all rows together, NaN turned into None for JSON."""
    return _known(metrics.figures(terms.sum(axis=0)))


def _known(values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Single values, NaN turned into None for JSON."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}


def _figures(
    scores: Sequence[metrics.Score], groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """The figures and, under `intervals_95`, their bootstrap intervals."""
    terms = metrics.terms(scores)
    return {
        **_values(terms),
        "intervals_95": bootstrap.intervals(terms, groups, metrics.figures, resamples=resamples, seed=seed),
    }
