"""Segmenters that need no training: pure functions of one tile, so that the pipeline can be tested to the byte."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from model.exemplar import Exemplar
from model.segmenter import SegmenterCard, TileAnswer, TileBatch

TILE_PX = 256


class HueSegmenter:
    """Masks what is stained dark and purple (haematoxylin), and says so.

    Args:
        emit_share: a mask is emitted when at least this share of the tile is purple.
        delay_s: extra time per batch, to give tests something to interrupt.
    """

    def __init__(self, emit_share: float = 0.02, delay_s: float = 0.0):
        self.card = SegmenterCard(
            name="hue",
            revision=hashlib.sha256(f"hue-1-{emit_share}".encode()).hexdigest()[:16],
            tile_size_px=TILE_PX,
            default_mpp=1.0,
            targets=("nuclei", "gland"),
        )
        self.emit_share = emit_share
        self.delay_s = delay_s

    def predict(self, batch: TileBatch, cancelled: Callable[[], bool] | None = None) -> list[TileAnswer]:
        """See `model.segmenter.Segmenter.predict`."""
        if batch.images.shape[1:] != (TILE_PX, TILE_PX, 3):
            raise ValueError(f"tiles must be {TILE_PX} x {TILE_PX} x 3, not {batch.images.shape[1:]}")
        if self.delay_s:
            time.sleep(self.delay_s)
        rows = zip(batch.images, batch.queries, batch.forced, strict=True)
        return [self._answer(image, query, bool(forced)) for image, query, forced in rows]

    def _answer(self, image: np.ndarray, query: str, forced: bool) -> TileAnswer:
        probability = purple(image)  # (H, W) float32
        share = float((probability >= 0.5).mean())
        p_seg = float(np.clip(share / self.emit_share, 0, 1))
        if share < self.emit_share and not forced:
            text = f"I looked for {query}. {share:.1%} of the field is purple, too little to call."
            return TileAnswer(text=text, masks=np.zeros((0, *probability.shape), np.float16), p_seg=p_seg)
        text = f"I looked for {query}. {share:.1%} of the field is dark and purple, as nuclei are. It is <SEG>."
        return TileAnswer(
            text=text,
            masks=probability[None].astype(np.float16),
            phrases=(query,),
            confidence=np.array([p_seg], np.float32),
            p_seg=p_seg,
            forced=forced and share < self.emit_share,
        )


class ColourSegmenter(HueSegmenter):
    """Masks what has the colour of what an exemplar outlines; without an exemplar it knows nothing to look for."""

    def __init__(self, emit_share: float = 0.01):
        super().__init__(emit_share)
        self.card = replace(self.card, name="colour", revision="colour-1", targets=(), exemplars=True)

    def predict(self, batch: TileBatch, cancelled: Callable[[], bool] | None = None) -> list[TileAnswer]:
        """See `model.segmenter.Segmenter.predict`."""
        rows = zip(batch.images, batch.exemplars or [None] * len(batch), batch.forced, strict=True)
        return [self._compare(image, exemplar, bool(forced)) for image, exemplar, forced in rows]

    def _compare(self, image: np.ndarray, exemplar: Exemplar | None, forced: bool) -> TileAnswer:
        silent = np.zeros((0, *image.shape[:2]), np.float16)
        if exemplar is None:
            return TileAnswer("<think>I was shown no example.</think> I do not know what to look for.", silent)
        wanted = exemplar.image[exemplar.mask].astype(np.float32).mean(0)
        distance = np.linalg.norm(cv2.GaussianBlur(image, (0, 0), 2).astype(np.float32) - wanted, axis=-1)
        probability = 1 / (1 + np.exp((distance - 45) / 5))
        share = float((probability >= 0.5).mean())
        if share < self.emit_share and not forced:
            return TileAnswer("<think>Other colours.</think> There is no tissue like the example.", silent)
        return TileAnswer(
            text="<think>The colour is the same.</think> Here is tissue like the example <SEG>.",
            masks=probability[None].astype(np.float16),
            phrases=("tissue like the example",),
            confidence=np.array([0.9], np.float32),
            p_seg=min(1.0, share / self.emit_share),
            forced=share < self.emit_share,
        )


class CrashingSegmenter(HueSegmenter):
    """Kills its own process where a tile holds a pure green pixel, as a bad decoder would."""

    def _answer(self, image: np.ndarray, query: str, forced: bool) -> TileAnswer:
        if (image == np.array([0, 255, 0], np.uint8)).all(axis=-1).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._answer(image, query, forced)


def purple(image: np.ndarray) -> np.ndarray:
    """How densely nuclei stain each place: (H, W, 3) uint8 -> (H, W) float32 in (0, 1). Eosin leaves red bright."""
    red = cv2.GaussianBlur(image[..., 0], (0, 0), 4).astype(np.float32)
    return 1 / (1 + np.exp((red - 165) / 8))


def hue_segmenter() -> HueSegmenter:
    """The default of the tests and, until a model is trained, of the demo."""
    return HueSegmenter()


def slow_segmenter() -> HueSegmenter:
    """The same answers, slowly."""
    return HueSegmenter(delay_s=float(os.environ.get("SLIDEREASON_TEST_DELAY_S", "0.05")))


def colour_segmenter() -> ColourSegmenter:
    """Looks for what an exemplar shows."""
    return ColourSegmenter()


def crashing_segmenter() -> CrashingSegmenter:
    """The same answers, but some tiles kill the process."""
    return CrashingSegmenter()
