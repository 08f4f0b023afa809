"""Fixtures that more than one room of the house needs."""

import os
from pathlib import Path

import pytest

from tests.made_slides import tissue_picture, write_pyramid, write_sparse

os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]

PROCESSES = (
    "faults/", "end_to_end/", "browser/", "service/test_client.py", "service/test_events.py", "worker/test_embedded.py",
    "worker/test_health.py", "worker/test_queue.py", "worker/test_worker_main.py",
)  # fmt: skip
"""Tests of several processes that are killed, starved and cut off while others share the machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of several processes get a second try; pytest's summary counts and names each rerun."""
    for item in items:
        if str(item.path.relative_to(REPOSITORY / "tests")).startswith(PROCESSES):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=5))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and masks; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("SLIDEREASON_DATASETS", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"real data not found at {folder}; set SLIDEREASON_DATASETS to its folder")
    return folder


@pytest.fixture(scope="session")
def pyramid_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramidal JPEG TIFF of 1600 x 1200 px, 0.5 µm/px, three levels: an ellipse of tissue on glass."""
    path = tmp_path_factory.mktemp("slides") / "pyramid.tif"
    return write_pyramid(path, tissue_picture(1600, 1200))


@pytest.fixture(scope="session")
def sparse_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TIFF of 100,000 x 100,000 px at 0.25 µm/px that stores one island of 4,000 px, from (40000, 40000) on."""
    return write_sparse(tmp_path_factory.mktemp("slides") / "sparse.tif")
