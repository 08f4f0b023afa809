"""A child that stays answers many calls about one slide, and dies alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.errors import BadRequest, QueueFull, SlideNotFound, SlideUnreadable
from worker.slide_child import MAX_MESSAGE_BYTES, SlideChild, SlideChildren

FRAGILE = f"{__name__}:Fragile"


class Fragile:
    """What a child holds here: it does what slides may make their readers do."""

    def __init__(self, name: str = "slide", refuse: bool = False):
        if refuse:
            raise SlideNotFound("no such slide", field="slide")
        self.name, self.calls = name, 0

    def count(self) -> tuple[str, int, int]:
        self.calls += 1
        return self.name, self.calls, os.getpid()

    def echo(self, text: bytes) -> bytes:
        print("libraries print what they like")
        return text

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(self) -> None:
        time.sleep(600)

    def nap(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def swell(self) -> int:
        return len(bytearray(4 * 2**30))

    def refuse(self) -> None:
        raise BadRequest("there is no such tile", field="col")

    def fail(self) -> None:
        raise KeyError("/secret/path/of/a/slide")

    def send_too_much(self) -> bytes:
        return bytes(MAX_MESSAGE_BYTES + 1)

    def send_nonsense(self) -> type:
        return subprocess.Popen

    def close_pipes(self) -> None:
        for number in (0, 1, 3, 4, 5, 6, 7, 8):
            try:
                os.close(number)
            except OSError:
                pass
        time.sleep(600)

    def modules(self) -> list[str]:
        return sorted(name for name in ("torch", "cv2", "zarr", "service", "model") if name in sys.modules)

    def environment(self) -> list[str]:
        return sorted(os.environ)


@pytest.fixture
def child() -> Iterator[SlideChild]:
    child = SlideChild(timeout_s=20, memory_bytes=2**30)
    child.call(FRAGILE)
    yield child
    child.close()


@pytest.fixture
def children() -> Iterator[SlideChildren]:
    children = SlideChildren(timeout_s=20, memory_bytes=2**30, most=2, of_one=1)
    yield children
    children.close()


def test_what_it_made_is_kept_between_calls(child: SlideChild):
    assert child.call("count")[:2] == ("slide", 1)
    assert child.call("count")[:2] == ("slide", 2)


def test_large_requests_and_answers_arrive_whole(child: SlideChild):
    text = os.urandom(3 * 2**20)
    assert child.call("echo", text) == text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crash", "SIGSEGV"),
        ("swell", "1024 MiB"),
        ("send_too_much", "no valid answer"),
        ("send_nonsense", "no valid answer"),
        ("close_pipes", "made its reader fail"),
    ],
)
def test_what_breaks_it_is_one_clear_error(child: SlideChild, name: str, said: str):
    with pytest.raises(SlideUnreadable, match=said):
        child.call(name)
    assert not child.sound


def test_what_hangs_is_ended_in_time(child: SlideChild):
    child.timeout_s = 0.5
    began = time.monotonic()
    with pytest.raises(SlideUnreadable, match="longer than 0.5 s"):
        child.call("hang")
    assert time.monotonic() - began < 5
    assert not child.sound


def test_an_error_of_the_call_leaves_it_sound(child: SlideChild):
    with pytest.raises(BadRequest, match="no such tile") as caught:
        child.call("refuse")
    assert caught.value.field == "col"
    with pytest.raises(SlideUnreadable) as caught:
        child.call("fail")
    assert "/secret" not in str(caught.value)
    assert child.sound and child.call("count")[1] == 1


def test_it_knows_no_secrets_and_loads_nothing_that_gateways_lack(child: SlideChild, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    other = SlideChild()
    other.call(FRAGILE)
    assert not [name for name in other.call("environment") if name.startswith(("AWS", "SLIDEREASON"))]
    other.close()
    assert child.call("modules") == []


def test_it_ends_with_whoever_started_it(pyramid_slide: Path):
    line = (
        "import os, sys; from worker.slide_child import SlideChild; c = SlideChild(); "
        f"c.call('worker.slide_tiles:SlideTiles', {str(pyramid_slide)!r}); print(c._process.pid, flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    told = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 10
    while running(int(told.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(int(told.stdout))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_child_sees_one_slide(children: SlideChildren):
    first = children.call("a", FRAGILE, ("a",), "count")
    assert children.call("a", FRAGILE, ("a",), "count") == ("a", 2, first[2])
    assert children.call("b", FRAGILE, ("b",), "count")[:2] == ("b", 1)
    assert children.call("b", FRAGILE, ("b",), "count")[2] != first[2]


def test_the_longest_unused_makes_room(children: SlideChildren):
    pids = {key: children.call(key, FRAGILE, (key,), "count")[2] for key in "ab"}
    children.call("a", FRAGILE, ("a",), "count")
    children.call("c", FRAGILE, ("c",), "count")
    assert children.call("a", FRAGILE, ("a",), "count") == ("a", 3, pids["a"])
    assert not running(pids["b"])
    assert children.call("b", FRAGILE, ("b",), "count")[:2] == ("b", 1)


def test_after_a_crash_the_next_call_has_a_new_child(children: SlideChildren):
    pid = children.call("a", FRAGILE, ("a",), "count")[2]
    with pytest.raises(SlideUnreadable, match="SIGSEGV"):
        children.call("a", FRAGILE, ("a",), "crash")
    name, calls, other = children.call("a", FRAGILE, ("a",), "count")
    assert (name, calls) == ("a", 1) and other != pid


def test_what_cannot_be_made_is_not_kept(children: SlideChildren):
    for _ in range(3):  # more than there are places
        with pytest.raises(SlideNotFound):
            children.call("a", FRAGILE, ("a", True), "count")
    assert children.call("a", FRAGILE, ("a",), "count")[1] == 1


def test_who_finds_every_child_busy_waits_and_is_told():
    children = SlideChildren(timeout_s=0.3, most=1)
    began = time.monotonic()
    with children._taken("a"), pytest.raises(QueueFull) as caught:
        children.call("b", FRAGILE, ("b",), "count")
    assert time.monotonic() - began >= 0.3
    assert caught.value.retry_after_s > 0


def test_who_waits_for_a_child_gets_it_when_it_is_free(children: SlideChildren):
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(children.call, "a", FRAGILE, ("a",), "nap", 0.05) for _ in range(4)]
        assert len({call.result() for call in calls}) == 1  # of_one


def test_closing_ends_every_child():
    children = SlideChildren()
    pids = [children.call(key, FRAGILE, (key,), "count")[2] for key in "ab"]
    children.close()
    assert not any(running(pid) for pid in pids)
    assert children._spare is None
