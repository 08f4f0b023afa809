"""Hostile slides: whatever opens one for the gateway or the planner does so in a child that may die.

The child is a fresh interpreter with a time limit, a memory limit and an environment without secrets. A decoder that
crashes, hangs or swells costs that child and nothing else.
"""

import importlib
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import SlideReasonError, SlideUnreadable

if TYPE_CHECKING:
    import numpy as np

    from worker.types import SlideInfo

TIMEOUT_S = 30.0
MEMORY_BYTES = 3 * 2**30
MAX_ANSWER_BYTES = 2**28
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")

ALLOWED_ANSWERS = (
    {("builtins", name) for name in ("tuple", "list", "dict", "set", "frozenset", "int", "float", "str", "bytes")}
    | {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
        for name in ("_reconstruct", "scalar", "_frombuffer")
    }
    | {("numpy", "ndarray"), ("numpy", "dtype")}
)
"""What a child may send back besides the nouns of `worker.types` and `worker.errors`: it has read hostile bytes."""


def inspect_slide(
    path: str | Path,
    mpp_override: float | None = None,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> "SlideInfo":
    """What a slide says of itself, found out in a child.

    Args:
        path: of the slide.
        mpp_override: µm per level-0 pixel to use instead of what the slide says.
        timeout_s, memory_bytes: limits of the child.

    Raises:
        SlideNotFound: nothing is at `path`.
        SlideUnreadable: no reader can open it, or the child died of it.
    """
    return call_in_child(_describe, str(path), mpp_override, timeout_s=timeout_s, memory_bytes=memory_bytes)


def read_thumbnail(
    path: str | Path, max_px: int, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> "np.ndarray":
    """The whole slide in one small picture, read in a child.

    Args:
        path: of the slide.
        max_px: upper bound of the long side.
        timeout_s, memory_bytes: limits of the child.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        SlideNotFound: nothing is at `path`.
        SlideUnreadable: no reader can open it, or the child died of it.
    """
    return call_in_child(_thumbnail, str(path), max_px, timeout_s=timeout_s, memory_bytes=memory_bytes)


def read_frame(
    path: str | Path,
    frame_px0: tuple[float, float, float, float],
    out_width: int,
    out_height: int,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> "np.ndarray":
    """Pixels of any frame of a slide, read in a child.

    Args:
        path: of the slide.
        frame_px0: (x, y, width, height) in level-0 pixels.
        out_width, out_height: size of the result.
        timeout_s, memory_bytes: limits of the child.

    Returns:
        (out_height, out_width, 3) uint8 RGB; white outside the slide.

    Raises:
        SlideNotFound: nothing is at `path`.
        SlideUnreadable: no reader can open it, or the child died of it.
    """
    arguments = (str(path), frame_px0, out_width, out_height)
    return call_in_child(_frame, *arguments, timeout_s=timeout_s, memory_bytes=memory_bytes)


def call_in_child(
    function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> Any:
    """Call a function in a fresh process that may crash, hang or swell.

    Args:
        function: of a module's top level, so that the child can import it by name.
        args: what `pickle` takes.
        timeout_s: the child is killed after this long.
        memory_bytes: limit of the child's address space.

    Returns:
        What the function returned: builtins, numpy arrays, and the nouns of `worker.types`.

    Raises:
        SlideReasonError: the error the function raised, when it was one of ours.
        SlideUnreadable: the function raised another error, or the child crashed or passed a limit.
    """
    request = pickle.dumps((function.__module__, function.__qualname__, args, memory_bytes, timeout_s))
    with tempfile.TemporaryFile() as answers:
        child = subprocess.Popen(
            [sys.executable, "-c", _start_line()],
            stdin=subprocess.PIPE,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            close_fds=True,
            start_new_session=True,
        )
        try:
            child.communicate(request, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise SlideUnreadable(f"the slide took longer than {timeout_s:g} s to read", field="slide") from None
        finally:
            if child.poll() is None:
                child.kill()
                child.communicate()
        answers.seek(0)
        return _unpack_answer(answers.read(MAX_ANSWER_BYTES), child.returncode, memory_bytes)


def _start_line() -> str:
    # The child imports from where the parent does; nothing is taken from the slide's folder.
    return f"import sys; sys.path[:] = {[entry or os.getcwd() for entry in sys.path]!r}; " + (
        "from worker.slide_process import serve_one; serve_one()"
    )


def clean_environment() -> dict[str, str]:
    """A few harmless variables; one thread per library, whose stacks would count against the memory limit."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return kept | threads | {"PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "2"}


def _unpack_answer(answer: bytes, returncode: int, memory_bytes: int) -> Any:
    if returncode != 0 or not answer:
        raise death_of(returncode)
    return value_of(*read_outcome(answer), memory_bytes)


def read_outcome(answer: bytes) -> tuple[str, Any]:
    """What a child answered: `ok`, `error` or `memory`, and the value or error; nothing in it is run.

    Raises:
        SlideUnreadable: it is no answer.
    """
    try:
        outcome, value = _AnswerUnpickler(io.BytesIO(answer)).load()
    except Exception as error:
        raise SlideUnreadable("the slide's reader sent no valid answer", field="slide") from error
    return outcome, value


def value_of(outcome: str, value: Any, memory_bytes: int) -> Any:
    """The value of a good outcome; any other is raised as one of our errors."""
    if outcome == "ok":
        return value
    if outcome == "memory":
        raise SlideUnreadable(
            f"the slide needs more than the {memory_bytes // 2**20} MiB a reader may use", field="slide"
        )
    if isinstance(value, SlideReasonError):
        raise value
    raise SlideUnreadable(f"the slide cannot be read ({value})", field="slide")


def death_of(returncode: int) -> SlideUnreadable:
    """The error that a child's end without an answer becomes."""
    return SlideUnreadable(f"the slide made its reader fail ({_reason(returncode)})", field="slide")


def _reason(returncode: int) -> str:
    if returncode < 0:
        try:
            return f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"killed by signal {-returncode}"
    return f"exit status {returncode}"


class _AnswerUnpickler(pickle.Unpickler):
    """Loads values and nothing that runs: the child may have been taken over by what it read."""

    def find_class(self, module: str, name: str) -> Any:
        ours = module in ("worker.types", "worker.errors") and isinstance(
            getattr(importlib.import_module(module), name, None), type
        )
        if ours or (module, name) in ALLOWED_ANSWERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an answer")


def serve_one() -> None:
    """The child's whole life: read one request, set the limits, call, answer."""
    module, name, args, memory_bytes, timeout_s = pickle.load(sys.stdin.buffer)
    # prints of libraries must not end up in the answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _set_limits(memory_bytes, timeout_s)

    def call() -> Any:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        return function(*args)

    outcome = outcome_of(call)
    with answers:
        pickle.dump(outcome, answers, protocol=5)
    # a broken library must not spoil the answer while it is torn down
    answers = None
    os._exit(0)


def outcome_of(work: Callable[[], Any]) -> tuple[str, Any]:
    """What a child tells of its work: `ok` and the value, `memory`, or `error` and our error or the name of another."""
    try:
        return "ok", work()
    except MemoryError:
        return "memory", None
    except SlideReasonError as error:
        return "error", portable(error)
    except Exception as error:
        return "error", type(error).__name__


def portable(error: SlideReasonError) -> SlideReasonError:
    """The same error without what hangs on it (causes, frames)."""
    return type(error)(error.message, field=error.field, subject=error.subject)


def _set_limits(memory_bytes: int, timeout_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_ANSWER_BYTES, MAX_ANSWER_BYTES))
    # outlives a parent that died before it could kill: 16 threads may use 16 times the wall clock
    seconds = int(timeout_s * 16) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _describe(path: str, mpp_override: float | None) -> "SlideInfo":
    from worker.slides import open_slide

    with open_slide(path, mpp_override) as slide:
        return slide.info


def _thumbnail(path: str, max_px: int) -> "np.ndarray":
    from worker.slides import open_slide

    with open_slide(path) as slide:
        return slide.thumbnail(max_px)


def _frame(path: str, frame_px0: tuple[float, float, float, float], out_width: int, out_height: int) -> "np.ndarray":
    from worker.slides import open_slide

    with open_slide(path) as slide:
        return slide.read_px0(*frame_px0, out_width, out_height)
