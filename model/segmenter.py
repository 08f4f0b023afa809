"""The one seam between slides and tensors: what a segmenter takes and what it answers.

This file is torch-free, so that `worker` can be driven by any segmenter without loading a network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from model.exemplar import Exemplar


@dataclass(frozen=True)
class TileBatch:
    """Tiles that travel through the model together, one query each.

    Attributes:
        images: (B, H, W, 3) uint8 RGB; H and W equal the segmenter's `tile_size_px`.
        mpp: (B,) float32, µm/px of each tile; NaN where unknown.
        queries: B questions in plain words.
        forced: (B,) bool; True asks for a mask even where the model would stay silent (the second look).
        exemplars: B references to look for the like of, None where a question comes without one; empty means none.
        tile_first: (B,) bool; True lets a tile be read before its question, so that several questions about one tile
            share the reading. It is the asker's choice and never the batch's: the answer may depend on it. None means
            False throughout.
    """

    images: np.ndarray
    mpp: np.ndarray
    queries: Sequence[str]
    forced: np.ndarray
    exemplars: Sequence[Exemplar | None] = ()
    tile_first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True)
class TileAnswer:
    """What the model said of one tile.

    Attributes:
        text: the reasoning chain and the conclusion as generated, `<SEG>` included.
        masks: (K, H, W) float16 probabilities in the tile's frame, K >= 0, in the order of their `<SEG>`.
        phrases: K target phrases, one per mask.
        confidence: (K,) float32 in [0, 1], one per mask; calibrated where the checkpoint is.
        p_seg: probability in [0, 1] that the answer carries a `<SEG>` at all.
        forced: True when the mask was asked for by a second look.
        raw_confidence: (K,) float32 in [0, 1], before calibration; empty where a segmenter has only one kind.
    """

    text: str
    masks: np.ndarray
    phrases: tuple[str, ...] = ()
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    p_seg: float = 0.0
    forced: bool = False
    raw_confidence: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def emitted(self) -> bool:
        """Whether the model itself pointed at something."""
        return len(self.masks) > 0 and not self.forced


@dataclass(frozen=True)
class SegmenterCard:
    """What a segmenter tells about itself; published by `GET /v1/models`.

    Attributes:
        name: short name, e.g. `tiny`.
        revision: content hash of the weights; part of every report.
        tile_size_px: edge of the square tiles it takes.
        default_mpp: µm/px it works best at when the caller asks for none.
        targets: the names of everything it was taught to find.
        licence: SPDX id of the weights.
        parameters: number of weights.
        figures: measured figures, by name.
        exemplars: whether it looks at `TileBatch.exemplars`; others are never shown any.
        stain: the stains it was trained on, as `TrainedStain.to_json` gives them; empty when they are not known.
    """

    name: str
    revision: str
    tile_size_px: int
    default_mpp: float
    targets: tuple[str, ...] = ()
    licence: str = "Apache-2.0"
    parameters: int = 0
    figures: dict = field(default_factory=dict)
    exemplars: bool = False
    stain: dict = field(default_factory=dict)


@runtime_checkable
class Segmenter(Protocol):
    """A stateless reasoning segmenter; the engine thread is its only caller."""

    card: SegmenterCard

    def predict(
        self, batch: TileBatch, cancelled: Callable[[], bool] | None = None
    ) -> list[TileAnswer]:
        """Segment the query in each tile and say why.

        Args:
            batch: B tiles with one query each.
            cancelled: polled between decoding steps; when it returns True the call may raise `InterruptedError`.

        Returns:
            B answers, in the batch's order.

        Raises:
            ValueError: H or W differs from the card's `tile_size_px`.
        """
        ...
