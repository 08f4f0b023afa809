"""A finished job's slide, for whoever still wants its pixels: it may be gone by now, or another."""

from worker.errors import SlideNotFound, SlideReasonError
from worker.slide_process import inspect_slide
from worker.slides import Slide, open_slide
from worker.types import JobSpec, SlideInfo

GONE = "The slide is no longer where it was"
CHANGED = "The slide was changed after the job"
UNREADABLE = "The slide cannot be read any more"


def open_unchanged(spec: JobSpec, info: SlideInfo) -> tuple[Slide | None, str]:
    """Open a job's slide if its content is what the job looked at.

    Args:
        spec: of the job.
        info: the slide as the job found it.

    Returns:
        The slide, to be closed, and an empty text; or None, and why in words that name no path.
    """
    try:
        # A file that took the slide's place has been looked at by nobody: a child opens it first.
        if inspect_slide(spec.slide_path, spec.mpp_override).content_hash != info.content_hash:
            return None, CHANGED
        return open_slide(spec.slide_path, spec.mpp_override), ""
    except SlideNotFound:
        return None, GONE
    except (SlideReasonError, OSError):
        return None, UNREADABLE
