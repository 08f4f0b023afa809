"""The catalogue: folders are listed, references registered, uploads streamed; paths are never told."""

from pathlib import Path

import pytest

from tests.service.conftest import QUERY, Served, serve
from tests.worker.test_ome_zarr_slide import pack, write_picture


def multipart(files: list[tuple[str, bytes]], boundary: str = "b") -> tuple[bytes, dict[str, str]]:
    """A form body by hand, so that broken ones can be made too."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="x.tif"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def uploads(served: Served) -> list[Path]:
    """What lies in the upload folder."""
    folder = served.rooms.catalogue.uploads
    return sorted(folder.rglob("*")) if folder.exists() else []


def test_the_catalogue_lists_what_looks_like_a_slide_and_tells_no_path(served: Served) -> None:
    answer = served.client.get("/v1/slides")
    slides = answer.json()["slides"]
    assert len(slides) == len(list(served.folder.iterdir()))
    assert {slide["format"] for slide in slides} == {"tif", "svs"}
    assert str(served.folder) not in answer.text
    assert "good" not in answer.text, "file names carry case numbers; they are shown only when allowed"
    again = served.client.get("/v1/slides").json()["slides"]
    assert [slide["slide_id"] for slide in again] == [slide["slide_id"] for slide in slides]


def test_the_catalogue_is_paged(served: Served) -> None:
    whole = [slide["slide_id"] for slide in served.client.get("/v1/slides").json()["slides"]]
    found, url = [], "/v1/slides?limit=2"
    while url:
        page = served.client.get(url).json()
        found += [slide["slide_id"] for slide in page["slides"]]
        assert len(page["slides"]) <= 2
        url = next((link["href"] for link in page["links"] if link["rel"] == "next"), None)
    assert found == whole
    assert served.client.get("/v1/slides?cursor=odd").json()["field"] == "cursor"


def test_file_names_are_shown_when_allowed(slide_folder: Path, tmp_path: Path) -> None:
    for served in serve(slide_folder, tmp_path / "data", slide_names=True):
        names = {slide["name"] for slide in served.client.get("/v1/slides").json()["slides"]}
        assert names == {path.name for path in slide_folder.iterdir()}


def test_pictures_are_listed_and_a_zarr_is_not_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "roots"
    (folder / "job.zarr" / "0").mkdir(parents=True)
    (folder / "case").mkdir()
    for name in ("job.zarr/0/tile.png", "photo.webp", "case/photo.bmp", "moving.gif"):
        (folder / name).write_bytes(b"x")
    for served in serve(folder, tmp_path / "data", slide_names=True):
        names = {slide["name"] for slide in served.client.get("/v1/slides").json()["slides"]}
        assert names == {"photo.webp", "photo.bmp"}


def test_an_ome_zarr_is_a_slide_listed_registered_and_uploaded(tmp_path: Path) -> None:
    folder = tmp_path / "roots"
    folder.mkdir()
    for name in ("listed.ome.zarr", "plain"):
        write_picture(folder / name)
    packed = pack(folder / "plain", tmp_path / "upload.ozx").read_bytes()
    (folder / "not.zarr").mkdir()
    for served in serve(folder, tmp_path / "data", slide_names=True):
        listed = served.client.get("/v1/slides").json()["slides"]
        assert [(slide["name"], slide["format"]) for slide in listed] == [("listed.ome.zarr", "ome-zarr")]
        size = sum(path.stat().st_size for path in (folder / "listed.ome.zarr").rglob("*") if path.is_file())
        assert listed[0]["size_bytes"] == size
        given = served.client.post("/v1/slides", json={"reference": "plain"}).json()
        body, headers = multipart([("file", packed)])
        sent = served.client.post("/v1/slides", content=body, headers=headers).json()
        for slide in (given, sent):
            assert (slide["format"], slide["width_px0"], slide["mpp_x"]) == ("ome-zarr", 700, 0.5)
        thumbnail = served.client.get(f"/v1/slides/{sent['slide_id']}/thumbnail.jpeg?size=64")
        assert thumbnail.headers["content-type"] == "image/jpeg"


def test_a_registered_reference_gets_an_id_that_jobs_take(served: Served) -> None:
    body = {"reference": f"file://{served.folder}/good.tif", "name": "Case A"}
    first = served.client.post("/v1/slides", json=body)
    assert first.status_code == 201
    slide = first.json()
    assert first.headers["location"] == f"/v1/slides/{slide['slide_id']}"
    assert (slide["width_px0"], slide["height_px0"], slide["mpp_x"], slide["name"]) == (1200, 900, 0.5, "Case A")
    assert slide["mpp_source"]
    assert len(slide["level_dimensions"]) == 3
    assert str(served.folder) not in first.text
    again = served.client.post("/v1/slides", json={"reference": "good.tif"})
    assert (again.status_code, again.json()["slide_id"]) == (200, slide["slide_id"])
    shown = served.client.get(first.headers["location"]).json()
    assert shown == slide
    job = served.client.post("/v1/jobs", json={"slide": slide["slide_id"], "query": QUERY}).json()
    assert job["slide"] == slide["slide_id"]


def test_a_listed_slide_is_opened_when_looked_at(served: Served) -> None:
    listed = served.client.get("/v1/slides").json()["slides"]
    shown = [served.client.get(f"/v1/slides/{slide['slide_id']}") for slide in listed]
    assert sorted(answer.status_code for answer in shown) == [200, 200, 422, 422, 422]
    assert {answer.json()["width_px0"] for answer in shown if answer.status_code == 200} == {1200}


@pytest.mark.parametrize(
    ("reference", "status"),
    [
        ("text.svs", 422),
        ("missing.svs", 404),
        ("/etc/passwd", 403),
        ("https://x/y.svs", 422),
        ("a%00", 404),
        ("a\0", 422),
    ],
)
def test_what_is_no_slide_is_not_registered(served: Served, reference: str, status: int) -> None:
    answer = served.client.post("/v1/slides", json={"reference": reference})
    assert (answer.status_code, answer.json()["field"]) == (status, "slide")
    assert served.rooms.ledger.slides() == []


def test_unknown_fields_and_broken_json_are_refused(served: Served) -> None:
    answer = served.client.post("/v1/slides", json={"reference": "good.tif", "path": "x"})
    assert (answer.status_code, answer.json()["field"]) == (422, "path")
    answer = served.client.post("/v1/slides", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-json")


def test_a_slide_that_has_gone_is_404(slide_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    copy = folder / "copy.tif"
    copy.write_bytes((slide_folder / "good.tif").read_bytes())
    for served in serve(folder, tmp_path / "data"):
        url = served.client.post("/v1/slides", json={"reference": "copy.tif"}).headers["location"]
        copy.unlink()
        assert served.client.get(url).status_code == 404
        copy.symlink_to(slide_folder / "good.tif")
        assert served.client.get(url).status_code == 404, "replaced by a link out of the folder"
        assert served.client.get("/v1/slides").json()["slides"] == []


def test_an_upload_becomes_a_slide(served: Served, slide_folder: Path) -> None:
    data = (slide_folder / "good.tif").read_bytes()
    form = {"files": {"file": ("../../SECRET name.TIF", data)}, "data": {"name": "mine"}}
    answer = served.client.post("/v1/slides", **form)
    assert answer.status_code == 201, answer.text
    slide = answer.json()
    assert (slide["origin"], slide["format"], slide["size_bytes"]) == ("upload", "tif", len(data))
    assert (slide["width_px0"], slide["name"]) == (1200, "mine")
    kept = [path for path in uploads(served) if path.is_file()]
    assert [path.read_bytes() for path in kept] == [data]
    assert "SECRET" not in str(kept)
    assert served.client.post("/v1/jobs", json={"slide": slide["slide_id"], "query": QUERY}).status_code == 202


@pytest.mark.real
def test_a_dicom_series_is_uploaded_file_by_file(served: Served, shared_data: Path) -> None:
    series = sorted((shared_data / "slides" / "cmu-1-small-region-dicom").glob("*.dcm"))
    assert len(series) > 1
    answer = served.client.post("/v1/slides", files=[("file", (path.name, path.read_bytes())) for path in series])
    assert answer.status_code == 201, answer.text
    assert (answer.json()["format"], answer.json()["width_px0"]) == ("dicom", 2220)
    assert answer.json()["size_bytes"] == sum(path.stat().st_size for path in series)


def test_an_upload_that_is_no_slide_leaves_nothing(served: Served) -> None:
    answer = served.client.post("/v1/slides", files={"file": ("a.svs", b"no slide")})
    assert (answer.status_code, answer.json()["field"]) == (422, "file")
    assert uploads(served) == []
    assert served.rooms.ledger.slides() == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (multipart([]), 422),
        (multipart([("other", b"x")]), 422),
        ((b"garbage", {"Content-Type": "multipart/form-data; boundary=b"}), 400),
        ((b"", {"Content-Type": "multipart/form-data"}), 400),
        ((multipart([("file", b"x" * 100)])[0][:90], {"Content-Type": "multipart/form-data; boundary=b"}), 400),
    ],
)
def test_a_broken_form_is_refused_and_leaves_nothing(served: Served, body: tuple, status: int) -> None:
    content, headers = body
    answer = served.client.post("/v1/slides", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["field"] == "file"
    assert uploads(served) == []


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_beyond_the_limit_is_413(slide_folder: Path, tmp_path: Path, announced: bool) -> None:
    for served in serve(slide_folder, tmp_path / "data", max_upload_bytes=100_000):
        body, headers = multipart([("file", b"x" * 300_000)])
        pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
        answer = served.client.post("/v1/slides", content=body if announced else pieces, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        assert uploads(served) == []
