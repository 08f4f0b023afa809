"""`slidereason serve` as a user starts it: a job on a slide over HTTP, everything downloaded, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import zarr

ROOT = Path(__file__).resolve().parents[2]
QUERY = "Where are the nuclei?"
MODEL = "tests.segmenters:hue_segmenter"


class Service:
    """A served process: its address and the processes of its session."""

    def __init__(self, process: subprocess.Popen, url: str):
        self.process = process
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=120)

    def family(self) -> set[int]:
        """Every living process that descends from the service."""
        return {self.process.pid} | descendants(self.process.pid)

    def ready(self) -> None:
        """Wait until a worker has been heard from."""
        wait_for(lambda: self.client.get("/readyz").status_code == 200, self.process)

    def wait(self, job_id: str) -> dict:
        """Poll as Retry-After says."""
        while True:
            answer = self.client.get(f"/v1/jobs/{job_id}")
            if answer.json()["status"] not in ("accepted", "running"):
                return answer.json()
            time.sleep(min(float(answer.headers["retry-after"]), 2.0))


def wait_for(condition, process: subprocess.Popen, timeout_s: float = 180) -> None:
    """Poll a condition while the process lives."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"the service ended with {process.returncode}"
        assert time.monotonic() < end, "the service did not get there"
        time.sleep(0.1)


def descendants(pid: int) -> set[int]:
    """Process ids below `pid`, from /proc."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(folder.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def serving(slides: Path, data: Path, *more: str, **settings: str) -> Iterator[Service]:
    """Start the command on a free port; `settings` are its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIDEREASON_")}
    environment |= {f"SLIDEREASON_{name.upper()}": value for name, value in settings.items()}
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "serve",
        "--port",
        "0",
        "--slides",
        str(slides),
        "--data",
        str(data),
    ]
    process = subprocess.Popen(
        [*command, "--model", MODEL, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    service = None
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line
        service = Service(process, line.split()[2].removesuffix("/"))
        yield service
    finally:
        family = service.family() if service else {process.pid}
        process.kill() if process.poll() is None else None
        process.wait()
        process.stdout.close()
        for pid in family:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.real
def test_the_main_job_over_rest_on_a_real_slide(shared_data: Path, tmp_path: Path) -> None:
    slides = shared_data / "slides"
    with serving(slides, tmp_path / "data") as service:
        service.ready()
        assert service.client.get("/v1/models").json()["models"][0]["name"] == "hue"
        refuse_bad_slides(service)
        body = {"slide": "file:CMU-1-Small-Region.svs", "query": QUERY, "mpp": 2.0, "min_region_um2": 2000}
        posted = service.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "e2e"})
        assert posted.status_code == 202, posted.text
        job_id = posted.json()["jobID"]
        assert service.wait(job_id)["status"] == "successful"
        again = service.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "e2e"})
        assert again.json()["jobID"] == job_id
        check_results(service, job_id, tmp_path)
        run_example(service, tmp_path)
        family = service.family()
        assert len(family) >= 3, "service, worker and broker"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        assert [pid for pid in family if alive(pid)] == []


def refuse_bad_slides(service: Service) -> None:
    """What cannot be used is refused with a clear error, and nothing is stored."""
    expected = {
        "tcga-cr-7395-01a-01-ts1.svs": (422, "mpp-unknown", "mpp_override"),
        "broken.svs": (422, "slide-unreadable", "slide"),
        "missing.svs": (404, "slide-not-found", "slide"),
        "../README.md": (403, "slide-forbidden", "slide"),
        "/etc/passwd": (403, "slide-forbidden", "slide"),
    }
    for slide, wanted in expected.items():
        answer = service.client.post("/v1/jobs", json={"slide": slide, "query": QUERY})
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["field"]) == wanted, slide
    assert service.client.get("/v1/jobs").json()["jobs"] == []


def check_results(service: Service, job_id: str, folder: Path) -> None:
    """Overlay by URL and as zip, regions and report agree with each other."""
    here = f"/v1/jobs/{job_id}"
    group = zarr.open_group(f"{service.url}{here}/overlay/", mode="r")
    label = group["labels"].attrs["ome"]["labels"][0]
    level0 = group[f"labels/{label}/0"][:]
    features = service.client.get(f"{here}/regions").json()["features"]
    report = service.client.get(f"{here}/report", headers={"Accept": "application/json"}).json()
    assert len(features) == level0.max() == len(report["regions"]) > 0
    named = {entry["region_id"] for entry in group[f"labels/{label}"].attrs["ome"]["image-label"]["properties"]}
    assert named == {feature["id"] for feature in features}
    page = service.client.get(f"{here}/report", headers={"Accept": "text/html"}).text
    assert "Research use only" in page
    path = folder / "overlay.zip"
    with service.client.stream("GET", f"{here}/overlay.zip") as answer, path.open("wb") as file:
        for piece in answer.iter_bytes():
            file.write(piece)
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
    zipped = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert (zipped[f"labels/{label}/0"][:] == level0).all()


def run_example(service: Service, folder: Path) -> None:
    """The example of the documentation works against this service."""
    out = folder / "answer"
    arguments = [service.url, "CMU-1-Small-Region.svs", QUERY, "--mpp", "4", "--out", str(out), "--key", "example"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "ask_service.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert QUERY in done.stdout
    assert json.loads((out / "regions.geojson").read_text())["type"] == "FeatureCollection"
    assert zipfile.is_zipfile(out / "overlay.zip")
    assert json.loads((out / "report.json").read_text())["answer"] in done.stdout
    wrong = subprocess.run(
        [sys.executable, ROOT / "examples" / "ask_service.py", service.url, "missing.svs", QUERY],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "slide-not-found (slide)" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_service(pyramid_slide: Path, tmp_path: Path, number: signal.Signals) -> None:
    with serving(pyramid_slide.parent, tmp_path / "data") as service:
        service.ready()
        job_id = service.client.post("/v1/jobs", json={"slide": pyramid_slide.name, "query": QUERY}).json()["jobID"]
        assert service.client.get(f"/v1/jobs/{job_id}/report").json()["code"] == "job-not-finished"
        family = service.family()
        assert len(family) >= 3
        service.process.send_signal(number)
        service.process.wait(60)
        end = time.monotonic() + 60  # after SIGKILL the kernel tells the children; they stop by themselves
        while any(map(alive, family)):
            assert time.monotonic() < end, [pid for pid in family if alive(pid)]
            time.sleep(0.1)
