"""Every figure of an evaluation, as a function of terms that add up over rows (see `metrics`, which holds the first).

A row's terms are plain numbers under names, so that results on disk can be summed, bootstrapped and paired again.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from model.evaluation import chain_metrics, metrics
from model.evaluation.contradiction import ASPECTS
from model.evaluation.said import Said

TERMS = (
    *metrics.TERMS, "emitted_absent", "dice_forced", "boundary_f1",
    "seg", "seg_words", "seg_share", "seg_placed", "seg_extra",
    "reference", "token_f1", *chain_metrics.BLEU_TERMS,
    "claim", "contradicted",
    *(f"claim_{aspect}" for aspect in ASPECTS), *(f"contradicted_{aspect}" for aspect in ASPECTS),
)  # fmt: skip

FIGURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "emission_precision": (("emitted_target",), ("emitted_target", "emitted_absent")),
    "emission_recall": (("emitted_target",), ("target",)),
    "dice_forced": (("dice_forced",), ("target",)),
    "boundary_f1_emitted": (("boundary_f1",), ("emitted_target",)),
    "boundary_f1_with_misses": (("boundary_f1",), ("target",)),
    "seg_words_before": (("seg_words",), ("seg",)),
    "seg_share_before": (("seg_share",), ("seg",)),
    "seg_after_place": (("seg_placed",), ("seg",)),
    "seg_extra": (("seg_extra",), ("seg",)),
    "token_f1": (("token_f1",), ("reference",)),
    "contradiction_rate": (("contradicted",), ("claim",)),
    **{f"contradiction_{aspect}": ((f"contradicted_{aspect}",), (f"claim_{aspect}",)) for aspect in ASPECTS},
}
"""Beside those of `metrics`: name → terms whose sums are numerator and denominator; `bleu4` is made of many."""


def row_terms(
    score: metrics.Score, forced_score: metrics.Score, boundary_f1: float | None, said: Said
) -> dict[str, float]:
    """What one row adds to the sums, by name; what adds nothing is left out.

    Args:
        score, forced_score: the answer, and the same with a mask forced where it was silent.
        boundary_f1: of an emitted mask with its truth; None where there is none to compare.
        said: its words.
    """
    found = dict(zip(metrics.TERMS, metrics.terms([score])[0].tolist(), strict=True))
    found["emitted_absent"] = score.emitted and not score.target
    found["dice_forced"] = forced_score.dice if score.target else 0.0
    found["boundary_f1"] = boundary_f1 or 0.0
    if said.timing is not None:
        timing = said.timing
        found |= {"seg": 1, "seg_words": timing.words, "seg_share": timing.share}
        found |= {"seg_placed": timing.placed, "seg_extra": timing.extra}
    if said.reference is not None:
        found |= {"reference": 1, "token_f1": said.token_f1, **said.bleu}
    if said.contradicted:
        found |= {"claim": 1, "contradicted": any(said.contradicted.values())}
        found |= {f"claim_{aspect}": 1 for aspect in said.contradicted}
        found |= {f"contradicted_{aspect}": wrong for aspect, wrong in said.contradicted.items()}
    return {name: float(value) for name, value in found.items() if value}


def table(rows: Sequence[Mapping[str, float]]) -> np.ndarray:
    """(N, len(TERMS)) float64 of N rows' terms."""
    return np.array([[row.get(name, 0.0) for name in TERMS] for row in rows], np.float64).reshape(len(rows), len(TERMS))


def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of summed terms, those of `metrics` first; NaN where there is nothing to divide by.

    Args:
        sums: (..., len(TERMS)) float64.

    Returns:
        Name → (...) float64.
    """
    column = {name: sums[..., index] for index, name in enumerate(TERMS)}
    result = metrics.figures(sums[..., : len(metrics.TERMS)])
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, (above, below) in FIGURES.items():
            result[name] = sum(column[term] for term in above) / sum(column[term] for term in below)
    result["bleu4"] = chain_metrics.bleu(column)
    return result
