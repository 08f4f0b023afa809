"""How fast tiles are read: the reader of the pipeline, at several resolutions, with one thread and with two."""

from benchmarks.record import Bench, Measurement, peak_memory_mb, timed
from model.data.synthetic_slide import write_synthetic_slide
from worker.batches import read_tiles
from worker.errors import TileFailed
from worker.plan import plan_tiles, tile_at
from worker.slides import Slide, open_slide
from worker.types import JobSpec, Tile, TilePlan

TILE_PX = 256
MOST_TILES = 1000


def measure(bench: Bench) -> tuple[list[Measurement], str]:
    """Tiles per second of a synthetic slide."""
    size = (2048, 1536) if bench.quick else (8192, 6144)
    slide_path = bench.work / "slide.tiff"
    write_synthetic_slide(slide_path, bench.seed, *size, mpp=0.5)
    measurements = []
    with open_slide(slide_path) as slide:
        for mpp in (0.5, 1.0, 2.0):
            spec = JobSpec(str(slide_path), "bench", ("q",), mpp=mpp, tissue="off", overlap=0.0)
            plan = plan_tiles(slide.info, spec, None, TILE_PX, 1.0)
            tiles = [tile_at(plan, row, col) for row in range(plan.rows) for col in range(plan.cols)][:MOST_TILES]
            for threads in (1, 2):
                read_all(slide, plan, tiles[:8], threads)
                seconds = timed(lambda: read_all(slide, plan, tiles, threads), bench.repeats)  # noqa: B023
                rates = tuple(len(tiles) / second for second in seconds)
                notes = {"mpp": mpp, "threads": threads, "tiles": len(tiles)}
                name = f"{TILE_PX} px at {mpp} µm/px, {threads} thread(s)"
                measurements.append(Measurement(name, "tiles/s", rates, notes))
    measurements.append(Measurement("peak memory", "MB", (peak_memory_mb(),)))
    return measurements, f"synthetic slide, seed {bench.seed}, {size[0]} × {size[1]} px at 0.5 µm/px, JPEG tiles"


def read_all(slide: Slide, plan: TilePlan, tiles: list[Tile], threads: int) -> None:
    """Read every tile; a tile that fails ends the benchmark."""
    for _, pixels in read_tiles(slide, plan, tiles, threads=threads):
        if isinstance(pixels, TileFailed):
            raise pixels
