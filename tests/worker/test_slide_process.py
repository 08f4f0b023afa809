"""A slide that crashes, hangs or swells costs its child and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from worker.errors import BadRequest, SlideNotFound, SlideUnreadable
from worker.slide_process import call_in_child, inspect_slide, read_frame, read_thumbnail
from worker.slides import open_slide
from worker.types import SlideInfo

SMALL = 2**30


def die_of_a_signal() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(600)


def swell() -> int:
    return len(bytearray(4 * 2**30))


def raise_ours() -> None:
    raise BadRequest("mpp must be positive", field="mpp", subject="slide 7")


def raise_theirs() -> None:
    raise KeyError("/secret/path/of/a/slide")


def print_and_return() -> dict:
    print("libraries print what they like")
    os.write(1, b"and write it, too")
    return {"fine": [1, 2.5, "three", None, True]}


def read_environment() -> list[str]:
    return sorted(os.environ)


def import_list() -> list[str]:
    return sorted(name for name in ("torch", "model", "service") if name in sys.modules)


class Bomb:
    """What a taken-over child would send: something that runs when it is unpacked."""

    def __reduce__(self):
        return (os.system, ("touch /tmp/slidereason-must-not-exist",))


def send_a_bomb() -> Bomb:
    return Bomb()


def fill_the_disk() -> bytes:
    return b"x" * (2**28 + 2**20)


def test_a_slide_is_described_as_if_read_here(pyramid_slide: Path):
    with open_slide(pyramid_slide, 0.4) as slide:
        expected = slide.info
    found = inspect_slide(pyramid_slide, 0.4)
    assert isinstance(found, SlideInfo)
    assert found == expected


def test_thumbnail_and_frame_are_the_same_as_read_here(pyramid_slide: Path):
    with open_slide(pyramid_slide) as slide:
        np.testing.assert_array_equal(read_thumbnail(pyramid_slide, 200), slide.thumbnail(200))
        np.testing.assert_array_equal(
            read_frame(pyramid_slide, (300, 200, 400, 400), 50, 50), slide.read_px0(300, 200, 400, 400, 50, 50)
        )


def test_errors_of_ours_come_through_whole(tmp_path: Path):
    with pytest.raises(BadRequest) as caught:
        call_in_child(raise_ours)
    assert (caught.value.message, caught.value.field, caught.value.subject) == (
        "mpp must be positive",
        "mpp",
        "slide 7",
    )
    with pytest.raises(SlideNotFound):
        inspect_slide(tmp_path / "gone.svs")
    (tmp_path / "empty.svs").write_bytes(b"")
    with pytest.raises(SlideUnreadable, match="empty"):
        inspect_slide(tmp_path / "empty.svs")


def test_other_errors_are_named_but_not_quoted():
    with pytest.raises(SlideUnreadable, match="KeyError") as caught:
        call_in_child(raise_theirs)
    assert "secret" not in str(caught.value)


def test_a_crash_is_an_unreadable_slide():
    with pytest.raises(SlideUnreadable, match="SIGSEGV"):
        call_in_child(die_of_a_signal)


def test_a_hang_ends_at_the_time_limit():
    began = time.monotonic()
    with pytest.raises(SlideUnreadable, match="longer than 1 s"):
        call_in_child(hang, timeout_s=1)
    assert time.monotonic() - began < 60


def test_a_swelling_child_ends_at_the_memory_limit():
    with pytest.raises(SlideUnreadable, match="1024 MiB"):
        call_in_child(swell, memory_bytes=SMALL)


def test_an_answer_beyond_the_limit_is_refused():
    with pytest.raises(SlideUnreadable):
        call_in_child(fill_the_disk)


def test_what_runs_when_unpacked_is_refused():
    with pytest.raises(SlideUnreadable, match="no valid answer"):
        call_in_child(send_a_bomb)
    assert not Path("/tmp/slidereason-must-not-exist").exists()


def test_prints_do_not_spoil_the_answer():
    assert call_in_child(print_and_return) == {"fine": [1, 2.5, "three", None, True]}


def test_the_child_sees_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLIDEREASON_DATABASE_URL", "postgresql://user:password@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = call_in_child(read_environment)
    assert "PATH" in seen
    assert not [name for name in seen if name.startswith(("SLIDEREASON", "AWS"))]


def test_the_child_loads_no_torch():
    assert call_in_child(import_list) == []


def test_no_child_outlives_its_call(pyramid_slide: Path):
    for call in (lambda: inspect_slide(pyramid_slide), lambda: call_in_child(hang, timeout_s=1)):
        try:
            call()
        except SlideUnreadable:
            pass
    children = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert "serve_one" not in children
