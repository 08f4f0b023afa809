"""Drive any segmenter over a manifest and say how good it was, with the two controls that keep the figures honest.

Controls, on the same rows: `all_ones` keeps the model's decisions to point and takes the whole image as every mask
(what Dice is worth without looking); `always_emitting` forces a mask wherever the model was silent (what its silence is
worth). Rows with an exemplar may also be asked zero-shot and with the outline inverted: what the exemplar is worth.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.evaluation import boundary, figures, metrics
from model.evaluation.boundary import Tolerance, boundary_f1
from model.evaluation.calibration import MaskRecord
from model.evaluation.chain_metrics import require_bleu
from model.evaluation.manifest import ManifestError, ManifestExemplar, ManifestRow, read_mask, read_picture
from model.evaluation.said import Said, hear
from model.evaluation.views import Views, cut, cut_exemplar, cut_mask, resample, stitch
from model.exemplar import MIN_SHARE, Exemplar
from model.segmenter import Segmenter, SegmenterCard, TileAnswer, TileBatch

THRESHOLD = 0.5
SAME_QUERY, OWN_QUERY, INVERTED = "same_query", "zero_shot_query", "inverted_exemplar"
"""Controls of a row with an exemplar: without it, in the same words or in those the manifest gives for it; and with the
outline around everything else of the same picture, which tells whether the outline decides."""


@dataclass(frozen=True)
class Asked:
    """A row as the segmenter sees it: its picture in tiles, and its exemplar as one tile, if it has one."""

    row: ManifestRow
    views: Views
    exemplar: Exemplar | None = None

    def controls(self) -> "dict[str, Asked]":
        """The same picture asked in other ways, by name; empty for a row without an exemplar."""
        if self.exemplar is None:
            return {}
        found = {SAME_QUERY: Asked(self.row, self.views)}
        if self.row.zero_shot_query is not None:
            found[OWN_QUERY] = Asked(replace(self.row, query=self.row.zero_shot_query), self.views)
        if (~self.exemplar.mask).mean() >= MIN_SHARE:
            found[INVERTED] = Asked(self.row, self.views, Exemplar(self.exemplar.image, ~self.exemplar.mask))
        return found


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
        masks: every mask the model emitted, with its confidence.
        one_shot_control: the same row asked otherwise, see `Asked.controls`; empty unless wanted.
        boundary_f1: of the mask with the truth, in pixels of the picture; None unless both are there.
        said: what the words of that answer are worth, against the masks of its own tile.
    """

    row: ManifestRow
    text: str
    n_seg: int
    p_seg: float
    n_tiles: int
    score: metrics.Score
    forced_score: metrics.Score
    mask: np.ndarray | None
    masks: tuple[MaskRecord, ...] = ()
    one_shot_control: dict[str, metrics.Score] = field(default_factory=dict)
    boundary_f1: float | None = None
    said: Said = field(default_factory=Said)

    def terms(self) -> dict[str, float]:
        """What the row adds to the sums that the figures are made of."""
        return figures.row_terms(self.score, self.forced_score, self.boundary_f1, self.said)

    def to_json(self) -> dict[str, Any]:
        """The row's entry in the results; dice and iou are null where the target is absent."""
        control = {name: _score_json(score) for name, score in self.one_shot_control.items()}
        return {
            "id": self.row.id,
            "group": self.row.group,
            "kind": self.row.kind,
            "query": self.row.query,
            "text": self.text,
            "target": self.score.target,
            "n_seg": self.n_seg,
            "p_seg": round(self.p_seg, 6),
            "tiles": self.n_tiles,
            **_score_json(self.score),
            "dice_forced": self.forced_score.dice if self.score.target else None,
            "boundary_f1": (self.boundary_f1 or 0.0) if self.score.target else None,
            **self.said.to_json(),
            "terms": self.terms(),
            "masks": [mask.to_json() for mask in self.masks],
            **({"exemplar": True} if self.row.exemplar else {}),
            **({"one_shot_control": control} if control else {}),
        }


def _score_json(score: metrics.Score) -> dict[str, Any]:
    """Whether anything was pointed at, and Dice and IoU where there was a target."""
    return {
        "emitted": score.emitted,
        "dice": (score.dice if score.emitted else 0.0) if score.target else None,
        "iou": (score.iou if score.emitted else 0.0) if score.target else None,
    }


def evaluate(
    rows: Sequence[ManifestRow], segmenter: Segmenter, batch: int = 8, mpp: float | None = None,
    one_shot_control: bool = False, tolerance: Tolerance = boundary.DEFAULT,
) -> Iterator[Sample]:  # fmt: skip
    """Answer every row, in order; pictures are held for about one batch at a time.

    Args:
        rows: what to ask.
        segmenter: who answers.
        batch: tiles that travel through the model together.
        mpp: µm/px to look at where a row's is known; None means the model's own.
        one_shot_control: also ask every row with an exemplar zero-shot, and with the outline inverted.
        tolerance: of the boundary F-score.

    Raises:
        ValueError: batch < 1 or mpp <= 0, or a row has a reference chain and sacrebleu is not installed.
        ManifestError: a picture cannot be decoded, or an exemplar shows too little at the scale of the tiles; every
            exemplar is tried before anything is asked.
    """
    if any(row.chain is not None for row in rows):
        require_bleu()
    for held in _batches(rows, segmenter.card, batch, mpp):
        yield from _answer(held, segmenter, batch, one_shot_control, tolerance)


def masks_of(rows: Sequence[ManifestRow], segmenter: Segmenter, batch: int = 8) -> Iterator[list[MaskRecord]]:
    """The masks of every row, in order, without any control; takes and raises what `evaluate` does."""
    for held in _batches(rows, segmenter.card, batch, None):
        for asked, answers in zip(held, predict(held, segmenter, batch, forced=False), strict=True):
            yield list(mask_records(asked, answers, _truth(asked.row)))


def _batches(
    rows: Sequence[ManifestRow], card: SegmenterCard, batch: int, mpp: float | None
) -> Iterator[list[Asked]]:
    """Rows with their pictures, in parts of at least `batch` tiles."""
    if batch < 1:
        raise ValueError(f"batch {batch}: at least 1 is accepted")
    if mpp is not None and not mpp > 0:
        raise ValueError(f"mpp {mpp}: a positive number of µm/px is accepted")
    for row in rows:
        if row.exemplar is not None:
            _ask(row, card, mpp)
    held: list[Asked] = []
    for row in rows:
        held.append(_ask(row, card, mpp))
        if sum(len(asked.views.tiles) for asked in held) >= batch:
            yield held
            held = []
    if held:
        yield held


def _truth(row: ManifestRow) -> np.ndarray | None:
    return None if row.mask is None else read_mask(row.mask)


def _ask(row: ManifestRow, card: SegmenterCard, mpp: float | None) -> Asked:
    """Read a row's pictures and bring them to the model's size and scale."""
    views = cut(read_picture(row.image), row.mpp, card.tile_size_px, mpp or card.default_mpp)
    return Asked(row, views, None if row.exemplar is None else _exemplar(row.id, row.exemplar, views))


def _exemplar(row_id: str, told: ManifestExemplar, views: Views) -> Exemplar:
    """A row's exemplar as one tile, at the scale of the row's tiles."""
    try:
        picture, mask = read_picture(told.image), read_mask(told.mask)
        return Exemplar(*cut_exemplar(picture, mask, told.mpp, views.tiles.shape[1], views.mpp))
    except ValueError as error:
        raise ManifestError(f"row {row_id!r}, field exemplar: {error}") from None


def _answer(
    held: Sequence[Asked], segmenter: Segmenter, batch: int, one_shot_control: bool, tolerance: Tolerance
) -> Iterator[Sample]:
    """Answer the held pictures; the silent ones are asked once more with a mask forced."""
    free = predict(held, segmenter, batch, forced=False)
    silent = [index for index, answers in enumerate(free) if not any(answer.emitted for answer in answers)]
    forced = dict(zip(silent, predict([held[index] for index in silent], segmenter, batch, forced=True), strict=True))
    truths = [_truth(asked.row) for asked in held]
    controls = _one_shot_controls(held, truths, segmenter, batch) if one_shot_control else [{} for _ in held]
    for index, (asked, truth) in enumerate(zip(held, truths, strict=True)):
        answers, views = free[index], asked.views
        mask = None if index in forced else join(views, answers)
        score = metrics.score_mask(mask, truth, math.prod(views.image_hw))
        insisted = _score(views, forced[index], truth) if index in forced else score
        told = decisive(answers)
        pointed = np.asarray(told.masks, np.float32) >= THRESHOLD if told.emitted else None
        yield Sample(
            row=asked.row, text=told.text, n_seg=sum(len(answer.masks) for answer in answers),
            p_seg=max(answer.p_seg for answer in answers), n_tiles=len(answers), score=score, forced_score=insisted,
            mask=mask, masks=mask_records(asked, answers, truth), one_shot_control=controls[index],
            boundary_f1=None if mask is None or not score.target else boundary_f1(mask, truth, tolerance),
            said=hear(told.text, pointed, asked.row.chain),
        )  # fmt: skip


def _one_shot_controls(
    held: Sequence[Asked], truths: Sequence[np.ndarray | None], segmenter: Segmenter, batch: int
) -> list[dict[str, metrics.Score]]:
    """The scores of the rows that have an exemplar, asked in the ways of `Asked.controls`."""
    ways = [(index, name, other) for index, asked in enumerate(held) for name, other in asked.controls().items()]
    scores: list[dict[str, metrics.Score]] = [{} for _ in held]
    answers = predict([other for _, _, other in ways], segmenter, batch, forced=False)
    for (index, name, other), told in zip(ways, answers, strict=True):
        emitted = any(answer.emitted for answer in told)
        scores[index][name] = _score(other.views, told if emitted else None, truths[index])
    return scores


def _score(views: Views, answers: Sequence[TileAnswer] | None, truth: np.ndarray | None) -> metrics.Score:
    """The answers of a picture's tiles, None when they are silent, against its truth."""
    mask = None if answers is None else join(views, answers)
    return metrics.score_mask(mask, truth, math.prod(views.image_hw))


def predict(held: Sequence[Asked], segmenter: Segmenter, batch: int, forced: bool) -> list[list[TileAnswer]]:
    """The answers of every tile of every picture, at most `batch` tiles at a time."""
    asked_of = [asked for asked in held for _ in asked.views.tiles]
    tiles = [tile for asked in held for tile in asked.views.tiles]
    answers: list[TileAnswer] = []
    for start in range(0, len(tiles), batch):
        part = asked_of[start : start + batch]
        answers += segmenter.predict(
            TileBatch(
                images=np.stack(tiles[start : start + batch]),
                mpp=np.array([asked.views.mpp for asked in part], np.float32),
                queries=[asked.row.query for asked in part],
                forced=np.full(len(part), forced),
                exemplars=[asked.exemplar for asked in part] if any(asked.exemplar for asked in part) else (),
            )
        )
    left = iter(answers)
    return [[next(left) for _ in asked.views.tiles] for asked in held]


def mask_records(asked: Asked, answers: Sequence[TileAnswer], truth: np.ndarray | None) -> tuple[MaskRecord, ...]:
    """Each emitted mask with its confidence and its IoU with the truth in its tile; 0 where the tile holds no target.

    A segmenter that states no raw confidence has only one kind; one that states none has masks without records.
    """
    records = []
    tile_px = asked.views.tiles.shape[1]
    tile_truths = [None] * len(answers) if truth is None else cut_mask(asked.views, truth)
    for tile, (answer, tile_truth) in enumerate(zip(answers, tile_truths, strict=True)):
        stated = answer.confidence if answer.emitted else ()
        raw = answer.raw_confidence if len(answer.raw_confidence) else answer.confidence
        for mask, confidence, raw_confidence in zip(answer.masks, stated, raw, strict=False):
            told = resample(np.asarray(mask, np.float32), tile_px, tile_px) >= THRESHOLD
            score = metrics.score_mask(told, tile_truth, told.size)
            iou = score.iou if score.target else 0.0
            records.append(MaskRecord(float(confidence), float(raw_confidence), iou, asked.row.group, tile))
    return tuple(records)


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
