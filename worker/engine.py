"""The one thread that owns the model: tiles of several blocks and jobs share every batch.

Block threads call `submit` and wait on the future; the engine thread takes what is there, up to a batch, and answers.
"""

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace

import numpy as np

from model.exemplar import Exemplar
from model.segmenter import Segmenter, TileAnswer, TileBatch
from worker import metrics
from worker.errors import JobDismissed, TileFailed

log = logging.getLogger(__name__)

WARM_UP_QUERY = "Is there anything here?"


@dataclass(frozen=True)
class TileRequest:
    """One tile and one question.

    Attributes:
        image: (T, T, 3) uint8 RGB.
        mpp: µm/px of the tile.
        query: the question.
        forced: ask for a mask even where the model would stay silent.
        cancelled: returns True once nobody wants the answer any more.
        exemplar: a reference to look for the like of, (T, T) as the tile; None when the question is all there is.
        tile_first: read the tile before the question, since it is asked others too.
    """

    image: np.ndarray
    mpp: float
    query: str
    forced: bool = False
    cancelled: Callable[[], bool] = lambda: False
    exemplar: Exemplar | None = None
    tile_first: bool = False

    def key(self) -> bytes:
        """Hash of all that the answer depends on (the segmenter is fixed in an engine)."""
        hashed = hashlib.blake2b(np.ascontiguousarray(self.image).data, digest_size=20)
        shown = self.exemplar and self.exemplar.key
        asked = (self.image.shape, float(self.mpp), self.query, self.forced, shown, self.tile_first)
        hashed.update(repr(asked).encode())
        return hashed.digest()


@dataclass(frozen=True)
class _Asked:
    """A question on its way, and everyone who waits for its answer.

    Attributes:
        key: the requests' hash, the same for all of them.
        waiting: requests with their futures; never empty.
    """

    key: bytes
    waiting: list[tuple[TileRequest, Future]]

    @property
    def request(self) -> TileRequest:
        """One of them; all ask the same."""
        return self.waiting[0][0]

    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return all(request.cancelled() for request, _ in self.waiting)

    def resolve(self, outcome: TileAnswer | Exception) -> None:
        """Tell everyone."""
        for _, future in self.waiting:
            _resolve(future, outcome)


class AnswerCache:
    """Answers by request hash, the least recently used thrown out first.

    Tiles on the edge of two blocks, and blank tiles, are asked again and again; their answer is the same.

    Args:
        limit_bytes: memory for the masks; 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._answers: OrderedDict[bytes, TileAnswer] = OrderedDict()

    def get(self, key: bytes) -> TileAnswer | None:
        """The answer, or None; it counts as used now."""
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def put(self, key: bytes, answer: TileAnswer) -> None:
        """Keep an answer, and make room for it."""
        if key in self._answers or _cost(answer) > self.limit_bytes:
            return
        self._answers[key] = answer
        self.size_bytes += _cost(answer)
        while self.size_bytes > self.limit_bytes:
            _, oldest = self._answers.popitem(last=False)
            self.size_bytes -= _cost(oldest)


class Engine:
    """Owns a segmenter on a thread of its own; a context manager.

    Args:
        segmenter: called from the engine thread only.
        max_batch: most tiles in one call of `predict`.
        cache_bytes: memory for answers already given.
        max_waiting: `submit` blocks while so many requests wait, which bounds memory; None is 64, or two batches.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        max_batch: int = 64,
        cache_bytes: int = 256 * 2**20,
        max_waiting: int | None = None,
    ):
        self.card = segmenter.card
        self.max_batch = max_batch
        self._segmenter = segmenter
        self._max_waiting = max_waiting or max(64, 2 * max_batch)
        self._cache = AnswerCache(cache_bytes)
        self._waiting: deque[tuple[bytes, TileRequest, Future]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._dead: BaseException | None = None
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def submit(self, request: TileRequest) -> "Future[TileAnswer]":
        """Queue a tile; blocks while too many wait.

        Returns:
            A future of the answer. It fails with `TileFailed` when the segmenter fails on this very tile, and with
            `JobDismissed` when `request.cancelled` says so first.

        Raises:
            RuntimeError: the engine is closed.
            JobDismissed: its thread died; the work belongs to another worker now.
        """
        key, future = request.key(), Future()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._max_waiting)
            if self._dead is not None:
                raise _gone(self._dead)
            if self._closed:
                raise RuntimeError("the engine is closed")
            known = self._cache.get(key)
            if known is not None:
                future.set_result(known)
            else:
                self._waiting.append((key, request, future))
                self._changed.notify_all()
        return future

    def warm_up(self) -> float:
        """Run the segmenter once, on a blank tile, so that no job pays for what the first call has to load.

        Returns:
            Seconds it took.

        Raises:
            TileFailed, MemoryError: the segmenter cannot even do that.
        """
        begun = time.monotonic()
        blank = np.full((self.card.tile_size_px, self.card.tile_size_px, 3), 255, np.uint8)
        self.submit(TileRequest(blank, self.card.default_mpp, WARM_UP_QUERY)).result()
        return time.monotonic() - begun

    @property
    def alive(self) -> bool:
        """Whether its thread is there to answer."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds the call of the segmenter that runs now has taken; 0 when none does."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Stop the thread; requests still waiting fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for _, _, future in self._waiting:
            future.cancel()

    def _run(self) -> None:
        taken: list[_Asked] = []
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._waiting)
                    if self._closed:
                        return
                    taken = self._take_batch()
                    self._changed.notify_all()
                if taken:
                    self._answer(taken)
        except BaseException as error:  # nobody may wait for a thread that is gone
            log.critical("the engine's thread died", exc_info=error)
            self._die(error, taken)

    def _die(self, error: BaseException, taken: list[_Asked]) -> None:
        with self._changed:
            self._closed, self._dead = True, error
            futures = [future for asked in taken for _, future in asked.waiting]
            futures += [future for _, _, future in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for future in futures:
            _resolve(future, _gone(error))

    def _take_batch(self) -> list[_Asked]:
        """The oldest waiting requests of one tile shape; the same request twice is asked once.

        All questions about one tile go into one batch where they fit, so that its picture is encoded once.
        """
        shape = self._waiting[0][1].image.shape
        by_picture: dict[int, list[tuple[bytes, TileRequest, Future]]] = {}
        for item in self._waiting:
            if item[1].image.shape == shape:
                by_picture.setdefault(id(item[1].image), []).append(item)
        taken: dict[bytes, _Asked] = {}
        gone: set[int] = set()
        for items in by_picture.values():
            if taken and len(taken) + len(items) > self.max_batch:
                break
            for key, request, future in items[: self.max_batch]:
                gone.add(id(future))
                known = self._cache.get(key)
                if known is not None:
                    _resolve(future, known)
                elif request.cancelled():
                    _resolve(future, JobDismissed("the job was dismissed"))
                else:
                    taken.setdefault(key, _Asked(key, [])).waiting.append((request, future))
        self._waiting = deque(item for item in self._waiting if id(item[2]) not in gone)
        return list(taken.values())

    def _answer(self, taken: list[_Asked]) -> None:
        try:
            answers = self._predict(taken)
        except Exception as error:
            self._answer_failed(taken, error)
            return
        with self._changed:
            for asked, answer in zip(taken, answers, strict=True):
                self._cache.put(asked.key, answer)
        for asked, answer in zip(taken, answers, strict=True):
            asked.resolve(answer)

    def _answer_failed(self, taken: list[_Asked], error: Exception) -> None:
        """One bad tile must not fail its neighbours in the batch: each is asked alone, if anybody still wants it."""
        for asked in taken:
            if asked.cancelled():
                asked.resolve(JobDismissed("the job was dismissed"))
            elif len(taken) > 1:
                self._answer([asked])
            elif isinstance(error, TileFailed | MemoryError):
                asked.resolve(error)
            else:
                asked.resolve(TileFailed(f"the segmenter failed with {type(error).__name__}: {error}"))

    def _predict(self, taken: list[_Asked]) -> list[TileAnswer]:
        requests = [asked.request for asked in taken]
        exemplars = [request.exemplar for request in requests]
        batch = TileBatch(
            images=np.stack([request.image for request in requests]),
            mpp=np.array([request.mpp for request in requests], np.float32),
            queries=[request.query for request in requests],
            forced=np.array([request.forced for request in requests], bool),
            exemplars=exemplars if any(exemplars) else (),
            tile_first=np.array([request.tile_first for request in requests], bool),
        )
        metrics.BATCH_FILL.observe(len(requests) / self.max_batch)
        self._busy_since = time.monotonic()
        try:
            with metrics.BATCH_S.time():
                answers = self._segmenter.predict(batch, lambda: all(asked.cancelled() for asked in taken))
        finally:
            self._busy_since = None
        if len(answers) != len(requests):
            raise ValueError(f"{len(requests)} tiles went in and {len(answers)} answers came out")
        return [replace(answer, masks=np.asarray(answer.masks, np.float16)) for answer in answers]


def _resolve(future: Future, outcome: TileAnswer | Exception) -> None:
    """Set a future that its owner may have cancelled."""
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass


def _gone(error: BaseException) -> JobDismissed:
    return JobDismissed(f"the engine's thread died of {type(error).__name__}: {error}")


def _cost(answer: TileAnswer) -> int:
    return answer.masks.nbytes + 2 * len(answer.text) + 512
