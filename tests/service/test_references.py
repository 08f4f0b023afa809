"""References resolve under the roots, or nowhere."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.references import resolve_reference
from worker.errors import BadRequest, SlideForbidden, SlideNotFound, SlideReasonError, SlideUnreadable


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """roots/slides is allowed; roots/slides-secret and roots/outside.svs are not."""
    base = tmp_path_factory.mktemp("tree").resolve()
    (base / "slides" / "sub").mkdir(parents=True)
    (base / "slides-secret").mkdir()
    for name in ("slides/a.svs", "slides/sub/b b.svs", "slides-secret/c.svs", "outside.svs", "slides/100%25.svs"):
        (base / name).write_bytes(b"x")
    (base / "slides" / "link_in.svs").symlink_to(base / "slides" / "a.svs")
    (base / "slides" / "link_out.svs").symlink_to(base / "outside.svs")
    (base / "slides" / "folder_out").symlink_to(base / "slides-secret")
    (base / "slides" / "loop.svs").symlink_to(base / "slides" / "loop.svs")
    (base / "slides" / "dangling.svs").symlink_to(base / "nothing.svs")
    (base / "slides" / "series").mkdir()
    (base / "slides" / "series" / "1.dcm").symlink_to(base / "outside.svs")
    os.mkfifo(base / "slides" / "pipe.svs")
    return base


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("a.svs", "a.svs"),
        ("file:a.svs", "a.svs"),
        ("FILE:a.svs", "a.svs"),
        ("file://{base}/slides/a.svs", "a.svs"),
        ("file://localhost{base}/slides/a.svs", "a.svs"),
        ("file:{base}/slides/sub/b%20b.svs", "sub/b b.svs"),
        ("{base}/slides/sub/b b.svs", "sub/b b.svs"),
        ("sub/../a.svs", "a.svs"),
        ("file:%61.svs", "a.svs"),
        ("100%25.svs", "100%25.svs"),
        ("file:100%2525.svs", "100%25.svs"),
        ("link_in.svs", "a.svs"),
        ("sub", "sub"),
    ],
)
def test_a_reference_under_a_root_is_found(tree: Path, reference: str, found: str) -> None:
    roots = (tree / "slides",)
    assert resolve_reference(reference.format(base=tree), roots) == tree / "slides" / found


@pytest.mark.parametrize(
    "reference",
    [
        "../outside.svs",
        "../slides-secret/c.svs",
        "{base}/outside.svs",
        "{base}/slides-secret/c.svs",
        "file:///etc/passwd",
        "/etc/passwd",
        "/no/such/file/anywhere",
        "..",
        ".",
        "/",
        "{base}/slides",
        "file:%2e%2e/outside.svs",
        "file:sub/%2E%2E/%2E%2E/outside.svs",
        "file:///%2e%2e/%2e%2e/etc/passwd",
        "sub/../../outside.svs",
        "link_out.svs",
        "folder_out/c.svs",
        "dangling.svs",
        "series",
    ],
)
def test_what_leads_outside_is_forbidden_whether_or_not_it_exists(tree: Path, reference: str) -> None:
    with pytest.raises(SlideForbidden) as caught:
        resolve_reference(reference.format(base=tree), (tree / "slides",))
    assert str(tree) not in caught.value.message
    assert caught.value.field == "slide"


@pytest.mark.parametrize("reference", ["nothing.svs", "sub/nothing.svs", "%61.svs", "loop.svs", "a.svs/b", "x" * 4000])
def test_what_is_missing_is_not_found(tree: Path, reference: str) -> None:
    with pytest.raises(SlideNotFound) as caught:
        resolve_reference(reference, (tree / "slides",))
    assert reference[:20] not in caught.value.message


@pytest.mark.parametrize(
    "reference",
    ["", "a\0.svs", "file:a%00.svs", "file:%ff.svs", "file://server/a.svs", "file://a.svs", "s3://bucket/a.svs",
     "https://host/a.svs", "HTTP://host/a.svs", "javascript:x", "y" * 5000, "file:", "a\ud800.svs"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(tree: Path, reference: str) -> None:
    with pytest.raises(BadRequest) as caught:
        resolve_reference(reference, (tree / "slides",))
    assert caught.value.field == "slide"


def test_a_pipe_is_not_opened(tree: Path) -> None:
    with pytest.raises(SlideUnreadable):
        resolve_reference("pipe.svs", (tree / "slides",))


def test_without_roots_everything_is_outside(tree: Path) -> None:
    with pytest.raises(SlideForbidden):
        resolve_reference(str(tree / "slides" / "a.svs"), ())


def test_the_second_root_is_looked_at_too(tree: Path) -> None:
    roots = (tree / "slides" / "sub", tree / "slides-secret")
    assert resolve_reference("c.svs", roots) == tree / "slides-secret" / "c.svs"


pieces = st.sampled_from(
    ["..", ".", "a.svs", "sub", "link_out.svs", "folder_out", "c.svs", "slides-secret", "%2e%2e", "", "/"]
)


@given(st.lists(pieces, max_size=8), st.sampled_from(["", "file:", "file://", "/"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_combination_of_parts_escapes(tree: Path, parts: list[str], scheme: str) -> None:
    root = tree / "slides"
    try:
        found = resolve_reference(scheme + "/".join(parts), (root,))
    except SlideReasonError:
        return
    assert found.is_relative_to(root)
    assert found != root
    assert found == found.resolve()
