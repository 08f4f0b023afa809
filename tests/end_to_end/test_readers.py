"""A served overlay opens by URL in the readers that people use, and each reads the very pixels on the disk."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr

from benchmarks.readers import READERS, ZARRITA, Served, on_disk, serving_overlay


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_overlay(tmp_path_factory.mktemp("readers")) as served:
        yield served


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_sees_the_same_pixels(served: Served, reader: str):
    if reader == "zarrita" and not Path(os.environ.get(ZARRITA, ""), "node_modules", "zarrita").is_dir():
        pytest.skip(f"{ZARRITA} names no folder with zarrita; scripts/check_readers.sh makes one")
    assert READERS[reader](served) == on_disk(served)


def test_there_is_something_to_see(served: Served):
    group = zarr.open_group(served.folder, mode="r")
    assert all(int(group[f"{kind}/{query}/0"][...].max()) > 0 for kind in ("labels", "probability") for query in (0, 1))
