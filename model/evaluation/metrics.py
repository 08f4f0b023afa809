"""Figures of reasoning segmentation, all from pixel counts: pure functions of arrays.

Every figure is a sum over rows divided by another sum, so a bootstrap only needs to weigh the rows' terms.
Source: gIoU and cIoU as in LISA (Lai et al. 2024, §4.1) over rows with a target; the forms that count absent targets,
where silence is right and worth an IoU of 1, as in GRES (Liu et al. 2023, §5).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

TERMS = (
    "row", "target", "absent", "emitted_target", "silent_absent", "dice", "iou", "intersection", "union",
    "false_union",
)  # fmt: skip

FIGURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dice_emitted": (("dice",), ("emitted_target",)),
    "dice_with_misses": (("dice",), ("target",)),
    "sensitivity": (("emitted_target",), ("target",)),
    "specificity": (("silent_absent",), ("absent",)),
    "giou": (("iou",), ("target",)),
    "ciou": (("intersection",), ("union",)),
    "giou_with_absent": (("iou", "silent_absent"), ("row",)),
    "ciou_with_absent": (("intersection",), ("union", "false_union")),
}
"""Name → terms whose sums are numerator and denominator; `balanced_accuracy` is made of two of them."""


@dataclass(frozen=True)
class Score:
    """What one answer was worth, in pixels of the image.

    Attributes:
        emitted: whether anything was pointed at.
        truth_px: size of the true mask; 0 means that the target is absent.
        mask_px: size of the answered mask; 0 when silent.
        overlap_px: size of what they share.
        image_px: size of the image.
    """

    emitted: bool
    truth_px: int
    mask_px: int
    overlap_px: int
    image_px: int

    @property
    def target(self) -> bool:
        """Whether there was anything to find."""
        return self.truth_px > 0

    @property
    def dice(self) -> float:
        """Dice in [0, 1]; two empty masks agree."""
        total = self.truth_px + self.mask_px
        return 2 * self.overlap_px / total if total else 1.0

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; two empty masks agree."""
        return self.overlap_px / self.union_px if self.union_px else 1.0

    @property
    def union_px(self) -> int:
        """Size of what either covers."""
        return self.truth_px + self.mask_px - self.overlap_px

    def as_all_ones(self) -> "Score":
        """The same decision to point, with the whole image as mask."""
        if not self.emitted:
            return self
        return replace(self, mask_px=self.image_px, overlap_px=self.truth_px)


def score_mask(mask: np.ndarray | None, truth: np.ndarray | None, image_px: int) -> Score:
    """Compare an answer with the truth.

    Args:
        mask: (H, W) bool, or None when the answer was silent.
        truth: (H, W) bool, or None when the target is absent.
        image_px: H·W.

    Raises:
        ValueError: the two differ in shape.
    """
    if mask is not None and truth is not None and mask.shape != truth.shape:
        raise ValueError(f"mask {mask.shape} and truth {truth.shape} differ in shape")
    return Score(
        emitted=mask is not None,
        truth_px=0 if truth is None else int(np.count_nonzero(truth)),
        mask_px=0 if mask is None else int(np.count_nonzero(mask)),
        overlap_px=0 if mask is None or truth is None else int(np.count_nonzero(mask & truth)),
        image_px=image_px,
    )


def terms(scores: Sequence[Score]) -> np.ndarray:
    """(N, len(TERMS)) float64: what each row adds to the sums that the figures are made of."""
    rows = [
        (
            1,
            score.target,
            not score.target,
            score.target and score.emitted,
            not score.target and not score.emitted,
            score.dice if score.target and score.emitted else 0.0,
            score.iou if score.target and score.emitted else 0.0,
            score.overlap_px,
            score.union_px if score.target else 0,
            0 if score.target else score.mask_px,
        )
        for score in scores
    ]
    return np.asarray(rows, np.float64).reshape(len(rows), len(TERMS))


def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of summed terms; NaN where there is nothing to divide by.

    Args:
        sums: (..., len(TERMS)) float64, e.g. `terms(scores).sum(0)`, or one row per bootstrap sample.

    Returns:
        Name → (...) float64.
    """
    column = {name: sums[..., index] for index, name in enumerate(TERMS)}
    with np.errstate(divide="ignore", invalid="ignore"):
        result = {
            name: sum(column[term] for term in above) / sum(column[term] for term in below)
            for name, (above, below) in FIGURES.items()
        }
    result["balanced_accuracy"] = (result["sensitivity"] + result["specificity"]) / 2
    return result


def counts(scores: Sequence[Score]) -> dict[str, int]:
    """How many rows, targets, absences, and rows pointed at."""
    return {
        "n": len(scores),
        "n_targets": sum(score.target for score in scores),
        "n_absent": sum(not score.target for score in scores),
        "n_emitted": sum(score.emitted for score in scores),
    }
