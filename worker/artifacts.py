"""What a job leaves behind, by job id: a folder each, whose files appear by rename only."""

import os
import re
import shutil
import uuid
from pathlib import Path

from worker.errors import JobNotFound

_JOB_ID = re.compile(r"[0-9a-f]{32}")


class LocalArtifacts:
    """Artifacts in a local folder.

        root/jobs/{job_id}/overlay.zarr, blocks/, attempts/, exemplar/, exemplar.png, regions.geojson, report.json,
                           report.html

    Args:
        root: the folder; made when missing.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def job_folder(self, job_id: str) -> Path:
        """The job's folder, which need not exist.

        Raises:
            JobNotFound: not a job id at all, so it can lead nowhere outside the root.
        """
        if not _JOB_ID.fullmatch(job_id):
            raise JobNotFound("no job has this id", subject=job_id)
        return self.root / "jobs" / job_id

    def overlay(self, job_id: str) -> Path:
        """The overlay's OME-Zarr store."""
        return self.job_folder(job_id) / "overlay.zarr"

    def regions(self, job_id: str) -> Path:
        """The regions as GeoJSON."""
        return self.job_folder(job_id) / "regions.geojson"

    def report_json(self, job_id: str) -> Path:
        """The report as JSON."""
        return self.job_folder(job_id) / "report.json"

    def report_html(self, job_id: str) -> Path:
        """The report as one HTML page."""
        return self.job_folder(job_id) / "report.html"

    def check(self) -> None:
        """Raise OSError when nothing can be written here."""
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        os.unlink(probe)

    def clear_attempts(self, job_id: str) -> None:
        """Remove what attempts left behind, once the job is closed and all it keeps is published."""
        shutil.rmtree(self.job_folder(job_id) / "attempts", ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Remove everything of the job."""
        shutil.rmtree(self.job_folder(job_id), ignore_errors=True)
