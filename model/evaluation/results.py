"""The results of an evaluation: made, and read again for confidence and for pairing, so that nothing is asked twice."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.evaluation.calibration import MaskRecord
from model.evaluation.evaluate import Sample, collect
from model.evaluation.summary import summarise
from model.segmenter import SegmenterCard


class ResultsError(ValueError):
    """A file that does not hold the results of `slidereason evaluate`; the message names file and field."""


def gather(
    answers: Iterable[Sample], card: SegmenterCard, masks: Path | None = None,
    progress: Callable[[int], None] | None = None, resamples: int = 2000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Run an evaluation to its end.

    Args:
        answers: what `evaluate` yields.
        card: of who answers.
        masks, progress: as in `collect`.
        resamples, seed: of the bootstrap.

    Returns:
        `duration_s`, `model`, `summary` and `samples`, ready for JSON.

    Raises:
        ValueError: no rows.
    """
    started = time.monotonic()
    samples = collect(answers, masks, progress)
    return {
        "duration_s": round(time.monotonic() - started, 1),
        "model": asdict(card),
        "summary": summarise(samples, resamples, seed),
        "samples": [sample.to_json() for sample in samples],
    }


def read_masks(path: Path) -> list[MaskRecord]:
    """Every mask in the results of `slidereason evaluate`.

    Raises:
        ResultsError: not JSON, or no samples with their masks.
    """
    wanted = "results of `slidereason evaluate` are accepted"
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return [
            MaskRecord(
                float(mask["confidence"]), float(mask["raw_confidence"]), float(mask["iou"]), str(sample["group"]),
                int(mask["tile"]),
            )
            for sample in samples
            for mask in sample["masks"]
        ]  # fmt: skip
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not JSON ({error}); {wanted}") from None
    except KeyError as error:
        raise ResultsError(f"{path}: field {error.args[0]} is missing; {wanted}") from None
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{path}: {error}; {wanted}") from None


def read_results(path: Path) -> dict[str, Any]:
    """The whole results of `slidereason evaluate`, with the terms that a paired comparison needs.

    Raises:
        ResultsError: not JSON, or results without the terms of every sample.
    """
    wanted = "results of `slidereason evaluate` with terms are accepted"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        for sample in results["samples"]:
            for name in ("id", "group", "query", "target", "terms"):
                sample[name]
        results["model"]["name"]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not JSON ({error}); {wanted}") from None
    except KeyError as error:
        raise ResultsError(f"{path}: field {error.args[0]} is missing; {wanted}") from None
    except TypeError as error:
        raise ResultsError(f"{path}: {error}; {wanted}") from None
    return results
