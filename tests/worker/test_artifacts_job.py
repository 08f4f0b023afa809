"""A whole job whose artifacts are in a bucket: the same bytes as on a disk, by two hosts, and through faults."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import digest, hue_spec
from tests.made_slides import tissue_picture, write_pyramid
from tests.s3_server import S3Server
from tests.segmenters import hue_segmenter
from worker import artifacts_s3
from worker.artifacts import Artifacts, LocalArtifacts, open_artifacts
from worker.engine import Engine
from worker.inline import RESULTS, InlineResult, run_job_inline
from worker.ledger import Ledger
from worker.tasks import Runner

COMPARED = tuple(name for name in RESULTS if name != "report.html")
"""The page tells when it was made."""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> InlineResult:
    """The job as it is on a local disk, and its slide beside it."""
    folder = tmp_path_factory.mktemp("inline")
    slide = write_pyramid(folder / "slide.tif", tissue_picture(1400, 1100))
    return run_job_inline(hue_spec(slide), folder / "out", hue_segmenter())


@pytest.fixture
def url(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(artifacts_s3.RETRY, "max_retries", 1)
    monkeypatch.setattr("worker.tasks.BACKOFF_S", 0.01)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server.url(f"results/{request.node.name}")
    server.fail(False)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", lease_s=1.0)
    yield opened
    opened.close()


def download(artifacts: Artifacts, job_id: str, folder: Path) -> Path:
    reader = artifacts.read(job_id)
    for key, size, _ in reader.list():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(b"".join(reader.chunks(key)))
        assert (folder / key).stat().st_size == size
    return folder


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_two_hosts_and_a_bucket_make_the_bytes_of_one_disk(
    inline: InlineResult, ledger: Ledger, url: str, tmp_path: Path
):
    hosts = [open_artifacts(url, tmp_path / f"host-{i}") for i in range(2)]
    job_id, _ = ledger.create_job(inline.job.spec, job_id=inline.job.job_id)
    with Engine(hue_segmenter()) as engine:
        runners = [Runner(ledger, host, engine, f"host-{i}", (inline.job.spec.model,)) for i, host in enumerate(hosts)]
        units = 0
        while ledger.job(job_id).open:
            assert runners[units % 2].run_one()
            units += 1
            assert files_below(tmp_path / "host-0") == files_below(tmp_path / "host-1") == [], "scratch stays bounded"
    assert (ledger.job(job_id).status, units) == ("successful", len(ledger.blocks(job_id)) + 2)
    assert units > 4
    found = download(hosts[0], job_id, tmp_path / "found")
    assert digest(found, COMPARED) == digest(inline.folder, COMPARED)
    assert (found / "report.html").stat().st_size > 1000
    assert not (found / "attempts").exists()
    for host in hosts:
        host.close()


def test_a_bucket_that_fails_now_and_then_only_delays(
    inline: InlineResult, ledger: Ledger, url: str, server: S3Server, tmp_path: Path
):
    """Away before a commit the unit waits; away after it the next who needs the files publishes them."""
    artifacts = open_artifacts(url, tmp_path / "scratch")
    job_id, _ = ledger.create_job(inline.job.spec, job_id=inline.job.job_id)
    errors: list[Exception] = []
    with Engine(hue_segmenter()) as engine:
        runner = Runner(
            ledger, artifacts, engine, "test", (inline.job.spec.model,), on_error=lambda _, error: errors.append(error)
        )
        for fault in (True, "/published/", "/attempts/", False):
            server.fail(fault)
            done = _run(runner, ledger, job_id, 1)
            assert done == (fault != "/attempts/" and fault is not True), fault
        server.fail("/published/finish")
        _run(runner, ledger, job_id, 100)
        assert ledger.job(job_id).status == "running", "committed, and not to be seen yet"
        server.fail(False)
        for unpublished in ledger.sweep().unpublished:
            runner.publish_finish(*unpublished)
    job = ledger.job(job_id)
    assert (job.status, job.coverage, job.tiles_failed) == ("successful", 1.0, 0)
    assert errors
    assert {type(error).__name__ for error in errors} == {"StorageAway"}
    assert digest(download(artifacts, job_id, tmp_path / "found"), COMPARED) == digest(inline.folder, COMPARED)
    assert files_below(tmp_path / "scratch") == []
    artifacts.close()


def _run(runner: Runner, ledger: Ledger, job_id: str, units: int) -> bool:
    """Run up to so many units, waiting out their pauses; whether one more is through."""
    before = sum(row.state == "done" for row in ledger.units_of(job_id))
    while units:
        if runner.run_one():
            units -= 1
        elif all(row.state == "done" for row in ledger.units_of(job_id)):
            break
    return sum(row.state == "done" for row in ledger.units_of(job_id)) > before


def test_a_shared_folder_serves_two_hosts(inline: InlineResult, ledger: Ledger, tmp_path: Path):
    hosts = [LocalArtifacts(tmp_path / "shared") for _ in range(2)]
    job_id, _ = ledger.create_job(inline.job.spec, job_id=inline.job.job_id)
    with Engine(hue_segmenter()) as engine:
        runners = [Runner(ledger, host, engine, f"host-{i}", (inline.job.spec.model,)) for i, host in enumerate(hosts)]
        units = 0
        while ledger.job(job_id).open:
            assert runners[units % 2].run_one()
            units += 1
    assert digest(hosts[0].job_folder(job_id), COMPARED) == digest(inline.folder, COMPARED)
