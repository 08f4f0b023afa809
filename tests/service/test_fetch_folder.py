"""What stands in the folder of fetched slides: one owner a slide, whoever asks, and nothing half of it shown."""

import os
import threading
import time
from pathlib import Path

import pytest

from service.fetch_folder import STALE_S, FetchFolder

ID = "0123456789abcdef" * 2


@pytest.fixture
def folder(tmp_path: Path) -> FetchFolder:
    return FetchFolder(tmp_path / "fetched")


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("before", ["nothing", "failed", "stale"])
def test_of_several_gateways_one_becomes_the_owner(folder: FetchFolder, before: str) -> None:
    if before != "nothing":
        assert folder.take(ID, "before")
        folder.write(ID, "before", **({"failed": "why"} if before == "failed" else {}))
    if before == "stale":
        age(folder._note(ID), STALE_S + 1)
    ready, took = threading.Barrier(8), []

    def take(owner: str) -> None:
        ready.wait()
        if folder.take(ID, owner):
            took.append(owner)

    threads = [threading.Thread(target=take, args=(f"gateway{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners = [owner for owner in took if folder.owned(ID, owner)]
    assert len(owners) == 1, "who took it and lost it again is told so at the next beat"
    assert before != "nothing" or took == owners
    assert not folder.take(ID, "late")


def test_only_the_owner_writes(folder: FetchFolder) -> None:
    assert folder.take(ID, "one")
    assert not folder.write(ID, "two", failed="why")
    folder.let_go(ID, "two")
    assert folder.look(ID).state == "fetching"
    assert folder.write(ID, "one", done=10, total=100, began=time.time() - 10)
    fetch = folder.look(ID)
    assert (fetch.bytes_done, fetch.bytes_total, fetch.retry_after_s) == (10, 100, 15)
    folder.let_go(ID, "one")
    assert folder.look(ID).state == "away"


def test_a_slide_shows_all_at_once_and_the_first_one_stays(folder: FetchFolder) -> None:
    for owner in ("one", "two"):
        folder.path.mkdir(exist_ok=True)
        folder.part(ID, owner).mkdir()
        (folder.part(ID, owner) / "slide.svs").write_text(owner)
        assert (folder.slide(ID) is None) == (owner == "one")
        if owner == "one":
            folder.show(ID, owner)
    with pytest.raises(OSError):
        folder.show(ID, "two")
    assert folder.look(ID).path.read_text() == "one"


def test_tidying_takes_what_is_nobodys_only(folder: FetchFolder) -> None:
    folder.take(ID, "alive")
    for owner in ("alive", "lost"):
        folder.part(ID, owner).mkdir()
    failed, old = "f" * 32, "e" * 32
    for slide_id in (failed, old):
        folder.take(slide_id, "x")
        folder.write(slide_id, "x", failed="why")
    age(folder._note(old), 1000)
    folder.tidy(500, set)
    found = {path.name for path in folder.path.iterdir()}
    assert found == {f".{ID}.note", f".{ID}.alive.part", f".{failed}.note"}


def test_an_id_is_the_same_everywhere_in_the_folder_and_different_elsewhere(
    tmp_path: Path, folder: FetchFolder
) -> None:
    found, ready = set(), threading.Barrier(8)

    def make() -> None:
        other = FetchFolder(folder.path)
        ready.wait()
        found.add(other.id_of("s3://bucket/case-4711.svs"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1 and len(found.pop()) == 32
    assert FetchFolder(tmp_path / "other").id_of("s3://bucket/case-4711.svs") != folder.id_of(
        "s3://bucket/case-4711.svs"
    )
    assert [path.name for path in folder.path.iterdir()] == [".key"]
