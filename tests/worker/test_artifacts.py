"""Where a job's files lie, that an id or a key leads nowhere else, and what a reader sees of them."""

import os
from pathlib import Path

import pytest

from worker.artifacts import LocalArtifacts, is_key, open_artifacts
from worker.errors import BadRequest, JobNotFound

JOB_ID = "0123456789abcdef" * 2


def test_a_job_has_a_folder_of_its_own(tmp_path: Path):
    artifacts = open_artifacts(tmp_path)
    assert isinstance(artifacts, LocalArtifacts)
    assert artifacts.url == str(tmp_path)
    assert artifacts.job(JOB_ID).root == artifacts.job_folder(JOB_ID) == tmp_path / "jobs" / JOB_ID


@pytest.mark.parametrize("place", ["gs://bucket/prefix", "http://127.0.0.1/bucket", "s3://", "s3:///prefix"])
def test_a_place_that_is_none_is_refused_with_what_would_be_accepted(place: str):
    with pytest.raises(BadRequest, match="s3://bucket/prefix") as refused:
        open_artifacts(place)
    assert refused.value.field == "artifacts"


NO_IDS = ["", "..", "../" + JOB_ID, JOB_ID + "/..", JOB_ID.upper(), JOB_ID[1:], JOB_ID + "\n"]


@pytest.mark.parametrize("job_id", NO_IDS)
def test_what_is_no_id_leads_nowhere(tmp_path: Path, job_id: str):
    artifacts = LocalArtifacts(tmp_path)
    for ask in (artifacts.job, artifacts.read, artifacts.remove, artifacts.clear_attempts, artifacts.job_folder):
        with pytest.raises(JobNotFound):
            ask(job_id)


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


@pytest.mark.parametrize("durable", [True, False])
def test_a_unit_is_saved_and_published(tmp_path: Path, durable: bool):
    artifacts = LocalArtifacts(tmp_path, durable)
    with artifacts.job(JOB_ID) as store:
        folder = store.attempt("0_0", 3)
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_text("content")
        store.save("0_0", 3)
        store.publish_all({"0_0": 3})
        store.fetch("deep/", "")
        assert (store.root / "deep/er/file").read_text() == "content"
        assert not folder.exists()


@pytest.mark.parametrize(
    "key",
    [
        "", ".", "..", "/", "/etc/passwd", "a/", "a//b", "a/../b", "../a", "./a", "a/.", "a\\b", "a\0b", "a\nb",
        "a" * 1000, "ö" * 500, "\udcff",
    ],
)  # fmt: skip
def test_what_is_no_key_is_the_key_of_nothing(tmp_path: Path, key: str):
    assert not is_key(key)
    reader = LocalArtifacts(tmp_path).read(JOB_ID)
    assert reader.stat(key) is None
    with pytest.raises(FileNotFoundError):
        list(reader.chunks(key))


def test_a_reader_sees_files_and_no_links(tmp_path: Path):
    artifacts = LocalArtifacts(tmp_path)
    folder = artifacts.job_folder(JOB_ID)
    (folder / "b" / "größe").mkdir(parents=True)
    (folder / "b" / "größe" / "0").write_bytes(b"0123456789" * 200_000)
    (folder / "a").write_bytes(b"")
    (tmp_path / "secret").write_text("secret")
    (folder / "b" / "link").symlink_to(folder / "a")
    (folder / "b" / "out").symlink_to(tmp_path)
    reader = artifacts.read(JOB_ID)
    assert [(key, size) for key, size, _ in reader.list()] == [("a", 0), ("b/größe/0", 2_000_000)]
    assert [key for key, _, _ in reader.list("b")] == ["b/größe/0"]
    for key in ("b", "b/link", "b/out/secret", "b/größe/0/x", "a" * 300, "c"):
        assert reader.stat(key) is None, key
    known = reader.stat("b/größe/0")
    assert (known.size, known.path) == (2_000_000, folder / "b/größe/0")
    assert {etag for key, _, etag in reader.list("b")} == {known.etag}
    whole = b"".join(reader.chunks("b/größe/0"))
    assert whole == known.path.read_bytes()
    assert b"".join(reader.chunks("b/größe/0", 1_048_570, 1_048_590)) == whole[1_048_570:1_048_590]
    assert b"".join(reader.chunks("b/größe/0", 1_999_998, 9_999_999)) == b"89"
    known.path.write_bytes(b"other")
    assert reader.stat("b/größe/0").etag != known.etag
