"""What a benchmark leaves: every repetition, the median with its spread, and everything needed to run it again."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """One quantity, measured some times.

    Attributes:
        name: what was measured.
        unit: e.g. `tiles/s`.
        values: every repetition, in order.
        notes: further numbers that belong to it.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """With median, least and most."""
        return {
            **asdict(self), "median": statistics.median(self.values), "min": min(self.values), "max": max(self.values),
        }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given.

    Attributes:
        seed: of everything random.
        repeats: repetitions of each measurement.
        work: an empty folder for what it makes.
        model: name of the segmenter.
        quick: as little as shows that it works.
        folder: where results go.
    """

    seed: int
    repeats: int
    work: Path
    model: str
    quick: bool
    folder: Path = RESULTS


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, ...]:
    """Seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return tuple(seconds)


def peak_memory_mb() -> float:
    """Most memory this process held since it was started, in MB.

    `getrusage` would count the process that started it as well: Linux carries `ru_maxrss` over an exec.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def machine() -> dict[str, Any]:
    """Where it ran, without naming the machine."""
    names = ("torch", "transformers", "numpy", "zarr", "openslide-python")
    return {
        "cpu": _cpu_model(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "gpu": _gpu_model(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in names},
    }


def _version(package: str) -> str | None:
    """None where it is not installed: a GPU's machine may have no more than the model needs."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu_model() -> str | None:
    """The first GPU's name; without torch loaded nobody used one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _commit() -> str:
    """Short hash of the working tree's commit, with `+` when files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def _module() -> str:
    """What was called: `benchmarks.run`, or a benchmark by itself."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None and spec.name.startswith("benchmarks.") else "benchmarks.run"


def write_result(
    name: str, measurements: Sequence[Measurement], data: str, bench: Bench, folder: Path = RESULTS
) -> Path:
    """Write `NAME.json` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    result = {
        "benchmark": name,
        "command": ["python", "-m", _module(), *sys.argv[1:]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "seed": bench.seed,
        "model": bench.model,
        "data": data,
        "machine": machine(),
        "measurements": [measurement.to_json() for measurement in measurements],
    }
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
