"""Slides from elsewhere: asked for, fetched once in the background, and then slides like all others."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.client import Client, ProblemError
from service.fetch_folder import STALE_S
from tests.s3_server import S3Server
from tests.service.conftest import OPENED, QUERY, Served, make_settings, serve
from tests.service.live import listening
from tests.slide_servers import SlideServer, cut, endless, series, slide_server, status
from worker.errors import QueueFull

SIGNED = "?X-Amz-Signature=5ecret"


@pytest.fixture
def server(slide_folder: Path) -> Iterator[SlideServer]:
    with slide_server() as running:
        running.content["/case-4711/good.tif"] = (slide_folder / "good.tif").read_bytes()
        yield running


@pytest.fixture
def served(server: SlideServer, slide_folder: Path, tmp_path: Path) -> Iterator[Served]:
    yield from serve(slide_folder, tmp_path / "data", slide_inside_hosts=(server.place,), fetch_stall_s=1.0)


def ask(served: Served, reference: str, **more) -> dict:
    """Have it fetched; the slide document."""
    answer = served.client.post("/v1/slides", json={"reference": reference, **more})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


def ended(served: Served, slide_id: str, within_s: float = 20.0) -> dict:
    """Its document once nothing comes any more."""
    end = time.monotonic() + within_s
    while True:
        answer = served.client.get(f"/v1/slides/{slide_id}")
        assert answer.status_code == 200, answer.text
        if answer.json()["fetch"]["state"] != "fetching":
            return answer.json()
        assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() < end, answer.text
        time.sleep(0.02)


def job(served: Served, slide: str):
    return served.client.post("/v1/jobs", json={"slide": slide, "query": QUERY, "mpp": 1.0})


def left(served: Served) -> list[str]:
    """What lies in the folder of fetched slides, but the key of the ids."""
    folder = served.rooms.catalogue.elsewhere.folder.path
    return sorted(path.name for path in folder.iterdir() if path.name != ".key") if folder.exists() else []


def test_a_slide_behind_https_becomes_a_slide(served: Served, server: SlideServer, slide_folder: Path) -> None:
    whole = (slide_folder / "good.tif").read_bytes()
    server.content["/case-4711/good.tif"] = server.held(whole)
    reference = f"{server.url}/case-4711/good.tif{SIGNED}"
    answer = served.client.post("/v1/slides", json={"reference": reference, "name": "mine"})
    assert answer.status_code == 202
    slide = answer.json()
    assert answer.headers["location"] == f"/v1/slides/{slide['slide_id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (slide["origin"], slide["name"], slide["fetch"]["state"]) == ("reference", "mine", "fetching")
    assert slide["slide_id"] in [one["slide_id"] for one in served.client.get("/v1/slides").json()["slides"]]
    refused = job(served, slide["slide_id"])
    assert (refused.status_code, refused.json()["code"]) == (409, "slide-fetching")
    assert refused.json()["slide_id"] == slide["slide_id"] and int(refused.headers["retry-after"]) >= 1
    assert served.client.get(f"/v1/slides/{slide['slide_id']}/thumbnail.jpeg").status_code == 409
    server.go.set()
    here = ended(served, slide["slide_id"])
    assert here["fetch"] == {"state": "here", "bytes_done": len(whole), "bytes_total": len(whole), "detail": None}
    assert (here["width_px0"], here["format"], here["size_bytes"], here["name"]) == (1200, "tif", len(whole), "mine")
    again = served.client.post("/v1/slides", json={"reference": reference})
    assert (again.status_code, again.json()) == (200, here)
    accepted = job(served, reference)
    assert accepted.status_code == 202 and accepted.json()["slide"] == slide["slide_id"]
    served.run_jobs()
    assert served.client.get(accepted.headers["location"]).json()["status"] == "successful"
    assert served.client.get(f"/v1/slides/{slide['slide_id']}/thumbnail.jpeg").status_code == 200
    assert server.asked["/case-4711/good.tif"] == 1
    assert left(served) == [slide["slide_id"]]


def test_nobody_is_shown_where_it_came_from(
    served: Served, server: SlideServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "slidereason")
    texts = []
    for path in ("good.tif", "missing.tif"):
        slide = ask(served, f"{server.url}/case-4711/{path}{SIGNED}")
        texts += [json.dumps(ended(served, slide["slide_id"])), job(served, slide["slide_id"]).text]
    texts += [served.client.get("/v1/slides").text, caplog.text, *left(served)]
    folder = served.rooms.catalogue.elsewhere.folder.path
    texts += [path.read_text() for path in folder.glob(".*.note")]
    assert not [text for text in texts if "4711" in text or "5ecret" in text]


def test_a_fetch_that_fails_of_itself_is_told_and_logged_without_the_reference(
    served: Served, server: SlideServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_outbound, url: str, *_: object) -> None:
        raise KeyError(url)

    monkeypatch.setattr("service.sources.fetch_file", broken)
    slide = ask(served, f"{server.url}/case-4711/good.tif{SIGNED}")
    assert "has been logged" in ended(served, slide["slide_id"])["fetch"]["detail"]
    assert "KeyError" in caplog.text and "in broken" in caplog.text and "4711" not in caplog.text
    monkeypatch.undo()
    ask(served, f"{server.url}/case-4711/good.tif{SIGNED}")
    assert ended(served, slide["slide_id"])["fetch"]["state"] == "here", "the threads go on"


def test_names_are_shown_where_allowed_without_the_signature(
    server: SlideServer, slide_folder: Path, tmp_path: Path
) -> None:
    hosts = (server.place,)
    for served in serve(slide_folder, tmp_path / "data", slide_inside_hosts=hosts, slide_names=True):
        assert ask(served, f"{server.url}/case-4711/good.tif{SIGNED}")["name"] == "good.tif"


def test_two_asks_at_once_are_one_download(served: Served, server: SlideServer) -> None:
    server.content["/a.tif"] = server.held(server.content["/case-4711/good.tif"])
    found: list[dict] = []
    asks = [threading.Thread(target=lambda: found.append(ask(served, f"{server.url}/a.tif"))) for _ in range(6)]
    for thread in asks:
        thread.start()
    for thread in asks:
        thread.join()
    server.go.set()
    assert len({slide["slide_id"] for slide in found}) == 1
    assert ended(served, found[0]["slide_id"])["fetch"]["state"] == "here"
    assert server.asked["/a.tif"] == 1


def test_gateways_that_share_the_folder_fetch_once(
    served: Served, server: SlideServer, slide_folder: Path, tmp_path: Path
) -> None:
    server.content["/a.tif"] = server.held(server.content["/case-4711/good.tif"])
    first = ask(served, f"{server.url}/a.tif")
    for other in serve(slide_folder, tmp_path / "data", slide_inside_hosts=(server.place,)):
        second = ask(other, f"{server.url}/a.tif")
        assert (second["slide_id"], second["fetch"]["state"]) == (first["slide_id"], "fetching")
        server.go.set()
        assert ended(other, first["slide_id"])["fetch"]["state"] == "here"
    assert ended(served, first["slide_id"])["width_px0"] == 1200
    assert server.asked["/a.tif"] == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "nothing at this address"),
        (status(301, Location="/case-4711/good.tif"), "redirect"),
        (cut(b"x" * 1000), "broke off"),
        (b"this is no slide", "no slide"),
        (b"x" * 400_000, "larger than 300000 bytes"),
        (endless(0.0, b"x" * 10_000), "larger than 300000 bytes"),
        (endless(0.05), "too little came in 1 s"),
    ],
)
def test_what_cannot_be_fetched_is_said_and_not_kept(
    server: SlideServer, slide_folder: Path, tmp_path: Path, content, why: str
) -> None:
    if content is not None:
        server.content["/a.tif"] = content
    more = {"slide_inside_hosts": (server.place,), "max_fetch_bytes": 300_000, "fetch_stall_s": 1.0}
    for served in serve(slide_folder, tmp_path / "data", **more):
        slide = ask(served, f"{server.url}/a.tif")
        fetch = ended(served, slide["slide_id"])["fetch"]
        assert fetch["state"] == "failed" and why in fetch["detail"], fetch
        refused = job(served, slide["slide_id"])
        assert (refused.status_code, refused.json()["code"]) == (422, "slide-fetch-failed")
        assert refused.json()["field"] == "slide" and why in refused.json()["detail"]
        assert served.client.get("/v1/slides").json()["slides"] and not [
            one for one in served.client.get("/v1/slides").json()["slides"] if one["origin"] == "reference"
        ]
        assert left(served) == [f".{slide['slide_id']}.note"], "nothing of it is left"


def test_a_failed_fetch_is_tried_again_when_it_is_asked_for(
    served: Served, server: SlideServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{server.url}/late.tif"
    slide_id = ask(served, reference)["slide_id"]
    assert ended(served, slide_id)["fetch"]["state"] == "failed"
    assert job(served, reference).status_code == 422, "a job is told of the failure"
    assert server.asked["/late.tif"] == 1
    ask(served, reference)
    assert ended(served, slide_id)["fetch"]["state"] == "failed"
    assert server.asked["/late.tif"] == 2, "a POST of the slide tries at once"
    server.content["/late.tif"] = server.content["/case-4711/good.tif"]
    monkeypatch.setattr("service.fetches.FAILED_S", 0.0)
    assert job(served, slide_id).status_code == 409, "and so does a job a while later"
    assert ended(served, slide_id)["fetch"]["state"] == "here"
    assert job(served, slide_id).status_code == 202


def test_a_gateway_that_ends_leaves_nothing_and_the_next_one_starts_anew(
    server: SlideServer, slide_folder: Path, tmp_path: Path
) -> None:
    server.content["/a.tif"] = server.held(server.content["/case-4711/good.tif"])
    more = {"slide_inside_hosts": (server.place,)}
    for served in serve(slide_folder, tmp_path / "data", **more):
        slide_id = ask(served, f"{server.url}/a.tif")["slide_id"]
        wait_for(lambda: server.asked["/a.tif"])
    assert left(served) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")]
    server.go.set()
    for served in serve(slide_folder, tmp_path / "data", **more):
        assert served.client.get(f"/v1/slides/{slide_id}").json()["fetch"]["state"] == "away"
        assert served.client.get(f"/v1/slides/{slide_id}/thumbnail.jpeg").status_code == 404
        assert job(served, slide_id).status_code == 409
        assert ended(served, slide_id)["fetch"]["state"] == "here"
    assert server.asked["/a.tif"] == 2


def test_what_a_killed_gateway_left_is_taken_over(served: Served, server: SlideServer) -> None:
    folder = served.rooms.catalogue.elsewhere.folder
    reference = f"{server.url}/case-4711/good.tif"
    slide_id = folder.id_of(reference)
    assert folder.take(slide_id, "dead")
    part = folder.part(slide_id, "dead")
    part.mkdir()
    (part / "slide.tif").write_bytes(b"half")
    assert ask(served, reference)["fetch"]["state"] == "fetching", "it may only be slow"
    time.sleep(0.2)
    assert not server.asked
    old = time.time() - STALE_S - 1
    os.utime(folder._note(slide_id), (old, old))
    assert served.client.get(f"/v1/slides/{slide_id}").json()["fetch"]["state"] == "away"
    ask(served, reference)
    assert ended(served, slide_id)["fetch"]["state"] == "here"
    assert left(served) == [slide_id]


def test_a_gateway_whose_slide_was_taken_over_lets_go(
    served: Served, server: SlideServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.fetches.BEAT_S", 0.05)
    server.content["/a.tif"] = server.held(server.content["/case-4711/good.tif"])
    slide_id = ask(served, f"{server.url}/a.tif")["slide_id"]
    wait_for(lambda: server.asked["/a.tif"])
    folder = served.rooms.catalogue.elsewhere.folder
    folder._note(slide_id).write_text(json.dumps({"owner": "other"}))
    wait_for(lambda: not list(folder.path.glob(".*.part")))
    assert folder.owned(slide_id, "other"), "and does not say of the other's that it failed"


def test_what_nobody_asked_for_in_long_makes_room(served: Served, server: SlideServer) -> None:
    folder = served.rooms.catalogue.elsewhere.folder.path
    ids = {}
    for name in ("unused", "exemplar", "asked", "working"):
        server.content[f"/{name}.tif"] = server.content["/case-4711/good.tif"]
        ids[name] = ask(served, f"{server.url}/{name}.tif")["slide_id"]
        assert ended(served, ids[name])["fetch"]["state"] == "here"
    outline = {"type": "Polygon", "coordinates": [[[600, 400], [800, 400], [800, 600], [600, 600], [600, 400]]]}
    shown = {"exemplar": {"slide": ids["exemplar"], "mask": outline}}
    body = {"slide": ids["working"], "query": QUERY, "mpp": 1.0, **shown}
    assert served.client.post("/v1/jobs", json=body).status_code == 202
    old = time.time() - 8 * 86400
    for slide_id in ids.values():
        os.utime(folder / slide_id, (old, old))
    assert served.client.get(f"/v1/slides/{ids['asked']}").status_code == 200
    assert served.client.get("/v1/slides").status_code == 200, "a list asks for none"
    new = ask(served, f"{server.url}/case-4711/good.tif")["slide_id"]
    ended(served, new)
    kept = {ids[name] for name in ("exemplar", "asked", "working")} | {new}
    assert set(left(served)) == kept
    assert job(served, ids["unused"]).status_code == 409
    assert ended(served, ids["unused"])["fetch"]["state"] == "here", "it is fetched anew"


def test_a_slide_asked_for_while_it_is_removed_stays(served: Served, server: SlideServer) -> None:
    folder = served.rooms.catalogue.elsewhere.folder
    slide_id = ask(served, f"{server.url}/case-4711/good.tif")["slide_id"]
    ended(served, slide_id)
    old = time.time() - 8 * 86400
    os.utime(folder.path / slide_id, (old, old))

    def in_use() -> set[str]:
        folder.touch(slide_id)  # somebody comes after the look at its time
        return set()

    folder.tidy(7 * 86400, in_use)
    assert folder.look(slide_id).state == "here"


def test_too_many_that_wait_are_refused(served: Served, server: SlideServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.fetches.MOST_WAITING", 3)
    server.content["/a.tif"] = server.held(b"x" * 100)
    for n in range(3):
        server.content[f"/{n}.tif"] = server.content["/a.tif"]
        ask(served, f"{server.url}/{n}.tif")
    answer = served.client.post("/v1/slides", json={"reference": f"{server.url}/more.tif"})
    assert (answer.status_code, answer.json()["code"]) == (429, QueueFull.code)
    assert "retry-after" in answer.headers


def test_an_exemplar_may_lie_elsewhere(served: Served, server: SlideServer) -> None:
    outline = {"type": "Polygon", "coordinates": [[[600, 400], [800, 400], [800, 600], [600, 600], [600, 400]]]}
    shown = {"slide": f"{server.url}/case-4711/good.tif", "mask": outline}
    body = {"slide": "good.tif", "mpp": 1.0, "exemplar": shown}
    answer = served.client.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["field"]) == (409, "exemplar.slide")
    ended(served, answer.json()["slide_id"])
    assert served.client.post("/v1/jobs", json=body).status_code == 202


# A client


def test_the_client_waits_for_a_slide(server: SlideServer, slide_folder: Path, tmp_path: Path) -> None:
    server.content["/a.tif"] = server.held(server.content["/case-4711/good.tif"])
    settings = make_settings(slide_folder, tmp_path / "data", slide_inside_hosts=(server.place,))
    with listening(settings) as live:
        live.rooms.catalogue._known = OPENED
        client = Client(live.url)
        with pytest.raises(ProblemError, match="slide-fetching"):
            Client(live.url, fetch_patience_s=0).ask(f"{server.url}/a.tif", QUERY)
        threading.Timer(0.5, server.go.set).start()
        asked = client.ask(f"{server.url}/a.tif", QUERY, mpp=1.0)
        slide = client.register(f"{server.url}/a.tif")
        assert asked.status["slide"] == slide["slide_id"] and slide["width_px0"] == 1200
        with pytest.raises(ProblemError, match="nothing at this address") as refused:
            client.register(f"{server.url}/missing.tif")
        assert (refused.value.code, refused.value.field) == ("slide-fetch-failed", "slide")
        with pytest.raises(ProblemError, match="nothing at this address"):
            client.ask(f"{server.url}/missing.tif", QUERY)
    assert server.asked["/a.tif"] == 1


# Other places


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Server]:
    with S3Server() as running:
        running.url("archive/x")
        yield running


def test_slides_in_a_bucket(
    bucket: S3Server, slide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore
    from obstore.store import S3Store

    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store("archive", client_options={"allow_http": True})
    obstore.put(store, "open/case 1.tif", (slide_folder / "good.tif").read_bytes())
    obstore.put(store, "closed/case 2.tif", b"secret")
    zarr_of(slide_folder / "good.tif", tmp_path / "a.ome.zarr")
    for path in (tmp_path / "a.ome.zarr").rglob("*"):
        if path.is_file():
            obstore.put(store, f"open/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    for served in serve(slide_folder, tmp_path / "data", slide_places=("s3://archive/open",)):
        slide = ask(served, "s3://archive/open/case 1.tif")
        assert ended(served, slide["slide_id"])["width_px0"] == 1200
        slide = ended(served, ask(served, "s3://archive/open/a.ome.zarr/")["slide_id"])
        assert (slide["format"], slide["width_px0"], slide["fetch"]["state"]) == ("ome-zarr", 1200, "here")
        assert job(served, slide["slide_id"]).status_code == 202
        slide = ended(served, ask(served, "s3://archive/open/nothing.tif")["slide_id"])
        assert "no such object" in slide["fetch"]["detail"]
        for reference in ("s3://archive/closed/case 2.tif", "s3://archive/open/../closed/case 2.tif", "s3://other/x"):
            answer = served.client.post("/v1/slides", json={"reference": reference})
            assert (answer.status_code, answer.json()["field"]) == (422, "slide")


def zarr_of(slide: Path, target: Path) -> None:
    """The slide's pixels as OME-Zarr 0.5."""
    import tifffile
    import zarr

    picture = tifffile.imread(slide, level=0)
    root = zarr.create_group(target)
    axes = [{"name": name, "type": kind} for name, kind in (("c", "channel"), ("y", "space"), ("x", "space"))]
    for axis in axes[1:]:
        axis["unit"] = "micrometer"
    scale = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
    root.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
    }
    array = root.create_array("0", shape=(3, *picture.shape[:2]), dtype="uint8", chunks=(3, 256, 256))
    array[:] = picture.transpose(2, 0, 1)


@pytest.mark.real
def test_a_series_of_an_archive(server: SlideServer, slide_folder: Path, tmp_path: Path, shared_data: Path) -> None:
    files = sorted((shared_data / "slides" / "cmu-1-small-region-dicom").glob("*.dcm"))
    path = "/dicom-web/studies/1.2.3/series/1.2.4"
    server.content[path] = series([file.read_bytes() for file in files])
    more = {"slide_inside_hosts": (server.place,), "dicomweb_url": f"{server.url}/dicom-web", "dicomweb_token": "t0ken"}
    for served in serve(slide_folder, tmp_path / "data", **more):
        slide = ended(served, ask(served, f"dicomweb:{server.url}{path}")["slide_id"])
        assert (slide["format"], slide["width_px0"], slide["fetch"]["state"]) == ("dicom", 2220, "here")
        assert server.headers[0]["Authorization"] == "Bearer t0ken"
        assert job(served, slide["slide_id"]).status_code == 202
        server.content["/other/studies/1.2.3/series/1.2.4"] = server.content[path]
        ended(served, ask(served, f"dicomweb:{server.url}/other/studies/1.2.3/series/1.2.4")["slide_id"])
        assert "Authorization" not in server.headers[1], "the token is for the operator's own archive"


def wait_for(condition: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_nothing_is_made_where_nothing_is_fetched(slide_folder: Path, tmp_path: Path) -> None:
    settings = make_settings(slide_folder, tmp_path / "data")
    app = create_app(settings)
    app.state.rooms.close()
    assert not (settings.data / "fetched").exists()
    shutil.rmtree(settings.data)
