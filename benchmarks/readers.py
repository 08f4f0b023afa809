"""Whether a served overlay reads the same in zarr-python, ome-zarr-py and zarrita: `scripts/check_readers.sh`.

A job is run on a made slide, a gateway serves its overlay, and each reader opens the URL. Every array that a reader
reaches is compared by shape, type and the SHA-256 of its pixels with the files on the disk.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from benchmarks.record import RESULTS, Bench, Measurement, write_result
from tests.service.live import listening, settings_of
from tests.worker.report_jobs import real_job
from worker.pyramid import OVERLAY, levels_of

ZARRITA = "SLIDEREASON_ZARRITA"
"""Environment variable: a folder whose `node_modules` holds zarrita."""
SCRIPT = Path(__file__).with_name("readers_zarrita.mjs")
Pixels = dict[str, str]
"""Array → shape, type and SHA-256 of its pixels in C order."""


@dataclass(frozen=True)
class Served:
    """A finished job whose overlay is served at `url` and lies in `folder`; `arrays` are the names of all in it."""

    url: str
    folder: Path
    arrays: tuple[str, ...]


@contextmanager
def serving_overlay(root: Path) -> Iterator[Served]:
    """Run a job of two questions in `root`, and serve its overlay until the context ends."""
    done = real_job(root)
    settings = settings_of(root, artifacts=str(root / "jobs"))
    levels = [level.index for level in levels_of(done.plan)]
    groups = ["", *(f"{kind}/{query}" for kind in ("labels", "probability") for query in (0, 1))]
    arrays = tuple(f"{group}/{level}".lstrip("/") for group in groups for level in levels)
    with listening(settings) as live:
        yield Served(f"{live.url}/v1/jobs/{done.job_id}/overlay", done.folder / OVERLAY, arrays)


def fingerprint(pixels: np.ndarray) -> str:
    """Shape, type and SHA-256 of an array; bytes are little-endian."""
    plain = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<"))
    return f"{list(plain.shape)} {plain.dtype.name} {hashlib.sha256(plain.tobytes()).hexdigest()}"


def on_disk(served: Served) -> Pixels:
    """What the files hold."""
    group = zarr.open_group(served.folder, mode="r")
    return {name: fingerprint(np.asarray(group[name][...])) for name in served.arrays}


def by_zarr(served: Served) -> Pixels:
    """By zarr-python, from the URL."""
    group = zarr.open_group(served.url, mode="r")
    return {name: fingerprint(np.asarray(group[name][...])) for name in served.arrays}


def by_ome_zarr(served: Served) -> Pixels:
    """By ome-zarr-py, from the URL: each image and label group of its own accord."""
    groups = sorted({name.rpartition("/")[0] for name in served.arrays})
    found = {}
    for group in groups:
        url = f"{served.url}/{group}".rstrip("/")
        # A label's image comes with it, as a node of its own.
        (node,) = (node for node in Reader(parse_url(url))() if node.zarr.path.rstrip("/") == url and node.data)
        for level, data in enumerate(node.data):
            found[f"{group}/{level}".lstrip("/")] = fingerprint(np.asarray(data))
    return found


def by_zarrita(served: Served) -> Pixels:
    """By zarrita in Node.js, from the URL.

    Raises:
        KeyError: the environment does not say where zarrita is.
        CalledProcessError: it could not read; what it said stands on stderr.
    """
    folder = Path(os.environ[ZARRITA])
    script = shutil.copy(SCRIPT, folder / SCRIPT.name)
    said = subprocess.run(
        ["node", script, served.url, *served.arrays], cwd=folder, capture_output=True, text=True, check=False
    )
    if said.returncode:
        raise RuntimeError(f"zarrita: {said.stderr.strip()}")
    return json.loads(said.stdout)


READERS: dict[str, Callable[[Served], Pixels]] = {
    "zarr-python": by_zarr,
    "ome-zarr-py": by_ome_zarr,
    "zarrita": by_zarrita,
}


def version_of(reader: str) -> str:
    """The version that was used."""
    if reader == "zarrita":
        package = Path(os.environ[ZARRITA]) / "node_modules" / "zarrita" / "package.json"
        return json.loads(package.read_text(encoding="utf-8"))["version"]
    return version({"zarr-python": "zarr", "ome-zarr-py": "ome-zarr"}[reader])


def compare(served: Served, readers: Sequence[str]) -> list[Measurement]:
    """Arrays that each reader reads as the disk has them."""
    truth, measured = on_disk(served), []
    for name in readers:
        started = time.perf_counter()
        found = READERS[name](served)
        equal = [array for array in served.arrays if found.get(array) == truth[array]]
        notes: dict[str, Any] = {
            "version": version_of(name), "of": len(truth), "equal": len(equal) == len(truth),
            "unequal": sorted(set(truth) - set(equal)), "seconds": round(time.perf_counter() - started, 2),
        }  # fmt: skip
        measured.append(Measurement(name, "equal arrays", (len(equal),), notes))
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all readers that are there, print and record the outcome; 1 when any reads other pixels."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: benchmarks/results)")
    options = parser.parse_args(argv)
    names = [name for name in READERS if name != "zarrita" or ZARRITA in os.environ]
    with tempfile.TemporaryDirectory(prefix="slidereason-readers-") as work:
        with serving_overlay(Path(work)) as served:
            measured = compare(served, names)
        bench = Bench(0, 1, Path(work), "tests.segmenters:hue_segmenter", False, options.out)
        write_result("readers", measured, "overlay of a made slide of 1200 x 900 px, two questions", bench, options.out)
    for each in measured:
        verdict = "equal" if each.notes["equal"] else f"UNEQUAL: {', '.join(each.notes['unequal'])}"
        print(f"{each.name} {each.notes['version']}: {each.values[0]} of {each.notes['of']} arrays, {verdict}")
    return int(not all(each.notes["equal"] for each in measured))


if __name__ == "__main__":
    raise SystemExit(main())
