"""Measure the stains that a model's training pictures have: `python -m model.training.trained_stain`.

The pictures are drawn as training draws them, by source and diagnosis, at the same zoom and size, but in the stain they
were scanned in: training also shows them in others, and how far those help is not known of any one of them. Synthetic
pictures, whose stain is made up, and scenes of validation and test patients are left out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from model.config import PathChatConfig
from model.data.stain_shift import STAIN_FILE, TrainedStain, fit_trained_stain
from model.training.pools import ScenePool


def measure_training(
    tile_px: int, count: int, seed: int, data: Path | None = None, weights: dict[str, float] | None = None
) -> TrainedStain:
    """Draw views of the training scenes and measure their stains.

    Args:
        tile_px: edge of a view, the model's tile.
        count: how many are drawn.
        seed: the only source of chance.
        data: folder of the data sets; None is `SLIDEREASON_DATASETS`.
        weights: source → share of the draws; None draws as `ScenePool` does, without synthetic scenes.

    Raises:
        FileNotFoundError: no source holds a scene.
    """
    weights = weights or {name: share for name, share in ScenePool.WEIGHTS.items() if name != "synthetic"}
    pool = ScenePool.load("train", tile_px, 0, seed, data, facts=False, weights=weights)
    rng = np.random.default_rng([seed, 4])
    views = (pool.view(pool.pick(rng), rng, restained=False) for _ in range(count))
    return fit_trained_stain((view.scene.source, view.image) for view in views)


def main(argv: list[str] | None = None) -> int:
    """Write `stain.json` into a checkpoint's folder.

    Returns:
        0; 2 when there is no checkpoint, or no data set to measure, which stderr says.
    """
    parser = argparse.ArgumentParser(prog="python -m model.training.trained_stain", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint; stain.json is written there")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: SLIDEREASON_DATASETS)")
    parser.add_argument("--count", type=int, default=4000, help="pictures drawn (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    options = parser.parse_args(argv)
    try:
        config = PathChatConfig.from_json(json.loads((options.checkpoint / "config.json").read_text()))
        known = measure_training(config.tile_px, options.count, options.seed, options.data)
    except FileNotFoundError as error:
        print(f"trained_stain: {error}", file=sys.stderr)
        return 2
    told = json.dumps(known.to_json(), indent=1)
    (options.checkpoint / STAIN_FILE).write_text(f"{told}\n", encoding="utf-8")
    print(told)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
