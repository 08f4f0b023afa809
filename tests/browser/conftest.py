"""A real gateway with a slide, a worker that a test runs step by step, and a browser that looks at it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest

from tests.made_slides import tissue_picture, write_pyramid
from tests.segmenters import hue_segmenter
from tests.service.live import Live, listening, settings_of

QUESTION = "Where are the nuclei?"


@dataclass
class Bench:
    """A gateway and the worker behind it.

    Attributes:
        live: the gateway.
        step: run one unit of work (a plan, a block, a finish, an export); False when nothing waits.
    """

    live: Live
    step: Callable[[], bool]

    def run(self) -> None:
        """Do all the work there is."""
        while self.step():
            pass

    def post(self, **body) -> str:
        """Ask about the slide; the job's id."""
        question = {} if "queries" in body else {"query": QUESTION}
        wanted = {"slide": "file:tissue.tif", "mpp": 1.0, "min_region_um2": 50, **question, **body}
        answer = self.live.client.post("/v1/jobs", json=wanted)
        assert answer.status_code == 202, answer.text
        return answer.json()["jobID"]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium; for a file's tests, as Playwright's event loop runs in this thread as long as it is open."""
    pytest.importorskip("playwright", reason="the browser is driven by playwright, a package of the dev extra")
    from tests.browser.chromium import chromium, find_chromium

    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or name one by SLIDEREASON_TEST_CHROMIUM")
    with chromium(path) as opened:
        yield opened


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide of 1600 x 1200 px at 0.5 µm/px with five purple spots, one of them with a hole."""
    folder = tmp_path_factory.mktemp("browser-slides")
    picture = tissue_picture(1600, 1200)
    for centre, radius in (((600, 500), 70), ((900, 640), 100), ((820, 380), 45), ((1000, 420), 30), ((700, 800), 25)):
        cv2.circle(picture, centre, radius, (95, 50, 140), -1)
    cv2.circle(picture, (900, 640), 40, (205, 120, 170), -1)
    write_pyramid(folder / "tissue.tif", picture)
    return folder


@pytest.fixture(scope="session")
def bench(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A gateway whose worker does nothing until it is told to."""
    from worker.engine import Engine
    from worker.tasks import Runner

    data = tmp_path_factory.mktemp("browser") / "data"
    settings = settings_of(data, slides=(slide_folder,), slide_names=True, worker_heard_s=1e6)
    with ExitStack() as stack:
        live = stack.enter_context(listening(settings))
        engine = Engine(hue_segmenter())
        stack.callback(engine.close)
        runner = Runner(live.rooms.ledger, live.rooms.artifacts, engine, "tests", ["hue"])
        live.rooms.ledger.heartbeat("tests", hue_segmenter().card, ["hue"])
        yield Bench(live, runner.run_one)


@pytest.fixture(scope="session")
def finished(bench: Bench) -> str:
    """A job of two questions that is done."""
    job = bench.post(queries=[QUESTION, "Is there a gland?"])
    bench.run()
    assert bench.live.client.get(f"/v1/jobs/{job}").json()["status"] == "successful"
    return job


@pytest.fixture
def look(browser: object, bench: Bench) -> Iterator[Callable]:
    """Open pages; in the end nothing may have gone wrong on any."""
    from tests.browser.chromium import sight

    with ExitStack() as stack:
        opened = []

        def open_page(**how):
            opened.append(stack.enter_context(sight(browser, bench.live.url, **how)))
            return opened[-1]

        yield open_page
        assert [page.complaints for page in opened if page.complaints] == []
