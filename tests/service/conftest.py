"""A service over a real ledger on SQLite, with made slides and a job finished by the real pipeline."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.rooms import Rooms
from service.settings import Settings
from tests.made_slides import tissue_picture, write_pyramid
from tests.segmenters import hue_segmenter
from worker.engine import Engine

QUERY = "Where are the nuclei?"
OPENED: dict = {}  # what children found out about the made slides; opening each once per test run is enough


@dataclass
class Served:
    """A running application: its client, what lies behind it, and the one slide folder."""

    client: TestClient
    rooms: Rooms
    folder: Path

    def run_jobs(self) -> None:
        """Be the worker: run every unit that can be claimed, in this process."""
        from worker.tasks import Runner  # the whole pipeline; most tests do without

        segmenter = hue_segmenter()
        engine = Engine(segmenter)
        try:
            runner = Runner(self.rooms.ledger, self.rooms.artifacts, engine, "tests", ["hue"])
            while runner.run_one():
                pass
        finally:
            engine.close()

    def post(self, **body) -> dict:
        """Create a job on the good slide; its status document."""
        question = {} if "queries" in body else {"query": QUERY}
        answer = self.client.post("/v1/jobs", json={"slide": "good.tif", **question, **body})
        assert answer.status_code == 202, answer.text
        return answer.json()


def make_settings(folder: Path, data: Path, **more) -> Settings:
    """Settings of a service whose broker is away: jobs wait in the ledger."""
    given = {"slides": (folder,), "data": data, "model": "hue", "broker_url": f"redis+socket://{data}/none.sock"}
    return Settings(**{**given, **more})


def serve(folder: Path, data: Path, **more) -> Iterator[Served]:
    """An application, open until the iterator goes on."""
    app = create_app(make_settings(folder, data, **more))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        app.state.rooms.catalogue._known = OPENED
        yield Served(client, app.state.rooms, folder)


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides good and bad."""
    folder = tmp_path_factory.mktemp("roots") / "slides"
    folder.mkdir()
    picture = tissue_picture(1200, 900)
    for centre, radius in (((450, 400), 70), ((700, 500), 90), ((620, 260), 40)):
        cv2.circle(picture, centre, radius, (95, 50, 140), -1)
    cv2.circle(picture, (700, 500), 35, (205, 120, 170), -1)  # a hole
    write_pyramid(folder / "good.tif", picture)
    write_pyramid(folder / "no_mpp.tif", picture, mpp=None)
    (folder / "text.svs").write_text("this is no slide")
    (folder / "empty.svs").write_bytes(b"")
    (folder / "broken.svs").write_bytes((folder / "good.tif").read_bytes()[:1000].replace(b"\x00", b"\xff"))
    return folder


@pytest.fixture
def served(slide_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """An application with an empty ledger."""
    yield from serve(slide_folder, tmp_path / "data")


@pytest.fixture(scope="session")
def finished(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """An application with one finished job; only read from it."""
    for served in serve(slide_folder, tmp_path_factory.mktemp("finished") / "data"):
        job_id = served.post(queries=[QUERY, "Is there a gland?"], mpp=1.0, min_region_um2=50)["jobID"]
        served.run_jobs()
        status = served.client.get(f"/v1/jobs/{job_id}").json()
        assert status["status"] == "successful", status
        yield served, job_id
