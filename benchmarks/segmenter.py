"""How fast a segmenter answers, by the number of tiles that travel together."""

import numpy as np

from benchmarks.record import Bench, Measurement, peak_memory_mb, timed
from benchmarks.run import Unavailable
from model.cli import segmenter_by_name
from model.data.synthetic import synthetic_scene
from model.segmenter import Segmenter, TileBatch

QUERY = "Where are the glands?"


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Tiles per second at several batch sizes, free and forced."""
    try:
        segmenter = segmenter_by_name(bench.model)
    except (ImportError, FileNotFoundError, ValueError) as error:
        raise Unavailable(f"no segmenter {bench.model!r}: {error}") from error
    card = segmenter.card
    rng = np.random.default_rng(bench.seed)
    n_tiles = 4 if bench.quick else 64
    images = np.stack([synthetic_scene(rng, card.tile_size_px, card.default_mpp).image for _ in range(n_tiles)])
    answer(segmenter, images[:1], 1, False)
    measurements = []
    for forced in (False, True):
        for batch in (1, 4, 16, 32):
            if batch > n_tiles:
                continue
            seconds = timed(lambda: answer(segmenter, images, batch, forced), bench.repeats)  # noqa: B023
            rates = tuple(n_tiles / second for second in seconds)
            name = f"batch {batch}, {'forced' if forced else 'free'}"
            measurements.append(Measurement(name, "tiles/s", rates, {"batch": batch, "forced": forced}))
    measurements.append(Measurement("peak memory", "MB", (peak_memory_mb(),)))
    return measurements, f"{n_tiles} synthetic scenes, seed {bench.seed}; model {card.name}, revision {card.revision}"


def answer(segmenter: Segmenter, images: np.ndarray, batch: int, forced: bool) -> None:
    """Ask one question of every tile."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        mpp = np.full(len(part), segmenter.card.default_mpp, np.float32)
        segmenter.predict(TileBatch(part, mpp, [QUERY] * len(part), np.full(len(part), forced)))
