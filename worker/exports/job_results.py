"""A finished job's results, as an export reads them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from worker.artifacts import OVERLAY, REGIONS, REPORT_HTML, REPORT_JSON
from worker.types import JobSpec, SlideInfo, TilePlan

WANTED = (REPORT_JSON, REPORT_HTML, REGIONS, f"{OVERLAY}/")
"""What of a job's files is brought to where an export runs."""


def no_slide() -> tuple[None, str]:
    """Where nobody said how to open it."""
    return None, "The slide is not at hand"


@dataclass(frozen=True)
class JobResults:
    """What a job was asked and what it found.

    Attributes:
        job_id: the job.
        spec, plan, slide: what was asked, how the slide was cut, and the slide.
        finished: when the job ended, UTC.
        folder: local folder with `report.json`, `report.html`, `regions.geojson` and `overlay.zarr`.
        open_slide: the slide, to be closed, and an empty text; or None, and why it is not to be had.
    """

    job_id: str
    spec: JobSpec
    plan: TilePlan
    slide: SlideInfo
    finished: datetime
    folder: Path
    open_slide: Callable[[], tuple[Any | None, str]] = field(default=no_slide, compare=False)

    @cached_property
    def report(self) -> dict[str, Any]:
        """The report; see `worker.report`."""
        return json.loads((self.folder / REPORT_JSON).read_text(encoding="utf-8"))

    @property
    def overlay(self) -> Path:
        """The OME-Zarr store."""
        return self.folder / OVERLAY

    def features(self) -> Iterator[dict[str, Any]]:
        """The regions as GeoJSON features in level-0 pixels, one at a time: the file has one on each line."""
        with (self.folder / REGIONS).open(encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                text = line.strip().rstrip(",")
                if text.startswith("{"):
                    yield json.loads(text)
