"""A child that stays: it holds one open slide and answers many calls, until it dies of one or is not needed.

The same walls as in `worker.slide_process`, for readers who come back: opening a slide costs a third of a second, a
tile of an open one a few milliseconds. A child sees one slide in its life, so what one slide did to its decoder never
reaches another.
"""

import importlib
import os
import pickle
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from worker.errors import QueueFull, SlideUnreadable
from worker.slide_process import (
    MEMORY_BYTES,
    TIMEOUT_S,
    clean_environment,
    death_of,
    outcome_of,
    read_outcome,
    value_of,
)

MOST_CHILDREN = 4
MOST_OF_ONE = 2
"""Children that may hold the same slide: a second one serves while the first decodes."""

IDLE_S = 300.0
DYING_S = 2.0
MAX_MESSAGE_BYTES = 2**26
HEAD_BYTES = 8
PRELOAD = ("worker.slide_tiles", "worker.overlay_tiles")
"""What a child imports before it is asked for anything."""


class SlideChild:
    """A process of its own that makes one object and calls its methods.

    Args:
        timeout_s: a call that takes longer ends the child.
        memory_bytes: limit of its address space.

    Attributes:
        sound: False once it has crashed, hung, or said what is no answer; then it is of no more use.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES):
        self.timeout_s, self.memory_bytes = timeout_s, memory_bytes
        self.sound = True
        self._process = subprocess.Popen(
            [sys.executable, "-c", _start_line()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            bufsize=0,
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)

    def call(self, name: str, *args: Any) -> Any:
        """The first call makes the object, `module:Class`; later ones call its methods.

        Raises:
            SlideReasonError: the error that was raised there, when it was one of ours.
            SlideUnreadable: it raised another, crashed, hung or passed a limit.
        """
        request = pickle.dumps((name, args, self.memory_bytes, self.timeout_s))
        self.sound = False
        answer = self._exchange(len(request).to_bytes(HEAD_BYTES, "little") + request)
        if answer is None:
            raise death_of(self._ended())
        outcome, value = read_outcome(answer)
        self.sound = outcome in ("ok", "error")
        return value_of(outcome, value, self.memory_bytes)

    def close(self) -> None:
        """End the process; may be repeated."""
        self.sound = False
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _exchange(self, message: bytes) -> bytes | None:
        """Send, and wait for the answer; None when the child ended instead."""
        deadline = time.monotonic() + self.timeout_s
        into, out = self._process.stdin.fileno(), self._process.stdout.fileno()
        pipes = select.poll()
        pipes.register(out, select.POLLIN)
        pipes.register(into, select.POLLOUT)
        unsent, came = memoryview(message), bytearray()
        while len(came) < HEAD_BYTES or len(came) < HEAD_BYTES + _length(came):
            ready = dict(pipes.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                self.close()
                raise SlideUnreadable(f"the slide took longer than {self.timeout_s:g} s to read", field="slide")
            if into in ready:
                try:
                    unsent = unsent[os.write(into, unsent) :]
                except BrokenPipeError:
                    return None
                if not unsent:
                    pipes.unregister(into)
            if out in ready:
                piece = os.read(out, 2**20)
                came += piece
                if not piece:
                    return None
                if len(came) >= HEAD_BYTES and _length(came) > MAX_MESSAGE_BYTES:
                    return b""
        return bytes(came[HEAD_BYTES:])

    def _ended(self) -> int:
        """How a process ended that is about to: its exit status."""
        try:
            return self._process.wait(DYING_S)
        except subprocess.TimeoutExpired:  # it closed its pipes and lives on
            self.close()
            return self._process.returncode


def _length(message: bytes | bytearray) -> int:
    return int.from_bytes(message[:HEAD_BYTES], "little")


def _start_line() -> str:
    # The child imports from where the parent does; nothing is taken from the slide's folder.
    return f"import sys; sys.path[:] = {[entry or os.getcwd() for entry in sys.path]!r}; " + (
        "from worker.slide_child import serve; serve()"
    )


def serve() -> None:
    """The child's life: answer until nobody asks any more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries must not end up in the answers
    for name in PRELOAD:
        importlib.import_module(name)
    held = None
    while len(head := requests.read(HEAD_BYTES)) == HEAD_BYTES:
        name, args, memory_bytes, timeout_s = pickle.loads(requests.read(_length(head)))
        _limit(memory_bytes, timeout_s)
        if held is None:
            said, made = outcome_of(lambda: _make(name, args))  # noqa: B023  (called at once)
            held, outcome = (made, (said, None)) if said == "ok" else (None, (said, made))
        else:
            outcome = outcome_of(lambda: getattr(held, name)(*args))  # noqa: B023
        _answer(answers, pickle.dumps(outcome, protocol=5))
    os._exit(0)


def _make(name: str, args: tuple) -> Any:
    module, _, kind = name.partition(":")
    return getattr(importlib.import_module(module), kind)(*args)


def _answer(answers: BinaryIO, answer: bytes) -> None:
    answers.write(len(answer).to_bytes(HEAD_BYTES, "little") + answer)
    answers.flush()


def _limit(memory_bytes: int, timeout_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # outlives a parent that died before it could kill: 16 threads may use 16 times the wall clock
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + timeout_s * 16) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


@dataclass
class _Held:
    child: SlideChild | None
    key: str
    busy: bool = True
    used: float = field(default_factory=time.monotonic)


class SlideChildren:
    """A few children, each holding what it was last needed for; the longest unused one makes room. Thread-safe.

    Args:
        timeout_s, memory_bytes: of each child.
        most: children at once; of_one: of them for one key.
    """

    def __init__(
        self,
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
        most: int = MOST_CHILDREN,
        of_one: int = MOST_OF_ONE,
    ):
        self._limits = (timeout_s, memory_bytes)
        self._most, self._of_one = most, of_one
        self._free = threading.Condition()
        self._held: list[_Held] = []
        self._spare: SlideChild | None = None
        self._closed = False

    def call(self, key: str, maker: str, args: tuple, name: str, *more: Any) -> Any:
        """Call a method of the object that a child holds under a key, made when there is none.

        Args:
            key: names the object, and changes when what it was made of changes.
            maker, args: `module:Class` and what it takes.
            name, more: the method and what it takes.

        Raises:
            SlideReasonError, SlideUnreadable: see `SlideChild.call`.
            QueueFull: every child was busy for as long as a call may take.
        """
        with self._taken(key) as held:
            if held.child is None:
                held.child = self._made(maker, args)
            return held.child.call(name, *more)

    def _made(self, maker: str, args: tuple) -> SlideChild:
        child = self._new()
        try:
            child.call(maker, *args)
        except BaseException:
            child.close()
            raise
        return child

    def warm(self) -> None:
        """Start a child ahead of its first use."""
        spare = SlideChild(*self._limits)
        with self._free:
            if self._spare is None and not self._closed:
                self._spare, spare = spare, None
        if spare is not None:
            spare.close()

    def close(self) -> None:
        """End every child that is idle, and the others after their call."""
        with self._free:
            self._closed = True
            idle = [held for held in self._held if not held.busy]
            self._held = [held for held in self._held if held.busy]
            spare, self._spare = self._spare, None
        for child in [held.child for held in idle] + ([spare] if spare else []):
            child.close()

    def _new(self) -> SlideChild:
        with self._free:
            spare, self._spare = self._spare, None
        child = spare or SlideChild(*self._limits)
        threading.Thread(target=self.warm, name="spare-child", daemon=True).start()
        return child

    @contextmanager
    def _taken(self, key: str) -> Iterator[_Held]:
        held = self._take(key)
        try:
            yield held
        finally:
            self._give_back(held, held.child is not None and held.child.sound and not self._closed)

    def _take(self, key: str) -> _Held:
        """A held object that is idle, or the right to make one."""
        deadline = time.monotonic() + self._limits[0]
        with self._free:
            while True:
                mine = [held for held in self._held if held.key == key]
                idle = next((held for held in mine if not held.busy), None)
                if idle is not None:
                    idle.busy = True
                    return idle
                if len(mine) < self._of_one and self._make_room():
                    fresh = _Held(None, key)
                    self._held.append(fresh)
                    return fresh
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise QueueFull("too many slides are being looked at; try again later", retry_after_s=5)
                self._free.wait(left_s)

    def _make_room(self) -> bool:
        """Whether one more child may start; closes those unused for long, and one more where all places are taken."""
        idle = sorted((held for held in self._held if not held.busy), key=lambda held: held.used)
        old = [held for held in idle if time.monotonic() - held.used > IDLE_S]
        if not old and len(self._held) >= self._most:
            old = idle[:1]
        for held in old:
            self._held.remove(held)
            held.child.close()
        return len(self._held) < self._most

    def _give_back(self, held: _Held, sound: bool) -> None:
        with self._free:
            held.busy, held.used = False, time.monotonic()
            if not sound:
                self._held.remove(held)
            self._free.notify_all()
        if not sound and held.child is not None:
            held.child.close()
