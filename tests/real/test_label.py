"""No address leads to the label or the macro image of a slide, whatever is asked for by whatever name.

A DICOM series that holds both is registered and asked about; every route is tried with every name that such an image
might have, and every picture that comes back is held against the two, which pydicom reads by itself.
"""

import base64
import hashlib
import io
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.service.conftest import Served, serve

pytestmark = pytest.mark.real

SERIES = "cmu-1-small-region-dicom"
NAMES = ("label", "LABEL", "macro", "overview", "OVERVIEW", "associated/label", "associated_images/macro")
SIDE_PX = 96
ALIKE = 0.9
"""Correlation from which two pictures count as one; the label and the overview with themselves, as JPEG, have 0.99."""

DATA_URL = re.compile(rb"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")


def small(picture: Image.Image) -> np.ndarray:
    """The picture's brightness as one vector of unit length about its mean; zeros for one colour."""
    pixels = np.asarray(picture.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR), float).ravel()
    pixels -= pixels.mean()
    length = np.linalg.norm(pixels)
    return pixels / length if length > SIDE_PX else np.zeros_like(pixels)


class Forbidden:
    """The pictures that nobody may see."""

    def __init__(self, folder: Path):
        self.names: set[str] = set()
        self.pictures, self.encoded = [], []
        for path in sorted(folder.glob("*.dcm")):
            file = pydicom.dcmread(path)
            if {"LABEL", "OVERVIEW"} & set(file.ImageType):
                frame = next(pydicom.encaps.generate_frames(file.PixelData, number_of_frames=1))
                self.encoded.append(bytes(frame).rstrip(b"\0"))
                self.pictures.append(Image.open(io.BytesIO(frame)).convert("RGB"))
                self.names |= {str(file.SOPInstanceUID), path.name}
        self.vectors = [
            small(picture.rotate(turn, expand=True)) for picture in self.pictures for turn in (0, 90, 180, 270)
        ]
        self.hashes = {hashlib.sha256(picture.tobytes()).hexdigest() for picture in self.pictures}

    def shown_in(self, picture: Image.Image) -> bool:
        """Whether a picture is one of them, at any size, turned or not."""
        if hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest() in self.hashes:
            return True
        return any(float(vector @ small(picture)) > ALIKE for vector in self.vectors)

    def check(self, content: bytes, where: str) -> int:
        """Hold an answer against them; returns how many pictures were in it."""
        assert not any(frame[64:1024] in content for frame in self.encoded), f"{where} holds the file's own bytes"
        inside = [base64.b64decode(found) for found in DATA_URL.findall(content)]
        pictures = [content, *inside] if content.startswith(MAGIC) else inside
        for encoded in pictures:
            with Image.open(io.BytesIO(encoded)) as picture:
                assert picture.size not in {known.size for known in self.pictures}, where
                assert not self.shown_in(picture), where
        return len(pictures)


@pytest.fixture(scope="module")
def forbidden(shared_data: Path) -> Forbidden:
    found = Forbidden(shared_data / "slides" / SERIES)
    assert sorted(picture.size for picture in found.pictures) == [(387, 463), (1280, 431)]
    return found


@pytest.fixture(scope="module")
def done(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    folder = tmp_path_factory.mktemp("label") / "slides"
    shutil.copytree(shared_data / "slides" / SERIES, folder / SERIES)
    for served in serve(folder, tmp_path_factory.mktemp("label") / "data"):
        asked = {"slide": f"file:{SERIES}", "query": "Where are the nuclei?", "mpp": 4.0, "min_region_um2": 50}
        answer = served.client.post("/v1/jobs", json=asked)
        assert answer.status_code == 202, answer.text
        served.run_jobs()
        job = served.client.get(f"/v1/jobs/{answer.json()['jobID']}").json()
        assert job["status"] == "successful", job
        yield served, job["jobID"]


def slide_ids(served: Served, names: set[str]) -> list[str]:
    """The series, and whatever registering its label or overview by their own files gives."""
    references = [f"file:{SERIES}", *(f"file:{SERIES}/{name}" for name in names if name.endswith(".dcm"))]
    ids = set()
    for reference in references:
        answer = served.client.post("/v1/slides", json={"reference": reference})
        if answer.status_code == 201:
            ids.add(answer.json()["slide_id"])
    return sorted(ids | {entry["slide_id"] for entry in served.client.get("/v1/slides").json()["slides"]})


def test_the_check_knows_them(forbidden: Forbidden) -> None:
    for picture in forbidden.pictures:
        again = io.BytesIO()
        picture.resize((picture.width // 2, picture.height // 2)).save(again, "JPEG", quality=60)
        with pytest.raises(AssertionError):
            forbidden.check(again.getvalue(), "a copy")
    for frame in forbidden.encoded:
        with pytest.raises(AssertionError):
            forbidden.check(b"..." + frame, "the file")


def test_no_route_of_a_slide_shows_them(done: tuple[Served, str], forbidden: Forbidden) -> None:
    served, _ = done
    ids = slide_ids(served, forbidden.names)
    assert ids
    pictures = 0
    for slide_id in ids:
        base = f"/v1/slides/{slide_id}"
        urls = [base, f"{base}/dzi.dzi", *(f"{base}/thumbnail.jpeg?size={size}" for size in (64, 387, 463, 1280, 2048))]
        for level in range(14):
            for col, row in product(range(3), range(3)):
                urls.append(f"{base}/dzi_files/{level}/{col}_{row}.jpeg")
        for name in (*NAMES, *forbidden.names):
            urls += [
                f"{base}/{name}",
                f"{base}/{name}.jpeg",
                f"{base}/{name}/dzi.dzi",
                f"{base}/dzi_files/{name}/0_0.jpeg",
            ]
            urls += [f"{base}/{end}?{key}={name}" for end in ("thumbnail.jpeg", "dzi_files/8/0_0.jpeg") for key in KEYS]
            urls.append(f"/v1/slides/{name}/thumbnail.jpeg")
        for url in urls:
            answer = served.client.get(url)
            assert answer.status_code < 500, url
            pictures += forbidden.check(answer.content, url)
    assert pictures > 20


KEYS = ("image", "associated", "associated_image", "name", "series", "uid", "level")


def test_no_route_of_a_job_shows_them(done: tuple[Served, str], forbidden: Forbidden) -> None:
    served, job_id = done
    link = served.client.post(f"/v1/jobs/{job_id}/links", json={}).json()["url"]
    names = [export["name"] for export in served.client.get(f"/v1/jobs/{job_id}/exports").json()["exports"]]
    for name in names:
        served.client.get(f"/v1/jobs/{job_id}/exports/{name}")
    served.run_jobs()
    results = ["overlay.zip", "regions", "regions.geojson.gz", "tiles.dzi", "coverage", "exports", "report", "events"]
    results += [f"exports/{name}" for name in names] + [f"tiles_files/{level}/0_0.png" for level in range(13)]
    for name in (*NAMES, *forbidden.names):
        results += [f"overlay/{name}", f"overlay/{name}/0/c/0/0/0", f"exports/{name}", f"regions/{name}", name]
    pictures = 0
    for base, result in product((f"/v1/jobs/{job_id}", link), results):
        for accept in ("application/json", "text/html") if result == "report" else ("*/*",):
            answer = served.client.get(f"{base}/{result}", headers={"Accept": accept})
            assert answer.status_code in (200, 404, 406, 422), (base, result, answer.text[:200])
            pictures += forbidden.check(answer.content, result)
    assert pictures > 10


def test_every_address_of_the_description_is_tried(done: tuple[Served, str], forbidden: Forbidden) -> None:
    served, job_id = done
    link = served.client.post(f"/v1/jobs/{job_id}/links", json={}).json()["url"]
    ids = slide_ids(served, forbidden.names)
    given = {"job_id": [job_id], "slide_id": ids, "level": ["0", "9", "label"], "col": ["0"], "row": ["0"]}
    given |= {"token": [link.rpartition("/")[2]]}
    asked = 0
    for path, item in served.client.get("/openapi.json").json()["paths"].items():
        if "get" not in item or path in ("/metrics", "/readyz"):
            continue
        parts = re.findall(r"\{(\w+)\}", path)
        for values in product(*(given.get(part, [*NAMES, *sorted(forbidden.names)]) for part in parts)):
            url = path
            for part, value in zip(parts, values, strict=True):
                url = url.replace(f"{{{part}}}", value)
            answer = served.client.get(url)
            assert answer.status_code < 500, url
            forbidden.check(answer.content, url)
            asked += 1
    assert asked > 60
