"""Bootstrap intervals over groups (patients), because rows of one patient are not independent."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np


def group_sums(terms: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """(G, F) sums of the (N, F) terms of each group, groups in order of first appearance."""
    index: dict[Hashable, int] = {}
    rows = np.array([index.setdefault(group, len(index)) for group in groups], np.intp)
    sums = np.zeros((len(index), terms.shape[1]))
    np.add.at(sums, rows, terms)
    return sums


def intervals(
    terms: np.ndarray,
    groups: Sequence[Hashable],
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Percentile intervals of figures that are functions of summed terms.

    Whole groups are drawn with replacement; drawing G of G is a multinomial weight per group, so one matrix product
    makes every resample (Efron & Tibshirani 1993, §8.3).

    Args:
        terms: (N, F) what each row adds to the sums.
        groups: N keys; rows with the same key are drawn together.
        figures: (B, F) sums → name → (B,) values, NaN where undefined.
        resamples: B.
        level: share of the resamples inside the interval, in (0, 1).
        seed: the same seed gives the same intervals.

    Returns:
        Name → (low, high), or None where the figure is defined in no resample.

    Raises:
        ValueError: no rows, lengths differ, or level outside (0, 1).
    """
    if len(terms) == 0 or len(terms) != len(groups):
        raise ValueError(f"{len(terms)} rows of terms for {len(groups)} groups; as many as groups, at least one")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not in (0, 1)")
    sums = group_sums(terms, groups)
    n_groups = len(sums)
    weights = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    tail = (1 - level) / 2
    result: dict[str, tuple[float, float] | None] = {}
    for name, values in figures(weights @ sums).items():
        values = values[~np.isnan(values)]
        low_high = np.quantile(values, (tail, 1 - tail)) if len(values) else None
        result[name] = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return result


def differences(
    ours: np.ndarray,
    theirs: np.ndarray,
    groups: Sequence[Hashable],
    figures: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, tuple[float, float] | None]]:
    """Paired differences of figures, ours − theirs, and their 95 % intervals: both sides of a group are drawn together.

    Args:
        ours, theirs: (N, F) terms of the same N rows.
        groups, figures, resamples, seed: as in `intervals`.

    Returns:
        Name → difference, NaN where either side is undefined; name → (low, high) or None.
    """
    terms = np.hstack([ours, theirs])

    def change(sums: np.ndarray) -> dict[str, np.ndarray]:
        one, other = (figures(half) for half in np.split(sums, 2, axis=-1))
        return {name: one[name] - other[name] for name in one}

    values = {name: float(value) for name, value in change(terms.sum(axis=0)).items()}
    return values, intervals(terms, groups, change, resamples=resamples, seed=seed)
