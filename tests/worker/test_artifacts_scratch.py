"""Local copies of jobs in a bucket: kept while a unit runs, dropped after, and never left behind by the dead."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from worker.scratch import Scratch

JOB = "0123456789abcdef" * 2
DIES = """
import os, sys
from worker.scratch import Scratch
scratch = Scratch(sys.argv[1])
mirror = scratch.take(sys.argv[2])
mirror.root.mkdir(parents=True)
(mirror.root / "file").write_text("left behind")
print(mirror.root, flush=True)
sys.stdin.read(1)
os._exit(9)
"""


def test_a_mirror_lives_as_long_as_somebody_uses_it(tmp_path: Path):
    scratch = Scratch(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists(), "nothing is made until it is needed"
    mirror = scratch.take(JOB)
    assert scratch.take(JOB) is mirror
    (mirror.root / "deep").mkdir(parents=True)
    scratch.give_back(JOB)
    assert (mirror.root / "deep").exists()
    scratch.give_back(JOB)
    assert not mirror.root.exists()
    assert list(mirror.root.parent.iterdir()) == []
    assert scratch.take(JOB).root == mirror.root
    scratch.close()
    scratch.give_back(JOB)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [".lock"]


def test_what_the_dead_left_is_removed_and_what_the_living_use_is_not(tmp_path: Path):
    other = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path), JOB],
        cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        theirs = Path(other.stdout.readline().strip())
        first = Scratch(tmp_path)
        first.take(JOB)
        assert (theirs / "file").exists()
    finally:
        other.communicate("x", timeout=30)
    assert other.returncode == 9
    second = Scratch(tmp_path)
    second.take(JOB)
    assert not theirs.parents[1].exists()
    assert len(list(tmp_path.glob("worker-*"))) == 2
    first.close()
    second.close()


def test_the_default_is_a_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = Scratch()
    scratch.take(JOB)
    parent = tmp_path / f"slidereason-scratch-{os.getuid()}"
    assert parent.stat().st_mode & 0o777 == 0o700
    scratch.close()
    parent.chmod(0o777)
    with pytest.raises(PermissionError, match="SLIDEREASON_SCRATCH"):
        Scratch().take(JOB)
