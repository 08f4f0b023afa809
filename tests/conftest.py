"""Fixtures that more than one room of the house needs."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides and masks; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("SLIDEREASON_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"real data not found at {folder}; set SLIDEREASON_DATA to its folder")
    return folder
