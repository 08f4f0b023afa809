"""A slide in a bucket: an object or a folder, whole, or a clear failure that names no key."""

from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from tests.s3_server import S3Server
from worker import fetch_s3
from worker.errors import SlideFetchFailed
from worker.fetch_s3 import fetch_folder, fetch_object
from worker.transfer import Transfer

BUCKET = "slides"
CONTENT = bytes(range(256)) * 100


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with S3Server() as server:
        server.url(f"{BUCKET}/x")
        yield server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setitem(fetch_s3.RETRY, "max_retries", 1)
    monkeypatch.setattr(fetch_s3, "PIECE_BYTES", 10_000)
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    running.fail(False)


@pytest.fixture
def put(server: S3Server) -> Callable[[str, bytes], object]:
    store = S3Store(BUCKET, client_options={"allow_http": True})
    return lambda key, content: obstore.put(store, key, content)


def transfer(folder: Path, limit_bytes: int = 10**7) -> Transfer:
    return Transfer(limit_bytes, 5.0, folder)


@pytest.mark.parametrize("key", ["a/slide.svs", "a/my slide+%20.svs", "a/schön.svs"])
def test_an_object_comes_whole(put: Callable, tmp_path: Path, key: str) -> None:
    put(key, CONTENT)
    counted = transfer(tmp_path)
    fetch_object(BUCKET, key, tmp_path / "slide.svs", counted)
    assert (tmp_path / "slide.svs").read_bytes() == CONTENT
    assert (counted.done, counted.total) == (len(CONTENT), len(CONTENT))


def test_a_folder_comes_whole_and_nothing_beside_it(put: Callable, server: S3Server, tmp_path: Path) -> None:
    files = {f"{i}/c/{i % 7}/.x{i}": b"%d" % i * i for i in range(40)} | {"zarr.json": b"{}", ".zattrs": b""}
    for name, content in files.items():
        put(f"b/slide.zarr/{name}", content)
    put("b/slide.zarr", b"a marker of the folder")
    put("b/slide.zarr/1", b"")
    put("b/slide.zarr-other/x", b"of another")
    fetch_folder(BUCKET, "b/slide.zarr/", tmp_path, transfer(tmp_path))
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == files


def test_too_large_is_seen_before_anything_comes(put: Callable, server: S3Server, tmp_path: Path) -> None:
    for n in range(5):
        put(f"c/{n}", CONTENT)
    server.requests()
    with pytest.raises(SlideFetchFailed, match="larger than 60000 bytes"):
        fetch_folder(BUCKET, "c/", tmp_path, transfer(tmp_path, 60_000))
    with pytest.raises(SlideFetchFailed, match="larger than 10 bytes"):
        fetch_object(BUCKET, "c/0", tmp_path / "x", transfer(tmp_path, 10))
    assert list(tmp_path.iterdir()) == []


def test_too_many_objects_are_refused(put: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_s3, "MOST_OBJECTS", 3)
    for n in range(5):
        put(f"d/{n}", b"x")
    with pytest.raises(SlideFetchFailed, match="more than 3 objects"):
        fetch_folder(BUCKET, "d/", tmp_path, transfer(tmp_path))


def test_what_is_not_there_is_said(server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(SlideFetchFailed, match="no such object"):
        fetch_object(BUCKET, "nothing.svs", tmp_path / "x", transfer(tmp_path))
    with pytest.raises(SlideFetchFailed, match="nothing below this prefix"):
        fetch_folder(BUCKET, "nothing/", tmp_path, transfer(tmp_path))
    with pytest.raises(SlideFetchFailed, match="NoSuchBucket|no such"):
        fetch_folder("nobucket", "nothing/", tmp_path, transfer(tmp_path))


@pytest.mark.parametrize(("status", "why"), [(403, "refuses the operator's key"), (500, "status code: 500")])
def test_a_store_that_fails_names_no_secret(server: S3Server, tmp_path: Path, status: int, why: str) -> None:
    server.fail(True, status)
    with pytest.raises(SlideFetchFailed, match=why) as caught:
        fetch_object(BUCKET, "case-4711/x.svs", tmp_path / "x", transfer(tmp_path))
    assert "4711" not in caught.value.message and "127.0.0.1" not in caught.value.message
    assert "4711" not in str(caught.value.__cause__)


def test_an_object_that_changes_meanwhile_is_not_mixed(put: Callable, tmp_path: Path) -> None:
    put("e.svs", CONTENT)

    class Changing(Transfer):
        def took(self, count: int) -> None:
            super().took(count)
            put("e.svs", CONTENT[::-1])

    with pytest.raises(SlideFetchFailed, match="changed while"):
        fetch_object(BUCKET, "e.svs", tmp_path / "x", Changing(10**7, 5.0, tmp_path))


def test_an_object_with_others_below_its_name_is_refused(put: Callable, tmp_path: Path) -> None:
    put("f/a", b"1")
    put("f/a/b", b"2")
    with pytest.raises(SlideFetchFailed, match="no folder can"):
        fetch_folder(BUCKET, "f/", tmp_path, transfer(tmp_path))


def test_plain_http_that_nobody_allowed_is_not_used(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(SlideFetchFailed, match="endpoint of S3"):
        fetch_object(BUCKET, "x", tmp_path / "x", transfer(tmp_path))
