"""The engine: one thread owns the model, and no answer depends on what else was asked."""

import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import pytest

from model.exemplar import Exemplar
from model.segmenter import TileAnswer, TileBatch
from tests.jobs import HUE, hue_spec
from tests.segmenters import HueSegmenter
from worker.artifacts import open_artifacts
from worker.engine import AnswerCache, Engine, TileRequest
from worker.errors import JobDismissed, TileFailed
from worker.ledger import Ledger
from worker.tasks import Runner


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (256, 256, 3), np.uint8)


class Recorder(HueSegmenter):
    """Notes its batches and threads; waits for `go`; fails on pictures whose first pixel is 13."""

    def __init__(self, waiting: bool = False):
        super().__init__()
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.entered = threading.Event()
        self.go = threading.Event()
        if not waiting:
            self.go.set()

    def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
        self.entered.set()
        assert self.go.wait(30)
        if cancelled is not None and cancelled():
            raise InterruptedError
        self.batches.append(len(batch))
        self.threads.add(threading.current_thread().name)
        if (batch.images[:, 0, 0, 0] == 13).any():
            raise ZeroDivisionError("bad tile")
        return super().predict(batch)


def bad_picture() -> np.ndarray:
    image = picture(0)
    image[0, 0, 0] = 13
    return image


def good_picture(seed: int) -> np.ndarray:
    image = picture(seed)
    image[0, 0, 0] = 1
    return image


def exemplar(seed: int) -> Exemplar:
    mask = np.zeros((256, 256), bool)
    mask[50:90, 60:120] = True
    return Exemplar(picture(seed), mask)


def results(futures: list[Future]) -> list[TileAnswer]:
    assert not wait(futures, timeout=60).not_done
    return [future.result() for future in futures]


def test_tiles_of_several_callers_share_batches_on_one_thread():
    segmenter = Recorder(waiting=True)
    with Engine(segmenter, max_batch=4) as engine:
        first = engine.submit(TileRequest(good_picture(0), 1.0, "q"))
        assert segmenter.entered.wait(30)
        futures = [first]

        def ask(seeds: range) -> None:
            futures.extend([engine.submit(TileRequest(good_picture(seed), 1.0, "q")) for seed in seeds])

        callers = [threading.Thread(target=ask, args=(range(start, start + 4),)) for start in (1, 5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        segmenter.go.set()
        results(futures)
    assert segmenter.batches == [1, 4, 4]
    assert segmenter.threads == {"engine"}


def test_an_answer_is_the_segmenters_own():
    segmenter = HueSegmenter()
    image = picture(3) // 2
    batch = TileBatch(image[None], np.ones(1, np.float32), ["q"], np.array([True]))
    (expected,) = segmenter.predict(batch)
    with Engine(segmenter) as engine:
        (answer,) = results([engine.submit(TileRequest(image, 1.0, "q", forced=True))])
    assert (answer.text, answer.p_seg, answer.forced) == (expected.text, expected.p_seg, expected.forced)
    np.testing.assert_array_equal(answer.masks, expected.masks)


def test_the_same_question_is_asked_once():
    segmenter = Recorder()
    with Engine(segmenter) as engine:
        for _ in range(3):
            results([engine.submit(TileRequest(good_picture(1), 1.0, "q"))])
        assert sum(segmenter.batches) == 1
        results([engine.submit(TileRequest(good_picture(1), 1.0, "q", forced=True))])
        results([engine.submit(TileRequest(good_picture(1), 0.5, "q"))])
        results([engine.submit(TileRequest(good_picture(1), 1.0, "other"))])
        results([engine.submit(TileRequest(good_picture(2), 1.0, "q"))])
        for seed in (3, 4, 3):
            results([engine.submit(TileRequest(good_picture(1), 1.0, "q", exemplar=exemplar(seed)))])
    assert sum(segmenter.batches) == 7, "picture, mpp, question, force and exemplar each make another question"


def test_without_a_cache_everything_is_asked():
    segmenter = Recorder()
    with Engine(segmenter, cache_bytes=0) as engine:
        for _ in range(3):
            results([engine.submit(TileRequest(good_picture(1), 1.0, "q"))])
    assert sum(segmenter.batches) == 3


def test_a_bad_tile_fails_alone():
    with Engine(Recorder(waiting=True)) as engine:
        good = [engine.submit(TileRequest(good_picture(seed), 1.0, "q")) for seed in range(1, 4)]
        bad = engine.submit(TileRequest(bad_picture(), 1.0, "q"))
        engine._segmenter.go.set()
        assert len(results(good)) == 3
        with pytest.raises(TileFailed, match="ZeroDivisionError: bad tile"):
            bad.result(60)


def test_what_nobody_wants_any_more_is_not_computed():
    segmenter = Recorder(waiting=True)
    dismissed = threading.Event()
    with Engine(segmenter, max_batch=1) as engine:
        running = engine.submit(TileRequest(good_picture(1), 1.0, "q", cancelled=dismissed.is_set))
        assert segmenter.entered.wait(30)
        waiting = engine.submit(TileRequest(good_picture(2), 1.0, "q", cancelled=dismissed.is_set))
        other = engine.submit(TileRequest(good_picture(3), 1.0, "q"))
        dismissed.set()
        segmenter.go.set()
        for future in (running, waiting):
            with pytest.raises(JobDismissed):
                future.result(60)
        results([other])
    assert segmenter.batches == [1]


class Deciding(HueSegmenter):
    """Polls `cancelled` between steps as a decoder does, for as long as it is not told to stop."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.entered = threading.Event()

    def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
        self.calls += 1
        self.entered.set()
        for _ in range(6000):
            if cancelled():
                raise InterruptedError("cancelled between two steps")
            time.sleep(0.01)
        raise AssertionError("nobody cancelled")


def test_a_long_prediction_stops_between_its_steps_once_nobody_wants_it():
    segmenter = Deciding()
    one, other = threading.Event(), threading.Event()
    with Engine(segmenter, max_batch=4) as engine:
        futures = [engine.submit(TileRequest(good_picture(0), 1.0, "q", cancelled=one.is_set))]
        assert segmenter.entered.wait(30)
        one.set()
        with pytest.raises(JobDismissed):
            futures[0].result(10)
        segmenter.entered.clear()
        wanted = [one, other]
        one.clear()
        futures = [
            engine.submit(TileRequest(good_picture(n), 1.0, "q", cancelled=wanted[n].is_set)) for n in range(2)
        ]
        assert segmenter.entered.wait(30)
        one.set()
        assert not futures[1].done(), "the other job's tile is still wanted"
        other.set()
        for future in futures:
            with pytest.raises(JobDismissed):
                future.result(10)
    assert segmenter.calls <= 3, "what was cancelled is not tried again tile by tile"


def test_two_jobs_that_ask_the_same_do_not_cancel_each_other():
    segmenter = Recorder(waiting=True)
    dismissed = threading.Event()
    with Engine(segmenter) as engine:
        first = engine.submit(TileRequest(good_picture(9), 1.0, "q"))
        assert segmenter.entered.wait(30)
        gone = engine.submit(TileRequest(good_picture(1), 1.0, "q", cancelled=dismissed.is_set))
        kept = engine.submit(TileRequest(good_picture(1), 1.0, "q"))
        segmenter.go.set()
        results([first])
        dismissed.set()
        assert results([kept])[0].text
        assert gone.done()


def test_questions_about_one_tile_share_a_batch():
    segmenter = Recorder(waiting=True)
    with Engine(segmenter, max_batch=4) as engine:
        futures = [engine.submit(TileRequest(good_picture(9), 1.0, "q"))]
        assert segmenter.entered.wait(30)
        asked: list[list[str]] = []
        predict = segmenter.predict
        segmenter.predict = lambda batch, cancelled=None: asked.append(list(batch.queries)) or predict(batch, cancelled)
        tiles = [good_picture(seed) for seed in (1, 2, 3)]
        # two callers whose questions arrive mixed
        for query in ("a", "b", "c"):
            futures += [engine.submit(TileRequest(tile, 1.0, f"{query}{n}")) for n, tile in enumerate(tiles)]
        segmenter.go.set()
        results(futures)
    assert asked == [["a0", "b0", "c0"], ["a1", "b1", "c1"], ["a2", "b2", "c2"]]


def test_a_batch_may_mix_tiles_with_and_without_an_exemplar():
    segmenter = Recorder(waiting=True)
    seen: list[tuple] = []
    with Engine(segmenter) as engine:
        futures = [engine.submit(TileRequest(good_picture(9), 1.0, "q"))]
        assert segmenter.entered.wait(30)
        predict = segmenter.predict
        segmenter.predict = lambda batch, cancelled=None: seen.append(tuple(batch.exemplars)) or predict(batch)
        shown = exemplar(5)
        futures += [
            engine.submit(TileRequest(good_picture(1), 1.0, "q")),
            engine.submit(TileRequest(good_picture(1), 1.0, "q", exemplar=shown)),
        ]
        segmenter.go.set()
        results(futures)
        results([engine.submit(TileRequest(good_picture(2), 1.0, "q"))])
    assert seen == [(None, shown), ()]


def test_a_machine_that_is_full_is_no_fault_of_the_tile():
    class Full(HueSegmenter):
        def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
            raise MemoryError("not even one tile fits")

    with Engine(Full()) as engine:
        for future in [engine.submit(TileRequest(good_picture(seed), 1.0, "q")) for seed in range(3)]:
            with pytest.raises(MemoryError):
                future.result(60)


def test_submit_waits_while_too_many_wait():
    segmenter = Recorder(waiting=True)
    with Engine(segmenter, max_batch=1, max_waiting=2) as engine:
        futures = [engine.submit(TileRequest(good_picture(0), 1.0, "q"))]
        assert segmenter.entered.wait(30)
        futures += [engine.submit(TileRequest(good_picture(seed), 1.0, "q")) for seed in (1, 2)]
        late = threading.Thread(target=lambda: futures.append(engine.submit(TileRequest(good_picture(9), 1.0, "q"))))
        late.start()
        late.join(0.3)
        assert late.is_alive()
        segmenter.go.set()
        late.join(60)
        assert len(results(futures)) == 4


def test_a_closed_engine_takes_nothing():
    engine = Engine(Recorder())
    engine.close()
    with pytest.raises(RuntimeError):
        engine.submit(TileRequest(picture(0), 1.0, "q"))


def answer(size: int) -> TileAnswer:
    return TileAnswer("t", np.zeros((1, size, size), np.float16))


def test_the_cache_throws_out_what_was_used_longest_ago():
    cache = AnswerCache(3 * (2 * 100 * 100 + 600))
    for key in (b"a", b"b", b"c"):
        cache.put(key, answer(100))
    assert cache.get(b"a") is not None
    cache.put(b"d", answer(100))
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.size_bytes <= cache.limit_bytes


def test_the_cache_keeps_nothing_larger_than_itself():
    cache = AnswerCache(1000)
    cache.put(b"a", answer(100))
    assert cache.get(b"a") is None
    assert cache.size_bytes == 0


def test_which_comes_first_is_told_and_is_part_of_the_question():
    told = []

    class Told(Recorder):
        def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
            told.extend(batch.tile_first.tolist())
            return super().predict(batch)

    one, other = (TileRequest(picture(0), 1.0, "tumour", tile_first=first) for first in (False, True))
    assert one.key() != other.key()
    with Engine(Told()) as engine:
        wait([engine.submit(one), engine.submit(other)], timeout=30)
    assert sorted(told) == [False, True]


def test_a_warm_engine_has_run_its_segmenter_once_on_a_blank_tile():
    segmenter = Recorder()
    with Engine(segmenter) as engine:
        assert engine.warm_up() >= 0
        assert (segmenter.batches, engine.alive, engine.busy_s) == ([1], True, 0.0)


def test_a_segmenter_that_cannot_even_do_that_is_not_warm():
    class Broken(HueSegmenter):
        def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
            raise ZeroDivisionError("no kernel image")

    with Engine(Broken()) as engine, pytest.raises(TileFailed, match="no kernel image"):
        engine.warm_up()


def test_nobody_waits_for_a_thread_that_died():
    """What was asked, what waits and what comes later all hear of it, as work for another worker."""

    class Fatal(Recorder):
        def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
            self.entered.set()
            assert self.go.wait(30)
            raise SystemExit("driver lost")

    segmenter = Fatal(waiting=True)
    with Engine(segmenter, max_batch=1, max_waiting=2) as engine:
        futures = [engine.submit(TileRequest(good_picture(0), 1.0, "q"))]
        assert segmenter.entered.wait(30)
        futures += [engine.submit(TileRequest(good_picture(seed), 1.0, "q")) for seed in (1, 2)]
        late: list[BaseException | None] = []

        def submit_late() -> None:
            try:
                engine.submit(TileRequest(good_picture(3), 1.0, "q"))
            except JobDismissed as error:
                late.append(error)

        thread = threading.Thread(target=submit_late)
        thread.start()
        segmenter.go.set()
        thread.join(30)
        for future in futures:
            with pytest.raises(JobDismissed, match="died of SystemExit: driver lost"):
                future.result(30)
        assert len(late) == 1
        assert not engine.alive


def drain(runner: Runner) -> None:
    while any(runner.run_one() for _ in range(3)):
        pass


def test_tiles_of_two_jobs_fill_the_batches_that_one_alone_leaves_half_empty(pyramid_slide: Path, tmp_path: Path):
    """Two jobs of small blocks, a block thread each: the device sees full batches, with tiles of both in them."""
    mixed = []

    class Mixing(HueSegmenter):
        def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
            mixed.append(sorted(set(batch.queries)))
            fills.append(len(batch) / 16)
            time.sleep(0.05)
            return super().predict(batch)

    means = {}
    for jobs in (1, 2):
        fills: list[float] = []
        mixed.clear()
        ledger = Ledger(f"sqlite:///{tmp_path / f'{jobs}.sqlite'}")
        for n in range(jobs):
            ledger.create_job(hue_spec(pyramid_slide, query=f"job {n}", tissue="off"), tenant=f"t{n}")
        with Engine(Mixing(), max_batch=16, cache_bytes=0) as engine:
            runner = Runner(ledger, open_artifacts(tmp_path / f"{jobs}"), engine, "w", (HUE,))
            assert all(runner.run_one() for _ in range(jobs)), "each is planned"
            threads = [threading.Thread(target=drain, args=(runner,)) for _ in range(jobs)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert ledger.counts()["successful"] == jobs
        ledger.close()
        means[jobs] = sum(fills) / len(fills)
    assert ["job 0", "job 1"] in mixed, "tiles of both jobs in one call of the model"
    assert means[2] > means[1]
