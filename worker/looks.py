"""Looks: what the model answered about each tile of a block, first and second time.

Pictures come in, answers go out; where pictures come from and where answers go is the pipeline's business.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from model.data.stain_shift import tissue_template
from model.evaluation.contradiction import contradictions
from model.exemplar import Exemplar
from model.segmenter import TileAnswer
from worker import metrics
from worker.engine import Engine, TileRequest
from worker.errors import SlideReasonError, TileFailed
from worker.types import Tile

Picture = tuple[Tile, np.ndarray | TileFailed]
"""A tile with its pixels (T, T, 3) uint8, or with the reason why it has none."""


@dataclass(frozen=True)
class Look:
    """What one look at one tile for one query brought.

    Attributes:
        tile, query_index: where and for what.
        text: the model's words.
        probability: (T, T) float16; None when the tile stayed silent or failed.
        emitted, p_seg, confidence: how sure the model was.
        second: True when a mask was asked for.
        error: why there is no answer.
        fault: what was at fault then: `slide`, `tile`, or None for the segmenter.
        stain: template of the tile's tissue; None without tissue or picture.
        claims: what the answer claims of its mask → whether the mask contradicts it; None without an answer.
    """

    tile: Tile
    query_index: int
    text: str = ""
    probability: np.ndarray | None = None
    emitted: bool = False
    p_seg: float = 0.0
    confidence: float = 0.0
    second: bool = False
    error: str | None = None
    fault: str | None = None
    stain: tuple[float, ...] | None = None
    claims: dict[str, bool] | None = None


Looks = dict[tuple[int, str], Look]
"""Looks by (query index, tile key)."""


def take_looks(
    pictures: Iterable[Picture],
    questions: Callable[[Tile], Sequence[int]],
    queries: Sequence[str],
    ask: "Asker",
) -> Iterator[Look]:
    """Ask the engine about each picture, many at once, and yield what it says in the pictures' order.

    Args:
        pictures: tiles with their pixels, read ahead by the caller.
        questions: which query indices to ask of a tile.
        queries: the job's queries.
        ask: how to ask.

    Yields:
        One look per tile and question.

    Raises:
        JobDismissed, LeaseLost: seen between tiles.
    """
    waiting: deque[tuple[Asked, Future | TileFailed]] = deque()
    for tile, picture in pictures:
        ask.check()
        stain = None if isinstance(picture, TileFailed) else tissue_template(picture)
        for index in questions(tile):
            waiting.append((Asked(tile, index, stain), ask.submit(tile, picture, queries[index])))
        # Alone, a tile must be answered before the next one is read, so that its death is its own.
        while waiting and (ask.alone or len(waiting) > ask.ahead or _ready(waiting[0][1])):
            yield ask.receive(*waiting.popleft())
    while waiting:
        ask.check()
        yield ask.receive(*waiting.popleft())


@dataclass(frozen=True)
class Asked:
    """What an answer is waited for: a tile, a question, and the stain of the tile's tissue."""

    tile: Tile
    query_index: int
    stain: tuple[float, ...] | None


@dataclass(frozen=True)
class Asker:
    """How a block asks the engine.

    Attributes:
        engine: answers.
        mpp: µm/px of the tiles.
        to_probability: turns an answer into one (T, T) map, or None when it is silent.
        check: raises when the work is to stop.
        cancelled: the same as a question, for the engine.
        forced: True for second looks.
        alone: one tile at a time.
        exemplar: shown beside every tile; None when the job has none.
        tile_first: tiles are read before the questions, since there are several.
    """

    engine: Engine
    mpp: float
    to_probability: Callable[[TileAnswer], np.ndarray | None]
    check: Callable[[], None]
    cancelled: Callable[[], bool]
    forced: bool = False
    alone: bool = False
    exemplar: Exemplar | None = None
    tile_first: bool = False

    @property
    def ahead(self) -> int:
        """Answers waited for at once: enough to fill the engine's batches."""
        return max(64, self.engine.max_batch)

    def submit(self, tile: Tile, picture: np.ndarray | TileFailed, query: str) -> "Future[TileAnswer] | TileFailed":
        """Put a question to the engine; a tile without pixels is not asked."""
        if isinstance(picture, TileFailed):
            return picture
        with metrics.stage("wait_engine"):
            return self.engine.submit(
                TileRequest(picture, self.mpp, query, self.forced, self.cancelled, self.exemplar, self.tile_first)
            )

    def receive(self, asked: Asked, answer: "Future[TileAnswer] | TileFailed") -> Look:
        """Wait for an answer.

        Raises:
            JobDismissed: the work is to stop.
        """
        tile, query_index = asked.tile, asked.query_index
        if isinstance(answer, TileFailed):
            return Look(tile, query_index, error=str(answer), fault=answer.field, second=self.forced)
        try:
            with metrics.stage("wait_engine"):
                said = answer.result()
        except TileFailed as error:
            return Look(tile, query_index, error=str(error), fault=error.field, second=self.forced)
        except SlideReasonError:
            self.check()
            raise
        probability = self.to_probability(said)
        return Look(
            tile=tile,
            query_index=query_index,
            text=said.text,
            probability=None if probability is None else probability.astype(np.float16),
            emitted=said.emitted,
            p_seg=float(said.p_seg),
            confidence=float(np.max(said.confidence)) if len(said.confidence) else float(said.p_seg),
            second=self.forced,
            stain=asked.stain,
            claims=claims_of(said),
        )


def claims_of(said: TileAnswer) -> dict[str, bool]:
    """What an answer claims of its masks, and whether they contradict it; pixels count from one half."""
    return contradictions(said.text, said.masks >= 0.5 if len(said.masks) else None)


def silent_tiles(tiles: Sequence[Tile], looks: Looks, query_index: int) -> list[Tile]:
    """The tiles that were looked at for a query and said nothing is there."""
    found = (looks.get((query_index, tile.key)) for tile in tiles)
    return [look.tile for look in found if look is not None and look.error is None and look.probability is None]


def probabilities(looks: Looks, query_index: int) -> Mapping[str, np.ndarray | None]:
    """Probability (or None: silent) by tile key, of every tile that was looked at without failing."""
    return {
        key: look.probability for (index, key), look in looks.items() if index == query_index and look.error is None
    }


def _ready(answer: Future | TileFailed) -> bool:
    return isinstance(answer, TileFailed) or answer.done()
