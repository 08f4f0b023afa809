"""Where a job's files lie, and that an id leads nowhere else."""

import os
from pathlib import Path

import pytest

from worker.artifacts import LocalArtifacts
from worker.errors import JobNotFound

JOB_ID = "0123456789abcdef" * 2


def test_a_job_has_a_folder_of_its_own(tmp_path: Path):
    artifacts = LocalArtifacts(tmp_path)
    folder = tmp_path / "jobs" / JOB_ID
    assert artifacts.job_folder(JOB_ID) == folder
    assert artifacts.overlay(JOB_ID) == folder / "overlay.zarr"
    assert artifacts.regions(JOB_ID) == folder / "regions.geojson"
    assert artifacts.report_json(JOB_ID) == folder / "report.json"
    assert artifacts.report_html(JOB_ID) == folder / "report.html"


NO_IDS = ["", "..", "../" + JOB_ID, JOB_ID + "/..", JOB_ID.upper(), JOB_ID[1:], JOB_ID + "\n"]


@pytest.mark.parametrize("job_id", NO_IDS)
def test_what_is_no_id_leads_nowhere(tmp_path: Path, job_id: str):
    with pytest.raises(JobNotFound):
        LocalArtifacts(tmp_path).job_folder(job_id)


def test_a_store_that_can_be_written_is_left_clean(tmp_path: Path):
    LocalArtifacts(tmp_path / "new").check()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        LocalArtifacts(tmp_path / "file" / "below").check()


def test_attempts_and_jobs_are_removed(tmp_path: Path):
    artifacts = LocalArtifacts(tmp_path)
    folder = artifacts.job_folder(JOB_ID)
    os.makedirs(folder / "attempts" / "0_0" / "1")
    (folder / "report.json").touch()
    artifacts.clear_attempts(JOB_ID)
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    artifacts.remove(JOB_ID)
    artifacts.remove(JOB_ID)
    assert not folder.exists()
