"""Confidence per mask, and how far it can be believed.

The event: a mask is *right* when its IoU with the truth is at least 0.5; a mask on an absent target is wrong. A
confidence is calibrated when, of all masks given p, a share p is right.

Source: Platt 1999, "Probabilistic outputs for support vector machines", with the Newton iteration of Lin, Lin & Weng
2007; expected calibration error as in Naeini et al. 2015, over bins of equal mass (Nixon et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.evaluation import bootstrap

RIGHT_IOU = 0.5
BINS = 15
MIN_MASKS = 20
_LEAST = 1e-6
_CHANCE_DRAWS = 200
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class MaskRecord:
    """One emitted mask.

    Attributes:
        confidence: as the segmenter states it, in [0, 1].
        raw_confidence: before any calibration (IoU head × token probability), in [0, 1].
        iou: with the truth in its tile; 0 where there is no target.
        group: the patient.
        tile: which tile of its picture.
    """

    confidence: float
    raw_confidence: float
    iou: float
    group: str
    tile: int = 0

    @property
    def right(self) -> bool:
        """The event that confidence is about."""
        return self.iou >= RIGHT_IOU

    def to_json(self) -> dict[str, Any]:
        """Its entry in the results of an evaluation, where the row tells the group."""
        return {key: value for key, value in asdict(self).items() if key != "group"}


@dataclass(frozen=True)
class Platt:
    """p' = σ(slope · logit(p) + offset).

    Attributes:
        slope: below 1 where the confidence is too sure of itself; below 0 where it is worse than none.
        offset: below 0 where too many masks are wrong.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        """(N,) raw confidences in [0, 1] → (N,) calibrated ones."""
        return _sigmoid(self.slope * log_odds(confidence) + self.offset)


def log_odds(confidence: np.ndarray) -> np.ndarray:
    """(N,) probabilities → log(p / (1 − p)), kept finite at 0 and 1."""
    clipped = np.clip(np.asarray(confidence, np.float64), _LEAST, 1 - _LEAST)
    return np.log(clipped / (1 - clipped))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * values))


def fit(confidence: np.ndarray, right: np.ndarray) -> Platt:
    """Slope and offset of most likelihood on (N,) confidences and (N,) bool.

    The targets are Platt's, (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2), so that masks that are all right, or all wrong, or
    parted without error, leave finite numbers. Where every confidence is the same, no slope can be told and 1 is kept.

    Raises:
        ValueError: fewer than `MIN_MASKS` masks.
    """
    right = np.asarray(right, bool)
    if len(right) < MIN_MASKS:
        raise ValueError(f"{len(right)} masks: two numbers are fitted to at least {MIN_MASKS}")
    x = log_odds(confidence)
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    target = np.where(right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    features = np.stack([x, np.ones_like(x)], axis=1)  # [N, 2]
    free = np.array([np.ptp(x) > 1e-9, True])  # may slope and offset move?
    weights = np.array([1.0, 0.0])
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(features @ weights)
        gradient = free * (features.T @ (p - target))
        if np.abs(gradient).max() < 1e-10 * len(x):
            break
        curvature = (features * (p * (1 - p))[:, None]).T @ features * np.outer(free, free)
        step = np.linalg.solve(curvature + np.diag(~free) + 1e-12 * np.eye(2), gradient)
        while _loss(features @ (weights - step), target) > _loss(features @ weights, target) and step.any():
            step = step / 2
        weights = weights - step
    return Platt(float(weights[0]), float(weights[1]))


def _loss(logits: np.ndarray, target: np.ndarray) -> float:
    """Cross entropy with soft targets."""
    return float((np.logaddexp(0, logits) - target * logits).sum())


def equal_mass_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(N,) bin of each confidence: at most `bins` of as equal mass as ties allow; equal confidences share one."""
    ordered = np.sort(confidence)
    ends = [len(part) for part in np.array_split(ordered, bins)]
    edges = sorted({ordered[end - 1] for end in np.cumsum(ends) if end})  # highest confidence of each bin
    return np.searchsorted(np.array(edges), confidence, side="left")


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Σ over bins of (share of the masks) · |mean confidence − share right|."""
    index = equal_mass_bins(confidence, bins)
    gaps = np.bincount(index, np.asarray(confidence, np.float64) - right)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """One line a bin: masks in it, its lowest, mean and highest confidence, and the share that is right."""
    index = equal_mass_bins(confidence, bins)
    parts = [index == k for k in range(index.max() + 1)]
    return [
        {
            "n": int(part.sum()),
            "from": float(confidence[part].min()),
            "to": float(confidence[part].max()),
            "confidence": float(confidence[part].mean()),
            "right": float(np.mean(right[part])),
        }
        for part in parts
    ]


def ranking(confidence: np.ndarray, right: np.ndarray) -> float | None:
    """Chance that a right mask has more confidence than a wrong one (area under the ROC curve); None without both."""
    right = np.asarray(right, bool)
    if right.all() or not right.any():
        return None
    yes, no = np.sort(confidence[right]), np.sort(confidence[~right])
    below = np.searchsorted(no, yes, side="left") + np.searchsorted(no, yes, side="right")
    return float(below.sum() / (2 * len(yes) * len(no)))


def error_of_chance(confidence: np.ndarray, bins: int = BINS, seed: int = 0) -> float:
    """Mean ECE that as many masks would show if these confidences were exactly calibrated: what is noise, not error."""
    draws = np.random.default_rng(seed).random((_CHANCE_DRAWS, len(confidence))) < confidence
    index = equal_mass_bins(confidence, bins)
    member = index[:, None] == np.arange(index.max() + 1)  # [N, bins]
    return float(np.abs((confidence - draws) @ member).sum(axis=1).mean() / len(confidence))


def _terms(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, BINS + 2): each mask's gap in its bin, its squared error, and 1; sums of these give ECE and Brier score."""
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), equal_mass_bins(confidence)] = confidence - right
    return np.column_stack([gaps, (confidence - right) ** 2, np.ones(len(confidence))])


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """ECE and Brier score of summed terms, (..., BINS + 2)."""
    return {"ece": np.abs(sums[..., :BINS]).sum(axis=-1) / sums[..., -1], "brier": sums[..., -2] / sums[..., -1]}


def describe(
    confidence: np.ndarray, records: Sequence[MaskRecord], resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """How far one kind of confidence is right about some masks.

    Args:
        confidence: (N,) in [0, 1], one per record.
        records: N masks; at least one.
        resamples: of the bootstrap over patients; the bins stay those of all masks.
        seed: of the bootstrap, and of `ece_by_chance`.
    """
    right = np.array([record.right for record in records])
    groups = [record.group for record in records]
    terms = _terms(confidence, right)
    return {
        "n_masks": len(records),
        "n_right": int(right.sum()),
        "n_groups": len(set(groups)),
        "mean_confidence": float(np.mean(confidence)),
        **{name: float(value) for name, value in _figures(terms.sum(axis=0)).items()},
        "ece_by_chance": error_of_chance(confidence, seed=seed),
        "auroc": ranking(confidence, right),
        "intervals_95": bootstrap.intervals(terms, groups, _figures, resamples=resamples, seed=seed),
        "reliability": reliability(confidence, right),
    }


def calibrate(
    val: Sequence[MaskRecord], test: Sequence[MaskRecord], resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Fit on the masks of some patients and measure on those of others, before and after.

    Args:
        val: masks to fit on.
        test: masks to measure on.
        resamples, seed: of the bootstrap over the patients of `test`.

    Returns:
        `slope`, `offset`; `val` and `test`, each with `before`, `after`; and of `test` the paired `difference`.

    Raises:
        ValueError: too few masks on a side, or a patient on both.
    """
    both = sorted({record.group for record in val} & {record.group for record in test})
    if both:
        raise ValueError(f"val and test share {len(both)} groups ({', '.join(both[:3])}, …); none is accepted on both")
    for name, records in (("val", val), ("test", test)):
        if len(records) < MIN_MASKS:
            raise ValueError(f"{name}: {len(records)} masks; at least {MIN_MASKS} are accepted")
    fitted = fit(_raw(val), np.array([record.right for record in val]))
    sides = {
        name: {
            "before": describe(_raw(records), records, resamples, seed),
            "after": describe(fitted(_raw(records)), records, resamples, seed),
        }
        for name, records in (("val", val), ("test", test))
    }
    sides["test"]["difference"] = _difference(test, fitted, resamples, seed)
    return {"slope": fitted.slope, "offset": fitted.offset, **sides}


def _raw(records: Sequence[MaskRecord]) -> np.ndarray:
    return np.array([record.raw_confidence for record in records])


def _difference(records: Sequence[MaskRecord], fitted: Platt, resamples: int, seed: int) -> dict[str, Any]:
    """After less before, resampled together."""
    right = np.array([record.right for record in records])
    terms = np.hstack([_terms(_raw(records), right), _terms(fitted(_raw(records)), right)])

    def change(sums: np.ndarray) -> dict[str, np.ndarray]:
        before, after = (_figures(half) for half in np.split(sums, 2, axis=-1))
        return {name: after[name] - before[name] for name in before}

    groups = [record.group for record in records]
    return {
        **{name: float(value) for name, value in change(terms.sum(axis=0)).items()},
        "intervals_95": bootstrap.intervals(terms, groups, change, resamples=resamples, seed=seed),
    }
