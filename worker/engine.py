"""The one thread that owns the model: tiles of several blocks and jobs share every batch.

Block threads call `submit` and wait on the future; the engine thread takes what is there, up to a batch, and answers.
"""

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace

import numpy as np

from model.segmenter import Segmenter, TileAnswer, TileBatch
from worker.errors import JobDismissed, TileFailed


@dataclass(frozen=True)
class TileRequest:
    """One tile and one question.

    Attributes:
        image: (T, T, 3) uint8 RGB.
        mpp: µm/px of the tile.
        query: the question.
        forced: ask for a mask even where the model would stay silent.
        cancelled: returns True once nobody wants the answer any more.
    """

    image: np.ndarray
    mpp: float
    query: str
    forced: bool = False
    cancelled: Callable[[], bool] = lambda: False

    def key(self) -> bytes:
        """Hash of all that the answer depends on (the segmenter is fixed in an engine)."""
        hashed = hashlib.blake2b(np.ascontiguousarray(self.image).data, digest_size=20)
        hashed.update(repr((self.image.shape, float(self.mpp), self.query, self.forced)).encode())
        return hashed.digest()


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
        max_waiting: `submit` blocks while so many requests wait, which bounds memory.
    """

    def __init__(
        self, segmenter: Segmenter, max_batch: int = 16, cache_bytes: int = 256 * 2**20, max_waiting: int = 64
    ):
        self.card = segmenter.card
        self._segmenter = segmenter
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._cache = AnswerCache(cache_bytes)
        self._waiting: deque[tuple[bytes, TileRequest, Future]] = deque()
        self._changed = threading.Condition()
        self._closed = False
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
        """
        key, future = request.key(), Future()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._max_waiting)
            if self._closed:
                raise RuntimeError("the engine is closed")
            known = self._cache.get(key)
            if known is not None:
                future.set_result(known)
            else:
                self._waiting.append((key, request, future))
                self._changed.notify_all()
        return future

    def close(self) -> None:
        """Stop the thread; requests still waiting fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for _, _, future in self._waiting:
            future.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                taken = self._take_batch()
                self._changed.notify_all()
            if taken:
                self._answer(taken)

    def _take_batch(self) -> list[tuple[bytes, TileRequest, list[Future]]]:
        """The oldest waiting requests of one tile shape; the same request twice is asked once."""
        taken: OrderedDict[bytes, tuple[TileRequest, list[Future]]] = OrderedDict()
        shape = self._waiting[0][1].image.shape
        while self._waiting and len(taken) < self._max_batch and self._waiting[0][1].image.shape == shape:
            key, request, future = self._waiting.popleft()
            known = self._cache.get(key)
            if known is not None:
                _resolve(future, known)
            elif request.cancelled():
                _resolve(future, JobDismissed("the job was dismissed"))
            else:
                taken.setdefault(key, (request, []))[1].append(future)
        return [(key, request, futures) for key, (request, futures) in taken.items()]

    def _answer(self, taken: list[tuple[bytes, TileRequest, list[Future]]]) -> None:
        try:
            answers = self._predict([request for _, request, _ in taken])
        except Exception as error:
            self._answer_failed(taken, error)
            return
        with self._changed:
            for (key, _, _), answer in zip(taken, answers, strict=True):
                self._cache.put(key, answer)
        for (_, _, futures), answer in zip(taken, answers, strict=True):
            for future in futures:
                _resolve(future, answer)

    def _answer_failed(self, taken: list[tuple[bytes, TileRequest, list[Future]]], error: Exception) -> None:
        """One bad tile must not fail its neighbours in the batch: each is asked alone."""
        if len(taken) > 1:
            for one in taken:
                self._answer([one])
            return
        _, request, futures = taken[0]
        if request.cancelled():
            error = JobDismissed("the job was dismissed")
        elif not isinstance(error, TileFailed | MemoryError):
            error = TileFailed(f"the segmenter failed with {type(error).__name__}: {error}")
        for future in futures:
            _resolve(future, error)

    def _predict(self, requests: list[TileRequest]) -> list[TileAnswer]:
        batch = TileBatch(
            images=np.stack([request.image for request in requests]),
            mpp=np.array([request.mpp for request in requests], np.float32),
            queries=[request.query for request in requests],
            forced=np.array([request.forced for request in requests], bool),
        )
        answers = self._segmenter.predict(batch, lambda: all(request.cancelled() for request in requests))
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


def _cost(answer: TileAnswer) -> int:
    return answer.masks.nbytes + 2 * len(answer.text) + 512
