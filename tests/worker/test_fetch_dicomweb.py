"""A series from a WADO-RS archive: every instance to a file of ours, or a clear failure."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.slide_servers import SlideServer, series, slide_server
from worker.errors import SlideFetchFailed
from worker.fetch_dicomweb import Parts, fetch_series
from worker.outbound import Outbound
from worker.transfer import Transfer

PATH = "/dicom-web/studies/1.2.3/series/1.2.4"
INSTANCES = [b"\0" * 128 + b"DICM" + bytes([n]) * (n * 70_000 + 10) + b"\r\n--par" for n in range(3)]


@pytest.fixture
def server() -> Iterator[SlideServer]:
    with slide_server() as running:
        yield running


def fetch(server: SlideServer, folder: Path, token: str | None = None) -> list[bytes]:
    transfer = Transfer(10**7, 5.0, folder)
    fetch_series(Outbound(inside=(server.place,)), server.url + PATH, folder, transfer, token)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("boundary", ["part", "a b", "=_Part.77'()+_,-./:=?"])
def test_a_series_comes_instance_by_instance(server: SlideServer, tmp_path: Path, boundary: str) -> None:
    server.content[PATH] = series(INSTANCES, boundary)
    assert fetch(server, tmp_path, "secret") == INSTANCES
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.dcm", "00001.dcm", "00002.dcm"]


def test_no_name_of_the_archive_is_used(server: SlideServer, tmp_path: Path) -> None:
    named = b"Content-Location: ../../evil.dcm\r\nContent-Disposition: attachment; filename=../../evil.dcm\r\n"
    server.content[PATH] = series(INSTANCES[:1], part_head=named)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert fetch(server, tmp_path / "a" / "b") == INSTANCES[:1]
    assert [path.name for path in tmp_path.rglob("*.dcm")] == ["00000.dcm"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (series([]), "series without instances"),
        (series(INSTANCES, tail=b""), "before its last boundary|not well formed"),
        (series(INSTANCES, tail=b"garbage\r\n"), "not well formed"),
        (series(INSTANCES, kind="text/html"), "no DICOM object"),
        (series(INSTANCES, content_type="application/dicom"), "does not answer with DICOM"),
        (series(INSTANCES, content_type='multipart/related; type="image/jpeg"; boundary=part'), "does not answer"),
        (series(INSTANCES, content_type='multipart/related; type="application/dicom"'), "no boundary"),
        (series(INSTANCES, content_type="multipart/related; boundary=other"), "before its last boundary"),
        (series(INSTANCES, part_head=b"X: 1\r\n" * 200), "too many headers"),
        (series(INSTANCES, part_head=b"X: " + b"1" * 2_000_000 + b"\r\n"), "not well formed"),
    ],
)
def test_what_is_no_series_is_refused(server: SlideServer, tmp_path: Path, answer, why: str) -> None:
    server.content[PATH] = answer
    with pytest.raises(SlideFetchFailed, match=why) as caught:
        fetch(server, tmp_path, "secret")
    assert "secret" not in caught.value.message and "1.2.3" not in caught.value.message


def test_an_archive_without_the_series_is_told(server: SlideServer, tmp_path: Path) -> None:
    with pytest.raises(SlideFetchFailed, match="nothing at this address"):
        fetch(server, tmp_path)


@given(
    bodies=st.lists(st.binary(max_size=60).filter(lambda body: b"--mark" not in body), min_size=1),
    size=st.integers(1, 20),
    preamble=st.sampled_from([b"", b"\r\n", b"what is this?\r\n"]),
    padding=st.sampled_from([b"", b" ", b"\t"]),
    tail=st.sampled_from([b"--", b"--\r\n", b"--\r\nepilogue"]),
)
def test_parts_are_found_however_the_bytes_are_cut(
    bodies: list[bytes], size: int, preamble: bytes, padding: bytes, tail: bytes
) -> None:
    parts = [b"--mark" + padding + b"\r\nContent-Type: Application/DICOM; a=b\r\n\r\n" + body for body in bodies]
    whole = preamble + b"\r\n".join([*parts, b"--mark" + tail])
    pieces = iter([whole[start : start + size] for start in range(0, len(whole), size)])
    found = [(kind, b"".join(part)) for kind, part in Parts(pieces, "mark")]
    assert found == [("application/dicom", body) for body in bodies]
