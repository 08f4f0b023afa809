"""References of slides that lie elsewhere: read as the operator allows, in one spelling, and refused clearly."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.settings import Settings, read_settings
from service.sources import Sources, file_of, is_elsewhere, name_of
from tests.service.conftest import Served
from worker.errors import BadRequest
from worker.outbound import Outbound

ALLOWED = Settings(
    slide_hosts="slides.example.org, *.lab.example, *.arc.example",
    slide_inside_hosts="pacs:8080",
    slide_places="s3://archive/open, s3://whole",
).sources
SERIES = "/dicom-web/studies/1.2.840.1/series/1.2.3"


@pytest.mark.parametrize(
    ("reference", "spelt"),
    [
        ("https://Slides.Example.org/a/b.svs", "https://slides.example.org/a/b.svs"),
        ("HTTPS://slides.example.org:443/a/b.svs?sig=x%2F", "https://slides.example.org/a/b.svs?sig=x%2F"),
        ("https://x.lab.example:8443/b.svs", "https://x.lab.example:8443/b.svs"),
        ("http://pacs:8080/b.svs", "http://pacs:8080/b.svs"),
        ("s3://archive/open/case 1/b.svs", "s3://archive/open/case 1/b.svs"),
        ("s3://whole/b.ome.zarr/", "s3://whole/b.ome.zarr/"),
        ("S3://whole/b.svs", "s3://whole/b.svs"),
        (f"dicomweb:https://a.arc.example{SERIES}/", f"dicomweb:https://a.arc.example{SERIES}"),
        (f"DICOMweb:http://pacs:8080{SERIES}", f"dicomweb:http://pacs:8080{SERIES}"),
    ],
)
def test_what_the_operator_allows_is_read(reference: str, spelt: str) -> None:
    assert is_elsewhere(reference)
    assert ALLOWED.read(reference) == spelt == ALLOWED.read(spelt)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("https://other.example.org/b.svs", "list of hosts"),
        ("https://pacs/b.svs", "list of hosts"),
        ("http://slides.example.org/b.svs", "must be https"),
        ("https://user:s3cr3t@slides.example.org/b.svs", "no user name"),
        ("https://slides.example.org/folder/", "names one file"),
        ("https://slides.example.org", "names one file"),
        ("https://slides.example.org/b.svs#part", "fragment"),
        ("https://slides.example.org/" + "b" * 3000, "characters"),
        ("https:", "https://host"),
        ("s3://archive/closed/b.svs", "below none"),
        ("s3://archive/open", "below none"),
        ("s3://archive/open/", "below none"),
        ("s3://archive/openly/b.svs", "below none"),
        ("s3://archive/open/../closed/b.svs", "s3://bucket/key"),
        ("s3://archive/open//b.svs", "s3://bucket/key"),
        ("s3://archive/open/a\0b.svs", "s3://bucket/key"),
        ("s3://whole/", "s3://bucket/key"),
        ("s3://whole", "s3://bucket/key"),
        ("s3:whole/b.svs", "s3://bucket/key"),
        ("s3://who/le/b.svs", "below none"),
        ("dicomweb:https://other.example.org" + SERIES, "list of hosts"),
        ("dicomweb:file:///etc/passwd", "https"),
        ("dicomweb:https://slides.example.org/dicom-web/studies/1.2", "DICOMweb reference"),
        ("dicomweb:https://slides.example.org/dicom-web/studies/../series/1.2", "DICOMweb reference"),
        ("dicomweb:https://slides.example.org/dicom-web/studies/1..2/series/1.2", "DICOMweb reference"),
        ("dicomweb:https://slides.example.org/dicom-web/../x/studies/1.2/series/1.2", "DICOMweb reference"),
        ("dicomweb:https://slides.example.org/dicom-web/%2e%2e/studies/1.2/series/1.2", "DICOMweb reference"),
        (f"dicomweb:https://slides.example.org{SERIES}?x=1", "DICOMweb reference"),
        (f"dicomweb:https://slides.example.org{SERIES}/instances/1.2", "DICOMweb reference"),
    ],
)
def test_what_is_not_allowed_is_refused_and_says_why(reference: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as caught:
        ALLOWED.read(reference)
    assert caught.value.field == "slide" and "s3cr3t" not in caught.value.message


@pytest.mark.parametrize(
    ("reference", "setting"),
    [
        ("https://slides.example.org/b.svs", "SLIDEREASON_SLIDE_HOSTS"),
        (f"dicomweb:https://slides.example.org{SERIES}", "SLIDEREASON_SLIDE_HOSTS"),
        ("s3://archive/open/b.svs", "SLIDEREASON_SLIDE_PLACES"),
    ],
)
def test_without_settings_nothing_is_fetched_and_the_setting_is_named(
    served: Served, reference: str, setting: str
) -> None:
    for path, body in (("slides", {"reference": reference}), ("jobs", {"slide": reference, "query": "where?"})):
        answer = served.client.post(f"/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, "slide")
        assert setting in answer.json()["detail"]
    assert served.rooms.ledger.slides() == []


@pytest.mark.parametrize(
    "reference", ["a.svs", "file:https://x", "/https:/x", "ftp://host/a.svs", "0" * 32, "s3x://a/b"]
)
def test_what_lies_here_is_not_elsewhere(reference: str) -> None:
    assert not is_elsewhere(reference)


@pytest.mark.parametrize(
    ("reference", "name", "file"),
    [
        ("https://h/a/case%201.OME.TIFF?x=/y.svs", "case 1.OME.TIFF", "slide.tiff"),
        ("https://h/a/download?file=b.svs", "download", "slide.bin"),
        ("https://h/a/b.%2F..%2Fx", "x", "slide.bin"),
        ("s3://b/a%20b.svs", "a%20b.svs", "slide.svs"),
        ("s3://b/case.ome.zarr/", "case.ome.zarr", "slide.zarr"),
        ("s3://b/series/", "series", "series"),
        ("dicomweb:https://h/studies/1.2/series/1.3", "1.3", "series"),
    ],
)
def test_of_its_name_only_the_ending_is_kept(reference: str, name: str, file: str) -> None:
    assert (name_of(reference), file_of(reference)) == (name, file)


@given(st.text(max_size=60))
def test_no_reference_names_a_file_outside_its_folder(text: str) -> None:
    name = file_of(f"https://h/{text}")
    assert Path(name).name == name and name not in ("", ".", "..")


def test_the_token_is_for_the_archives_own_root_only() -> None:
    settings = Settings(dicomweb_url="https://pacs.example/dicom-web/", dicomweb_token="t0ken")
    sources: Sources = settings.sources
    assert "t0ken" not in repr(sources) + repr(settings)
    assert sources._token(f"https://pacs.example{SERIES}") == "t0ken"
    for other in (
        "http://pacs.example/dicom-web/studies/1/series/1", "https://pacs.example:444/dicom-web/studies/1/series/1",
        "https://pacs.example/other/studies/1/series/1", "https://x.pacs.example/dicom-web/studies/1/series/1",
        "https://pacs.example/dicom-web-2/studies/1/series/1",
    ):  # fmt: skip
        assert sources._token(other) is None
    assert Sources(Outbound(hosts=("*",)))._token(f"https://pacs.example{SERIES}") is None


@pytest.mark.parametrize("place", ["archive/open", "s3://", "s3:///x", "https://archive", "s3://a/../b", "s3://a//b"])
def test_a_place_that_is_none_is_refused_at_the_start(place: str) -> None:
    with pytest.raises(ValueError, match="slide_places: give s3://bucket"):
        read_settings(slide_places=(place,))
