"""Event streams: state as it changes, nothing lost over a gap, one query for all, and nothing left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from service.board import WATCH_S, Board
from service.errors import MEDIA_TYPE, Problem
from service.events import EventStream, Wanted, events
from service.status import make_notice
from tests.service.live import (
    SPEC,
    Event,
    Live,
    commit_next,
    finish_next,
    listening,
    plan_next,
    read_events,
    settings_of,
)
from worker.errors import JobExpired, JobNotFound
from worker.ledger import EVERYONE, Ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with listening(settings_of(tmp_path / "data", max_event_streams=30)) as gateway:
        yield gateway


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield opened
    opened.close()


def wait_for(condition, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_a_stream_tells_a_job_from_acceptance_to_its_end(live: Live) -> None:
    job_id, _ = live.rooms.ledger.create_job(SPEC)
    seen: list[Event] = []
    steps = iter((plan_next, commit_next, commit_next, finish_next))
    with live.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        for event in read_events(answer):
            seen.append(event)
            step = next(steps, None)
            if step is not None:
                step(live.rooms.ledger)
    assert [event.name for event in seen] == ["status", "status", "progress", "progress", "status"]
    assert [event.data.get("status") for event in seen] == ["accepted", "running", None, None, "successful"]
    assert [event.data["tiles"]["done"] for event in seen] == [0, 0, 4, 8, 8]
    assert len({event.id for event in seen}) == 5
    status = live.client.get(f"/v1/jobs/{job_id}")
    assert seen[-1].data == status.json()
    assert seen[-1].id == status.headers["etag"].strip('"')
    wait_for(lambda: live.rooms.board.streams == 0)


def first(live: Live, job_id: str, last_id: str | None = None) -> Event:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with live.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        return next(read_events(answer))


def test_what_was_missed_is_sent_again_and_what_was_seen_is_not(live: Live) -> None:
    job_id, _ = live.rooms.ledger.create_job(SPEC)
    seen = first(live, job_id)
    plan_next(live.rooms.ledger)
    missed = first(live, job_id, seen.id)
    assert (missed.name, missed.data["status"]) == ("status", "running")
    timer = threading.Timer(2 * WATCH_S, commit_next, [live.rooms.ledger])
    timer.start()
    later = first(live, job_id, missed.id)
    assert (later.name, later.data["tiles"]["done"]) == ("progress", 4), "the state it knew was not sent again"
    timer.join()


def test_a_closed_job_is_told_once_and_then_204(live: Live) -> None:
    job_id, _ = live.rooms.ledger.create_job(SPEC)
    live.rooms.ledger.dismiss(job_id)
    with live.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        (last,) = read_events(answer)
    assert last.data["status"] == "dismissed"
    again = live.client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last.id})
    assert (again.status_code, again.content) == (204, b"")


def test_streams_share_their_queries_and_are_freed(live: Live) -> None:
    ids = [live.rooms.ledger.create_job(SPEC)[0] for _ in range(10)]
    board, ready = live.rooms.board, threading.Barrier(21, timeout=30)

    def follow(job_id: str) -> None:
        with httpx.stream("GET", f"{live.url}/v1/jobs/{job_id}/events", timeout=30) as answer:
            stream = read_events(answer)
            next(stream)
            ready.wait()
            ready.wait()

    threads = [threading.Thread(target=follow, args=(job_id,)) for job_id in ids * 2]
    for thread in threads:
        thread.start()
    ready.wait()
    assert board.streams == 20
    before, began = board.reads, time.monotonic()
    time.sleep(4 * WATCH_S)
    assert 1 <= board.reads - before <= (time.monotonic() - began) / WATCH_S + 1, "one query a period, not one a stream"
    ready.wait()
    for thread in threads:
        thread.join()
    wait_for(lambda: board.streams == 0)
    time.sleep(2 * WATCH_S)
    before = board.reads
    time.sleep(2 * WATCH_S)
    assert board.reads == before, "nobody watches, nobody asks"


def test_more_streams_than_the_limit_are_503_with_retry_after(tmp_path: Path) -> None:
    with listening(settings_of(tmp_path / "data", max_event_streams=1)) as live:
        url = f"/v1/jobs/{live.rooms.ledger.create_job(SPEC)[0]}/events"
        with live.client.stream("GET", url) as answer:
            stream = read_events(answer)
            next(stream)
            full = live.client.get(url)
            assert (full.status_code, full.json()["code"]) == (503, "streams-full")
            assert int(full.headers["retry-after"]) > 0
        wait_for(lambda: live.rooms.board.streams == 0)
        assert first(live, url.split("/")[3]).name == "status"


def test_streams_of_unknown_and_expired_jobs_are_problems(live: Live) -> None:
    job_id, _ = live.rooms.ledger.create_job(SPEC)
    live.rooms.ledger.dismiss(job_id)
    live.rooms.ledger.expire(-1.0)
    for name, status, code in ((job_id, 410, "job-expired"), ("0" * 32, 404, "job-not-found")):
        answer = live.client.get(f"/v1/jobs/{name}/events")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == MEDIA_TYPE


def test_events_of_the_same_state_are_none_and_heartbeats_are_comments(ledger: Ledger) -> None:
    notice = make_notice(ledger.job(ledger.create_job(SPEC)[0]))
    assert list(events(notice, notice)) == []
    sent: list[bytes] = []

    async def follow() -> None:
        board = Board(ledger)
        stream = EventStream(board, notice, Wanted(notice.event_id, heartbeat_s=0.02))
        left = asyncio.Event()

        async def receive() -> dict:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message.get("body", b""))
            if sent.count(b": still here\n\n") == 2:
                left.set()

        await asyncio.wait_for(stream({"type": "http"}, receive, send), 10)
        assert board.streams == 0
        await board.close()

    asyncio.run(follow())
    assert sent[1].startswith(b"retry: ")
    assert not any(b"event:" in part for part in sent)


def test_the_board_shows_what_stands_now_with_few_queries(ledger: Ledger) -> None:
    ids = [ledger.create_job(SPEC)[0] for _ in range(5)]

    async def look() -> int:
        board = Board(ledger)
        notices = await asyncio.gather(*(board.notice(ids[n % 5], EVERYONE) for n in range(100)))
        assert [notice.row.job_id for notice in notices] == [ids[n % 5] for n in range(100)]
        reads = board.reads
        for job_id in ids:
            ledger.dismiss(job_id)
            assert (await board.notice(job_id, EVERYONE)).row.status == "dismissed", "never an older state"
        same = [await board.notice(ids[0], EVERYONE) for _ in range(2)]
        assert same[0].body is same[1].body, "an unchanged document is written once"
        with pytest.raises(JobNotFound):
            await board.notice(ids[0], "somebody-else")
        ledger.expire(-1.0)
        with pytest.raises(JobExpired):
            await board.notice(ids[0], EVERYONE)
        await board.close()
        return reads

    assert asyncio.run(look()) <= 2


def test_one_slow_query_does_not_keep_the_next_ones_apart(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [ledger.create_job(SPEC)[0] for _ in range(2)]
    slow_s, read = [0.0] * 9 + [0.5] + [0.0] * 9, ledger.jobs

    def jobs(wanted: list[str]) -> dict:
        time.sleep(slow_s.pop(0))
        return read(wanted)

    async def look() -> float:
        board = Board(ledger)
        monkeypatch.setattr(ledger, "jobs", jobs)
        monkeypatch.setattr("service.board.KEPT_S", 0.0)
        for _ in range(10):
            await board.notice(ids[0], EVERYONE)
        began = time.monotonic()
        await board.notice(ids[1], EVERYONE)
        took_s = time.monotonic() - began
        assert list(board._notices) == [ids[1]], "what nobody asks for any more is not kept"
        await board.close()
        return took_s

    assert asyncio.run(look()) < 0.5, "it was four times the slow one"


def test_the_board_says_when_the_database_is_away_and_comes_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, _ = ledger.create_job(SPEC)

    def refuse(*_args: object) -> None:
        raise OperationalError("SELECT", {}, ConnectionError("refused"))

    async def look() -> None:
        board = Board(ledger)
        with board.watch(await board.notice(job_id, EVERYONE)) as watch:
            with monkeypatch.context() as patch:
                patch.setattr(ledger, "jobs", refuse)
                outcomes = await asyncio.gather(
                    *(board.notice(job_id, EVERYONE) for _ in range(3)), return_exceptions=True
                )
                await asyncio.sleep(1.5 * WATCH_S)
                assert not watch.changed.is_set(), "a stream stays while the database is away"
            for problem in outcomes:
                assert isinstance(problem, Problem)
                assert (problem.status, problem.code) == (503, "database-away")
                assert "Retry-After" in problem.headers
            ledger.dismiss(job_id)
            await asyncio.wait_for(watch.changed.wait(), 10)
            assert watch.notice.row.status == "dismissed"
        await board.close()

    asyncio.run(look())


def test_a_process_told_to_stop_says_so_and_ends_its_streams(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    given = {"DATA": str(tmp_path / "data"), "BROKER_URL": "memory://", "SHUTDOWN_DELAY_S": "2", "LOG_FORMAT": "json"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIDEREASON_")}
    environment |= {f"SLIDEREASON_{name}": value for name, value in given.items()}
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(lambda: process.poll() is not None or _answers(client), 60)
            ledger = Ledger(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}")
            job_id, _ = ledger.create_job(SPEC)
            ledger.close()
            with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                stream = read_events(answer)
                assert next(stream).name == "status"
                process.send_signal(signal.SIGTERM)
                assert list(stream) == [], "the stream ends, for its client to go on elsewhere"
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["code"]) == (503, "draining")
            assert client.get(f"/v1/jobs/{job_id}").status_code == 200, "it still answers"
            assert client.get(f"/v1/jobs/{job_id}/events").json()["code"] == "draining"
        assert process.wait(30) in (0, -signal.SIGTERM)
        lines = process.stderr.read().splitlines()
        assert all(line.startswith('{"ts"') for line in lines), "the server's own lines too"
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False
