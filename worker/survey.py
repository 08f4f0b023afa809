"""What planning does to a slide, each in a child that a hostile slide may take down. Part of the pipeline's room."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import SlideReasonError
from worker.slide_process import call_in_child
from worker.types import JobSpec, SlideInfo, TilePlan

if TYPE_CHECKING:
    import numpy as np

THUMBNAIL_PX = 2048
SURVEY_TIMEOUT_S = 60.0
REFERENCE_TIMEOUT_S = 900.0


def survey_slide(spec: JobSpec) -> "tuple[SlideInfo, np.ndarray | None]":
    """What the slide says of itself, and a thumbnail to find tissue on.

    Returns:
        (info, (h, w, 3) uint8 RGB, or None when the job looks everywhere).

    Raises:
        SlideNotFound, SlideUnreadable: it cannot be opened, or its reader died of it.
    """
    return call_in_child(survey_here, spec, timeout_s=SURVEY_TIMEOUT_S)


def write_slide_reference(overlay: Path, plan: TilePlan, info: SlideInfo, spec: JobSpec) -> None:
    """Write the RGB reference pyramid of an overlay; decodes the whole slide at one level.

    Raises:
        SlideUnreadable: the slide's pixels are broken, or its reader died of them.
        OSError: the overlay's disk is full or away, which is no fault of the slide.
    """
    number = call_in_child(write_reference_here, overlay, plan, info, spec, timeout_s=REFERENCE_TIMEOUT_S)
    if number:
        raise OSError(number, os.strerror(number))


def survey_here(spec: JobSpec) -> "tuple[SlideInfo, np.ndarray | None]":
    """`survey_slide` in this process."""
    from worker.slides import open_slide

    with open_slide(spec.slide_path, spec.mpp_override) as slide:
        return slide.info, slide.thumbnail(THUMBNAIL_PX) if spec.tissue == "auto" else None


def write_reference_here(overlay: Path, plan: TilePlan, info: SlideInfo, spec: JobSpec) -> int:
    """`write_slide_reference` in this process; returns the error number of the overlay's disk, 0 when there is none."""
    from worker.overlay import write_reference
    from worker.slides import open_slide

    with open_slide(spec.slide_path, spec.mpp_override) as slide:
        try:
            write_reference(overlay, plan, info, slide)
        except OSError as error:
            if isinstance(error, SlideReasonError):
                raise
            return error.errno or errno.EIO
    return 0
