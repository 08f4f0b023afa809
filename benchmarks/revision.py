"""An earlier revision of this repository, asked with its own code: its weights need not fit what the model is today.

The revision is laid out by `git archive` and answers in a process of its own, tile by tile, so that today's evaluation
asks it the same questions in the same views, and measures its masks in the same way.
"""

import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from model.segmenter import SegmenterCard, TileAnswer, TileBatch

REPOSITORY = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("revision_child.py")


def extract(revision: str, folder: Path) -> Path:
    """Lay out a revision's files.

    Args:
        revision: as git names it; of one that is not here, git's words are told.
        folder: created when missing.

    Returns:
        The folder.

    Raises:
        ValueError: this is no git clone, or it has no such revision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # --end-of-options: a revision that looks like an option is none
    command = ["git", "archive", "--format=tar", "--end-of-options", revision, "model"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as git:
        try:
            with tarfile.open(fileobj=git.stdout, mode="r|") as archive:
                archive.extractall(folder, filter="data")
        except tarfile.ReadError:
            pass  # what git says on stderr tells more
        said = git.stderr.read().decode(errors="replace").strip()
    if git.returncode:
        raise ValueError(f"revision {revision!r}: {said.splitlines()[-1] if said else 'git archive failed'}; a commit "
                         "of this clone is accepted")  # fmt: skip
    return folder


class RevisionSegmenter:
    """The segmenter of a laid-out revision behind the `Segmenter` protocol; ends with `close`, or as a context.

    Args:
        tree: the revision's files.
        model: name or folder, as that revision takes it.
        threads: of the child's network; None leaves it to torch.

    Raises:
        ValueError: that code does not start, or does not load the model; the message is its own.
    """

    def __init__(self, tree: Path, model: str = "tiny", threads: int | None = None):
        environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), model], cwd=tree, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            told = self._receive()
            self.card = SegmenterCard(**{**told, "targets": tuple(told["targets"])})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RevisionSegmenter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        with suppress(BrokenPipeError):  # it has ended by itself
            self._child.stdin.close()
        self._child.wait(timeout=60)
        self._child.stdout.close()

    def predict(self, batch: TileBatch, cancelled: Callable[[], bool] | None = None) -> list[TileAnswer]:
        """See `model.segmenter.Segmenter.predict`.

        Raises:
            ValueError: the batch has an exemplar, which early revisions do not know, or the child refused it.
        """
        if any(exemplar is not None for exemplar in batch.exemplars):
            raise ValueError("a revision is asked in words alone: no exemplar is accepted")
        told = {"images": batch.images, "mpp": batch.mpp, "queries": list(batch.queries), "forced": batch.forced}
        pickle.dump(told, self._child.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._child.stdin.flush()
        return [TileAnswer(**one) for one in self._receive()]

    def _receive(self) -> list | dict:
        """The child's next message; what went wrong there is raised here."""
        try:
            kind, value = pickle.load(self._child.stdout)
        except EOFError:
            raise ValueError(f"the revision's process ended with {self._child.wait()}; see its words above") from None
        if kind == "error":
            raise ValueError(f"the revision's code: {value}")
        return value
