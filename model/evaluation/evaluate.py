"""Drive any segmenter over a manifest and say how good it was, with the two controls that keep the figures honest.

Controls, on the same rows: `all_ones` keeps the model's decisions to point and takes the whole image as every mask
(what Dice is worth without looking); `always_emitting` forces a mask wherever the model was silent (what its silence is
worth).
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.evaluation import bootstrap, metrics
from model.evaluation.manifest import ManifestRow, read_mask, read_picture
from model.evaluation.views import Views, cut, resample, stitch
from model.segmenter import Segmenter, TileAnswer, TileBatch

THRESHOLD = 0.5


@dataclass(frozen=True)
class Sample:
    """What came of one row.

    Attributes:
        row: the question.
        text: the answer of the tile that decided (see `decisive`).
        n_seg: masks the model emitted, over all tiles.
        p_seg: highest probability over the tiles that something is pointed at.
        n_tiles: tiles the picture was cut into.
        score: the answer against the truth.
        forced_score: the same with a mask forced where the model was silent.
        mask: (H, W) bool, or None when silent.
    """

    row: ManifestRow
    text: str
    n_seg: int
    p_seg: float
    n_tiles: int
    score: metrics.Score
    forced_score: metrics.Score
    mask: np.ndarray | None

    def to_json(self) -> dict[str, Any]:
        """The row's entry in the results; dice and iou are null where the target is absent."""
        target = self.score.target
        return {
            "id": self.row.id,
            "group": self.row.group,
            "kind": self.row.kind,
            "query": self.row.query,
            "text": self.text,
            "target": target,
            "emitted": self.score.emitted,
            "n_seg": self.n_seg,
            "p_seg": round(self.p_seg, 6),
            "tiles": self.n_tiles,
            "dice": (self.score.dice if self.score.emitted else 0.0) if target else None,
            "iou": (self.score.iou if self.score.emitted else 0.0) if target else None,
        }


def evaluate(
    rows: Sequence[ManifestRow], segmenter: Segmenter, batch: int = 8, mpp: float | None = None
) -> Iterator[Sample]:
    """Answer every row, in order; pictures are held for about one batch at a time.

    Args:
        rows: what to ask.
        segmenter: who answers.
        batch: tiles that travel through the model together.
        mpp: µm/px to look at where a row's is known; None means the model's own.

    Raises:
        ValueError: batch < 1 or mpp <= 0.
        ManifestError: a picture cannot be decoded.
    """
    if batch < 1:
        raise ValueError(f"batch {batch}: at least 1 is accepted")
    if mpp is not None and not mpp > 0:
        raise ValueError(f"mpp {mpp}: a positive number of µm/px is accepted")
    card = segmenter.card
    held: list[tuple[ManifestRow, Views]] = []
    for row in rows:
        held.append((row, cut(read_picture(row.image), row.mpp, card.tile_size_px, mpp or card.default_mpp)))
        if sum(len(views.tiles) for _, views in held) >= batch:
            yield from _answer(held, segmenter, batch)
            held = []
    if held:
        yield from _answer(held, segmenter, batch)


def _answer(held: Sequence[tuple[ManifestRow, Views]], segmenter: Segmenter, batch: int) -> Iterator[Sample]:
    """Answer the held pictures; the silent ones are asked once more with a mask forced."""
    free = predict(held, segmenter, batch, forced=False)
    silent = [index for index, answers in enumerate(free) if not any(answer.emitted for answer in answers)]
    forced = dict(zip(silent, predict([held[index] for index in silent], segmenter, batch, forced=True), strict=True))
    for index, (row, views) in enumerate(held):
        answers = free[index]
        truth = None if row.mask is None else read_mask(row.mask)
        image_px = math.prod(views.image_hw)
        mask = None if index in forced else join(views, answers)
        score = metrics.score_mask(mask, truth, image_px)
        insisted = metrics.score_mask(join(views, forced[index]), truth, image_px) if index in forced else score
        yield Sample(
            row=row, text=decisive(answers).text, n_seg=sum(len(answer.masks) for answer in answers),
            p_seg=max(answer.p_seg for answer in answers), n_tiles=len(answers), score=score, forced_score=insisted,
            mask=mask,
        )  # fmt: skip


def predict(
    held: Sequence[tuple[ManifestRow, Views]], segmenter: Segmenter, batch: int, forced: bool
) -> list[list[TileAnswer]]:
    """The answers of every tile of every picture, at most `batch` tiles at a time."""
    tiles = [tile for _, views in held for tile in views.tiles]
    mpps = [views.mpp for _, views in held for _ in views.tiles]
    queries = [row.query for row, views in held for _ in views.tiles]
    answers: list[TileAnswer] = []
    for start in range(0, len(tiles), batch):
        part = slice(start, start + batch)
        answers += segmenter.predict(
            TileBatch(
                images=np.stack(tiles[part]), mpp=np.asarray(mpps[part], np.float32), queries=queries[part],
                forced=np.full(len(queries[part]), forced),
            )
        )  # fmt: skip
    left = iter(answers)
    return [[next(left) for _ in views.tiles] for _, views in held]


def join(views: Views, answers: Sequence[TileAnswer]) -> np.ndarray:
    """(H, W) bool at the picture's size: the tiles' masks united per tile, averaged in overlaps, then thresholded."""
    tile_px = views.tiles.shape[1]
    maps = np.zeros((len(answers), tile_px, tile_px), np.float32)
    for index, answer in enumerate(answers):
        if len(answer.masks):
            maps[index] = resample(np.asarray(answer.masks, np.float32).max(axis=0), tile_px, tile_px)
    return stitch(views, maps) >= THRESHOLD


def decisive(answers: Sequence[TileAnswer]) -> TileAnswer:
    """The answer that stands for the picture: among those that point the largest mask, else the likeliest to point."""
    pointing = [answer for answer in answers if answer.emitted]
    if pointing:
        return max(pointing, key=lambda answer: float(np.asarray(answer.masks, np.float32).sum()))
    return max(answers, key=lambda answer: answer.p_seg)


def summarise(samples: Sequence[Sample], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Counts, figures with 95 % bootstrap intervals over groups, the same by kind, and the controls.

    Figures that are undefined (no row with, or without, a target) are None.

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
    }


def _values(terms: np.ndarray) -> dict[str, float | None]:
    """The figures of all rows together, NaN turned into None for JSON."""
    values = metrics.figures(terms.sum(axis=0))
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


def collect(
    samples: Iterable[Sample],
    masks_folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """Run an evaluation to its end without holding its masks.

    Args:
        samples: what `evaluate` yields.
        masks_folder: when given, every mask is written there as `{row number}_{id}.png`, ids made safe.
        progress: called with the number of rows done.
    """
    done: list[Sample] = []
    for number, sample in enumerate(samples):
        if masks_folder is not None and sample.mask is not None:
            name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in sample.row.id)
            Image.fromarray(sample.mask).save(masks_folder / f"{number:05d}_{name}.png")
        done.append(replace(sample, mask=None))
        if progress is not None:
            progress(len(done))
    return done


def content_hash(path: Path) -> str:
    """`sha256:…` of a file, so that results name the manifest they belong to."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
