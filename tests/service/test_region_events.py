"""Regions in an event stream: as blocks are done, each once, over a gap too, and the final ones in the end."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import shapely

from service.provisional import Position, read_event_id
from tests.jobs import hue_spec
from tests.segmenters import hue_segmenter
from tests.service.live import Event, Live, listening, read_events, settings_of
from worker.artifacts import LocalJob
from worker.engine import Engine
from worker.tasks import Runner

STREAM = "/v1/jobs/{}/events?regions=true"


@dataclass
class Watched:
    """A gateway, a job of several blocks on it, and a worker that does one unit when told."""

    live: Live
    job_id: str
    step: Callable[[], bool]

    def follow(self, each: Callable[[Event], None], last_id: str | None = None, query: str = "?regions=true") -> None:
        """Hand over the events of a stream until it ends, or until `each` raises StopIteration."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        url = f"/v1/jobs/{self.job_id}/events{query}"
        with self.live.client.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200
            try:
                for event in read_events(answer):
                    each(event)
            except StopIteration:
                return

    def whole(self, last_id: str | None = None, query: str = "?regions=true") -> list[Event]:
        """All events of a stream."""
        seen: list[Event] = []
        self.follow(seen.append, last_id, query)
        return seen

    def until(self, wanted: Callable[[list[Event]], bool], last_id: str | None = None) -> list[Event]:
        """The events up to one with which what came is as wanted."""
        seen: list[Event] = []

        def each(event: Event) -> None:
            seen.append(event)
            if wanted(seen):
                raise StopIteration

        self.follow(each, last_id)
        return seen


@pytest.fixture
def watched(slide_folder: Path, tmp_path: Path) -> Iterator[Watched]:
    engine = Engine(hue_segmenter())
    with listening(settings_of(tmp_path / "data", slides=(slide_folder,))) as live:
        runner = Runner(live.rooms.ledger, live.rooms.artifacts, engine, "tests", ["hue"])
        spec = replace(hue_spec(slide_folder / "good.tif", model="hue"), queries=("nuclei", "more nuclei"))
        job_id, _ = live.rooms.ledger.create_job(spec)
        yield Watched(live, job_id, runner.run_one)
    engine.close()


def provisional(events: list[Event]) -> list[Event]:
    return [event for event in events if event.name == "region.provisional"]


def test_regions_come_with_their_blocks_and_the_final_ones_before_the_last_status(watched: Watched) -> None:
    seen: list[Event] = []
    working = threading.Event()

    def work() -> None:
        working.wait(30)
        while watched.step():
            pass

    worker = threading.Thread(target=work)
    worker.start()
    watched.follow(lambda event: (seen.append(event), working.set()))
    worker.join()
    found = provisional(seen)
    blocks = watched.live.rooms.ledger.blocks(watched.job_id)
    assert len(blocks) > 1
    assert Counter(event.data["properties"]["block"] for event in found) == {
        block.key: block.summary["provisional"] for block in blocks if block.summary["provisional"]
    }
    assert len({event.data["id"] for event in found}) == len(found) > 1
    for event in found:
        assert event.data["type"] == "Feature" and shapely.geometry.shape(event.data["geometry"]).is_valid
        properties = event.data["properties"]
        assert properties["provisional"] is True and properties["query"] in (0, 1) and properties["chain"]
        assert properties["area_um2"] > 0 and 0.5 <= properties["confidence"] <= 1
    assert [event.name for event in seen[-2:]] == ["regions.final", "status"]
    regions = watched.live.client.get(f"/v1/jobs/{watched.job_id}/regions").json()["features"]
    final = seen[-2].data
    assert final["regions"] == len(regions) == sum(query["regions"] for query in final["queries"])
    assert [query["text"] for query in final["queries"]] == ["nuclei", "more nuclei"]
    assert f"/v1/jobs/{watched.job_id}/regions" in [link["href"] for link in final["links"]]
    drawn = shapely.union_all([shapely.geometry.shape(event.data["geometry"]) for event in found])
    wanted = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in regions])
    assert drawn.intersection(wanted).area > 0.9 * wanted.area, "they lie where the final ones do"


def test_over_a_gap_none_is_missed_and_none_sent_twice(watched: Watched) -> None:
    for _ in range(3):
        watched.step()
    first = watched.until(lambda seen: len(provisional(seen)) == 2)
    while watched.step():
        pass
    rest = watched.whole(first[-1].id)
    ids = [event.data["id"] for event in provisional(first) + provisional(rest)]
    blocks = watched.live.rooms.ledger.blocks(watched.job_id)
    assert len(set(ids)) == len(ids) == sum(block.summary["provisional"] for block in blocks)
    assert [event.name for event in rest if event.name != "region.provisional"] == ["regions.final", "status"]
    again = watched.live.client.get(STREAM.format(watched.job_id), headers={"Last-Event-ID": rest[-1].id})
    assert again.status_code == 204
    assert [event.name for event in watched.whole(rest[-2].id)] == ["status"], "the final ones were seen"
    assert [event.name for event in watched.whole()] == ["regions.final", "status"]
    plain = watched.whole(query="")
    assert [(event.name, event.id) for event in plain] == [("status", rest[-1].id.split("~")[0])]
    assert [event.name for event in watched.whole(plain[-1].id)] == ["regions.final"]


def test_a_block_that_is_committed_and_not_published_is_shown(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.step()
    store = watched.live.rooms.artifacts.job(watched.job_id)

    def refuse(self: LocalJob, unit: str, token: int) -> None:
        if unit != "plan":
            raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(LocalJob, "publish", refuse)
        while not (done := watched.live.rooms.ledger.done_after(watched.job_id, 0)) or not done[-1].regions:
            assert watched.step()
    seen = watched.until(lambda seen: len(provisional(seen)) == done[-1].regions)
    assert not (store.root / "published" / done[-1].key).exists()
    assert {event.data["properties"]["block"] for event in provisional(seen)} == {done[-1].key}


def test_streams_of_one_job_read_each_block_once(watched: Watched) -> None:
    for _ in range(3):
        watched.step()
    feed, done = watched.live.rooms.provisional, watched.live.rooms.ledger.done_after(watched.job_id, 0)
    count = sum(block.regions for block in done)
    assert count
    for _ in range(3):
        watched.until(lambda seen: len(provisional(seen)) == count)
    blocks = {(watched.job_id, block.key, block.token) for block in done}
    assert set(feed._kept) == blocks


def test_an_id_says_what_was_seen() -> None:
    state = "0f" * 16
    assert read_event_id(state) == (state, None)
    assert read_event_id(f"{state}~12.3") == (state, Position(12, 3))
    assert read_event_id(f"{state}~f") == (state, Position(final=True))
    assert read_event_id("~f") == (None, Position(final=True))
    for nonsense in (None, "", "x", f"{state}~", f"{state}~1", "~-1.2", json.dumps({})):
        assert read_event_id(nonsense) == (None, None)
    assert str(Position(12, 3)) == "12.3" and str(Position(final=True)) == "f"
