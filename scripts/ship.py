"""Put a finished training run into `model/checkpoints/tiny` as fp16, with its figures on the card.

    python scripts/ship.py runs/sft [benchmarks/results/evaluation.json]
"""

import json
import sys
from pathlib import Path

from model.checkpoint import load_checkpoint, save_checkpoint

TARGET = Path(__file__).resolve().parents[1] / "model" / "checkpoints" / "tiny"


def main(run: str, *figures: str) -> None:
    """Write the checkpoint; figures are read from a JSON file of name → value."""
    card = {"licence": "Apache-2.0", "figures": json.loads(Path(figures[0]).read_text()) if figures else {}}
    revision = save_checkpoint(TARGET, load_checkpoint(Path(run) / "checkpoint"), card=card)
    print(f"{TARGET.name}: revision {revision}")


if __name__ == "__main__":
    main(*sys.argv[1:])
