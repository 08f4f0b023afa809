"""Attempts are published by rename, by anyone, as often as they like and at once."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import select, update

from tests.jobs import hue_spec
from tests.segmenters import hue_segmenter
from tests.worker.report_jobs import stained_slide
from worker.artifacts import LocalArtifacts
from worker.attempts import FORMAT, attempt_folder, publish, read_record, save
from worker.engine import Engine
from worker.errors import NewerArtifacts
from worker.ledger import Ledger
from worker.ledger_schema import units
from worker.tasks import Runner
from worker.types import TileRecord

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


# ---- records of other versions -----------------------------------------------------------------------------------


def test_a_record_with_more_than_this_version_knows_is_read():
    record = TileRecord("3_4", 1, 10, 20, 256, text="Tumour.", shares={"0_0/1": 2.5}, claims={"size": False})
    line = json.dumps({**asdict(record), "mood": "calm", "depth": [1, 2], "format": FORMAT})
    assert read_record(line, "0_0") == record == read_record(json.dumps(asdict(record)), "0_0")


def test_a_record_that_means_something_else_is_refused_by_its_format():
    with pytest.raises(NewerArtifacts, match=f"block 0_0 are of format 2 .* reads {FORMAT}: a newer worker goes on"):
        read_record(json.dumps({"tile": [3, 4], "format": FORMAT + 1}), "0_0")


def test_a_finish_that_needs_a_newer_worker_is_handed_back_and_does_not_fail(tmp_path: Path):
    spec = hue_spec(stained_slide(tmp_path / "slide.tif"))
    artifacts, ledger = LocalArtifacts(tmp_path / "jobs", durable=False), Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}")
    job_id, _ = ledger.create_job(spec)
    finish = select(units.c.state, units.c.faults).where(units.c.kind == "finish")

    def finish_row():
        with ledger.engine.connect() as connection:
            return connection.execute(finish).first()

    def rewrite(**more: object) -> None:
        for path in artifacts.job_folder(job_id).glob("blocks/*/records.jsonl"):
            lines = [{**json.loads(line), **more} for line in path.read_text(encoding="utf-8").splitlines()]
            path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    with Engine(hue_segmenter()) as engine:
        runner = Runner(ledger, artifacts, engine, "old", (spec.model,))
        while not (row := finish_row()) or row.state != "waiting":
            assert runner.run_one()
        rewrite(format=FORMAT + 1)
        for _ in range(5):  # more often than faults are allowed
            assert runner.run_one() and not runner.run_one(), "it waits a little before it is tried again"
            assert tuple(finish_row()) == ("waiting", 0)
            with ledger.engine.begin() as connection:
                connection.execute(update(units).values(not_before=0.0))
        job = ledger.job(job_id)
        assert job.status == "running" and "a newer worker goes on" in job.message
        rewrite(format=FORMAT, mood="calm")
        assert runner.run_one()
    assert ledger.job(job_id).status == "successful"
    ledger.close()
