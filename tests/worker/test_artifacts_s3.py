"""Artifacts in a bucket: saved, published once however many try, fetched, removed; and a storage that is away."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3Server
from worker import artifacts_s3
from worker.artifacts import open_artifacts
from worker.artifacts_s3 import S3Artifacts
from worker.errors import BadRequest, JobNotFound, StorageAway

JOB_ID = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
FILES = {f"overlay.zarr/probability/{i // 8}/0/c/{i // 4 % 2}/{i % 4}": f"shard {i}".encode() for i in range(24)}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


@pytest.fixture
def url(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty prefix; what the client retries for is short."""
    monkeypatch.setitem(artifacts_s3.RETRY, "max_retries", 1)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server.url(f"results/{abs(hash(request.node.name))}")
    server.fail(False)


@pytest.fixture
def artifacts(url: str, tmp_path: Path) -> Iterator[S3Artifacts]:
    opened = open_artifacts(url, tmp_path / "scratch")
    yield opened
    opened.close()


def save(artifacts: S3Artifacts, unit: str, token: int, files: dict[str, bytes] = FILES) -> None:
    """Be the owner of a unit up to its commit."""
    with artifacts.job(JOB_ID) as store:
        folder = store.attempt(unit, token)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        store.save(unit, token)


def stored(artifacts: S3Artifacts, prefix: str = "") -> dict[str, bytes]:
    reader = artifacts.read(JOB_ID)
    return {key: b"".join(reader.chunks(key)) for key, _, _ in reader.list(prefix)}


def local_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_unit_is_saved_published_and_fetched_on_another_host(artifacts: S3Artifacts, url: str, tmp_path: Path):
    save(artifacts, "0_0", 3)
    assert stored(artifacts, "overlay.zarr") == {}, "saved is not published"
    artifacts.job(JOB_ID).publish("0_0", 3)
    artifacts.job(JOB_ID).publish("0_0", 3)
    assert stored(artifacts) == {**FILES, "published/0_0": b"3\n"}
    assert local_files(tmp_path / "scratch") == []
    elsewhere = open_artifacts(url, tmp_path / "elsewhere")
    with elsewhere.job(JOB_ID) as store:
        store.fetch("overlay.zarr/probability/1/", next(iter(FILES)))
        found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
        assert found == {name for name in FILES if "probability/1/" in name} | {next(iter(FILES))}
        store.fetch("")
        assert {name: (store.root / name).read_bytes() for name in FILES} == FILES
        assert not (store.root / "published").exists()
    elsewhere.close()


def test_what_is_there_is_not_fetched_again(artifacts: S3Artifacts, server: S3Server):
    save(artifacts, "0_0", 1)
    artifacts.job(JOB_ID).publish("0_0", 1)
    name = next(iter(FILES))
    with artifacts.job(JOB_ID) as store, artifacts.job(JOB_ID) as other:
        store.fetch(name, "overlay.zarr/")
        server.requests()
        other.fetch(name)
        assert server.requests() == {}
        other.fetch("")
        assert server.requests() == {"GET": 1}, "one listing"
        artifacts.put(f"jobs/{JOB_ID}/{name}", b"replaced")
        other.fetch("")
        assert (store.root / name).read_bytes() == b"replaced"


def test_many_publishers_on_many_hosts_are_one(artifacts: S3Artifacts, url: str, tmp_path: Path):
    hosts = [open_artifacts(url, tmp_path / str(i)) for i in range(3)]
    errors = []
    for token in (1, 2):
        save(artifacts, "0_0", token)
        start = threading.Barrier(len(hosts) * 2)

        def run(host: S3Artifacts, token: int = token, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                host.job(JOB_ID).publish_all({"0_0": token})
                if stored(host, "overlay.zarr") != FILES:
                    errors.append("a publisher returned before everything was in place")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(host,)) for host in hosts * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for host in hosts:
        host.close()
    assert errors == []
    assert stored(artifacts, "published") == {"published/0_0": b"2\n"}


def test_a_publisher_that_died_half_way_is_completed(artifacts: S3Artifacts, monkeypatch: pytest.MonkeyPatch):
    save(artifacts, "0_0", 2)
    copy, copied = artifacts.copy, []

    def dies(source: str, target: str) -> None:
        if len(copied) == 7:
            raise StorageAway("dead")
        copied.append(source)
        copy(source, target)

    monkeypatch.setattr(artifacts, "copy", dies)
    with pytest.raises(StorageAway):
        artifacts.job(JOB_ID).publish("0_0", 2)
    monkeypatch.undo()
    artifacts.job(JOB_ID).publish("0_0", 2)
    assert stored(artifacts) == {**FILES, "published/0_0": b"2\n"}


def test_a_late_owner_of_an_older_token_changes_nothing(artifacts: S3Artifacts):
    save(artifacts, "0_0", 4)
    artifacts.job(JOB_ID).publish("0_0", 4)
    save(artifacts, "0_0", 3, {next(iter(FILES)): b"late"})
    artifacts.job(JOB_ID).publish("0_0", 3)
    assert stored(artifacts, "overlay.zarr") == FILES
    artifacts.clear_attempts(JOB_ID)
    assert stored(artifacts, "attempts") == {}


def test_a_stopped_publisher_of_the_plan_cannot_undo_the_finish(artifacts: S3Artifacts, url: str, tmp_path: Path):
    """He listed the attempt and goes on when all is over; and whoever published the plan died before clearing up."""
    metadata = "overlay.zarr/labels/0/zarr.json"
    save(artifacts, "plan", 1, {metadata: b"of the plan"})
    stopped, goes_on = open_artifacts(url, tmp_path / "stopped"), threading.Event()
    listed, copy = threading.Event(), stopped.copy

    def waits(source: str, target: str) -> None:
        listed.set()
        goes_on.wait(30)
        copy(source, target)

    stopped.copy = waits
    thread = threading.Thread(target=lambda: stopped.job(JOB_ID).publish("plan", 1))
    thread.start()
    assert listed.wait(30)
    dies = open_artifacts(url, tmp_path / "dies")
    dies.delete = lambda keys: None
    dies.job(JOB_ID).publish("plan", 1)
    assert len(stored(artifacts, "attempts")) == 1
    save(artifacts, "finish", 1, {metadata: b"of the finish"})
    artifacts.job(JOB_ID).publish("finish", 1)
    goes_on.set()
    thread.join()
    assert stored(artifacts, metadata.rpartition("/")[0]) == {metadata: b"of the finish"}
    for host in (stopped, dies):
        host.close()


def test_an_attempt_nobody_made_is_an_error(artifacts: S3Artifacts):
    save(artifacts, "0_0", 1)
    with pytest.raises(FileNotFoundError, match=f"0_0 of job {JOB_ID}: attempt 2 left nothing"):
        artifacts.job(JOB_ID).publish("0_0", 2)
    with artifacts.job(JOB_ID) as store, pytest.raises(FileNotFoundError):
        store.fetch("no/such/file")
    with pytest.raises(RuntimeError, match="only within"):
        artifacts.job(JOB_ID).root  # noqa: B018


def test_a_job_is_removed_and_its_neighbour_is_not(artifacts: S3Artifacts):
    many = {f"overlay.zarr/{i}": b"" for i in range(1100)}
    for key in many:
        artifacts.put(f"jobs/{JOB_ID}/{key}", b"")
    artifacts.put(f"jobs/{OTHER}/report.json", b"{}")
    assert len(list(artifacts.read(JOB_ID).list())) == len(many), "more than one page"
    artifacts.remove(JOB_ID)
    artifacts.remove(JOB_ID)
    assert stored(artifacts) == {}
    assert artifacts.read(OTHER).stat("report.json").size == 2
    for ask in (artifacts.job, artifacts.read, artifacts.remove, artifacts.clear_attempts):
        with pytest.raises(JobNotFound):
            ask("../" + JOB_ID)


def test_a_reader_sees_keys_of_its_job_and_nothing_else(artifacts: S3Artifacts):
    content = os.urandom(3_000_000)
    artifacts.put(f"jobs/{JOB_ID}/overlay.zarr/größe/0 %20", content)
    artifacts.put(f"jobs/{OTHER}/secret", b"secret")
    reader = artifacts.read(JOB_ID)
    key = "overlay.zarr/größe/0 %20"
    known = reader.stat(key)
    assert (known.size, known.path) == (len(content), None)
    assert abs(known.modified.timestamp() - time.time()) < 60
    assert list(reader.list("overlay.zarr")) == [(key, len(content), known.etag)]
    assert b"".join(reader.chunks(key)) == content
    assert max(map(len, reader.chunks(key))) < 2_100_000
    assert b"".join(reader.chunks(key, 5, 9)) == content[5:9]
    assert b"".join(reader.chunks(key, 2_999_999, 9_999_999)) == content[-1:]
    assert b"".join(reader.chunks(key, 2_000_000)) == content[2_000_000:]
    assert list(reader.chunks(key, 7, 7)) == []
    for nothing in ("", "overlay.zarr", "overlay.zarr/", f"../{OTHER}/secret", "a\\b", "a\0", "a" * 1000, "none"):
        assert reader.stat(nothing) is None, nothing
        with pytest.raises(FileNotFoundError):
            list(reader.chunks(nothing))


def test_a_storage_that_is_away_says_so_soon_and_comes_back(artifacts: S3Artifacts, server: S3Server):
    save(artifacts, "0_0", 1)
    server.fail()
    began = time.monotonic()
    with artifacts.job(JOB_ID) as store:
        (store.attempt("0_1", 1) / "file").write_text("x")
        asks = [
            lambda: store.save("0_1", 1), lambda: store.publish("0_0", 1), lambda: store.fetch(""),
            lambda: artifacts.read(JOB_ID).stat("a"), lambda: next(artifacts.read(JOB_ID).chunks("a")),
            lambda: list(artifacts.read(JOB_ID).list()), lambda: artifacts.remove(JOB_ID), artifacts.check,
        ]  # fmt: skip
        for ask in asks:
            with pytest.raises(StorageAway, match="results/") as away:
                ask()
            assert isinstance(away.value, OSError)
            assert "\n" not in str(away.value)
        assert time.monotonic() - began < 20
        server.fail(False)
        store.publish("0_0", 1)
        artifacts.check()
    assert stored(artifacts, "overlay.zarr") == FILES


def test_with_the_usual_retries_a_second_of_faults_is_got_over(url: str, server: S3Server, monkeypatch):
    monkeypatch.setitem(artifacts_s3.RETRY, "max_retries", 4)
    artifacts = open_artifacts(url)
    server.fail()
    threading.Timer(0.3, server.fail, (False,)).start()
    artifacts.put("key", b"content")
    assert b"".join(artifacts.content("key")) == b"content"
    began = time.monotonic()
    server.fail()
    with pytest.raises(StorageAway):
        artifacts.put("key", b"content")
    assert time.monotonic() - began < 10
    artifacts.close()


def test_a_check_says_what_is_missing(artifacts: S3Artifacts, server: S3Server, monkeypatch: pytest.MonkeyPatch):
    artifacts.check()
    assert list(artifacts.listed("")) == []
    with pytest.raises(StorageAway, match="no bucket unmade at http://127.0.0.1:.*; make it"):
        open_artifacts("s3://unmade/prefix").check()
    server.fail(True, 403)
    with pytest.raises(StorageAway, match="refuses the key; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        artifacts.check()
    server.fail(False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(StorageAway, match="http://127.0.0.1:9 does not answer as it should; check AWS_ENDPOINT_URL"):
        open_artifacts(artifacts.url).check()
    assert time.monotonic() - began < 5
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(BadRequest, match="AWS_ALLOW_HTTP=true") as refused:
        open_artifacts(artifacts.url)
    assert refused.value.field == "AWS_ALLOW_HTTP"


FULL = """
import resource, signal, sys
from pathlib import Path
from worker.artifacts import open_artifacts
from worker.errors import StorageAway
artifacts = open_artifacts(sys.argv[1], sys.argv[2])
with artifacts.job(sys.argv[3]) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        store.fetch("")
    except OSError as error:
        left = [path for path in store.root.rglob("*") if path.is_file()]
        print(type(error) is OSError, isinstance(error, StorageAway), left)
artifacts.close()
"""


def test_a_full_scratch_disk_is_an_error_of_the_system_and_leaves_nothing(artifacts: S3Artifacts, tmp_path: Path):
    artifacts.put(f"jobs/{JOB_ID}/overlay.zarr/0", b"x" * 100_000)
    command = [sys.executable, "-c", FULL, artifacts.url, str(tmp_path / "full"), JOB_ID]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("True False []\n", 0), done.stderr
