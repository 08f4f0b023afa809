"""Contenders against each other: do they say the same, and how long does each take when they take turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.baselines import CONTENDERS, Reply, Work
from benchmarks.ceilings import wait
from model.predictor import PathChatPredictor
from model.stages import Stopwatch

ALIKE_TEXTS = 0.95
"""Least share of equal texts where contenders choose for themselves: in bfloat16 a near tie may fall either way."""


class Clock:
    """A budget of time, from now."""

    def __init__(self, minutes: float):
        self._ends = time.perf_counter() + 60 * minutes

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self._ends - time.perf_counter()

    def allows(self, seconds: float) -> bool:
        """Whether so much fits, with a tenth to spare."""
        return self.left_s > 1.1 * seconds


@dataclass(frozen=True)
class Agreement:
    """How like two contenders' answers are.

    Attributes:
        tiles: compared; same_text: of these with equal text.
        masks: compared, on tiles of equal text.
        max_difference: of two probabilities; least_iou: of two masks at ½ (1 where both are empty).
    """

    tiles: int
    same_text: int
    masks: int
    max_difference: float
    least_iou: float

    def holds(self, tolerance: float) -> bool:
        """Whether they say the same: nearly all texts, and all probabilities within the tolerance."""
        return self.same_text >= ALIKE_TEXTS * self.tiles and self.max_difference <= tolerance


def agreement(ours: Sequence[Reply], theirs: Sequence[Reply]) -> Agreement:
    """Compare two contenders' answers to the same tiles."""
    same = [(a.masks, b.masks) for a, b in zip(ours, theirs, strict=True) if a.text == b.text]
    pairs = [pair for mine, other in same for pair in zip(mine, other, strict=True)]
    differences = [float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) for a, b in pairs]
    ious = [np.count_nonzero((a > 0.5) & (b > 0.5)) / max(1, np.count_nonzero((a > 0.5) | (b > 0.5))) for a, b in pairs]
    ious = [iou if (a > 0.5).any() or (b > 0.5).any() else 1.0 for iou, (a, b) in zip(ious, pairs, strict=True)]
    return Agreement(len(ours), len(same), len(pairs), max(differences, default=0.0), min(ious, default=1.0))


@dataclass
class Timing:
    """What was measured of one contender on one workload.

    Attributes:
        name: of the contender; tiles, tokens: what it answered and said in one run, `<eos>` counted.
        seconds: of each run; ours_seconds: of ours in the same rounds.
        stages: seconds of each stage, in a run of its own in which a GPU is waited for.
        peak_mb: most memory that answering took, weights included; None where it was not measured.
    """

    name: str
    tiles: int
    tokens: int
    seconds: list[float] = field(default_factory=list)
    ours_seconds: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    peak_mb: float | None = None

    @property
    def tiles_per_s(self) -> tuple[float, ...]:
        """Of each run."""
        return tuple(self.tiles / s for s in self.seconds)

    @property
    def tokens_per_s(self) -> float:
        """Median."""
        return self.tokens / statistics.median(self.seconds)


def answer(predictor: PathChatPredictor, name: str, work: Work, watch: Stopwatch) -> tuple[list[Reply], float]:
    """One run of a contender: its answers, and its seconds with the device waited for at both ends."""
    device = predictor.model.device
    wait(device)
    started = time.perf_counter()
    replies = CONTENDERS[name](predictor, work, watch)
    wait(device)
    return replies, time.perf_counter() - started


def take_turns(
    predictor: PathChatPredictor, works: dict[str, Work], timings: dict[str, Timing], repeats: int, clock: Clock,
    tell: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Time the contenders in turn, every other round in reverse, and stop where the next round would not fit.

    Args:
        predictor: holds the model.
        works: what each contender is asked.
        timings: by contender; a round's seconds are added.
        repeats: rounds.
        clock: the budget.
        tell: called after every round.

    Returns:
        Rounds that were done.
    """
    for done in range(repeats):
        last = sum(t.seconds[-1] if t.seconds else sum(t.stages.values()) for t in map(timings.__getitem__, works))
        if not clock.allows(last):
            return done
        for name in list(works)[:: 1 if done % 2 == 0 else -1]:
            timings[name].seconds.append(answer(predictor, name, works[name], Stopwatch())[1])
        for name in works:
            timings[name].ours_seconds.append(timings["ours"].seconds[-1])
        tell()
    return repeats


def ratios(ours: Timing, theirs: Timing) -> tuple[float, ...]:
    """How many times faster a tile is with us, in each pair of runs of one round."""
    pairs = zip(theirs.ours_seconds, theirs.seconds, strict=True)
    return tuple((b / theirs.tiles) / (a / ours.tiles) for a, b in pairs)
