"""The results of an evaluation, read again: what confidence needs of them, so that nothing has to be asked twice."""

import json
from pathlib import Path

from model.evaluation.calibration import MaskRecord


class ResultsError(ValueError):
    """A file that does not hold the results of `slidereason evaluate`; the message names file and field."""


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
