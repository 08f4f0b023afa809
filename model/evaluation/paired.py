"""Two sets of answers to the same questions: paired differences of every figure, with intervals over groups.

A difference is ours − theirs: above 0 is in our favour, but for `seg_*`, which is neither good nor bad, and for
`contradiction_*`, where less is better. `dice_forced` tells how good masks are apart from the decision to point.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.evaluation import bootstrap
from model.evaluation.figures import figures, table
from model.evaluation.summary import known, spread

SHOWN = (
    "dice_forced", "dice_with_misses", "dice_emitted", "boundary_f1_with_misses", "giou", "ciou", "balanced_accuracy",
    "sensitivity", "specificity", "emission_precision", "bleu4", "token_f1", "contradiction_rate",
)  # fmt: skip
"""What the table of a terminal shows; the JSON holds every figure."""


def compare(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Pair two sets of answers by the id of their rows.

    Args:
        ours, theirs: `samples` of the results of `slidereason evaluate`, in whatever order.
        resamples, seed: of the bootstrap, which draws both answers to a row, and all rows of a group, together.

    Returns:
        `n`, `n_groups`; `model`, `against` and `difference`, each with every figure and `intervals_95`; and `by_kind`
        the differences of the rows of each kind. A difference is None where either side has no such row.

    Raises:
        ValueError: no rows, or a row that only one side holds, or that asks each something else.
    """
    ours, theirs = _paired(ours, theirs)
    groups = [sample["group"] for sample in ours]
    one, other = (table([sample["terms"] for sample in side]) for side in (ours, theirs))
    kinds = sorted({sample["kind"] for sample in ours if sample.get("kind") is not None})
    parts = {kind: np.array([sample.get("kind") == kind for sample in ours]) for kind in kinds}
    return {
        "n": len(ours),
        "n_groups": len(set(groups)),
        "model": spread(one, groups, figures, resamples, seed),
        "against": spread(other, groups, figures, resamples, seed),
        "difference": _difference(one, other, groups, resamples, seed),
        "by_kind": {
            kind: {"n": int(part.sum())}
            | _difference(one[part], other[part], [groups[row] for row in np.flatnonzero(part)], resamples, seed)
            for kind, part in parts.items()
        },
    }


def _difference(
    one: np.ndarray, other: np.ndarray, groups: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Every figure's difference with its interval."""
    values, intervals = bootstrap.differences(one, other, groups, figures, resamples, seed)
    return {**known(values), "intervals_95": intervals}


def _paired(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Both sides in the order of the first."""
    first, second = ({sample["id"]: sample for sample in side} for side in (ours, theirs))
    alone = sorted(first.keys() ^ second.keys())
    if alone or not first:
        told = f"{len(alone)} rows ({', '.join(alone[:3])}, …) have one answer" if alone else "no rows"
        raise ValueError(f"{told}; rows that both answered are accepted")
    for name in ("query", "target", "group"):
        other = [row for row in first if first[row][name] != second[row][name]]
        if other:
            raise ValueError(f"row {other[0]!r}, field {name}: the two differ; answers to the same rows are accepted")
    return list(first.values()), [second[row] for row in first]


def comparison_text(compared: Mapping[str, Any], model: str = "model", against: str = "against") -> str:
    """The paired differences as a small table for a terminal.

    Args:
        compared: what `compare` returns.
        model, against: what the two are called.
    """
    lines = [
        f"{compared['n']} questions, {compared['n_groups']} groups; difference = {model} − {against}",
        f"{'':24s} {model[:22]:22s} {against[:22]:22s} difference",
    ]
    for name in SHOWN:
        if compared["difference"][name] is not None:
            sides = [_spread(compared[side], name) for side in ("model", "against", "difference")]
            lines.append(f"{name:24s} {sides[0]:22s} {sides[1]:22s} {sides[2]}")
    return "\n".join(lines)


def _spread(side: Mapping[str, Any], name: str) -> str:
    """A figure with its interval."""
    interval = side["intervals_95"][name]
    return f"{side[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
