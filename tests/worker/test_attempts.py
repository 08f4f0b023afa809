"""Attempts are published by rename, by anyone, as often as they like and at once."""

import threading
from pathlib import Path

import pytest

from worker.attempts import attempt_folder, publish, save

FILES = {f"overlay.zarr/probability/{i // 25}/0/c/{i // 5 % 5}/{i % 5}": f"shard {i}" for i in range(75)}


def attempt(root: Path, token: int) -> Path:
    folder = attempt_folder(root, "0_0", token)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def published(root: Path) -> dict[str, str]:
    found = (root / "overlay.zarr").rglob("*")
    return {str(path.relative_to(root)): path.read_text() for path in found if path.is_file()}


def test_many_publishers_at_once_are_one(tmp_path: Path):
    errors = []
    for round_ in range(10):
        root = tmp_path / str(round_)
        attempt(root, 1)
        start = threading.Barrier(6)

        def run(root: Path = root, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                publish(root, "0_0", 1)
                if published(root) != FILES:
                    errors.append("a publisher returned before everything was in place")
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_publisher_that_died_half_way_is_completed(tmp_path: Path):
    folder = attempt(tmp_path, 2)
    for name in list(FILES)[::2]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(tmp_path / name)
    publish(tmp_path, "0_0", 2)
    publish(tmp_path, "0_0", 2)
    assert published(tmp_path) == FILES
    assert not folder.exists()


def test_an_attempt_nobody_made_is_an_error(tmp_path: Path):
    attempt(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        publish(tmp_path, "0_0", 2)


@pytest.mark.parametrize("durable", [True, False])
def test_an_older_token_changes_nothing_once_a_newer_one_is_published(tmp_path: Path, durable: bool):
    late = attempt(tmp_path, 3)
    (late / next(iter(FILES))).write_text("late")
    attempt(tmp_path, 4)
    save(tmp_path, "0_0", 4)
    publish(tmp_path, "0_0", 4, durable)
    publish(tmp_path, "0_0", 3, durable)
    assert published(tmp_path) == FILES
    assert not late.exists()
    assert (tmp_path / "published" / "0_0").read_text() == "4\n"


def test_a_mark_that_a_power_cut_left_empty_is_no_mark(tmp_path: Path):
    attempt(tmp_path, 1)
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "0_0").touch()
    publish(tmp_path, "0_0", 1)
    assert published(tmp_path) == FILES


def test_saving_reaches_every_file_and_every_folder_that_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempt(tmp_path / "jobs" / "one", 1)
    synced = set()
    monkeypatch.setattr(
        "worker.attempts.os.fsync", lambda handle: synced.add(Path(f"/proc/self/fd/{handle}").resolve())
    )
    save(tmp_path / "jobs" / "one", "0_0", 1)
    below = {path for path in (tmp_path / "jobs").rglob("*")}
    assert synced == below | {tmp_path / "jobs"}
